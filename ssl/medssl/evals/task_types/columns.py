"""Values of a store's columns as numbers, words and findings. An unknown value is None."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import Raw

MOST_CLASSES = 50
YES = frozenset({"yes", "y", "true", "1", "1.0", "positive", "pos", "present"})
NO = frozenset({"no", "n", "false", "0", "0.0", "negative", "neg", "absent"})
SEPARATOR = "|"  # between the findings of one scan, as in the ChestX-ray14 table of the NIH


def word(value: Any) -> str:
    """Return a value as text, a float without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Any) -> float | None:
    """Return a value as a finite float, or None."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def numeric_order(value: str) -> tuple[float, str]:
    """Sort key: numbers by value, then other words alphabetically."""
    found = number(value)
    return (math.inf if found is None else found), value


def known(raw: Iterable[Any]) -> NDArray[np.bool_]:
    """Return a mask (N,) of the known values."""
    return np.array([v is not None for v in raw], np.bool_)


def numbers(raw: Raw, column: str) -> Floats:
    """Return the values as (N,) float64, nan where unknown. Raises UserError for a value that is not a number."""
    found = [math.nan if v is None else number(v) for v in raw]
    bad = next((v for v, n in zip(raw, found, strict=True) if n is None), None)
    if bad is not None:
        raise UserError(f"{column} must be numbers, and one is {word(bad)!r}")
    return np.array(found, np.float64)


def presence(raw: Raw, column: str, positive: tuple[str, ...]) -> Floats:
    """Return (N,): 1 present, 0 absent, nan unknown.

    With `positive`, these values mean present and all others absent; without, YES and NO hold, and any other value raises
    UserError.
    """
    yes = {p.casefold() for p in positive} or YES
    out = np.full(len(raw), np.nan)
    for i, v in enumerate(raw):
        if v is not None:
            text = word(v).casefold()
            if text not in yes and not positive and text not in NO:
                raise UserError(f"{column} has the value {word(v)!r}; say which values count with positive=[…]")
            out[i] = text in yes
    return out


def findings(value: Any) -> set[str]:
    """Return the findings in one value, which SEPARATOR joins."""
    return {f.strip() for f in word(value).split(SEPARATOR) if f.strip()}
