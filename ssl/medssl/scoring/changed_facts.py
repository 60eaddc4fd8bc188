"""What has changed between two groups of scans: metadata, geometry, intensities and properties of the pictures."""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from medssl.errors import UserError
from medssl.evals.explain.association import association
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import UNKNOWN
from medssl.scoring.acquisition_metadata import (
    CATEGORICAL,
    CONTINUOUS,
    FEWEST_NUMBERS,
    OTHERS,
    PIXELS,
    fact_names,
    words,
)
from medssl.scoring.picture_audit import properties_of
from medssl.scoring.targets import Subset
from medssl.store.label_values import number

PICTURES = ("noise", "sharpness", "compression blocks", "fill")  # groups of `picture_properties`
MOST_VALUES = 20  # categories of a fact; the rarer ones count as others
LEVEL = 0.95


@dataclass(frozen=True)
class Change:
    """One fact: its association with the group, from 0 (the same in both) to 1, and its values in both, in words."""

    fact: str
    association: Score
    before: str
    after: str

    @property
    def shown(self) -> bool:
        """Whether the interval excludes 0."""
        return self.association.low > 0


def changed_facts(reference: Subset, new: Subset, seed: int) -> list[Change]:
    """Return every fact that is not the same in all scans, the most changed first.

    Facts known in one of the groups only are left out (`known_in_one`). The association is Cramér's V or the correlation ratio
    (`medssl.evals.explain.association`), with intervals over patients that hold for all facts together (Bonferroni).
    """
    found = {
        k: both
        for k, both in _facts(reference, new).items()
        if all(map(_any_known, both)) and len({*both[0], *both[1]}) > 1
    }
    group = np.repeat([0, 1], [len(reference), len(new)])
    patient = np.concatenate([[f"{k} {p}" for p in s.patient] for k, s in enumerate((reference, new))])
    level = 1 - (1 - LEVEL) / max(1, len(found))
    changes = [_change(name, (before, after), group, patient, seed, level) for name, (before, after) in found.items()]
    return sorted((c for c in changes if c), key=lambda c: (not c.shown, -c.association.value))


def known_in_one(reference: Subset, new: Subset) -> list[str]:
    """Return the facts that are known for scans of one of the groups only."""
    return [
        name
        for name, both in _metadata(reference, new).items()
        if any(map(_any_known, both)) and not all(map(_any_known, both))
    ]


def _any_known(values: np.ndarray) -> bool:
    return bool((values != UNKNOWN).any()) if values.dtype.kind != "f" else bool((~np.isnan(values)).any())


def _facts(reference: Subset, new: Subset) -> dict[str, list[np.ndarray]]:
    """Return the values (N,) of each fact, of the reference and of the new scans: floats, or text."""
    before, after = _measured(reference), _measured(new)
    return _metadata(reference, new) | {name: [before[name], after[name]] for name in before}


def _metadata(reference: Subset, new: Subset) -> dict[str, list[np.ndarray]]:
    names = dict.fromkeys(name for s in (reference, new) for name in (*fact_names(s.store), *PIXELS))
    return {name: [_values(s, name) for s in (reference, new)] for name in names}


def _values(subset: Subset, name: str) -> np.ndarray:
    try:
        return words(subset, name).astype(str)
    except UserError:
        return np.full(len(subset), UNKNOWN)


def _measured(subset: Subset) -> dict[str, np.ndarray]:
    """Return numbers (N,) of the geometry, the intensities and the pictures of scans."""
    store, rows = subset.store, subset.rows
    mean, square, low, high = (store.column(name)[rows] for name in ("unit_mean", "unit_square", "low", "high"))
    spacing = [np.full(store.dims, np.nan) if s is None else s for s in store.column("spacing")[rows]]
    axes = ("slice spacing", "row spacing", "column spacing")[-store.dims :]
    facts = dict(zip(axes, np.array(spacing, np.float64).T, strict=True))
    facts |= {"brightness": mean, "contrast": np.sqrt(np.maximum(square - mean**2, 0))}
    facts |= {"window, lower end": low, "window, upper end": high}
    return facts | {name: x.mean(1) for name, x in properties_of(store, rows).items() if name in PICTURES}


def _change(
    name: str, values: tuple[np.ndarray, np.ndarray], group: np.ndarray, patient: np.ndarray, seed: int, level: float
) -> Change | None:
    """Return the change of a fact; None if it is the same in all scans."""
    every = np.concatenate(values)
    x = np.array([np.nan if (n := number(v)) is None else n for v in every])
    known = ~np.isnan(x)
    numeric = every.dtype.kind == "f" or known.all() or (known | (every == UNKNOWN)).all()
    measure = partial(association, task="classification", seed=seed, level=level)
    if numeric and len(set(x[known])) > FEWEST_NUMBERS and len(set(group[known])) == 2:
        score = measure(CONTINUOUS, x[known], y=group[known], patient=patient[known])
        return Change(name, score, *(_median(x[known & (group == k)]) for k in (0, 1)))
    text = np.where(known, [f"{v:g}" for v in x], UNKNOWN) if numeric else every
    often = [value for value, _ in Counter(text.tolist()).most_common(MOST_VALUES)]
    text = np.where(np.isin(text, often), text, OTHERS)
    if len(set(text)) == 1:
        return None
    score = measure(CATEGORICAL, text, y=group, patient=patient)
    return Change(name, score, *(_commonest(text[group == k]) for k in (0, 1)))


def _median(x: np.ndarray) -> str:
    return f"median {np.median(x):.3g}"


def _commonest(text: np.ndarray) -> str:
    (value, count), *_ = Counter(text.tolist()).most_common(1)
    return value if count == len(text) else f"{value} in {count} of {len(text)}"
