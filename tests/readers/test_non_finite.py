"""A background that is not finite is filled; missing values elsewhere are refused."""

import numpy as np
import pytest

from medssl.readers.non_finite import check_non_finite
from medssl.readers.scan import Unreadable
from medssl.readers.values import lossless

FILLED = ("non-finite background filled",)


def distance(*shape):
    """Return the distance of every voxel from the middle, 1 at the nearest border."""
    grid = np.indices(shape).astype(float)
    centre = [(n - 1) / 2 for n in shape]
    return np.sqrt(sum(((g - c) / (min(shape) / 2)) ** 2 for g, c in zip(grid, centre, strict=True)))


def outcome(bad):
    try:
        return check_non_finite(np.asarray(bad)[None])
    except Unreadable as why:
        return why.code


def small_ball():
    z = np.indices((8, 8, 8)) - 3.5
    return (z**2).sum(0) > 12


def turned():
    """Return what lies outside a square that was turned by 15° onto a grid of the same size: four corners."""
    y, x = np.indices((64, 64)) - 31.5
    c, s = np.cos(np.radians(15)), np.sin(np.radians(15))
    return np.maximum(abs(c * x - s * y), abs(s * x + c * y)) > 31.5


def sheared():
    """Return what lies outside an image of 40 columns whose rows are shifted by half a column each."""
    y, x = np.indices((40, 60))
    return (x < y / 2) | (x >= 40 + y / 2)


BACKGROUNDS = {
    "ball": small_ball(),
    "disc": distance(50, 60) > 0.7,
    "one slice of a volume": (distance(50, 60) > 0.7)[None],
    "organ at a border": (distance(40, 40, 40) > 0.7)[20:],
    "turned image": turned(),
    "two organs": np.concatenate([distance(40, 40, 40) > 0.8] * 2, axis=2),
    "sheared image": sheared(),
}


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_a_background_is_filled(name):
    assert outcome(BACKGROUNDS[name]) == FILLED


def test_a_background_with_few_damaged_values_inside():
    bad = BACKGROUNDS["disc"].copy()
    bad[25, 28:32] = True
    assert outcome(bad) == (*FILLED, "non-finite replaced")


def damaged(name):
    bad = np.zeros((20, 24, 28), bool)
    if name == "hole":
        bad[8:14, 8:14, 8:14] = True
    elif name == "hole inside a shell":
        bad = abs(distance(40, 40, 40) - 0.8) > 0.08
    elif name == "missing slices":
        bad[9:12] = True
    elif name == "missing lines":
        bad[:, 5::6] = True
    elif name == "every second slice":
        bad[::2] = True
    elif name == "block at the edge":
        bad[:4, 8:16, 8:16] = True
    elif name == "half of the slices":
        bad[:10] = True
    elif name == "everything":
        bad[:] = True
    else:
        share = float(name.removesuffix(" % at random")) / 100
        bad = np.random.default_rng(0).random((30, 30, 30)) < share
    return bad


@pytest.mark.parametrize(
    "name",
    [
        *("hole", "hole inside a shell", "missing slices", "missing lines", "every second slice", "block at the edge"),
        "half of the slices",
        *("everything", *(f"{n} % at random" for n in (2, 10, 30, 50, 70, 90, 97))),
    ],
)
def test_missing_values_elsewhere_are_refused(name):
    assert outcome(damaged(name)) == "NON_FINITE"


def test_holes_beside_a_background_are_refused():
    bad = BACKGROUNDS["disc"].copy()
    bad[20:30, 25:35] = True  # does not touch the background
    assert outcome(bad) == "NON_FINITE"


def test_a_block_at_an_edge_between_the_corners_is_no_background():
    bad = np.zeros((60, 60), bool)
    for corner in (bad[:8, :8], bad[:8, -8:], bad[-8:, :8], bad[-8:, -8:]):
        corner[:] = True
    assert outcome(bad) == FILLED
    bad[:10, 25:35] = True
    assert outcome(bad) == "NON_FINITE"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_background_becomes_the_smallest_finite_value(value):
    image = np.random.default_rng(0).normal(100, 20, (1, 8, 8, 8)).astype(np.float32)
    image[0, small_ball()] = value
    filled, steps = lossless(image)
    assert steps == list(FILLED)
    np.testing.assert_array_equal(filled[0][~small_ball()], image[0][~small_ball()])
    assert (filled[0][small_ball()] == image[0][~small_ball()].min()).all()


def test_the_background_of_a_label_map_becomes_zero():
    labels = np.where(distance(40, 40) < 0.4, 2.0, 1.0).astype(np.float32)[None]
    labels[0, distance(40, 40) > 0.9] = np.nan
    filled, _ = lossless(labels)
    np.testing.assert_array_equal(filled, np.nan_to_num(labels, nan=0))


def test_channels_are_checked_one_by_one():
    disc = BACKGROUNDS["disc"]
    assert check_non_finite(np.stack([disc, np.zeros_like(disc), disc])) == FILLED
    hole = np.zeros_like(disc)
    hole[20:30, 20:40] = True
    with pytest.raises(Unreadable, match="outside a background"):
        check_non_finite(np.stack([disc, hole, disc]))
