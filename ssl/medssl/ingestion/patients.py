"""What is uncertain about the patients of a store: scans that name no patient, and ids that differ in their spelling alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.patient_pattern import propose
from medssl.store.manifest_columns import Row


def uncertain_patients(rows: Sequence[Row], paths: Sequence[str]) -> dict[str, Any]:
    """Return what store.json records about the patients.

    Args:
        rows: with patient, patient_known, similar_id and split.
        paths: of each scan's (first) file, relative to the source.

    Returns:
        unnamed, scans: scans that name no patient, of how many;
        pattern, pattern_scans, pattern_patients, pattern_largest: the pattern that would group `pattern_scans` of them by
            patient, into so many patients, the largest with so many scans ("" and 0 if there is none);
        similar_ids: patients who differ from another only in the spelling of their id, see `pseudonyms.simplified`;
        similar_id_people: how many people they would be;
        similar_id_across_splits: of these, how many are in more than one split.
    """
    unnamed = [path for row, path in zip(rows, paths, strict=True) if not row["patient_known"]]
    found = propose(unnamed)
    people: defaultdict[str, dict[str, str]] = defaultdict(dict)  # simplified id -> patient -> split
    for row in rows:
        if row["patient_known"] and row["similar_id"]:
            people[row["similar_id"]][row["patient"]] = row["split"]
    several = [patients for patients in people.values() if len(patients) > 1]
    return {
        "unnamed": len(unnamed),
        "scans": len(rows),
        "pattern": "" if found is None else found.pattern,
        "pattern_scans": 0 if found is None else found.scans,
        "pattern_patients": 0 if found is None else found.patients,
        "pattern_largest": 0 if found is None else found.largest,
        "similar_ids": sum(map(len, several)),
        "similar_id_people": len(several),
        "similar_id_across_splits": sum(len(set(patients.values())) > 1 for patients in several),
    }


def warnings(about: Mapping[str, Any]) -> list[str]:
    """Return lines for the terminal. about: see `uncertain_patients`."""
    lines = []
    if about["pattern"]:
        lines.append(
            f"{about['unnamed']} scans name no patient, so each file (in DICOM, each study) counts as one in splits and "
            f"intervals, but the names of the files repeat: {_proposal(about)}. If that part of a name is the patient, ingest "
            "again with it; strict_patients=true refuses scans without a patient"
        )
    if about["similar_ids"]:
        lines.append(
            f"{about['similar_ids']} patients would be {about['similar_id_people']} if zeros before a number, case, "
            f"spaces, dashes, full width and .0 in their ids did not count; {about['similar_id_across_splits']} of these would "
            "then be in more than one split. To group them by patient, give each scan its patient in one "
            "spelling: labels=TABLE.csv with the columns file and patient, or patient=PATTERN if the paths hold it"
        )
    return lines


def require_patients(about: Mapping[str, Any]) -> None:
    """Raise UserError if a scan names no patient. about: see `uncertain_patients`."""
    if about["unnamed"]:
        proposal = f"; {_proposal(about)}" if about["pattern"] else ""
        raise UserError(
            f"strict_patients=true: {about['unnamed']} of {about['scans']} scans name no patient, so each file or study would "
            f"count as one{proposal}; give patient=PATTERN, or labels=TABLE.csv with a column patient, or leave "
            "strict_patients out"
        )


def _proposal(about: Mapping[str, Any]) -> str:
    return (
        f'patient="{about["pattern"]}" would group {about["pattern_scans"]} of them by patient, into '
        f"{about['pattern_patients']} patients of at most {about['pattern_largest']} scans each"
    )
