"""SparK: what is hidden leaks through no convolution, pooling or norm, and the rest is what a sparse convolution computes."""

import copy
import itertools

import pytest
import torch

import tiny
from medssl import catalog
from medssl.errors import UserError
from medssl.methods.base import Clock
from medssl.methods.parts.visible_convolution import at_size, mean_of_cells, visible_stages

CLOCK = Clock(0, 10)
ENCODERS = {
    "cnn": ("cnn", {"widths": [8, 16]}, (16, 16)),
    "small_resnet": ("small_resnet", {"widths": [8, 16]}, (16, 16)),
    "cnn in 3D": ("cnn", {"widths": [8, 16]}, (8, 8, 8)),
    "cnn with group norm": ("cnn", {"widths": [8, 16], "norm": "group"}, (16, 16)),
    "cells of unequal size": ("cnn", {"widths": [8, 8, 16, 16]}, (28, 28)),
    "resnet18": ("resnet18", {}, (64, 64)),
    "resnet10 in 3D": ("resnet18_3d", {"model": "resnet10"}, (32, 16, 16)),
    "convnext": ("timm", {"model": "convnext_atto"}, (64, 64)),
    "squeeze and excitation": ("timm", {"model": "seresnet18"}, (64, 64)),
}


def made(name):
    """Return an encoder, 3 scans and their visible cells, of which every scan has and lacks one."""
    kind, options, size = ENCODERS[name]
    torch.manual_seed(0)
    encoder = catalog.build(catalog.spec("encoder", kind, **options), channels=1, size=size).double().train()
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 1, *size, generator=g, dtype=torch.float64)
    grid = copy.deepcopy(encoder).stages(x)[-1].shape[2:]
    visible = torch.rand(3, 1, *grid, generator=g) < 0.5
    visible[:, 0].view(3, -1)[:, 0] = True
    visible[:, 0].view(3, -1)[:, 1] = False
    return encoder, x, visible


@pytest.mark.parametrize("name", ENCODERS)
def test_hidden_places_are_empty_in_every_stage_and_their_intensities_reach_nothing(name):
    """Neither the maps nor the running statistics: they are those of the same scan with other intensities at hidden places."""
    encoder, x, visible = made(name)
    twin = copy.deepcopy(encoder)
    other = torch.where(at_size(visible, x.shape[2:]), x, x.flip(0) * 5 + 2)
    first, second = visible_stages(encoder, x, visible), visible_stages(twin, other, visible)
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        shown = at_size(visible, a.shape[2:]).expand_as(a)
        assert not a[~shown].any()
        assert a[shown].any()
    for a, b in zip(encoder.buffers(), twin.buffers(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ENCODERS)
def test_with_nothing_hidden_the_stages_are_the_encoders_own(name):
    encoder, x, visible = made(name)
    own, shown = copy.deepcopy(encoder).stages(x), visible_stages(encoder, x, torch.ones_like(visible))
    for a, b in zip(own, shown, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_visible_places_get_what_a_sparse_convolution_computes(norm):
    """One stage of a small network place by place: sums over visible neighbours, statistics over visible places."""
    torch.manual_seed(0)
    encoder = catalog.build(catalog.spec("encoder", "cnn", widths=[8], norm=norm), channels=1, size=(6, 6)).double()
    x = torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    visible = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(2)) < 0.6
    h = {(s, i, j): x[s, :, i, j] for s, i, j in itertools.product(range(3), range(6), range(6)) if visible[s, 0, i, j]}
    for conv, after in ((encoder.layers[0][0], encoder.layers[0][1]), (encoder.layers[0][3], encoder.layers[0][4])):
        out = {}
        for s, i, j in h:
            near = ((di, dj) for di in (-1, 0, 1) for dj in (-1, 0, 1) if (s, i + di, j + dj) in h)
            out[s, i, j] = sum(conv.weight[:, :, di + 1, dj + 1] @ h[s, i + di, j + dj] for di, dj in near)
        for places in [list(out)] if norm == "batch" else [[p for p in out if p[0] == s] for s in range(3)]:
            rows = torch.stack([out[p] for p in places])  # each of the 8 channels is a group of its own
            done = (rows - rows.mean(0)) / (rows.var(0, correction=0) + after.eps).sqrt()
            h |= dict(zip(places, done.relu(), strict=True))
    (stage,) = visible_stages(encoder, x, visible)
    for (s, i, j), value in h.items():
        torch.testing.assert_close(stage[s, :, i, j], value)
    weights = torch.randn(stage.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [encoder.layers[0][k].weight for k in (0, 3)]
    by_loops = sum((weights[s, :, i, j] * value).sum() for (s, i, j), value in h.items())
    for mine, expected in zip(
        torch.autograd.grad((weights * stage).sum(), parameters), torch.autograd.grad(by_loops, parameters), strict=True
    ):
        torch.testing.assert_close(mine, expected)
    if norm == "batch":
        rows = torch.stack([out[p] for p in out])
        torch.testing.assert_close(encoder.layers[0][4].running_mean, 0.1 * rows.mean(0))


def test_an_encoder_is_itself_again_afterwards_even_after_an_error():
    encoder, x, visible = made("cnn")
    before = copy.deepcopy(encoder).stages(x)
    visible_stages(copy.deepcopy(encoder), x, visible)
    with pytest.raises(ValueError, match="shorter"):
        visible_stages(encoder, x[..., None], visible)
    assert not any("forward" in vars(m) for m in encoder.modules())
    assert all(map(torch.equal, before, encoder.stages(x)))


@pytest.mark.parametrize(("size", "grid"), [((7, 6), (3, 3)), ((4, 5, 6), (2, 2, 3))])
def test_means_of_cells_are_over_their_places_and_channels(size, grid):
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = mean_of_cells(x, grid)
    cell = [[i * g // n for i in range(n)] for n, g in zip(size, grid, strict=True)]
    for s, at in itertools.product(range(2), itertools.product(*map(range, grid))):
        places = itertools.product(*([i for i, c in enumerate(cs) if c == a] for cs, a in zip(cell, at, strict=True)))
        values = [x[(s, slice(None), *place)].mean() for place in places]
        assert means[(s, 0, *at)].item() == pytest.approx(sum(values).item() / len(values), rel=1e-12)


def test_the_loss_is_the_squared_error_of_standardised_hidden_cells():
    method, batch = tiny.method("spark", encoder="cnn").double(), tiny.batch(1, n=4)
    batch["views"] = [batch["views"][0].double()]
    (x,), rebuilt, seen = batch["views"], [], []
    method.decoder.register_forward_hook(lambda m, given, out: rebuilt.append(out) or seen.append(given[1]))
    loss = method(batch, CLOCK)["loss"].item()
    assert (~seen[0]).sum((1, 2, 3)).tolist() == [int(0.6 * 64)] * 4
    terms = []
    for s, i, j in itertools.product(range(4), range(8), range(8)):
        if not seen[0][s, 0, i, j]:
            cell = (s, 0, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
            standardised = (x[cell] - x[cell].mean()) / (x[cell].var(correction=0) + 1e-6).sqrt()
            terms.append((rebuilt[0][cell] - standardised).square())
    assert loss == pytest.approx(torch.stack(terms).mean().item(), rel=1e-9)


def test_the_decoder_fills_hidden_places_of_every_stage_with_its_own_vector():
    method, batch = tiny.method("spark", encoder="cnn").double(), tiny.batch(1, n=4)
    stages = visible_stages(method.encoder, batch["views"][0].double(), visible := torch.rand(4, 1, 8, 8) < 0.5)
    with torch.no_grad():
        for hole in method.decoder.holes:
            hole.normal_()
    filled = []
    for side in method.decoder.sides:
        side.register_forward_hook(lambda m, given, out: filled.append(given[0]))
    method.decoder(stages, visible)
    for m, stage, hole in zip(filled, stages, method.decoder.holes, strict=True):
        shown = at_size(visible, m.shape[2:]).expand_as(m)
        assert torch.equal(m[shown], stage[shown])
        assert torch.equal(m[~shown], hole.view(1, -1, 1, 1).expand_as(m)[~shown])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "vit"}, "method=simmim for encoder=vit"),
        ({"encoder": "mlp"}, "has no feature maps; choose encoder=cnn"),
        ({"ratio": 1.0}, "ratio must lie between 0 and 1"),
        ({"ratio": 0.01}, "0.01 of the 64 cells of the encoder's last stage hides none"),
    ],
)
def test_what_cannot_work_is_refused_at_construction(options, words):
    with pytest.raises(UserError, match=words):
        tiny.method("spark", **{"encoder": "cnn"} | options)


def test_transformers_and_maps_of_one_place_are_refused():
    spec = catalog.spec("method", "spark")
    spec.pop("_run_")
    for model, size, words in (
        ("vit_tiny_patch16_224", 32, "use encoder=cnn or resnet18"),
        ("resnet18", 32, "of the 1 cells"),
    ):
        encoder = catalog.build(catalog.spec("encoder", "timm", model=model), channels=1, size=(size, size))
        with pytest.raises(UserError, match=words):
            catalog.build(spec, encoder=encoder)
