"""Ops against torchvision or a closed form, batches against single scans, and every recipe in configs/augment."""

import dataclasses
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

import medssl.augmentations.op
from medssl import catalog, rng
from medssl.augmentations.geometry import Blur, Box, Crop, Flip, Resize, Rotate, gaussian_matrix
from medssl.augmentations.intensity import (
    BiasField,
    BrightnessContrast,
    Colour,
    Exposure,
    Gamma,
    Noise,
    Solarize,
    ToGray,
    Window,
)
from medssl.augmentations.recipes import Recipe
from medssl.augmentations.resampling import places
from medssl.errors import UsageError, UserError
from medssl.resample import apply_axes
from medssl.rng import Key
from medssl.store.intensity_windows import CT_WINDOWS

LEVEL = 1 / 255
WINDOWS = {"lung": 1.0, "mediastinum": 1.0, "bone": 2.0}
SHAPES = [(13, 16), (7, 9, 8)]
OPS: dict[str, Callable[[float, tuple[int, ...]], Any]] = {
    "flip": lambda p, _: Flip((p, p)),
    "blur": lambda p, _: Blur(p, (0.3, 1.2)),
    "rotate": lambda p, _: Rotate(p, 15.0),
    "gamma": lambda p, _: Gamma(p, (0.5, 2.0)),
    "brightness and contrast": lambda p, _: BrightnessContrast(p, 0.4, 0.4),
    "noise": lambda p, _: Noise(p, (0.01, 0.1)),
    "window": lambda p, _: Window(p, WINDOWS, 20.0, 0.2, (-1024.0, 3071.0)),
    "bias field": lambda p, _: BiasField(p, 0.4),
    "exposure": lambda p, _: Exposure(p, (0.5, 2.0), 0.3, 0.1),
    "solarize": lambda p, _: Solarize(p),
    "grey": lambda p, _: ToGray(p),
    "colour": lambda p, _: Colour(p, 0.8, 0.2),
}
ALWAYS: dict[str, Callable[[tuple[int, ...]], Any]] = {
    "crop": lambda shape: Crop(tuple(n - 2 for n in shape), (0.3, 1.0)),
    "resize": lambda shape: Resize(tuple(n - 3 for n in shape)),
}


def image(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return a random image with black and white regions."""
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 1.3 - 0.15).clamp(0, 1)


def key(n: int, seed: int = 1, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n) * 17)


def uniforms(op: Any, n: int) -> Tensor:
    return rng.uniform(key(n), 0, 0, op.draws)


# --- definitions ---


@pytest.mark.parametrize(
    ("box", "size"), [((5, 9, 31, 40), (32, 32)), ((0, 0, 48, 50), (24, 60)), ((7, 0, 20, 50), (20, 50))]
)
def test_crop_matches_torchvision(box, size):
    x = image((2, 3, 48, 50))
    top, left, height, width = box
    op = Crop(size, (0.1, 1.0))
    extent = torch.tensor([[height / 48, width / 50]]).expand(2, 2)
    room = torch.tensor([[(top + 0.5) / (48 - height + 1), (left + 0.5) / (50 - width + 1)]]).expand(2, 2)
    start, extents = op.boxes(Box(extent, room), [48, 50])
    assert (start[0].tolist(), extents[0].tolist()) == ([top, left], [height, width])
    theirs = tv.resized_crop(x, top, left, height, width, list(size), antialias=True)
    assert (op.apply(x, Box(extent, room)) - theirs).abs().max() < LEVEL


@pytest.mark.parametrize("shape", [(100, 80), (50, 60, 40)])
def test_crop_boxes_have_the_stated_sizes_ratios_and_positions(shape):
    op = Crop(shape, (0.3, 0.6), (0.8, 1.25))
    params = op.params(uniforms(op, 4000))
    start, extent = op.boxes(params, list(shape))
    n = torch.tensor(shape)
    assert torch.equal(start, start.round())
    assert (start >= 0).all()
    assert (start + extent <= n).all()
    assert torch.equal(start.amin(0), torch.zeros(len(shape)))  # both ends are reached
    assert torch.equal((start + extent).amax(0), n.float())
    share = params.extent.prod(1)
    assert share.min() >= 0.3 - 1e-4
    assert share.max() <= 0.6 + 1e-4
    assert abs(share.mean() - 0.45) < 0.01
    sides = params.extent.log()
    ratio = (sides.amax(1) - sides.amin(1)).exp()
    assert ratio.max() <= 1.25 + 1e-4
    assert ratio.max() > 1.2


def test_flip_mirrors_the_drawn_axes():
    x = image((4, 2, 5, 6))
    hit = torch.tensor([[False, False], [True, False], [False, True], [True, True]])
    out = Flip((0.5, 0.5)).apply(x, hit)
    assert torch.equal(out, torch.stack([x[0], x[1].flip(1), x[2].flip(2), x[3].flip(1, 2)]))
    assert torch.equal(Flip((0.5,)).apply(x, hit[:, :1]), torch.stack([x[0], x[1].flip(2), x[2], x[3].flip(2)]))
    rate = Flip((0.2, 0.9)).params(uniforms(Flip((0.2, 0.9)), 4000)).float().mean(0)
    assert torch.allclose(rate, torch.tensor([0.2, 0.9]), atol=0.03)


@pytest.mark.parametrize("sigma", [0.2, 0.8, 2.0])
@pytest.mark.parametrize("shape", [(40, 33), (7, 9)])
def test_blur_matches_torchvision_including_borders(sigma, shape):
    x = image((2, 3, *shape))
    op = Blur(1.0, (0.1, 2.0))
    radius = min(op.radius, *[n - 1 for n in shape])
    theirs = tv.gaussian_blur(x, [2 * radius + 1] * 2, [sigma, sigma])
    assert (op.apply(x, torch.tensor([sigma, sigma])) - theirs).abs().max() < LEVEL


def test_3d_blur_is_separable():
    x = image((1, 1, 6, 7, 8))
    a, b, c = (gaussian_matrix(torch.tensor([0.9]), n, 3)[0] for n in (6, 7, 8))
    expected = torch.einsum("ncdhw,Dd,Hh,Ww->ncDHW", x, a, b, c)
    assert torch.allclose(Blur(1.0, (0.1, 0.9)).apply(x, torch.tensor([0.9])), expected, atol=1e-6)


@pytest.mark.parametrize("degrees", [-12.0, 3.0, 30.0])
@pytest.mark.parametrize("shape", [(31, 31), (24, 40)])
def test_rotation_matches_torchvision(degrees, shape):
    x = image((1, 2, *shape))
    angles = torch.tensor([[math.radians(degrees), 9.0, 9.0]])
    theirs = tv.rotate(x, degrees, interpolation=tv.InterpolationMode.BILINEAR)
    assert (Rotate(1.0, 45.0).apply(x, angles) - theirs).abs().max() < LEVEL


@pytest.mark.parametrize("shape", [(9, 14), (7, 5, 6), (1, 4)])
@pytest.mark.parametrize("name", ["crop", "flip", "blur"])
def test_on_a_processor_an_op_equals_its_matrices(name, shape):
    """A GPU applies the matrices (`fold`), and both are to make the same views."""
    size = tuple(n + 3 for n in shape)
    ops = {
        "crop": Crop(size, (0.2, 1.0)), "flip": Flip((0.5,) * len(shape)), "blur": Blur(0.7, (20.0, 60.0), shape)
    }  # fmt: skip
    op, x = ops[name], torch.rand(12, 2, *shape, generator=torch.Generator().manual_seed(0))
    params = op.params(torch.rand(12, op.draws, generator=torch.Generator().manual_seed(1)))
    done, before = op.direct(x, params), x.clone()
    assert done.is_contiguous()
    assert (done - apply_axes(x, op.fold(None, params, x))).abs().max() < 1e-6
    assert torch.equal(x, before)


def test_a_crop_to_fewer_pixels_is_antialiased_by_its_matrices():
    op, x = Crop((8, 8), (0.5, 1.0)), torch.rand(3, 1, 20, 8)
    params = op.params(torch.rand(3, op.draws))
    assert op.direct(x, params) is None
    assert torch.equal(op.apply(x, params), apply_axes(x, op.fold(None, params, x)))


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 4)])
def test_the_places_of_a_rotation_are_those_of_an_affine_grid(shape):
    D = len(shape)
    turn = torch.randn(4, D, D, generator=torch.Generator().manual_seed(0))
    theta = torch.cat([turn, torch.zeros(4, D, 1)], 2)
    expected = torch.nn.functional.affine_grid(theta, [4, 1, *shape], align_corners=False)
    assert (places(turn, torch.zeros(4, 1, *shape)) - expected).abs().max() < 1e-6


def test_3d_rotation_turns_each_plane():
    x = image((1, 1, 9, 9, 9))
    for axis, dims in ((0, (3, 4)), (1, (2, 4)), (2, (2, 3))):
        angles = torch.zeros(1, 3)
        angles[0, axis] = math.pi / 2
        turned = Rotate(1.0, 90.0).apply(x, angles)
        assert any(torch.allclose(turned, torch.rot90(x, k, dims), atol=1e-4) for k in (1, -1))
    full = torch.tensor([[0.1, 0.2, -0.15]])
    inside = Rotate(1.0, 90.0).apply(torch.ones(1, 1, 9, 9, 9), full)
    assert inside[0, 0, 2:7, 2:7, 2:7].min() > 0.999


def test_gamma_matches_torchvision():
    x = image((2, 3, 8, 9))
    out = Gamma(1.0, (0.5, 2.0)).apply(x, torch.tensor([[0.6], [1.7]]))
    for row, g in enumerate((0.6, 1.7)):
        assert (out[row] - tv.adjust_gamma(x[row], g)).abs().max() < LEVEL


@pytest.mark.parametrize("factors", [(1.3, 0.6), (0.7, 1.5), (1.0, 2.0)])
def test_brightness_and_contrast_match_torchvision_on_grey_images(factors):
    x = image((2, 1, 11, 12))
    theirs = tv.adjust_contrast(tv.adjust_brightness(x, factors[0]), factors[1])
    ours = BrightnessContrast(1.0, 0.5, 0.5).apply(x, torch.tensor([factors, factors]))
    assert (ours - theirs).abs().max() < LEVEL


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_is_about_the_mean_of_all_channels(shape):
    x = image((1, 4, *shape)) * 0.2 + 0.4
    out = BrightnessContrast(1.0, 0.0, 0.5).apply(x, torch.tensor([[1.0, 1.5]]))
    assert torch.allclose(out, (x - x.mean()) * 1.5 + x.mean(), atol=1e-6)


def test_noise_has_the_drawn_spread_and_differs_between_scans():
    x = torch.full((3, 1, 80, 80), 0.5)
    op = Noise(1.0, (0.01, 0.1))
    grain = op.params(uniforms(op, 3))
    out = op.apply(x, grain) - x
    assert torch.allclose(out.flatten(1).std(1), grain[:, 0], rtol=0.05)
    assert abs(torch.corrcoef(out.flatten(1))[0, 1]) < 4 / 80
    quiet = torch.cat([torch.tensor([[0.0], [0.05], [0.0]]), grain[:, 1:]], 1)
    assert torch.equal(op.apply(x, quiet)[[0, 2]], x[[0, 2]])


def test_window_is_the_linear_ramp_in_hounsfield_units():
    low, high = -1024.0, 3071.0
    hu = torch.tensor([-1000.0, -160.0, 40.0, 240.0, 1000.0])
    x = ((hu - low) / (high - low)).view(1, 1, 1, 5)
    op = Window(1.0, {"mediastinum": 1.0}, level=0.0, width=0.0, hu=(low, high))
    out = op.apply(x, op.params(torch.tensor([[0.0, 0.3, 0.9, 0.9]])))
    assert torch.allclose(out.flatten(), torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]), atol=1e-5)


def test_windows_are_chosen_by_weight_with_bounded_jitter():
    op = Window(0.75, WINDOWS, level=20.0, width=0.2, hu=(0.0, 1.0))
    params = op.params(uniforms(op, 4000))
    hit = (params != torch.tensor([0.0, 1.0])).any(1)
    assert abs(hit.float().mean() - 0.75) < 0.03
    level, width = params[hit].mean(1), params[hit].diff(dim=1)[:, 0]
    shares = []
    for c, w in (CT_WINDOWS[name] for name in WINDOWS):
        mine = ((level - c).abs() <= 20.01) & ((width / w - 1).abs() <= 0.2001)
        shares.append(mine.float().mean().item())
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.25, 0.25, 0.5], abs=0.03)


@pytest.mark.parametrize("shape", SHAPES)
def test_bias_field_is_the_exponential_of_a_quadratic(shape):
    x = torch.full((1, 2, *shape), 0.3)
    coefficients = torch.linspace(-0.3, 0.25, 9)[None]
    out = BiasField(1.0, 0.3).apply(x, coefficients)[0]
    axes = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in shape], indexing="ij")
    terms = [*axes, *(axes[i] * axes[j] for i in range(len(shape)) for j in range(i, len(shape)))]
    log = sum(c * (t - t.mean()) for c, t in zip(coefficients[0].tolist(), terms, strict=False))
    assert torch.allclose(out, (0.3 * log.exp()).clamp(0, 1).expand_as(out), atol=1e-5)
    assert abs((out / 0.3).log().mean()) < 1e-4  # the overall brightness stays


def test_exposure_matches_its_formula():
    x = image((2, 1, 6, 7))
    out = Exposure(1.0, (0.5, 2.0), 0.5, 0.5).apply(x, torch.tensor([[0.7, 1.2, -0.1], [1.4, 0.8, 0.05]]))
    assert torch.allclose(out[0], (1.2 * x[0] ** 0.7 - 0.1).clamp(0, 1), atol=1e-6)
    assert torch.allclose(out[1], (0.8 * x[1] ** 1.4 + 0.05).clamp(0, 1), atol=1e-6)


def test_photographic_ops_match_torchvision():
    x = image((2, 3, 9, 8))
    assert (Solarize(1.0).apply(x, torch.full((2, 1), 0.5)) - tv.solarize(x, 0.5)).abs().max() < LEVEL
    grey = ToGray(1.0).apply(x, torch.ones(2, 1))
    assert (grey - tv.rgb_to_grayscale(x, num_output_channels=3)).abs().max() < LEVEL
    for saturation, hue in ((1.0, 0.2), (0.4, -0.13), (1.7, 0.0), (1.3, 0.5), (0.0, 0.1)):
        theirs = tv.adjust_hue(tv.adjust_saturation(x, saturation), hue)
        ours = Colour(1.0, 1.0, 0.5).apply(x, torch.tensor([[saturation, hue]] * 2))
        assert (ours - theirs).abs().max() < LEVEL


# --- what every op promises ---


@pytest.mark.parametrize("name", [*OPS, *ALWAYS])
@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_op_treats_a_batch_like_single_scans_and_stays_in_range(name, shape, channels):
    op = OPS[name](0.6, shape) if name in OPS else ALWAYS[name](shape)
    x = image((6, channels, *shape))
    before = x.clone()
    u = uniforms(op, 6)
    together = op.apply(x, op.params(u))
    alone = torch.cat([op.apply(x[i : i + 1], op.params(u[i : i + 1])) for i in range(6)])
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.min() >= 0
    assert together.max() <= 1 + 1e-6
    assert torch.equal(x, before)  # inputs are not modified


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_rows_that_are_not_hit_keep_every_bit(name, shape):
    x = image((40, 3, *shape))
    never = OPS[name](0.0, shape)
    u = uniforms(never, 40)
    assert torch.equal(never.apply(x, never.params(u)), x)
    sometimes = OPS[name](0.5, shape)
    out = sometimes.apply(x, sometimes.params(u))
    missed = u[:, 0] >= 0.5
    if name == "flip":
        missed &= u[:, 1] >= 0.5
    assert 3 < missed.sum() < 37
    assert torch.equal(out[missed], x[missed])
    moved = (out != x).flatten(1).any(1)
    assert torch.equal(moved, ~missed)


@pytest.mark.parametrize("name", sorted(set(OPS) - {"flip", "blur"}))
def test_a_batch_without_hits_costs_nothing(name):
    x = image((3, 3, 13, 16))
    never = OPS[name](0.0, (13, 16))
    assert never.apply(x, never.params(uniforms(never, 3))) is x


@pytest.mark.parametrize("shape", SHAPES, ids=["2D", "3D"])
def test_the_whole_crop_at_the_same_size_keeps_every_bit(shape):
    x = image((3, 2, *shape))
    op = Crop(shape, (1.0, 1.0), (1.0, 1.0))
    assert torch.equal(op.apply(x, op.params(uniforms(op, 3))), x)


# --- recipes ---


def build(name: str, size: tuple[int, ...], **options: Any) -> Recipe:
    return catalog.build(catalog.spec("augment", name, **options), size=size)


NAMES = sorted(catalog.choices("augment"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("shape", "size"), [((20, 18), (16, 12)), ((10, 12, 9), (8, 8, 8))], ids=["2D", "3D"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_view_depends_only_on_the_key_of_its_scan(name, shape, size, channels):
    recipe = build(name, size)
    x, k = image((7, channels, *shape)), key(7)
    views = [recipe(x, k, v) for v in range(2)]
    for v, view in enumerate(views):
        assert view.shape == (7, channels, *size)
        assert view.dtype == torch.float32
        assert view.is_contiguous()
        assert torch.isfinite(view).all()
        assert view.min() >= 0
        assert view.max() <= 1 + 1e-5
        assert torch.equal(view, recipe(x, k, v))
        alone = torch.cat([recipe(x[i : i + 1], Key(1, k.epoch[i : i + 1], k.scan[i : i + 1]), v) for i in range(7)])
        assert torch.allclose(view, alone, atol=2e-6)
    if name != "plain":
        assert not torch.allclose(views[0], views[1], atol=1e-2)
        assert not torch.allclose(views[0], recipe(x, key(7, epoch=1), 0), atol=1e-2)
        assert not torch.allclose(views[0], recipe(x, key(7, seed=2), 0), atol=1e-2)


@pytest.mark.parametrize("name", ["xray", "neutral", "mr", "crop"])
@pytest.mark.parametrize(("shape", "size"), [((20, 18), (16, 12)), ((10, 12, 9), (8, 8, 8))], ids=["2D", "3D"])
def test_the_strength_scales_how_far_a_scan_is_changed(name, shape, size):
    x, k = image((64, 1, *shape)), key(64)
    plain = build("plain", size)(x, k, 0)
    off, weak, usual = (
        (build(name, size, strength=s)(x, k, 0) - plain).square().mean().sqrt().item() for s in (0.0, 0.3, 1.0)
    )
    assert off < 1e-5
    assert 0.1 * usual < weak < 0.8 * usual
    assert torch.equal(build(name, size, strength=1.0)(x, k, 0), build(name, size)(x, k, 0))


def test_each_option_is_scaled_by_its_own_rule():
    recipe = build("xray", (16, 16), strength=0.5, crop={"scale": [0.4, 0.9]})
    ops = {type(op).__name__: op for _, op in recipe.ops}
    assert ops["Rotate"].degrees == 5.0
    assert ops["Crop"].scale == pytest.approx((0.7, 0.95))
    assert ops["Crop"].ratio == pytest.approx((math.sqrt(3 / 4), math.sqrt(4 / 3)))
    assert ops["Blur"].sigma == pytest.approx((0.05, 1.0))
    assert ops["Exposure"].exponent == pytest.approx((math.sqrt(0.7), math.sqrt(1.5)))
    assert (ops["Exposure"].gain, ops["Exposure"].offset) == pytest.approx((0.1, 0.05))
    assert ops["Noise"].std == pytest.approx((0.0, 0.025))
    assert ops["Rotate"].p == 0.5
    assert {type(op).__name__: op for _, op in build("mr", (16, 16), strength=2.0).ops}["Crop"].scale[0] == 0.01
    for wrong in (-1.0, math.inf, math.nan, "strong"):
        with pytest.raises(UserError, match=r"augment\.strength must be a number of 0 or more"):
            build("xray", (16, 16), strength=wrong)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_equals_its_ops_in_sequence(name):
    """Up to rounding: crop, flip and blur are folded into one product per axis."""
    recipe = build(name, (14, 14))
    x, k = image((12, 3, 20, 17)), key(12)
    u, step = rng.uniform(k, 1, 0, 64), x
    for slot, op in recipe.ops:
        step = op.apply(step, op.params(u[:, 4 * slot : 4 * slot + op.draws]))
    assert torch.allclose(recipe(x, k, 1), step, atol=2e-5)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"natural"}))
@pytest.mark.parametrize("shape", [(32, 32), (16, 16, 16)], ids=["2D", "3D"])
def test_only_photographs_are_mirrored(name, shape):
    recipe = build(name, shape)
    for axis, n in enumerate(shape, start=2):
        inner = [slice(n // 4, 3 * n // 4)] * len(shape)

        def rise(x: Tensor, axis: int = axis, n: int = n, inner: list[slice] = inner) -> Tensor:
            """Return (B,): the brightness of the last quarter of the axis minus the first, away from the other borders."""
            out, rows = recipe(x, key(64), 0), list(inner)
            rows[axis - 2] = slice(None)
            out = out[(slice(None), slice(None), *rows)]
            return (out.narrow(axis, 3 * n // 4, n // 4) - out.narrow(axis, 0, n // 4)).flatten(1).mean(1)

        x = torch.where(torch.arange(n) < n // 2, 0.02, 0.6).view(-1, *[1] * (len(shape) + 1 - axis))
        x = x.expand(64, 1, *shape)
        assert rise(x).min() > -0.2  # noise and the black corners of a rotation stay below that
        assert rise(x.flip(axis)).min() < -0.2  # a mirrored scan would be detected


def test_photographs_are_mirrored_left_and_right_half_of_the_time():
    x = torch.linspace(0, 1, 32).expand(200, 1, 32, 32)
    out = build("natural", (32, 32), brightness_contrast={"p": 0.0}, colour={"p": 0.0}, solarize={"p": 0.0})(
        x, key(200), 0
    )
    mirrored = out[..., 0].flatten(1).mean(1) > out[..., -1].flatten(1).mean(1)
    assert 70 < mirrored.sum() < 130


def test_processing_in_chunks_changes_nothing(monkeypatch):
    x, k, recipe = image((7, 1, 18, 18)), key(7), build("xray", (16, 16))
    whole = recipe(x, k, 0)
    monkeypatch.setattr("medssl.augmentations.recipes.CHUNK", 3 * 18 * 18)
    assert torch.allclose(recipe(x, k, 0), whole, atol=2e-6)


def test_plain_only_resizes():
    x = image((2, 3, 24, 20))
    assert torch.equal(build("plain", (24, 20))(x, key(2), 0), x)
    theirs = tv.resize(x, [12, 16], antialias=True)
    assert (build("plain", (12, 16))(x, key(2), 0) - theirs).abs().max() < LEVEL


FILES = [f for f in (Path(medssl.augmentations.op.__file__).parent).glob("*.py") if f.stem not in ("loader", "recipes")]


def test_every_op_is_tested_here():
    written = {
        n
        for f in FILES
        for n in re.findall(r"^class (\w+)\((?:Op|Separable|IntensityOp)\)", f.read_text(), re.MULTILINE)
    }
    made = {type(OPS[n](1.0, (8, 8))) for n in OPS} | {type(ALWAYS[n]((8, 8))) for n in ALWAYS}
    assert written == {c.__name__ for c in made} | {"Separable", "IntensityOp"}


@pytest.mark.parametrize("name", [*OPS, *ALWAYS])
def test_an_op_that_moves_pixels_declares_it(name):
    """The centre of a disc moves by more than a pixel for some scans, or for none."""
    at = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(40.0), indexing="ij"))
    disc = torch.where((at - torch.tensor([10.0, 26.0]).view(2, 1, 1)).square().sum(0) < 16, 0.8, 0.1)
    op = OPS[name](1.0, (40, 40)) if name in OPS else ALWAYS[name]((40, 40))
    x = disc.expand(30, 3, 40, 40)

    def centre(x: Tensor) -> Tensor:
        edge = (x[:, 0] - torch.nn.functional.avg_pool2d(x[:, 0], 9, 1, 4, count_include_pad=False)).abs()
        bright = (edge > edge.amax((1, 2), keepdim=True) / 2).float()
        grid = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in x.shape[2:]], indexing="ij"))
        return (bright[:, None] * grid).sum((2, 3)) / bright.sum((1, 2))[:, None]

    moved = (centre(op.apply(x, op.params(uniforms(op, 30)))) - centre(x)).norm(dim=1)
    assert bool((moved > 1).any()) == op.moves, moved


@pytest.mark.parametrize("name", NAMES)
def test_adding_or_removing_an_op_leaves_the_others_unchanged(name):
    """Wherever it is inserted: the parameters of an op depend on its own slot."""
    recipe, k, drawn = build(name, (16, 16)), key(5), {}

    @dataclasses.dataclass(frozen=True)
    class Spy:
        op: Any
        draws: int
        moves: bool

        def params(self, u: Tensor) -> Tensor:
            drawn.setdefault(self.op, []).append(u)
            return u

        def apply(self, x: Tensor, params: Tensor) -> Tensor:
            return x

    x = image((5, 3, 16, 16))
    spies = [(slot, Spy(type(op).__name__, op.draws, op.moves)) for slot, op in recipe.ops]
    new = (40, Spy("new", 4, False))
    for ops in (spies, [new, *spies], [spies[-1], new], *([s] for s in spies)):
        Recipe((16, 16), tuple(ops))(x, k, 1)
    for op, each in drawn.items():
        assert all(torch.equal(u, each[0]) for u in each), op
    numbers = torch.cat([each[0] for each in drawn.values()], 1)
    assert len(numbers[0].unique()) == numbers.shape[1]


def test_two_ops_in_one_slot_are_refused():
    crop, gamma = Crop((8, 8), (0.5, 1.0)), Gamma(0.5, (0.5, 2.0))
    Recipe((8, 8), ((0, crop), (2, gamma)))
    for slot in (0, 1):
        with pytest.raises(UserError, match=f"Crop and Gamma both draw from slot {slot}"):
            Recipe((8, 8), ((0, crop), (slot, gamma)))


def test_changing_one_op_leaves_the_others_unchanged():
    x = image((8, 1, 20, 20))
    with_noise, without = (build("xray", (20, 20), noise={"p": p})(x, key(8), 0) for p in (1.0, 0.0))
    assert not torch.equal(with_noise, without)
    assert (with_noise - without).abs().max() < 0.4  # six standard deviations of the noise: the same crops


def test_errors_of_recipes():
    with pytest.raises(UserError, match="2 spatial axes"):
        build("plain", (8, 8))(torch.rand(1, 1, 8, 8, 8), key(1), 0)
    with pytest.raises(UserError, match=r"no CT window 'bones'\. Did you mean 'bone'"):
        build("ct", (8, 8), window={"windows": {"bones": 1.0}})
    for weight in (-1.0, [40, 400, 1]):
        with pytest.raises(UserError, match="weight of the CT window 'bone'"):
            build("ct", (8, 8), window={"windows": {"bone": weight}})
    with pytest.raises(UserError, match="no CT window has a weight above 0"):
        build("ct", (8, 8), window={"windows": {"lung": 0, "mediastinum": 0, "bone": 0}})
    with pytest.raises(UsageError, match=r"crop of augment 'xray' has no option 'scal'. Did you mean 'scale'"):
        build("xray", (8, 8), crop={"scal": [0.5, 1]})
    with pytest.raises(UsageError, match=r"augment 'xray' has no option 'nois'. Did you mean 'noise'"):
        build("xray", (8, 8), nois={"p": 1.0})
    with pytest.raises(UserError, match=r"crop.scale must be \[low, high\], got \[1\]"):
        build("xray", (8, 8), crop={"scale": [1]})
    with pytest.raises(UserError, match=r"noise.p must be a number, got 'often'"):
        build("xray", (8, 8), noise={"p": "often"})
    with pytest.raises(UserError, match=r"noise takes options, as in augment.noise.p=0.5, got 3"):
        build("xray", (8, 8), noise=3)
    with pytest.raises(UserError, match=r"noise.op=os.system is not an op"):
        build("xray", (8, 8), noise={"op": "os.system"})
