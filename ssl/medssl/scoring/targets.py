"""Targets: columns of a store as the numbers that a type of task is scored on (`medssl.evals.task_types`)."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from medssl.errors import UserError, nearest
from medssl.evals.task_types.base import TaskType
from medssl.evals.task_types.columns import MOST_CLASSES, NO, YES, known, unit_of
from medssl.evals.task_types.task_types import task_type
from medssl.files import digest
from medssl.store.label_values import (
    SEPARATOR,
    as_text,
    canonical_value,
    findings,
    quantity,
    quoted,
    several_spellings,
)
from medssl.store.store import Store

OWN = ("site", "scanner", "modality")  # columns that every store has


@dataclass(frozen=True)
class Target:
    """The columns to predict, and their task.

    Attributes:
        columns: names of labels, of acquisition metadata, or of OWN: several for labels with a column each, and time and
            event for survival.
        task: a key of TASK_TYPES.
        names: classes, findings or levels, in the order of the columns of predictions; empty for numbers.
        positive: values that count as positive, all other known ones being negative. Empty: every value is a class, or for
            findings YES and NO.
        unknown: values that say nothing, such as "-1" for uncertain; their scans, or single findings, are left out.
        unit: of the numbers to predict, or of the survival time; "" if there is none.
    """

    columns: tuple[str, ...]
    task: str
    names: tuple[str, ...]
    positive: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    unit: str = ""

    def __str__(self) -> str:
        return ", ".join(self.columns)

    @property
    def kind(self) -> TaskType:
        """The type of the task."""
        return task_type(self.task)

    @property
    def width(self) -> int:
        """Columns of a prediction: classes, findings or levels; 1 for a number."""
        return max(1, len(self.names))

    @property
    def has_classes(self) -> bool:
        """Return whether every scan has exactly one of several classes without an order."""
        return self.kind.scored_by_class and self.kind.ndim == 1

    def read(self, store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return y (N, …) of the scans `rows` as metrics take it, and a mask (N,) of the scans with a known target.

        y is undefined outside the mask. Raises UserError, also for numbers in another unit than those of training.
        """
        raw = self.raw(store, rows)
        try:
            if self.kind.numeric and (unit := unit_of(raw[0], self.columns[0])) != self.unit and known(raw[0]).any():
                mine, other = (u or "without a unit" for u in (unit, self.unit))
                raise UserError(f"{self.columns[0]} is {mine} here and {other} in training; write both in one unit")
            return self.kind.read(raw, self.columns, self.names, self.positive)
        except UserError as e:
            raise UserError(f"{store.path}: {e}") from e

    def raw(self, store: Store, rows: np.ndarray) -> list[np.ndarray]:
        """Return the values of each column for the scans `rows`, (N,) object; None where missing or in `unknown`."""
        return [without(values(store, name)[rows], self.unknown) for name in self.columns]


@dataclass(frozen=True)
class Subset:
    """Scans of one store with a known target.

    Attributes:
        rows: (N,) rows of the store. y: (N, …) targets as metrics take them.
        missing: number of scans of the split without a target, or with an unknown one. unknown: number excluded because
            their class is not in training.
        tied: pairs of scans, by pseudonym, that were found to show the same image of two patients.
    """

    store: Store
    rows: np.ndarray
    y: np.ndarray
    missing: int
    unknown: int
    tied: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, target: Target, store: Store, rows: np.ndarray) -> "Subset":
        """Return the scans among `rows` that have the target."""
        y, there = target.read(store, rows)
        missing = sum(all(v is None for v in scan) for scan in zip(*target.raw(store, rows), strict=True))
        return cls(store, rows[there], y[there], missing, int((~there).sum()) - missing)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """Return a column of the store for these scans, (N,) str."""
        return self.store.column(name)[self.rows].astype(str)

    @cached_property
    def patient(self) -> np.ndarray:
        """Who (N,) each scan is of, as intervals and folds count patients.

        A patient's pseudonym; patients whose images are equal or near-duplicates, of one group in the store or `tied`, are one,
        with the smallest of their pseudonyms.
        """
        ids, at = np.unique(self.column("patient"), return_inverse=True)
        first, group = np.unique(self.column("group"), return_index=True, return_inverse=True)[1:]
        scan = {name: i for i, name in enumerate(self.column("scan").tolist())}
        pairs = [(scan[a], scan[b]) for a, b in self.tied if a in scan and b in scan]
        one, other = np.vstack([np.c_[first[group], np.arange(len(at))], np.array(pairs, np.int64).reshape(-1, 2)]).T
        links = coo_array((np.ones(len(one)), (at[one], at[other])), shape=(len(ids), len(ids)))
        whole = connected_components(links, directed=False)[1]
        return ids[np.unique(whole, return_index=True)[1][whole[at]]]

    def patient_beside(self, other: "Subset") -> np.ndarray:
        """Return pseudonyms (N,) to compare with those of `other`.

        A patient that the source does not name is known by a file name, which means nothing in another store.
        """
        if self.store.path == other.store.path:
            return self.patient
        named = self.store.column("patient_known")[self.rows].astype(bool)
        return np.where(named, self.patient, [f"{p} of {self.store.fingerprint}" for p in self.patient])

    @property
    def patients(self) -> int:
        """The number of patients, by pseudonym."""
        return len(set(self.column("patient")))

    def described(self) -> str:
        """Return the number of scans and patients, with a digest of the scans, their pixels, windows and targets."""
        if not len(self):
            return "none"
        names = ("scan", "hash", "low", "high")
        columns = [self.store.column(name)[self.rows].tolist() for name in names]
        scans = sorted(zip(*columns, self.y.tolist(), strict=True), key=lambda scan: scan[0])
        return f"{len(self)} scans of {self.patients} patients [{digest(scans, 3)}]"

    def take(self, at: np.ndarray) -> "Subset":
        """Return the scans at positions `at`, or where the mask `at` is true."""
        return Subset(self.store, self.rows[at], self.y[at], self.missing, self.unknown, self.tied)


def values(store: Store, name: str) -> np.ndarray:
    """Return the column called `name`, (N,) object; None where empty.

    A label comes before acquisition metadata, and that before a column of OWN. Raises UserError if there is none.
    """
    meant = [name] if ":" in name else [f"label:{name}", f"fact:{name}", *([name] if name in OWN else [])]
    for column in meant:
        if column in store.table.column_names and (":" in column or column in OWN):
            out = np.empty(len(store), object)
            out[:] = [None if _empty(v) else v for v in store.column(column).tolist()]
            return out
    facts = [c.removeprefix("fact:") for c in store.table.column_names if c.startswith("fact:")]
    raise UserError(f"{store.path} has no label {name!r}.{nearest(name, [*store.labels, *facts] or ['none at all'])}")


def without(raw: np.ndarray, unknown: Iterable[str]) -> np.ndarray:
    """Return values (N,) with None in place of those that equal one of `unknown`."""
    out, left_out = raw.copy(), set(map(canonical_value, unknown))
    out[[v is not None and canonical_value(v) in left_out for v in raw]] = None
    return out


def resolve_target(
    store: Store,
    rows: np.ndarray,
    columns: str | Iterable[str],
    task: str = "auto",
    positive: Iterable[str] | str | None = None,
    unknown: Iterable[str] | str | None = None,
) -> Target:
    """Return the target in `columns`, its classes or findings taken from the training scans `rows` of a store.

    task="auto" means multilabel for several columns and for findings joined by |, regression for more than MOST_CLASSES
    distinct numbers, else classification. Raises UserError for a target that cannot be scored.
    """
    names, yes, left_out = (_words(() if given is None else given) for given in (columns, positive, unknown))
    kind = None if task == "auto" else task_type(task)
    if not names or not all(names):
        raise UserError("target names no label")
    raw = [[v for v in without(values(store, name)[rows], left_out) if v is not None] for name in names]
    if not all(raw):
        raise UserError(
            f"no training scan of {store.path} has the label {names[[bool(r) for r in raw].index(False)]!r}"
        )
    kind = kind or task_type(_guess(raw, yes))
    kind.check_columns(names)
    if len(names) > 1 and yes:
        _check_positive(names[kind.numeric :], raw[kind.numeric :], yes)
    unit = unit_of(raw[0], names[0]) if kind.numeric else ""
    return Target(names, kind.name, kind.names(names, raw[0], yes), yes, left_out, unit)


def _check_positive(names: Sequence[str], raw: Sequence[list[Any]], positive: tuple[str, ...]) -> None:
    """Raise UserError for a finding without any positive value, whose values do not all mean that it is absent."""
    for name, found in zip(names, raw, strict=True):
        there = {canonical_value(v): as_text(v) for v in found}
        if not there.keys() & set(map(canonical_value, positive)) and there.keys() - NO:
            raise UserError(
                f"no training scan has {name}={' or '.join(sorted(positive))}; it has {quoted(sorted(there.values()))}"
            )


def value_notes(target: Target, train: Subset, rows: np.ndarray, test: Store, test_rows: np.ndarray) -> list[str]:
    """Return lines about values of the target that are left out, written in several ways, or in no training scan.

    Args:
        train: the training scans.
        rows: all training rows of its store, labelled or not.
        test, test_rows: the store of the test scans, and all rows of these.
    """
    parts = ((train.store, rows), (test, test_rows))
    lines = []
    if target.unknown:
        left = [_count_unknown(target, *part) for part in parts]
        lines.append(f"unknown={[*target.unknown]}: {left[0]} training and {left[1]} test values left out")
    if set(map(canonical_value, target.names)) == {"-1", "0", "1"}:
        lines.append("-1, 0 and 1 are three classes; if -1 means uncertain, leave it out with unknown=[-1]")
    for i in range(target.kind.numeric, len(target.columns)):
        column, ours, theirs = target.columns[i], *(_words_of(target.raw(*part)[i]) for part in parts)
        if spelled := several_spellings({*ours, *theirs}):
            pairs = "; ".join(" and ".join(map(repr, each)) for each in spelled[:3])
            lines.append(f"{column}: {pairs} count as one value{' each' if len(spelled) > 1 else ''}")
        yes = {canonical_value(w): w for w in sorted({*ours, *theirs}) if canonical_value(w) in YES}
        told = yes.keys() <= set(map(canonical_value, target.positive)) if target.positive else not target.has_classes
        if len(yes) > 1 and not told:
            meant = sorted(yes.values())
            lines.append(f"{column}: {quoted(meant)} are different values; if not, add positive=[{', '.join(meant)}]")
        seen = set(map(canonical_value, ours))
        new = {w for w in theirs if canonical_value(w) not in seen}
        if new and (target.positive or len(target.columns) == 1):
            so = f"count as not {' or '.join(sorted(target.positive))}" if target.positive else "are not scored"
            n = sum(w in new for w in theirs)
            lines.append(f"{n} test values of {column} are in no training scan and {so}: {quoted(sorted(new))}")
    return lines


def _count_unknown(target: Target, store: Store, rows: np.ndarray) -> int:
    before = [values(store, column)[rows] for column in target.columns]
    return int(sum(known(a).sum() - known(b).sum() for a, b in zip(before, target.raw(store, rows), strict=True)))


def _words_of(raw: np.ndarray) -> list[str]:
    return [w for v in raw if v is not None for w in findings(v)]


def _guess(raw: Sequence[list[Any]], positive: tuple[str, ...]) -> str:
    if len(raw) > 1 or any(SEPARATOR in as_text(v) for v in raw[0]):
        return "multilabel"
    numbers = all(quantity(v) is not None for v in raw[0])
    distinct = len({canonical_value(v) for v in raw[0]})
    return "regression" if numbers and not positive and distinct > MOST_CLASSES else "classification"


def _words(given: Any) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | int | float) else tuple(map(str, given))


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
