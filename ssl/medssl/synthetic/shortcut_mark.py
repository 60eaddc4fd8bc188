"""A mark burned into a corner, such as scanners and hospitals leave: planted to see who reads it instead of the scan."""

import numpy as np

CORNERS = ("top left", "top right", "bottom left", "bottom right")
EDGE = 0.1  # of the shorter side: some 20 pixels of a radiograph of 224


def place(height: int, width: int, corner: str = "top left", edge: float = EDGE) -> np.ndarray:
    """(height, width) bool: an upright L with a gap of a third of its edge to the borders, three pixels or more a side.

    Raises ValueError for another corner and for a picture that has no room for it.
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
    """A copy of (…, H, W) with `value` where the mark is, in every channel and every slice."""
    out, (height, width) = scan.copy(), scan.shape[-2:]
    out[..., place(height, width, corner, edge)] = value
    return out


def carries(positive: np.ndarray, agreement: float, u: np.ndarray) -> np.ndarray:
    """Which scans get the mark: (N,) bool. In a share `agreement` of scans the mark says what `positive` (N,) says.

    u: (N,) in [0, 1), what is drawn for each scan: equal numbers make equal choices, at any agreement.
    """
    return np.where(u < agreement, positive, ~positive)
