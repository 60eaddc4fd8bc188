"""Schedules as pure functions of progress in [0, 1], without state to save."""

import math


def cosine(frac: float, start: float, end: float) -> float:
    """Return half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(frac, 0.0), 1.0))) / 2


def warmup_cosine(frac: float, warmup: float, floor: float = 0.0) -> float:
    """Return a learning rate factor: linear rise over the first fraction `warmup`, then a cosine down to `floor`."""
    if frac < warmup:
        return frac / warmup
    return cosine((frac - warmup) / (1 - warmup), 1.0, floor)
