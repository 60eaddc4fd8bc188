"""What is true of a scan: columns of a store as the numbers that a kind of task is scored on.

The kinds are those of `medssl.evals.metrics.metrics`: classes, labels (several findings, each there, not there or unknown),
ordinal (levels with an order), value (a number) and survival (a time, and whether the event came).
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from medssl.errors import UserError, nearest
from medssl.store.store import Store

TASKS = ("auto", "classes", "labels", "ordinal", "value", "survival")
MOST_CLASSES = 50
YES = frozenset({"yes", "y", "true", "1", "1.0", "positive", "pos", "present"})
NO = frozenset({"no", "n", "false", "0", "0.0", "negative", "neg", "absent"})
OWN = ("site", "scanner", "modality")  # columns of every store that may be asked for like a label
FINDINGS = "|"  # between the findings of one scan, as in NIH's table


@dataclass(frozen=True)
class Target:
    """What is asked for.

    Attributes:
        columns: names of labels, facts, or of OWN: several for labels given one by one, and for survival (time, event).
        task: one of TASKS but auto.
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
    def width(self) -> int:
        """Columns of a prediction: classes, labels or levels; 1 for a number."""
        return max(1, len(self.names))

    def read(self, store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """y of the scans `rows`, laid out as metrics want it, and a mask (N,) of those whose truth is known to the target.

        Of scans that are not in the mask, y holds nothing of meaning.
        """
        raw = [values(store, name)[rows] for name in self.columns]
        known = np.array([all(v is not None for v in scan) for scan in zip(*raw, strict=True)], bool)
        if self.task in ("classes", "ordinal"):
            place = {name: i for i, name in enumerate(self.names)}
            y = np.array([-1 if v is None else place.get(v, -1) for v in _classes(raw[0], self.positive)], np.int64)
            return np.maximum(y, 0), known & (y >= 0)
        if self.task == "labels":
            if len(self.columns) > 1:
                y = np.stack([self._there(v, c) for v, c in zip(raw, self.columns, strict=True)], 1)
                return y, np.any(~np.isnan(y), axis=1)
            found = [set() if v is None else _findings(v) for v in raw[0]]
            return np.array([[float(name in f) for name in self.names] for f in found]).reshape(len(rows), -1), known
        if self.task == "value":
            y = _numbers(store, raw[0], self.columns[0])
            return y, known
        time, event = _numbers(store, raw[0], self.columns[0]), self._there(raw[1], self.columns[1])
        if (bad := known & ~(time > 0)).any():
            raise UserError(f"{bad.sum()} scans have {self.columns[0]} of 0 or less; survival needs times above 0")
        return np.stack([time, np.nan_to_num(event)], 1), known & ~np.isnan(event)

    def _there(self, raw: np.ndarray, column: str) -> np.ndarray:
        """1 there, 0 not there, nan unknown."""
        yes = {p.casefold() for p in self.positive} or YES
        out = np.full(len(raw), np.nan)
        for i, v in enumerate(raw):
            if v is not None:
                word = _word(v).casefold()
                if word not in yes and not self.positive and word not in NO:
                    raise UserError(f"{column} has the value {_word(v)!r}; say which values count with positive=[…]")
                out[i] = word in yes
        return out


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

    `auto` takes several columns, and findings joined by |, for labels, numbers of more than MOST_CLASSES kinds for a value, and
    else every value for a class. Raises UserError when that cannot be scored.
    """
    names = (columns,) if isinstance(columns, str) else tuple(map(str, columns))
    yes = (
        ()
        if positive is None
        else (str(positive),)
        if isinstance(positive, str | int | float)
        else tuple(map(str, positive))
    )
    if task not in TASKS:
        raise UserError(f"task is {task!r}.{nearest(task, TASKS)}")
    if not names or not all(names):
        raise UserError("target names no label")
    raw = [[v for v in values(store, name)[rows] if v is not None] for name in names]
    if not all(raw):
        raise UserError(
            f"no training scan of {store.path} has the label {names[[bool(r) for r in raw].index(False)]!r}"
        )
    if task == "auto":
        task = _guess(raw, yes)
    if len(names) > 1 and task not in ("labels", "survival"):
        raise UserError(f"task={task} takes one target, got {len(names)}: {', '.join(names)}")
    if task == "survival" and len(names) != 2:
        raise UserError(f"survival takes two columns, the time and the event, got {', '.join(names)}")
    kinds = _kinds(task, names, raw[0], yes)
    target = Target(names, task, kinds, yes)
    if task == "classes":
        _check_classes(target, raw[0])
    return target


def _guess(raw: Sequence[list[Any]], positive: tuple[str, ...]) -> str:
    if len(raw) > 1 or any(FINDINGS in _word(v) for v in raw[0]):
        return "labels"
    numbers = all(_number(v) is not None for v in raw[0])
    return "value" if numbers and not positive and len(set(raw[0])) > MOST_CLASSES else "classes"


def _kinds(task: str, names: tuple[str, ...], raw: list[Any], positive: tuple[str, ...]) -> tuple[str, ...]:
    """The names of what is predicted."""
    if task == "classes":
        found = sorted({c for c in _classes(np.array(raw, object), positive) if c is not None}, key=_as_number)
        if positive and len(found) == 2:  # the second class is the one that scores are of
            found = [f"not {_joined(positive)}", _joined(positive)]
        return tuple(found)
    if task == "ordinal":
        levels = sorted({_word(v) for v in raw}, key=_as_number)
        if any(_number(v) is None for v in levels):
            raise UserError(f"ordinal levels must be numbers, and {names[0]} has {levels[-1]!r}; use task=classes")
        if not 3 <= len(levels) <= MOST_CLASSES:
            raise UserError(f"{names[0]} has {len(levels)} levels; ordinal needs 3 to {MOST_CLASSES}")
        return tuple(levels)
    if task == "labels":
        if len(names) > 1:
            return names
        counts = Counter(f for v in raw for f in _findings(v))
        both = sorted(f for f, n in counts.items() if n < len(raw))  # what every scan has cannot be told
        if not both:
            raise UserError(f"no finding of {names[0]} is there in some training scans and not in others")
        return tuple(both)
    return ()


def _check_classes(target: Target, raw: list[Any]) -> None:
    name, wanted = target.columns[0], target.positive
    if wanted and _joined(wanted) not in target.names:
        there = sorted({_word(v) for v in raw})
        raise UserError(f"no training scan has {name}={_joined(wanted)}.{nearest(wanted[0], there)}")
    if not 2 <= len(target.names) <= MOST_CLASSES:
        only = f" ({target.names[0]})" if len(target.names) == 1 else ""
        raise UserError(
            f"label {name!r} has {len(target.names)} classes{only} among training patients; it needs 2 to {MOST_CLASSES}"
        )


def _classes(raw: np.ndarray, positive: tuple[str, ...]) -> list[str | None]:
    """Every value as the name of its class."""
    if not positive:
        return [None if v is None else _word(v) for v in raw]
    yes, name = {p.casefold() for p in positive}, _joined(positive)
    return [None if v is None else name if _word(v).casefold() in yes else f"not {name}" for v in raw]


def _joined(positive: tuple[str, ...]) -> str:
    return " or ".join(sorted(positive))


def _findings(value: Any) -> set[str]:
    return {f.strip() for f in _word(value).split(FINDINGS) if f.strip()}


def _numbers(store: Store, raw: np.ndarray, column: str) -> np.ndarray:
    numbers = [math.nan if v is None else _number(v) for v in raw]
    bad = next((v for v, n in zip(raw, numbers, strict=True) if n is None), None)
    if bad is not None:
        raise UserError(f"{column} of {store.path} must be numbers, and one is {_word(bad)!r}")
    return np.array(numbers, np.float64)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _as_number(value: str) -> tuple[float, str]:
    number = _number(value)
    return (math.inf if number is None else number), value


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))
