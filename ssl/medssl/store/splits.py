"""Splits by patient: a keyed hash of the patient decides, so that adding patients moves nobody else, except patients whose
images a new patient's images tie to others.

Patients with equal or near-duplicate images form a group, and the hash of the group decides; see `leakage.groups`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

from medssl.errors import UserError
from medssl.readers.pseudonyms import Pseudonyms

SPLITS = ("train", "val", "test")
TEST, VAL = 0.2, 0.3  # limits of the hash in [0, 1): below TEST is test, from TEST to VAL is val, the rest is train


def assign_splits(
    patients: Sequence[str],
    pseudonyms: Pseudonyms,
    fixed: Sequence[str] | None = None,
    groups: Sequence[str] | None = None,
) -> list[str]:
    """Return the split of every row, the same for all rows of a patient, and of a group unless the source splits it.

    Args:
        patients: who each row is, as from `leakage.groups.patient_identities`.
        pseudonyms: holds the project's key.
        fixed: "train", "val", "test" or "" per row, if given by the source; such patients keep their split.
        groups: the group of each row, as from `leakage.groups.group_scans`. If the source puts patients of one group into several
            splits, they stay there (public archives have such duplicates; see `count_groups_across_splits`), and other patients
            of the group join the first of train, val and test among them.

    Raises:
        UserError: if the source puts one patient into two splits.
    """
    groups = patients if groups is None else groups
    kept: dict[str, str] = {}
    conflicts: dict[str, list[int]] = {}
    for row, (patient, split) in enumerate(zip(patients, fixed or [""] * len(patients), strict=True)):
        if split and split not in SPLITS:
            raise UserError(f"row {row}: the split must be one of {', '.join(SPLITS)}")
        if split and kept.setdefault(patient, split) != split:
            conflicts.setdefault(patient, []).append(row)
    if conflicts:
        rows = sorted(rows[0] for rows in conflicts.values())[:5]
        raise UserError(
            f"the given splits put {len(conflicts)} patients into more than one split (first at scans "
            f"{', '.join(map(str, rows))} in the order they were read): scores would be too high; "
            "give each patient one split, or leave the split column out"
        )
    given: dict[str, str] = {}  # group -> split
    for patient, group in zip(patients, groups, strict=True):
        if patient in kept:
            given[group] = min(kept[patient], given.get(group, kept[patient]), key=SPLITS.index)
    drawn = {group: given.get(group) or _split(pseudonyms.split_fraction(group)) for group in dict.fromkeys(groups)}
    return [kept.get(patient) or drawn[group] for patient, group in zip(patients, groups, strict=True)]


def count_groups_across_splits(groups: Sequence[str], splits: Sequence[str]) -> int:
    """Return the number of groups in more than one split: leakage that comes from the source's own splits."""
    splits_of = Counter(group for group, _ in set(zip(groups, splits, strict=True)))
    return sum(n > 1 for n in splits_of.values())


def _split(u: float) -> str:
    return "test" if u < TEST else "val" if u < VAL else "train"


def empty_split_warning(splits: Iterable[str], patients: int) -> str:
    """Return a warning if a split has no patient, else "". It is not filled: that would move patients later."""
    missing = [s for s in SPLITS if s not in set(splits)]
    if not missing or patients < 10:
        return ""
    return f"no patient is in {' or '.join(missing)}; add patients, or give all three splits in a column named split"
