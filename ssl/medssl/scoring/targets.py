"""What is true of a scan: columns of a store as the numbers that a kind of task is scored on.

The kinds are those of `medssl.evals.task_types`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.task_types.base import TaskType
from medssl.evals.task_types.columns import MOST_CLASSES, SEPARATOR, number, word
from medssl.evals.task_types.task_types import task_type
from medssl.store.store import Store

OWN = ("site", "scanner", "modality")  # columns of every store that may be asked for like a label


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Attributes:
        columns: names of labels, facts, or of OWN: several for labels given one by one, and for survival (time, event).
        task: a name of TASK_TYPES.
        names: of the classes, labels or levels, in the order of the columns of predictions; empty for numbers.
        positive: values that count as there; what else is known is then not there. Empty: YES and NO, or each value a class.
    """

    columns: tuple[str, ...]
    task: str
    names: tuple[str, ...]
    positive: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.columns)

    @property
    def kind(self) -> TaskType:
        """The task."""
        return task_type(self.task)

    @property
    def width(self) -> int:
        """Columns of a prediction: classes, labels or levels; 1 for a number."""
        return max(1, len(self.names))

    def read(self, store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y of the scans `rows`, laid out as metrics want it, and a mask (N,) of those whose truth is known to the target.

        Of scans that are not in the mask, y holds nothing of meaning.
        """
        raw = [values(store, name)[rows] for name in self.columns]
        try:
            return self.kind.read(raw, self.columns, self.names, self.positive)
        except UserError as e:
            raise UserError(f"{store.path}: {e}") from e


@dataclass(frozen=True)
class Subset:
    """Scans of one store whose truth is known.

    Attributes:
        rows: (N,) of the store. y: (N, …) as the target's task is scored. missing: scans of the split without the target.
        unknown: scans left out because their class does not occur in training.
    """

    store: Store
    rows: np.ndarray
    y: np.ndarray
    missing: int
    unknown: int

    @classmethod
    def of(cls, target: Target, store: Store, rows: np.ndarray) -> "Subset":
        """The scans of `rows` that have the target."""
        y, known = target.read(store, rows)
        raw = [values(store, name)[rows] for name in target.columns]
        missing = sum(all(v is None for v in scan) for scan in zip(*raw, strict=True))
        return cls(store, rows[known], y[known], missing, int((~known).sum()) - missing)

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> np.ndarray:
        """A column of the store for these scans, as words."""
        return self.store.column(name)[self.rows].astype(str)

    @cached_property
    def patient(self) -> np.ndarray:
        """(N,) pseudonyms."""
        return self.column("patient")

    @property
    def patients(self) -> int:
        """How many there are."""
        return len(set(self.patient))

    def take(self, at: np.ndarray) -> "Subset":
        """Of these scans those at positions (or in a mask) `at`."""
        return Subset(self.store, self.rows[at], self.y[at], self.missing, self.unknown)


def values(store: Store, name: str) -> np.ndarray:
    """(N,) object: the column that somebody means by `name`, a label before a fact before a column of OWN; None where empty.

    Raises UserError when the store has none of that name.
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
    """What `columns` ask for, as the training scans `rows` of a store show it.

    `auto` takes several columns, and findings joined by |, for multilabel, more than MOST_CLASSES different
    numbers for regression, and else every value for a class. Raises UserError when that cannot be scored.
    """
    names = (columns,) if isinstance(columns, str) else tuple(map(str, columns))
    yes = (
        ()
        if positive is None
        else (str(positive),)
        if isinstance(positive, str | int | float)
        else tuple(map(str, positive))
    )
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


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
