"""A mark burned into a corner, like those of scanners and hospitals, to test whether a model relies on it."""

import numpy as np

CORNERS = ("top left", "top right", "bottom left", "bottom right")
EDGE = 0.1  # share of the shorter side; about 20 pixels for a radiograph of 224


def place(height: int, width: int, corner: str = "top left", edge: float = EDGE) -> np.ndarray:
    """Return (height, width) bool: an upright L of at least 3 pixels per side, a third of its size from the borders.

    Raises ValueError for an unknown corner or an image that is too small.
    """
    n = max(3, round(edge * min(height, width)))
    gap = -(-n // 3)
    if corner not in CORNERS or n + gap > min(height, width):
        raise ValueError(f"no room for a mark of {n} pixels in the corner {corner!r} of {height} x {width}")
    letter = np.zeros((n, n), bool)
    letter[:, :gap] = letter[-gap:] = True
    y = gap if corner.startswith("top") else height - gap - n
    x = gap if corner.endswith("left") else width - gap - n
    out = np.zeros((height, width), bool)
    out[y : y + n, x : x + n] = letter
    return out


def plant(scan: np.ndarray, value: float, corner: str = "top left", edge: float = EDGE) -> np.ndarray:
    """Return a copy of (…, H, W) with the mark set to `value`, in every channel and slice."""
    out, (height, width) = scan.copy(), scan.shape[-2:]
    out[..., place(height, width, corner, edge)] = value
    return out


def carries(positive: np.ndarray, agreement: float, u: np.ndarray) -> np.ndarray:
    """Return which scans get the mark, (N,) bool: in a share `agreement` of scans it agrees with `positive` (N,).

    u: (N,) uniform random numbers in [0, 1), one per scan.
    """
    return np.where(u < agreement, positive, ~positive)
