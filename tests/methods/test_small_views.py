"""Small views beside the global ones: made, keyed, encoded, replayed, and refused where they cannot be."""

import pytest
import torch
from torch import nn

import tiny
from medssl import catalog
from medssl.augmentations.loader import RawScans, make_views
from medssl.augmentations.recipes import SmallViews
from medssl.errors import UserError
from medssl.methods.base import Clock
from medssl.methods.parts.small_views import encode_views, small_views

OPTIONS = {"count": 3, "size": 0.43, "scale": [0.15, 0.4]}


def encoder(name, size=(32, 32), **options):
    options = {k: v for k, v in tiny.SMALL.get(name, {}).items() if k != "patch"} | options
    return catalog.build(catalog.spec("encoder", name, **options), channels=1, size=size)


def recipe(size, name="xray"):
    return catalog.build(catalog.spec("augment", name), size=size)


def raw(dims=2, size=32):
    return RawScans(tiny.resampled(n=6, dims=dims, size=size)).__getitems__([(row, 1) for row in range(6)])


@pytest.mark.parametrize("dims", [2, 3])
def test_global_views_come_first_and_do_not_change(dims):
    size, small = (16,) * dims, SmallViews(2, (8,) * dims, (0.1, 0.4))
    with_small, key = make_views(raw(dims, 16), recipe(size), 2, 3, 0.4, 0.2, small)
    without, _ = make_views(raw(dims, 16), recipe(size), 2, 3, 0.4, 0.2)
    assert [tuple(v.shape[2:]) for v in with_small] == [size, size, small.size, small.size]
    assert all(torch.equal(a, b) for a, b in zip(with_small[:2], without, strict=True))
    assert not torch.equal(with_small[2], with_small[3])
    alone = recipe(size).small(small)
    again = (alone(make_unit(raw(dims, 16)), key, 3) - 0.4) / 0.2
    torch.testing.assert_close(with_small[3], again, rtol=1e-5, atol=1e-5)


def make_unit(given):
    return given["image"].float() / 255


def test_a_small_view_shows_its_share_of_the_area():
    """Of a ramp from 0 to 1 over the first axis, a crop of a share s and aspect near 1 shows a range of about sqrt(s)."""
    ramp = torch.linspace(0, 1, 64).view(1, 1, 64, 1).expand(200, 1, 64, 64)
    small = SmallViews(1, (16, 16), (0.2, 0.2))
    made = recipe((64, 64), "crop").small(small)
    shown = made(ramp, tiny.key(200), 0)
    extent = (shown.amax((1, 2, 3)) - shown.amin((1, 2, 3))) * 63 / 64 / (15 / 16)
    assert extent.log().exp().mean().item() == pytest.approx(0.2**0.5, rel=0.05)
    whole = recipe((64, 64), "crop")(ramp, tiny.key(200), 0)
    assert (whole.amax((1, 2, 3)) - whole.amin((1, 2, 3))).min() > 0.5, "the recipe's own crops are larger"


def test_an_augmentation_without_a_crop_is_refused():
    with pytest.raises(UserError, match="small views are crops, and this augmentation has none"):
        recipe((16, 16), "plain").small(SmallViews(1, (8, 8), (0.1, 0.4)))


@pytest.mark.parametrize("name", ["cnn", "resnet18", "vit"])
@pytest.mark.parametrize("dims", [2, 3])
def test_convolutions_and_transformers_take_the_smaller_size(name, dims):
    size = (32,) * dims
    model = encoder(name, size).train()
    running = [b.clone() for b in model.buffers()]
    small = small_views(model, **OPTIONS)
    assert (small.count, small.size, small.scale) == (3, ((12 if name == "vit" else 14),) * dims, (0.15, 0.4))
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(running, model.buffers(), strict=True)), "a statistic moved"
    assert model(torch.randn(4, 1, *small.size)).shape == (4, model.dim)


@pytest.mark.parametrize("name", ["mlp", "patch_bank", "patch_pyramid"])
def test_an_encoder_of_one_size_is_refused(name):
    with pytest.raises(UserError, match=r"small views have \(14, 14\) pixels and this \w+ takes only \(32, 32\)"):
        small_views(encoder(name), **OPTIONS)
    assert small_views(encoder(name), **OPTIONS | {"count": 0}).count == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": -1}, "count must be 0 or more"),
        ({"size": 1.0}, "size must lie between 0 and 1"),
        ({"scale": [0.0, 0.4]}, "scale must be"),
        ({"scale": [0.5, 0.4]}, "scale must be"),
        ({"size": 0.05}, r"size=0\.05 of \(32, 32\) pixels is less than a patch of \(4, 4\)"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        small_views(encoder("vit"), **OPTIONS | options)


def test_views_of_one_size_share_a_pass_and_keep_their_order():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    shapes = []
    model.register_forward_hook(lambda m, given, out: shapes.append(tuple(given[0].shape)))
    views = [torch.randn(2, 3, n, n) for n in (8, 8, 4, 4, 4)]
    out = encode_views(model, views)
    assert shapes == [(4, 3, 8, 8), (6, 3, 4, 4)]
    torch.testing.assert_close(out, torch.cat([v.mean((2, 3)) for v in views]))


def test_a_smaller_image_has_the_positions_of_the_whole_one():
    """Half as many patches lie between pairs of the whole image's, and the same number at the same places."""
    model = encoder("vit", (16, 16), patch=4)
    assert torch.equal(model.positions(torch.zeros(1, 1, 16, 16)), model.pos)
    k = model.dim // 4
    omega = 10_000.0 ** (-torch.arange(k) / k)
    place = torch.tensor([0.5, 2.5])  # of two patches across the places 0, 1, 2, 3
    rows = place[:, None].expand(2, 2).flatten()[:, None] * omega
    columns = place.repeat(2)[:, None] * omega
    expected = torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], 1)
    torch.testing.assert_close(model.positions(torch.zeros(1, 1, 8, 8)), expected)
    assert model.maps(torch.randn(2, 1, 8, 8)).shape == (2, model.dim, 2, 2)
    assert model.stages(torch.randn(2, 1, 8, 8))[-1].shape == (2, model.dim, 2, 2)


def test_multitask_asks_for_the_small_views_of_its_method():
    made = tiny.method("multitask", method="dino", options={"prototypes": 8, "small": OPTIONS})
    assert made.small_views == made.other.small_views == SmallViews(3, (7, 7), (0.15, 0.4))
    assert torch.isfinite(made(tiny.batch_for(made), Clock(0, 10))["loss"])
