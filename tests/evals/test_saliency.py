"""Maps against closed forms, finite differences and loops over tokens; the checks on them against scipy and by hand."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from scipy.stats import spearmanr
from torch import nn

from medssl.encoders.cnn import CNN
from medssl.encoders.mlp import MLP
from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.patch_bank import PatchBank
from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError
from medssl.evals.explain.saliency import gradcam, map_resolution, rollout, similarity_weight
from medssl.evals.explain.saliency_checks import (
    depends_on_weights,
    mask_energy,
    randomisation_check,
    randomised,
    rank_correlation,
)
from medssl.evals.stats.score import Score

AVERAGED = {  # the features are the mean over places of `maps`
    "cnn": lambda: CNN(2, (16, 12), (8, 16)),
    "cnn 3D": lambda: CNN(1, (8, 12, 8), (8, 16)),
    "vit": lambda: ViT(1, (16, 24), patch=8, dim=24, depth=2, heads=2),
    "vit 3D": lambda: ViT(1, (8, 8, 8), patch=4, dim=24, depth=2, heads=2),
    "resnet10 3D": lambda: ResNet3d(1, (16, 16, 16), "resnet10"),
    "timm": lambda: TimmEncoder(1, (64, 96), "test_resnet"),
}
CLASS_TOKEN = (
    "test_vit",
    "test_vit2",
    "deit_tiny_distilled_patch16_224",
)  # a class token; registers and averages; two tokens


def made(make):
    """An encoder that is not as it was initialised: norms with offsets, running statistics of something seen."""
    torch.manual_seed(0)
    encoder = make()
    for p in encoder.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    for name, b in encoder.named_buffers():
        if "running" in name:
            b.data.add_(0.3 * torch.rand_like(b))
    return encoder.eval()


def scans(encoder, n=3, seed=1):
    return torch.randn(n, encoder.channels, *encoder.size, generator=torch.Generator().manual_seed(seed))


def enlarged(maps, size):
    """scipy's linear interpolation between pixel centres, the border repeated."""
    factors = [m / n for m, n in zip(size, maps.shape[1:], strict=True)]
    return np.stack([ndimage.zoom(m, factors, order=1, mode="nearest", grid_mode=True) for m in maps])


@pytest.mark.parametrize("name", AVERAGED)
def test_gradcam_of_averaged_features_is_cam(name):
    """Zhou et al.: each place's share in the score, written as a loop over places; every scan with its own weight."""
    encoder = made(AVERAGED[name])
    x = scans(encoder)
    weight = torch.randn(3, encoder.dim, generator=torch.Generator().manual_seed(2))
    got = gradcam(encoder, x, weight)
    with torch.no_grad():
        a, z = encoder.maps(x).numpy(), encoder(x)
    cam = np.zeros((3, *a.shape[2:]))
    everywhere = list(itertools.product(*map(range, a.shape[2:])))
    for b, place in itertools.product(range(3), everywhere):
        cam[b][place] = np.dot(weight[b].numpy(), a[(b, slice(None), *place)]) / len(everywhere)
    assert map_resolution(encoder, x) == a.shape[2:]
    np.testing.assert_allclose(cam.reshape(3, -1).sum(1), (weight * z).sum(1), rtol=1e-3, atol=1e-4)
    assert (cam < 0).any()
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), enlarged(np.maximum(cam, 0), encoder.size), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_vit3", "test_efficientnet"])
def test_gradcam_by_finite_differences(name):
    """What one more unit of a channel everywhere does to the score, in float64 and without autograd.

    A class token reads patches in the last block's attention; all else reads the end of forward_features.
    """
    encoder = made(lambda: TimmEncoder(1, (32, 48), name)).double()
    x, net = scans(encoder, 2).double(), encoder.net
    weight = torch.randn(encoder.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    got = gradcam(encoder, x, weight)
    spot = net.blocks[-1].norm1 if name == "test_vit" else None
    kept, nudge = [], None

    def passes(_, __, out):
        kept.append(out.clone())
        return out if nudge is None else out + nudge

    def score(step):
        nonlocal nudge
        nudge = step
        if spot is not None:
            return (encoder(x) * weight).sum(1)
        return (net.forward_head(passes(None, None, end)) * weight).sum(1)

    handle = spot.register_forward_hook(passes) if spot is not None else None
    with torch.no_grad():
        end = net.forward_features(x)
        kept.clear()
        score(None)
        a = kept[0]
        tokens = a.ndim == 3
        patches = slice(a.shape[1] - 6, None)
        channels = a.shape[2] if tokens else a.shape[1]
        slope = torch.zeros(2, channels, dtype=torch.float64)
        for k in range(channels):
            step = torch.zeros_like(a)
            if tokens:
                step[:, patches, k] = 1e-5
            else:
                step[:, k] = 1e-5
            slope[:, k] = (score(step) - score(-step)) / 2e-5
    if handle:
        handle.remove()
    at = a[:, patches].transpose(1, 2).unflatten(2, (2, 3)) if tokens else a
    mean = slope / math.prod(at.shape[2:])
    cam = torch.einsum("bk,bkhw->bhw", mean, at).clamp(min=0).numpy()
    assert cam.max() > 0
    np.testing.assert_allclose(got.numpy(), enlarged(cam, encoder.size), rtol=1e-4, atol=1e-6 * cam.max())


@pytest.mark.parametrize("name", ["cnn", "vit 3D", "timm", "test_vit"])
def test_an_encoder_is_left_as_it_was(name):
    encoder = made(AVERAGED.get(name, lambda: TimmEncoder(1, (32, 48), name))).train()
    encoder.get_submodule(next(n for n, _ in encoder.named_children())).eval()  # somebody froze a part
    before, modes = copy.deepcopy(encoder.state_dict()), [m.training for m in encoder.modules()]
    fused = [m.fused_attn for m in encoder.modules() if hasattr(m, "fused_attn")]
    x = scans(encoder)
    one = gradcam(encoder, x, torch.ones(encoder.dim))
    if "vit" in name:
        rollout(encoder, x)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert [m.training for m in encoder.modules()] == modes
    assert [m.fused_attn for m in encoder.modules() if hasattr(m, "fused_attn")] == fused
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in encoder.modules())
    assert all(p.grad is None and p.requires_grad for p in encoder.parameters())
    assert torch.equal(
        one, gradcam(encoder.requires_grad_(False), x, torch.ones(encoder.dim))
    )  # a frozen one does as well


def test_what_makes_views_alike_adds_up_to_their_cosine():
    """Over all places: the cosine to the other view minus the mean cosine to the others."""
    encoder = made(AVERAGED["cnn"])
    x, y, others = scans(encoder, 4), scans(encoder, 4, 2), scans(encoder, 9, 3)
    with torch.no_grad():
        f, g, h = encoder(x), encoder(y), encoder(others)
    nothing = torch.zeros(encoder.dim)
    a = torch.einsum("bk,bkhw->bhw", similarity_weight(f, g, nothing), encoder.maps(x)) / math.prod(
        encoder.maps(x).shape[2:]
    )
    torch.testing.assert_close(a.sum((1, 2)), F.cosine_similarity(f, g))
    reference = F.normalize(h, dim=1).mean(0)
    less = torch.tensor([F.cosine_similarity(f[i : i + 1], h).mean() for i in range(4)])
    torch.testing.assert_close((similarity_weight(f, g, reference) * f).sum(1), F.cosine_similarity(f, g) - less)
    assert gradcam(encoder, x, similarity_weight(f, g, nothing)).min() >= 0


def rolled_by_loops(layers, heads, tokens):
    """layers: (q, k) of shape (heads, tokens, d) each, in order. (tokens, tokens) by sums over single numbers."""
    reach = np.eye(tokens)
    for q, k in layers:
        mixed = np.zeros((tokens, tokens))
        for h, i in itertools.product(range(heads), range(tokens)):
            e = np.exp([sum(q[h, i] * k[h, j]) / math.sqrt(q.shape[-1]) for j in range(tokens)])
            mixed[i] += e / e.sum() / heads
        reach = (0.5 * mixed + 0.5 * np.eye(tokens)) @ reach
    return reach


@pytest.mark.parametrize("name", ["vit", "vit 3D"])
def test_rollout_of_our_vit(name):
    encoder = made(AVERAGED[name]).double()
    encoder.pos = encoder.pos.double()
    x = scans(encoder, 2).double()
    got = rollout(encoder, x).numpy()
    tokens = math.prod(encoder.grid)
    for b in range(2):
        with torch.no_grad():
            layers, h = [], encoder.embed(encoder.patchify(x[b : b + 1])) + encoder.pos
            for block in encoder.blocks:
                q, k = block.qkv(block.norm1(h))[0, :, : 2 * encoder.dim].split(encoder.dim, dim=1)
                layers.append(tuple(t.unflatten(1, (2, -1)).transpose(0, 1).numpy() for t in (q, k)))
                h = block(h)
        reach = rolled_by_loops(layers, 2, tokens)
        np.testing.assert_allclose(reach.sum(1), 1)
        expected = enlarged(reach.mean(0).reshape(1, *encoder.grid), encoder.size)[0]
        np.testing.assert_allclose(got[b], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_rollout_of_timm(name):
    """From the class token's row, or from the mean of the patches' rows; registers and class token are no patches."""
    encoder = made(lambda: TimmEncoder(1, (32, 48), name)).double()
    x, net = scans(encoder, 1).double(), encoder.net
    got, first = rollout(encoder, x)[0].numpy(), net.num_prefix_tokens
    seen, layers = [], []
    handles = [b.attn.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for b in net.blocks]
    with torch.no_grad():
        encoder(x)
        for block, h in zip(net.blocks, seen, strict=True):
            q, k, _ = block.attn.qkv(h)[0].chunk(3, dim=1)
            cut = [t.unflatten(1, (block.attn.num_heads, -1)).transpose(0, 1) for t in (q, k)]
            layers.append((block.attn.q_norm(cut[0]).numpy(), block.attn.k_norm(cut[1]).numpy()))
    for handle in handles:
        handle.remove()
    reach = rolled_by_loops(layers, net.blocks[0].attn.num_heads, first + 6)
    row = reach[0] if name == "test_vit" else reach[first:].mean(0)
    assert map_resolution(encoder, x) == (2, 3)
    np.testing.assert_allclose(got, enlarged(row[first:].reshape(1, 2, 3), encoder.size)[0], rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: CNN(1, (16, 16), (8,)),
        lambda: TimmEncoder(1, (64, 64), "test_convnext"),
        lambda: TimmEncoder(1, (32, 48), "test_vit3"),  # pooled by an attention of its own
        lambda: MLP(1, (8, 8), (4,)),
    ],
)
def test_no_attention_no_rollout(make):
    encoder = make()
    with pytest.raises(UserError, match="no attention between all its patches"):
        rollout(encoder, scans(encoder))


@pytest.mark.parametrize("make", [lambda: MLP(1, (8, 8), (4,)), lambda: PatchBank(1, (12, 12), 4, 8)])
def test_no_place_no_map(make):
    encoder = make()
    with pytest.raises(UserError, match="no spatial activations"):
        gradcam(encoder, scans(encoder), torch.ones(encoder.dim))


@pytest.mark.parametrize("name", [*AVERAGED, "test_vit2"])
def test_layers_are_randomised_from_the_top(name):
    make = AVERAGED.get(name, lambda: TimmEncoder(1, (32, 48), name))
    trained = made(make)
    torch.manual_seed(7)
    fresh = make().eval()
    before = copy.deepcopy((trained.state_dict(), fresh.state_dict()))
    depths = trained.by_depth()
    steps = 0
    for k, one in enumerate(randomised(trained, fresh), start=1):
        steps += 1
        new = depths[len(depths) - k :]
        ours = {id(p) for group in new for p in group}
        theirs = dict(fresh.named_parameters())
        for (n, p), q in zip(trained.named_parameters(), one.parameters(), strict=True):
            assert torch.equal(q, theirs[n] if id(p) in ours else p), (k, n)
            assert not torch.equal(theirs[n], p)
    assert steps == len(depths) > 1
    assert all(torch.equal(v, fresh.state_dict()[n]) for n, v in one.state_dict().items())  # running means and all
    assert all(torch.equal(v, before[0][n]) for n, v in trained.state_dict().items())
    assert all(torch.equal(v, before[1][n]) for n, v in fresh.state_dict().items())


def test_running_means_go_with_their_own_layer():
    trained = made(AVERAGED["cnn"])
    torch.manual_seed(7)
    fresh = AVERAGED["cnn"]().eval()
    top = next(iter(randomised(trained, fresh)))
    norms = [[m for m in e.modules() if isinstance(m, nn.BatchNorm2d)] for e in (trained, fresh, top)]
    assert [torch.equal(t.running_var, o.running_var) for t, _, o in zip(*norms, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    assert [torch.equal(f.running_var, o.running_var) for _, f, o in zip(*norms, strict=True)] == [
        False,
        False,
        True,
        True,
    ]


few = hnp.arrays(np.float32, (2, 3, 4), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.0]))


@given(few, few)
@settings(max_examples=60, deadline=None)
def test_rank_correlation_is_spearman(a, b):
    got = rank_correlation(a, b)
    for i in range(2):
        flat = [np.ptp(m[i]) == 0 for m in (a, b)]
        expected = float(all(flat)) if any(flat) else spearmanr(a[i].ravel(), b[i].ravel()).statistic
        assert got[i] == pytest.approx(expected, abs=1e-12)


def test_focus_by_hand():
    """Three quarters of the scan are there, a quarter is padding, where neither map nor mask counts."""
    maps = np.array([[[4, 1, 9], [2, 1, 9]], [[0, 0, 5], [0, 0, 5]], [[3, 3, 0], [0, 1, 0]]], np.float32)
    masks = np.array([[[1, 0, 1], [0, 0, 1]], [[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [0, 1, 0]]], bool)
    inside = np.array([[[1, 1, 0], [1, 1, 0]]] * 3, bool)
    got = mask_energy(maps, masks, inside)
    np.testing.assert_allclose(got.energy, [4 / 8, 1 / 4, 4 / 7])
    np.testing.assert_allclose(got.area, [1 / 4, 1 / 4, 2 / 4])
    np.testing.assert_allclose(got.hit, [1, 1 / 4, 1 / 2])  # in the second all four places are the highest
    assert got.empty.tolist() == [False, True, False]


# 0, or a value that a quarter of is no subnormal float32, so that scaling is exact
positive = hnp.arrays(np.float32, (3, 4, 5), elements=st.just(0.0) | st.floats(2**-20, 1000, width=32))


shares = hnp.arrays(np.float32, (3, 4, 5), elements=st.sampled_from([0.0, 0.3, 1.0]))


@given(positive, hnp.arrays(bool, (3, 4, 5)), shares, st.sampled_from([0.25, 4.0]))
@settings(max_examples=60, deadline=None)
def test_focus_properties(maps, masks, part, factor):
    masks = masks * part
    masks[:, 1, 1] = 0.25
    got, scaled = mask_energy(maps, masks), mask_energy(maps * factor, masks)
    assert ((got.energy >= 0) & (got.energy <= 1 + 1e-12) & (got.area > 0)).all()
    np.testing.assert_allclose(got.energy, scaled.energy, rtol=1e-6)
    even = mask_energy(np.full_like(maps, factor), masks)
    np.testing.assert_allclose(even.energy, even.area)
    np.testing.assert_allclose(even.hit, even.area)
    whole = masks > 0
    within = mask_energy(whole * (maps + 1), whole)
    np.testing.assert_allclose(within.energy, 1)
    np.testing.assert_allclose(within.hit, 1)
    rest = mask_energy(maps, 1 - masks + 0.0)  # 0.75 at least where masks hold 0.25, so never empty
    np.testing.assert_allclose(got.energy + rest.energy, 1, rtol=1e-6)
    np.testing.assert_allclose(got.hit + rest.hit, 1, rtol=1e-6)
    np.testing.assert_allclose(got.area + rest.area, 1, rtol=1e-6)


def test_focus_refuses_what_cannot_be_scored():
    one, mask = np.ones((1, 2, 2)), np.ones((1, 2, 2), bool)
    with pytest.raises(ValueError, match="1 masks are empty"):
        mask_energy(one, mask & False)
    with pytest.raises(ValueError, match="1 masks are empty"):
        mask_energy(one, mask, inside=mask & False)
    with pytest.raises(ValueError, match="maps of 0 or more"):
        mask_energy(-one, mask)
    with pytest.raises(ValueError, match="maps of 0 or more"):
        mask_energy(np.full((1, 2, 2), np.nan), mask)
    with pytest.raises(ValueError, match="masks of 0 to 1"):
        mask_energy(one, 2.0 * mask)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.61, 0.9, "Do not trust these maps"),
        (0.2, 0.6, "It is not shown"),
        (-0.3, 0.2, "depend on the learned weights"),
    ],
)
def test_a_map_that_does_not_change_is_not_trusted(low, high, words):
    score = Score(0.5, low, high, 20, 10, "made up")
    assert words in randomisation_check(score)
    assert depends_on_weights(score) == (high == 0.2)
    few = dataclasses.replace(score, patients=9)
    assert "too few patients. Do not trust them" in randomisation_check(few)
    assert not depends_on_weights(few)
