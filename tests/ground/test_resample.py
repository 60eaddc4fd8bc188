"""One matrix per axis against torchvision's resize and the definition in loops."""

import pytest
import torch
from hypothesis import given, settings
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


def _weights_by_loops(start: float, extent: float, n_in: int, n_out: int) -> torch.Tensor:
    step = extent / n_out
    out = torch.zeros(n_out, n_in, dtype=torch.float64)
    for i in range(n_out):
        for j in range(n_in):
            if start < j + 0.5 < start + extent:
                out[i, j] = max(0.0, 1 - abs(j + 0.5 - start - (i + 0.5) * step) / max(step, 1.0))
        if out[i].sum() > 0:
            out[i] /= out[i].sum()
    return out


@settings(max_examples=60, deadline=None)
@given(start=st.integers(-6, 12), extent=st.integers(1, 24), n_in=st.integers(1, 14), n_out=st.integers(1, 14))
def test_weights_match_the_definition(start, extent, n_in, n_out):
    ours = _box(start, extent, n_in, n_out)[0]
    assert torch.allclose(ours.double(), _weights_by_loops(start, extent, n_in, n_out), atol=1e-5)


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
