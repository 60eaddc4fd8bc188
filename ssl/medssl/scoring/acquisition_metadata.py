"""Possible confounders: metadata of scans, such as scanner, view and age, as categories or numbers."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.stats.resampling import FEW
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.evals.task_types.columns import MOST_CLASSES
from medssl.scoring.targets import OWN, Subset, Target, resolve_target, values
from medssl.store.label_values import as_text, canonical_value, chosen_spellings, number
from medssl.store.store import Store

PIXELS = {"pixel type": "dtype", "pixels": "shape"}  # columns for the file's pixels, before resampling
FEWEST_NUMBERS = 10  # more distinct values: continuous; fewer: categorical
OTHERS = "others"
CATEGORICAL, CONTINUOUS = "classification", "regression"  # tasks of a probe that predicts a field


@dataclass(frozen=True)
class MetadataField:
    """A metadata field that varies enough to be audited.

    Attributes:
        kind: CATEGORICAL or CONTINUOUS.
        names: names of the categories; empty for a number.
        notes: which values were pooled or excluded.
        pooled: values that count as OTHERS.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    pooled: frozenset[str] = frozenset()

    def read(self, subset: Subset) -> tuple[np.ndarray, np.ndarray]:
        """Return codes or numbers (N,), and a mask (N,) of the scans that have a value."""
        raw = _raw(subset.store, self.name)[subset.rows]
        if self.kind == CONTINUOUS:
            x = np.array([np.nan if (n := number(v)) is None else n for v in raw], np.float64)
            return x, ~np.isnan(x)
        place = {canonical_value(name): i for i, name in enumerate(self.names)}
        place |= {canonical_value(name): place[canonical_value(OTHERS)] for name in self.pooled}
        code = np.array([place.get(canonical_value(w), -1) for w in _words(raw)], np.int64)
        return code, code >= 0


def field_names(store: Store, target: Target, wanted: Iterable[str] | str | None = None) -> list[str]:
    """Return the wanted fields, or all: site, scanner, modality, acquisition metadata, and size and type of the pixels.

    Other labels, such as a treatment, are fields only if requested. Raises UserError for a name that the store does
    not have, and for the target itself.
    """
    own = {*target.columns, *(c.removeprefix("fact:") for c in target.columns)}
    known = [name for name in (*fact_names(store), *PIXELS) if name not in own]
    names = [wanted] if isinstance(wanted, str) else list(wanted or known)
    for name in names:
        if name in target.columns:
            raise UserError(f"{name} is the target; it cannot be a shortcut to itself")
        if name not in known and name not in store.labels:
            raise UserError(f"{store.path} has no metadata {name!r}.{nearest(name, [*known, *store.labels])}")
    return list(dict.fromkeys(names))


def fact_names(store: Store) -> list[str]:
    """Return the facts that a store keeps of its scans: site, scanner, modality and acquisition metadata, without labels."""
    columns = store.table.column_names
    return [*OWN, *sorted({c.removeprefix("fact:") for c in columns if c.startswith("fact:")} - set(OWN))]


def fact_target(store: Store, rows: np.ndarray, name: str) -> Target:
    """Return a fact of the training scans `rows` as a target: a number as in `load_field`, else a class.

    Raises UserError for what is not among `fact_names`, for a fact that no training scan has, and for one that is the same
    in all or nearly all of them.
    """
    names = fact_names(store)
    if name not in names:
        raise UserError(f"{store.path} has no metadata {name!r}.{nearest(name, names)}")
    raw = [v for v in _raw(store, name)[rows] if v is not None]
    seen = {canonical_value(v): v for v in raw}
    if not seen:
        known = [n for n in names if any(v is not None for v in _raw(store, n)[rows])]
        raise UserError(f"no training scan of {store.path} has a known {name}; choose another of {known}")
    if len(seen) == 1:
        raise UserError(f"{name} is {as_text(raw[0])} wherever it is known in {store.path}; choose what differs")
    numeric = len(seen) > FEWEST_NUMBERS and all(number(v) is not None for v in raw)
    if not numeric and len(seen) > MOST_CLASSES:
        raise UserError(f"{name} has {len(seen)} values in {store.path}; choose one with at most {MOST_CLASSES}")
    column = f"fact:{name}" if name not in OWN else name
    return resolve_target(store, rows, column, CONTINUOUS if numeric else CATEGORICAL)


def load_field(name: str, train: Subset, test: Subset) -> MetadataField:
    """Return a field with the categories that FEW patients have in both training and test; rarer ones are pooled.

    Raises UserError, with the reason, for a field that does not vary among FEW patients in both.
    """
    raw = [_raw(p.store, name)[p.rows] for p in (train, test)]
    seen = [v for each in raw for v in each if v is not None]
    if not seen:
        raise UserError("not known for any scan")
    if len(set(seen)) == 1 and len(seen) == len(train) + len(test):
        raise UserError(f"always {as_text(seen[0])}")
    if len(set(seen)) > FEWEST_NUMBERS and all(number(v) is not None for v in seen):
        have = [p.patient[[v is not None for v in each]] for p, each in zip((train, test), raw, strict=True)]
        patients = [len(set(h)) for h in have]
        if min(patients) < FEW:
            raise UserError(f"known for {patients[0]} training and {patients[1]} test patients; an audit needs {FEW}")
        lost = len(raw[1]) - len(have[1])
        return MetadataField(name, CONTINUOUS, (), (f"{lost} test scans without it left out",) if lost else ())
    each = [_words(part) for part in raw]
    spelled = chosen_spellings(np.concatenate(each).tolist())
    same = [np.array([spelled[w] for w in part], object) for part in each]
    return _categorical(name, same, [train.patient, test.patient])


def _categorical(name: str, values: list[np.ndarray], patients: list[np.ndarray]) -> MetadataField:
    """Return a field from the values and patients of training and test scans."""

    def common(which: set[str]) -> bool:
        counts = [len(set(p[np.isin(v.astype(str), list(which))])) for p, v in zip(patients, values, strict=True)]
        return min(counts) >= FEW

    all_ = sorted(set(values[0]) | set(values[1]))
    names = [w for w in all_ if common({w})]
    rare = {w for w in all_ if w not in names and w != UNKNOWN}
    pooled = frozenset(rare) if len(rare) > 1 and common(rare) else frozenset()
    names += [OTHERS] if pooled else []
    lost = sum(w not in (*names, *pooled) for w in values[1])
    if len(names) < 2:
        most = max(all_, key=lambda w: sum((v == w).sum() for v in values))
        raise UserError(f"nearly always {most}: no two values have {FEW} patients each in training and in test")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{len(names)} values; an audit takes at most {MOST_CLASSES}")
    notes = [f"{len(rare)} rare values count as {OTHERS}"] if pooled else []
    notes += [f"{lost} test scans with rarer values left out"] if lost else []
    return MetadataField(name, CATEGORICAL, tuple(names), tuple(notes), pooled)


def equivalent_field(field: MetadataField, others: Iterable[MetadataField], subsets: Iterable[Subset]) -> str:
    """Return the name of one of `others` that differs from a categorical `field` only in its words; "" if there is none."""
    subsets = list(subsets)

    def codes(of: MetadataField) -> list[float]:
        return [float(v) for s in subsets for v in of.read(s)[0]]

    mine = codes(field)
    for other in others:
        theirs = codes(other)
        pairs = len(set(zip(mine, theirs, strict=True)))
        if field.kind == other.kind == CATEGORICAL and pairs == len(set(mine)) == len(set(theirs)):
            return other.name
    return ""


def words(subset: Subset, name: str) -> np.ndarray:
    """Return a field's value for each scan in words, (N,) object; UNKNOWN where there is none."""
    return _words(_raw(subset.store, name)[subset.rows])


def _raw(store: Store, name: str) -> np.ndarray:
    """Return a field's value for each scan, (N,) object; None where unknown."""
    if name in PIXELS:
        raw = store.column(PIXELS[name])
        out = np.empty(len(raw), object)
        out[:] = [str(v) if name == "pixel type" else float(np.prod(v)) for v in raw]
        return out
    column = f"fact:{name}"
    try:
        return values(store, column if name not in OWN and column in store.table.column_names else name)
    except UserError as e:
        raise UserError(f"not in {store.path.name}") from e


def _words(raw: np.ndarray) -> np.ndarray:
    out = np.empty(len(raw), object)
    out[:] = [UNKNOWN if v is None else as_text(v) for v in raw]
    return out
