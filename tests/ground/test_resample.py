"""One matrix per axis against torchvision's resize and the definition in loops."""

from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from medssl.resample import apply_axes, axis_weights

LEVEL = 1 / 255


def _box(start: float, extent: float, n_in: int, n_out: int) -> torch.Tensor:
    return axis_weights(torch.tensor([float(start)]), torch.tensor([float(extent)]), n_in, n_out)


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((40, 40), (0, 0, 40, 40), (40, 40)),
        ((64, 64), (5, 9, 31, 40), (64, 64)),
        ((64, 48), (3, 2, 50, 45), (17, 20)),
        ((20, 30), (1, 0, 7, 30), (32, 11)),
        ((96, 96), (0, 0, 96, 96), (7, 5)),
        ((16, 16), (15, 3, 1, 1), (8, 8)),
    ],
)
def test_crops_match_torchvision(shape, box, size):
    x = torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    top, left, height, width = box
    ours = apply_axes(x, [_box(top, height, shape[0], size[0])[0], _box(left, width, shape[1], size[1])[0]])
    theirs = tv.resized_crop(x, top, left, height, width, list(size), antialias=True)
    assert (ours - theirs).abs().max() < LEVEL


def _weights_by_loops(start: int, extent: int, n_in: int, n_out: int) -> tuple[torch.Tensor, list[bool]]:
    """The definition in exact fractions, and for each output whether samples lie on the filter's edge and nowhere else.

    Such an output is empty exactly, and in floats whatever the rounding of its only weight makes of it.
    """
    step, half = Fraction(extent, n_out), Fraction(1, 2)
    out, on_edge = torch.zeros(n_out, n_in, dtype=torch.float64), []
    for i in range(n_out):
        inside = [j for j in range(n_in) if start < j + half < start + extent]
        weights = [1 - abs(j + half - start - (i + half) * step) / max(step, 1) for j in inside]
        on_edge.append(bool(weights) and max(weights) == 0)
        for j, w in zip(inside, weights, strict=True):
            if w > 0:
                out[i, j] = float(w / sum(v for v in weights if v > 0))
    return out, on_edge


@settings(max_examples=60, deadline=None)
@example(start=0, extent=19, n_in=10, n_out=3)
@given(start=st.integers(-6, 12), extent=st.integers(1, 24), n_in=st.integers(1, 14), n_out=st.integers(1, 14))
def test_weights_match_the_definition(start, extent, n_in, n_out):
    expected, on_edge = _weights_by_loops(start, extent, n_in, n_out)
    ours = _box(start, extent, n_in, n_out)[0].double()
    defined = ~torch.tensor(on_edge)
    assert torch.allclose(ours[defined], expected[defined], atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(start=st.floats(0, 5), extent=st.floats(2, 8), n_in=st.just(13), n_out=st.integers(1, 20))
def test_inside_the_axis_a_constant_stays_constant(start, extent, n_in, n_out):
    assert torch.allclose(_box(start, extent, n_in, n_out).sum(-1), torch.ones(1, n_out), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 7), (4, 5, 6)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shared", [False, True])
def test_apply_axes_is_a_product_along_each_axis(shape, channels, shared):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(3, channels, *shape, generator=g)
    weights = [torch.rand(3, n + 2, n, generator=g) for n in shape]
    if shared:
        weights = [w[0] for w in weights]
    ours = apply_axes(x, weights)
    letters = "hwd"[: len(shape)]
    for b in range(3):
        mats = [w if shared else w[b] for w in weights]
        spec = "c" + letters + "," + ",".join(a.upper() + a for a in letters) + "->c" + letters.upper()
        assert torch.allclose(ours[b], torch.einsum(spec, x[b], *mats), atol=1e-5)


def test_the_whole_box_at_the_same_size_changes_no_bit():
    x = torch.rand(2, 1, 9, 9, generator=torch.Generator().manual_seed(2))
    w = axis_weights(torch.zeros(2), torch.full((2,), 9.0), 9, 9)
    assert torch.equal(apply_axes(x, [w, w]), x)
