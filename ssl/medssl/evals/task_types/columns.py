"""Values of a store's columns as numbers, classes and findings. An unknown value is None."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import Raw
from medssl.store.label_values import as_text, canonical_value, number, quantity

MOST_CLASSES = 50
YES = frozenset(
    {"yes", "y", "1", "positive", "pos", "present", "있음", "유", "양성"}
)  # true is 1, see `canonical_value`
NO = frozenset({"no", "n", "0", "negative", "neg", "absent", "없음", "무", "음성"})


def numeric_order(value: str) -> tuple[float, str]:
    """Sort key: numbers by value, then other words alphabetically."""
    found = number(value)
    return (math.inf if found is None else found), value


def known(raw: Iterable[object]) -> NDArray[np.bool_]:
    """Return a mask (N,) of the known values."""
    return np.array([v is not None for v in raw], np.bool_)


def numbers(raw: Raw, column: str) -> Floats:
    """Return the values as (N,) float64, nan where unknown; "2.5 mm" is 2.5.

    Raises UserError for a value that is not a number, and for several units.
    """
    unit_of(raw, column)
    return np.array([math.nan if v is None else quantity(v)[0] for v in raw], np.float64)  # type: ignore[index]


def unit_of(raw: Iterable[object], column: str) -> str:
    """Return the unit of the numbers in a column, "" if they have none. Raises UserError as `numbers` does."""
    found = {v: quantity(v) for v in raw if v is not None}
    bad = sorted({as_text(v) for v, q in found.items() if q is None}, key=lambda v: (len(v), v))
    if bad:
        raise UserError(
            f"{column} must be numbers, and one is {bad[0]!r} ({len(bad)} such values); correct them, or leave their scans "
            f"out with unknown=['{bad[0]}'{', …' if len(bad) > 1 else ''}]"
        )
    units = sorted({q[1] for q in found.values() if q is not None})
    if len(units) > 1:
        words = ", ".join(unit or "no unit" for unit in units)
        raise UserError(f"{column} has numbers with several units ({words}); write them all in one")
    return units[0] if units else ""


def presence(raw: Raw, column: str, positive: tuple[str, ...]) -> Floats:
    """Return (N,): 1 present, 0 absent, nan unknown.

    With `positive`, these values mean present and all others absent; without, YES and NO hold, and any other value raises
    UserError.
    """
    yes = set(map(canonical_value, positive)) or YES
    out = np.full(len(raw), np.nan)
    for i, v in enumerate(raw):
        if v is not None:
            found = canonical_value(v)
            if found not in yes and not positive and found not in NO:
                raise UserError(
                    f"{column} has the value {as_text(v)!r}; say which values count with positive=[…], or leave it out "
                    f"with unknown=[{as_text(v)}]"
                )
            out[i] = found in yes
    return out
