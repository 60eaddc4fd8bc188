"""What a store knows of its scans beside the target: facts that a score could live off."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.stats.bootstrap import FEW
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.evals.task_types.columns import MOST_CLASSES, number, word
from medssl.scoring.targets import OWN, Subset, Target, values
from medssl.store.store import Store

PIXELS = {"pixel type": "dtype", "pixels": "shape"}  # what the file was like, before all scans came onto one grid
FEWEST_NUMBERS = 10  # a fact of more different numbers is a number, of fewer it has classes
OTHERS = "others"


@dataclass(frozen=True)
class AcquisitionField:
    """A fact that varies enough to be looked at.

    Attributes:
        name: as users call it.
        kind: classification or regression, the task of a probe that predicts it.
        names: of the classes; empty for a number.
        notes: what was done to it.
        pooled: words that count as OTHERS.
    """

    name: str
    kind: str
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    pooled: frozenset[str] = frozenset()

    def read(self, part: Subset) -> tuple[np.ndarray, np.ndarray]:
        """(N,) codes or numbers, and a mask (N,) of the scans that have one."""
        raw = _raw(part.store, self.name)[part.rows]
        if self.kind == "regression":
            x = np.array([np.nan if v is None else float(v) for v in raw], np.float64)
            return x, ~np.isnan(x)
        place = {name: i for i, name in enumerate(self.names)}
        code = np.array([place.get(OTHERS if w in self.pooled else w, -1) for w in _words(raw)], np.int64)
        return code, code >= 0


def known(store: Store, target: Target) -> list[str]:
    """Names of all facts of a store but the target: site, scanner and modality, what headers and tables say, and the pixels."""
    facts = [c.removeprefix("fact:") for c in store.table.column_names if c.startswith("fact:")]
    out = [*OWN, *sorted(set(facts) - set(OWN)), *PIXELS]
    return [name for name in out if name not in target.columns and f"fact:{name}" not in target.columns]


def chosen(store: Store, target: Target, wanted: Iterable[str] | str | None) -> list[str]:
    """The asked for, or all that are known. Other labels, of a treatment say, count as facts where they are asked for.

    Raises UserError for a name that the store does not have, and for the target itself.
    """
    all_ = known(store, target)
    names = [wanted] if isinstance(wanted, str) else list(wanted or all_)
    for name in names:
        if name in target.columns:
            raise UserError(f"{name} is the target; it cannot be a shortcut to itself")
        if name not in all_ and name not in store.labels:
            raise UserError(f"{store.path} has no fact {name!r}.{nearest(name, [*all_, *store.labels])}")
    return list(dict.fromkeys(names))


def fact_of(name: str, train: Subset, test: Subset) -> AcquisitionField:
    """The fact as training and test scans show it: values that FEW patients have in one of the two are put together.

    Raises UserError, with the reason, when it does not vary among the scans of FEW patients in both.
    """
    raw = [_raw(p.store, name)[p.rows] for p in (train, test)]
    seen = [v for each in raw for v in each if v is not None]
    if not seen:
        raise UserError("not known of any scan")
    if len(set(seen)) == 1 and len(seen) == len(train) + len(test):
        raise UserError(f"always {word(seen[0])}")
    if len(set(seen)) > FEWEST_NUMBERS and all(number(v) is not None for v in seen):
        have = [p.patient[[v is not None for v in each]] for p, each in zip((train, test), raw, strict=True)]
        if min(len(set(h)) for h in have) < FEW:
            fewest = " and ".join(str(len(set(h))) for h in have)
            raise UserError(f"known of {fewest} patients in training and test; it takes {FEW}")
        lost = len(raw[1]) - len(have[1])
        return AcquisitionField(name, "regression", (), (f"{lost} test scans without it left out",) if lost else ())
    return _classes(name, [_words(each) for each in raw], [train.patient, test.patient])


def _classes(name: str, said: list[np.ndarray], patients: list[np.ndarray]) -> AcquisitionField:
    def common(which: set[str]) -> bool:
        return all(
            len({i for i, w in zip(p, s, strict=True) if w in which}) >= FEW
            for p, s in zip(patients, said, strict=True)
        )

    all_ = sorted(set(said[0]) | set(said[1]))
    names = [w for w in all_ if common({w})]
    rare = {w for w in all_ if w not in names and w != UNKNOWN}
    pooled = frozenset(rare) if len(rare) > 1 and common(rare) else frozenset()
    names += [OTHERS] if pooled else []
    lost = sum(w not in (*names, *pooled) for w in said[1])
    if len(names) < 2:
        most = max(all_, key=lambda w: sum((v == w).sum() for v in said))
        raise UserError(f"nearly always {most}: no two values have {FEW} patients each in training and in test")
    if len(names) > MOST_CLASSES:
        raise UserError(f"{len(names)} values; it takes {MOST_CLASSES} at most")
    notes = [f"{len(rare)} rare values count as {OTHERS}"] if pooled else []
    notes += [f"{lost} test scans of rarer values left out"] if lost else []
    return AcquisitionField(name, "classification", tuple(names), tuple(notes), pooled)


def twin(fact: AcquisitionField, others: Iterable[AcquisitionField], parts: Iterable[Subset]) -> str:
    """The name of one of `others` that says the same as `fact` of every scan of `parts` in other words, or ""."""
    parts = list(parts)

    def codes(f: AcquisitionField) -> list[float]:
        return [float(v) for p in parts for v in f.read(p)[0]]

    mine = codes(fact)
    for other in others:
        theirs = codes(other)
        pairs = len(set(zip(mine, theirs, strict=True)))
        if fact.kind == other.kind == "classification" and pairs == len(set(mine)) == len(set(theirs)):
            return other.name
    return ""


def words(part: Subset, name: str) -> np.ndarray:
    """(N,) object: the words of a fact for each scan, UNKNOWN where there are none."""
    return _words(_raw(part.store, name)[part.rows])


def _raw(store: Store, name: str) -> np.ndarray:
    """(N,) object, None where unknown."""
    if name in PIXELS:
        raw = store.column(PIXELS[name])
        out = np.empty(len(raw), object)
        out[:] = [str(v) if name == "pixel type" else float(np.prod(v)) for v in raw]
        return out
    try:
        return values(
            store, name if name in OWN else f"fact:{name}" if f"fact:{name}" in store.table.column_names else name
        )
    except UserError as e:
        raise UserError(f"not known in {store.path.name}") from e


def _words(raw: np.ndarray) -> np.ndarray:
    out = np.empty(len(raw), object)
    out[:] = [UNKNOWN if v is None else word(v) for v in raw]
    return out
