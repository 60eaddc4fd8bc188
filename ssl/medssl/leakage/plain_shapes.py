"""Copies of shapes without texture, such as binary masks: equal after mirroring, turning, inverting, padding or windowing.

Shapes of one organ are too much alike, and have too little detail, to be compared as `medssl.leakage.equalised_grid` compares
images. What can be compared without false pairs is every pixel of them.
"""

import hashlib
from itertools import permutations, product

import numpy as np
from numpy.typing import NDArray

from medssl.leakage.equalised_grid import content

MOST_LEVELS = 16  # distinct values of a shape
MIN_EDGE = 100  # neighbours with different values, below which two patients may well have equal shapes


def shape_digest(image: NDArray[np.floating]) -> str:
    """Return a digest of an image or volume (*S), the same for all copies; "" if it is no shape or a very simple one.

    The copies are those mirrored, turned by right angles, inverted, with another uniform border or with other grey values in the
    same or the opposite order.
    """
    values = np.unique(image)
    if not 2 <= len(values) <= MOST_LEVELS:
        return ""
    inside = image
    while (part := inside[content(inside)]).size < inside.size:  # a border may hide another
        inside = part
    values, found = np.unique(inside, return_inverse=True)
    ranks = found.reshape(inside.shape).astype(np.uint8)
    if sum(np.count_nonzero(np.diff(ranks, axis=axis)) for axis in range(ranks.ndim)) < MIN_EDGE:
        return ""
    size = sorted(ranks.shape)
    digests = []
    for order in permutations(range(ranks.ndim)):
        turned = ranks.transpose(order)
        if list(turned.shape) == size:  # the axes of all copies are compared in the same order
            for step in product((1, -1), repeat=ranks.ndim):
                mirrored = turned[tuple(slice(None, None, s) for s in step)]
                digests += [_digest(x, size) for x in (mirrored, len(values) - 1 - mirrored)]
    return min(digests)


def _digest(ranks: NDArray[np.uint8], size: list[int]) -> str:
    return hashlib.blake2b(np.ascontiguousarray(ranks).tobytes() + repr(size).encode(), digest_size=16).hexdigest()
