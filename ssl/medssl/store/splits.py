"""Which patients train, validate and test: decided by a keyed hash of the patient, so adding patients moves nobody."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medssl.errors import UserError
from medssl.scans.alias import Alias

SPLITS = ("train", "val", "test")
TEST, VAL = 0.2, 0.3  # a patient's fraction below TEST tests, from TEST to VAL validates, the rest trains


def assign(patients: Sequence[str], alias: Alias, fixed: Sequence[str] | None = None) -> list[str]:
    """The split of every row. All rows of a patient share it.

    Args:
        patients: the pseudonym of each row's patient.
        alias: holds the project's key.
        fixed: "train", "val", "test" or "" per row, where the source says so; such a patient keeps it.

    Raises:
        UserError: when the source puts a patient into two splits.
    """
    kept: dict[str, str] = {}
    torn: dict[str, list[int]] = {}
    for row, (patient, split) in enumerate(zip(patients, fixed or [""] * len(patients), strict=True)):
        if split and split not in SPLITS:
            raise UserError(f"row {row}: the split must be one of {', '.join(SPLITS)}")
        if split and kept.setdefault(patient, split) != split:
            torn.setdefault(patient, []).append(row)
    if torn:
        rows = sorted(rows[0] for rows in torn.values())[:5]
        raise UserError(
            f"the given splits put {len(torn)} patients into more than one split (first at scans "
            f"{', '.join(map(str, rows))} in the order they were read): scores would be too high; "
            "give each patient one split, or leave the split column out"
        )
    drawn = {p: kept.get(p) or _drawn(alias.split_fraction(p)) for p in dict.fromkeys(patients)}
    return [drawn[p] for p in patients]


def _drawn(u: float) -> str:
    return "test" if u < TEST else "val" if u < VAL else "train"


def empty_splits(splits: Iterable[str], patients: int) -> str:
    """A warning when a split has no patient, else "". It stays empty: to fill it would move somebody later."""
    missing = [s for s in SPLITS if s not in set(splits)]
    if not missing or patients < 10:
        return ""
    return (
        f"no patient fell into {' or '.join(missing)}: with {patients} patients that is chance; "
        "add patients, or give the split in a column named split"
    )


class Overlap(NamedTuple):
    """What two sets of scans share."""

    patients: int
    scans: int

    def __bool__(self) -> bool:
        return self.patients > 0 or self.scans > 0


def leaks(
    a_patients: Iterable[str], a_hashes: Iterable[str], b_patients: Iterable[str], b_hashes: Iterable[str]
) -> Overlap:
    """How many patients (pseudonyms under one key) and how many images (content hashes) are in both sets."""
    return Overlap(len(set(a_patients) & set(b_patients)), len(set(a_hashes) & set(b_hashes)))
