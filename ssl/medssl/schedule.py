"""Schedules as pure functions of progress in [0, 1]. Nothing here has state to save."""

import math


def cosine(frac: float, start: float, end: float) -> float:
    """Half a cosine from `start` to `end`."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(frac, 0.0), 1.0))) / 2


def warmup_cosine(frac: float, warmup: float, floor: float = 0.0) -> float:
    """Learning-rate factor: linear up over the first `warmup` of training, then cosine down to `floor`."""
    if frac < warmup:
        return frac / warmup
    return cosine((frac - warmup) / (1 - warmup), 1.0, floor)
