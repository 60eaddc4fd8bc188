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
from medssl.evals.task_types.columns import MOST_CLASSES, SEPARATOR, number, word
from medssl.evals.task_types.task_types import task_type
from medssl.files import digest
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
    """

    columns: tuple[str, ...]
    task: str
    names: tuple[str, ...]
    positive: tuple[str, ...] = ()

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

        y is undefined outside the mask.
        """
        raw = [values(store, name)[rows] for name in self.columns]
        try:
            return self.kind.read(raw, self.columns, self.names, self.positive)
        except UserError as e:
            raise UserError(f"{store.path}: {e}") from e


@dataclass(frozen=True)
class Subset:
    """Scans of one store with a known target.

    Attributes:
        rows: (N,) rows of the store. y: (N, …) targets as metrics take them.
        missing: number of scans of the split without a target. unknown: number excluded because their class is not in training.
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
        y, known = target.read(store, rows)
        raw = [values(store, name)[rows] for name in target.columns]
        missing = sum(all(v is None for v in scan) for scan in zip(*raw, strict=True))
        return cls(store, rows[known], y[known], missing, int((~known).sum()) - missing)

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


def resolve_target(
    store: Store,
    rows: np.ndarray,
    columns: str | Iterable[str],
    task: str = "auto",
    positive: Iterable[str] | str | None = None,
) -> Target:
    """Return the target in `columns`, its classes or findings taken from the training scans `rows` of a store.

    task="auto" means multilabel for several columns and for findings joined by |, regression for more than MOST_CLASSES
    distinct numbers, else classification. Raises UserError for a target that cannot be scored.
    """
    names, yes = _words(columns), _words(() if positive is None else positive)
    kind = None if task == "auto" else task_type(task)
    if not names or not all(names):
        raise UserError("target names no label")
    raw = [[v for v in values(store, name)[rows] if v is not None] for name in names]
    if not all(raw):
        raise UserError(
            f"no training scan of {store.path} has the label {names[[bool(r) for r in raw].index(False)]!r}"
        )
    kind = kind or task_type(_guess(raw, yes))
    kind.check_columns(names)
    return Target(names, kind.name, kind.names(names, raw[0], yes), yes)


def _guess(raw: Sequence[list[Any]], positive: tuple[str, ...]) -> str:
    if len(raw) > 1 or any(SEPARATOR in word(v) for v in raw[0]):
        return "multilabel"
    numbers = all(number(v) is not None for v in raw[0])
    return "regression" if numbers and not positive and len(set(raw[0])) > MOST_CLASSES else "classification"


def _words(given: Any) -> tuple[str, ...]:
    return (str(given),) if isinstance(given, str | int | float) else tuple(map(str, given))


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
