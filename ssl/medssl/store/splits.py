"""Which patients train, validate and test: decided by a keyed hash of the patient, so adding patients moves nobody
but those whom a new one's images tie to others.

Patients whose images equal or resemble each other are one group, and the hash is the group's: see groups.py.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medssl.errors import UserError
from medssl.readers.pseudonyms import Pseudonyms

SPLITS = ("train", "val", "test")
TEST, VAL = 0.2, 0.3  # a patient's fraction below TEST tests, from TEST to VAL validates, the rest trains


def assign_splits(
    patients: Sequence[str], alias: Pseudonyms, fixed: Sequence[str] | None = None, groups: Sequence[str] | None = None
) -> list[str]:
    """The split of every row. All rows of a patient share it, and all rows of a group but where the source says otherwise.

    Args:
        patients: who each row is: a pseudonym, as of `groups.identities`.
        alias: holds the project's key.
        fixed: "train", "val", "test" or "" per row, where the source says so; such a patient keeps it.
        groups: the group of each row, as of `groups.groups`: whole patients that equal or similar images tie together. Where
            the source puts patients of one group into several splits, it wins (public archives have such duplicates; see
            `torn`), and the group's other patients follow the first of train, val and test that it gives.

    Raises:
        UserError: when the source puts a patient into two splits.
    """
    groups = patients if groups is None else groups
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
    led: dict[str, str] = {}
    for patient, group in zip(patients, groups, strict=True):
        if patient in kept:
            led[group] = min(kept[patient], led.get(group, kept[patient]), key=SPLITS.index)
    drawn = {group: led.get(group) or _drawn(alias.split_fraction(group)) for group in dict.fromkeys(groups)}
    return [kept.get(patient) or drawn[group] for patient, group in zip(patients, groups, strict=True)]


def count_split_groups(groups: Sequence[str], splits: Sequence[str]) -> int:
    """How many groups are in more than one split: leakage that the source's own splits bring along."""
    splits_of = Counter(group for group, _ in set(zip(groups, splits, strict=True)))
    return sum(n > 1 for n in splits_of.values())


def _drawn(u: float) -> str:
    return "test" if u < TEST else "val" if u < VAL else "train"


def empty_split_warning(splits: Iterable[str], patients: int) -> str:
    """A warning when a split has no patient, else "". It stays empty: to fill it would move somebody later."""
    missing = [s for s in SPLITS if s not in set(splits)]
    if not missing or patients < 10:
        return ""
    return f"no patient is in {' or '.join(missing)}; add patients, or give all three splits in a column named split"


class Overlap(NamedTuple):
    """What two sets of scans share."""

    patients: int
    scans: int

    def __bool__(self) -> bool:
        return self.patients > 0 or self.scans > 0


def count_overlap(
    a_patients: Iterable[str], a_hashes: Iterable[str], b_patients: Iterable[str], b_hashes: Iterable[str]
) -> Overlap:
    """How many patients (pseudonyms under one key) and how many images (content hashes) are in both sets."""
    return Overlap(len(set(a_patients) & set(b_patients)), len(set(a_hashes) & set(b_hashes)))
