"""A planted mark: its place, what it leaves unchanged, and how often it agrees with the label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.synthetic.shortcut_mark import CORNERS, carries, place, plant


def test_a_hand_made_mark():
    """An L of three pixels per side, one pixel from the border."""
    expected = np.zeros((8, 9), bool)
    expected[1:4, 1] = expected[3, 1:4] = True
    np.testing.assert_array_equal(place(8, 9), expected)
    moved = np.zeros((8, 9), bool)
    moved[4:7, 5] = moved[6, 5:8] = True
    np.testing.assert_array_equal(place(8, 9, "bottom right"), moved)


@given(st.integers(12, 80), st.integers(12, 80), st.sampled_from(CORNERS), st.sampled_from([0.1, 0.2]))
@settings(max_examples=40, deadline=None)
def test_a_mark_is_small_and_in_its_corner(height, width, corner, edge):
    y, x = np.nonzero(place(height, width, corner, edge))
    assert 0 < len(y) <= max(9, (edge * min(height, width) + 1) ** 2)
    assert (y.max() < height / 2) if "top" in corner else (y.min() >= height / 2)
    assert (x.max() < width / 2) if "left" in corner else (x.min() >= width / 2)
    assert min(y.min(), x.min()) > 0  # not on the border, where it could be mistaken for padding
    assert (y.max() < height - 1, x.max() < width - 1) == (True, True)


@pytest.mark.parametrize("shape", [(1, 20, 24), (3, 20, 24), (2, 5, 20, 24)])
def test_the_mark_is_in_every_channel_and_slice_and_nothing_else_changes(shape):
    scan = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    before = scan.copy()
    out = plant(scan, 4000, "top right")
    mark = place(20, 24, "top right")
    assert out.dtype == scan.dtype
    assert (out[..., mark] == 4000).all()
    np.testing.assert_array_equal(out[..., ~mark], scan[..., ~mark])
    np.testing.assert_array_equal(scan, before)


def test_an_image_too_small_is_refused():
    with pytest.raises(ValueError, match="no room"):
        place(3, 40)
    with pytest.raises(ValueError, match="'middle'"):
        place(40, 40, "middle")


def test_how_often_the_mark_agrees_with_the_label():
    """At 0.95 it agrees in that share of scans, at 0.05 in exactly the others, at 1 always and at 0 never."""
    rng = np.random.default_rng(1)
    u, positive = rng.random(4000), rng.random(4000) < 0.3
    right = [(carries(positive, a, u) == positive).mean() for a in (0.95, 0.05, 1.0, 0.0)]
    assert right[2:] == [1, 0]
    assert abs(right[0] - 0.95) < 4 * (0.95 * 0.05 / 4000) ** 0.5
    assert abs(right[1] - 0.05) < 4 * (0.95 * 0.05 / 4000) ** 0.5
    for kind in (positive, ~positive):  # for both labels
        assert abs((carries(positive, 0.95, u) == positive)[kind].mean() - 0.95) < 0.025
