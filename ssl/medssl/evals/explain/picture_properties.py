"""Properties of a picture that have nothing to do with the disease, as numbers: where a mark or a scanner shows.

The groups are corners, border, noise, compression blocks, sharpness, size and fill. A label that one of them predicts may be
read from a side marker, text, a border, a scanner or a way of saving files.
"""

import numpy as np

from medssl.evals.metrics.metrics import Floats

RING = 1 / 8  # width of corners and border, as a share of the edge
ALONG = 5  # blocks of the border along each side
BLOCK = 8  # edge of the blocks of JPEG
DARK = 0.05  # share of the intensity window below which a pixel is background
TINY = 1e-6


def picture_properties(picture: Floats) -> dict[str, list[float]]:
    """Return the numbers of each group for a picture (H, W) with intensities in [0, 1]; every group has a fixed length."""
    x = np.asarray(picture, np.float64)
    height, width = x.shape
    h, w = (max(1, round(RING * n)) for n in x.shape)
    corners = [x[:h, :w], x[:h, -w:], x[-h:, :w], x[-h:, -w:]]
    sides = [x[:h], x[-h:], x[:, :w].T, x[:, -w:].T]
    border = [part for side in sides for part in np.array_split(side, ALONG, axis=1) if part.size]
    border += [x[:1, :1]] * (4 * ALONG - len(border))
    steps = [np.abs(np.diff(x, axis=a)) for a in (0, 1) if x.shape[a] > 1]
    bends = [np.abs(np.diff(x, 2, axis=a)) for a in (0, 1) if x.shape[a] > 2]
    contrast = x.std() + TINY
    there = x > DARK
    rows, columns = there.any(1), there.any(0)
    return {
        "corners": [float(f(c)) for c in corners for f in (np.mean, np.std, np.max)],
        "border": [float(f(b)) for b in border for f in (np.mean, np.std)],
        "noise": [float(np.log(np.median(b) + TINY)) for b in bends] + [0.0] * (2 - len(bends)),
        "compression blocks": [_blocks(x), _blocks(x.T)],
        "sharpness": [float(np.log(s.mean() / contrast + TINY)) for s in steps] + [0.0] * (2 - len(steps)),
        "size": [float(np.log(height)), float(np.log(width)), float(np.log(height / width))],
        "fill": [float(there.mean()), float(rows.mean()), float(columns.mean())],
    }


def _blocks(x: Floats) -> float:
    """Return the log ratio of the steps between rows at the borders of JPEG's blocks to the other steps."""
    steps = np.abs(np.diff(x, axis=0)).mean(1)
    at = np.arange(1, len(x)) % BLOCK == 0
    return float(np.log((steps[at].mean() + TINY) / (steps[~at].mean() + TINY))) if at.any() and not at.all() else 0.0


def outer_ring(shape: tuple[int, ...]) -> np.ndarray:
    """Return the mask (H, W) of the pixels within an eighth of the edge from the border."""
    inside = np.zeros(shape, bool)
    inside[tuple(slice(max(1, round(RING * n)), n - max(1, round(RING * n))) for n in shape)] = True
    return ~inside
