"""Losses against their definitions written as loops, against other libraries, and against finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import NTXentLoss
from pytorch_metric_learning import distances, losses, miners, reducers

from medssl.losses.infonce import nt_xent
from medssl.losses.pairs import MINING, contrastive, triplet
from medssl.losses.regression import (
    cosine_distance,
    masked_absolute_error,
    masked_patch_error,
    smooth_absolute_error,
    squared_error,
)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


GROUPS = {
    "pairs": torch.arange(8).repeat(2),
    "mixed": torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 4, 5, 6, 7, 7]),
    "no positive": torch.arange(16),
    "one class": torch.zeros(16, dtype=torch.int64),
}
POINTS = {"random": rows(16, 6), "duplicates": rows(4, 6).repeat(4, 1)}


def gradient(f, z):
    z = z.clone().requires_grad_()
    loss = f(z)
    loss.backward()
    return loss.detach(), z.grad


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_nt_xent_is_the_sum_in_the_paper(temperature):
    a, b = rows(5, 7), rows(5, 7, seed=1)
    z = F.normalize(torch.cat([a, b]), dim=1)
    total = 0.0
    for i in range(10):
        s = [float(z[i] @ z[k]) / temperature for k in range(10)]
        total += -s[(i + 5) % 10] + math.log(sum(math.exp(s[k]) for k in range(10) if k != i))
    assert nt_xent(a, b, temperature).item() == pytest.approx(total / 10, rel=1e-12)


def test_nt_xent_equals_lightly_in_value_and_gradient():
    a, b = rows(6, 8), rows(6, 8, seed=1)
    ours = gradient(lambda z: nt_xent(*z.chunk(2), 0.2), torch.cat([a, b]))
    theirs = gradient(lambda z: NTXentLoss(0.2)(*z.chunk(2)), torch.cat([a, b]))
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


def test_nt_xent_of_constant_features_is_chance():
    assert nt_xent(torch.ones(8, 4), torch.ones(8, 4), 0.1).item() == pytest.approx(math.log(15), rel=1e-6)


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("margins", [(0.0, 1.0), (0.2, 1.3)])
def test_contrastive_is_its_definition(points, group, margins):
    z, g = POINTS[points], GROUPS[group]
    unit = F.normalize(z, dim=1)
    pull, push = [], []
    for i in range(len(z)):
        for j in range(i + 1, len(z)):
            d = math.dist(unit[i], unit[j])
            if g[i] == g[j]:
                pull.append(max(0.0, d - margins[0]) ** 2)
            else:
                push.append(max(0.0, margins[1] - d) ** 2)
    expected = sum(sum(p) / max(1, sum(v > 1e-30 for v in p)) for p in (pull, push))
    loss, grad = gradient(lambda z: contrastive(z, g, *margins), z)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("points", POINTS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("mining", MINING)
def test_triplet_is_its_definition(points, group, mining):
    z, g, margin = POINTS[points], GROUPS[group], 0.4
    unit = F.normalize(z, dim=1)
    d = torch.cdist(unit, unit)  # the same numbers as in the loss: at ties, rounding decides who is mined
    terms = []
    for a in range(len(z)):
        for p in range(len(z)):
            for n in range(len(z)):
                if a == p or g[a] != g[p] or g[a] == g[n]:
                    continue
                gap = (d[a, n] - d[a, p]).item()
                kept = {"all": gap <= margin, "easy": gap > margin, "semihard": 0 < gap <= margin, "hard": gap <= 0}[
                    mining
                ]
                if kept:
                    terms.append(max(0.0, margin - gap))
    loss, grad = gradient(lambda z: triplet(z, g, margin, mining), z)
    assert loss.item() == pytest.approx(sum(terms) / max(1, len(terms)), rel=1e-9, abs=1e-12)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("mining", ["all", "semihard", "hard"])
def test_triplet_equals_pytorch_metric_learning(mining):
    z, g = POINTS["random"], GROUPS["mixed"]

    def theirs(z):
        distance = distances.LpDistance()
        mined = miners.TripletMarginMiner(0.3, mining, distance=distance)(z, g)
        return losses.TripletMarginLoss(0.3, distance=distance, reducer=reducers.MeanReducer())(z, g, mined)

    for x, y in zip(gradient(lambda z: triplet(z, g, 0.3, mining), z), gradient(theirs, z), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("mining", ["all", "semihard", "hard"])
def test_triplets_of_two_classes_in_a_batch_of_a_thousand(mining):
    """A quarter of a billion triplets, summed anchor by anchor in float64, from embeddings in float32."""
    z, g, margin = rows(1000, 4).float(), torch.arange(1000) % 2, 0.2
    d = torch.cdist(F.normalize(z.double()), F.normalize(z.double()), compute_mode="donot_use_mm_for_euclid_dist")
    total, count = 0.0, 0
    for i in range(1000):
        near, far = d[i, (g == g[i]) & (torch.arange(1000) != i)], d[i, g != g[i]]
        gap = far[None] - near[:, None]
        kept = {"all": gap <= margin, "semihard": (gap > 0) & (gap <= margin), "hard": gap <= 0}[mining]
        total, count = total + (margin - gap)[kept].sum().item(), count + int(kept.sum())
    assert triplet(z, g, margin, mining).item() == pytest.approx(total / count, rel=1e-5)


def test_contrastive_of_two_points_is_hadsells_equation():
    """One pair alone: (d - m+)^2 if alike, (m- - d)^2 if not."""
    z = torch.tensor([[1.0, 0.0], [0.6, 0.8]], dtype=torch.float64)
    d = math.sqrt(0.4**2 + 0.8**2)
    assert contrastive(z, torch.tensor([0, 0]), 0.1, 1.2).item() == pytest.approx((d - 0.1) ** 2)
    assert contrastive(z, torch.tensor([0, 1]), 0.1, 1.2).item() == pytest.approx((1.2 - d) ** 2)


def test_cosine_distance_is_the_distance_of_unit_vectors_and_the_target_gets_no_gradient():
    p, t = rows(4, 5).requires_grad_(), rows(4, 5, seed=1).requires_grad_()
    expected = (
        sum(
            math.dist(F.normalize(a, dim=0), F.normalize(b, dim=0)) ** 2
            for a, b in zip(p.detach(), t.detach(), strict=True)
        )
        / 4
    )
    loss = cosine_distance(p, t)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    assert t.grad is None
    assert p.grad is not None


def test_masked_patch_error_is_its_definition():
    p, t, hidden = rows(2, 5, 9), rows(2, 5, 9, seed=1), torch.tensor([[0, 3], [4, 2]])
    total = 0.0
    for b in range(2):
        for n in hidden[b].tolist():
            patch = t[b, n]
            mean = sum(patch.tolist()) / 9
            variance = sum((v - mean) ** 2 for v in patch.tolist()) / 8
            total += (
                sum((p[b, n, i].item() - (patch[i].item() - mean) / math.sqrt(variance + 1e-6)) ** 2 for i in range(9))
                / 9
            )
    assert masked_patch_error(p, t, hidden).item() == pytest.approx(total / 4, rel=1e-12)


def test_masked_absolute_error_is_its_definition():
    p, t = rows(6, 4).view(3, 2, 4), rows(6, 4, seed=1).view(3, 2, 4)
    hidden = torch.tensor([[[True], [False]], [[False], [False]], [[True], [True]]])
    total = [abs((p - t)[b, n, i].item()) for b in range(3) for n in range(2) for i in range(4) if hidden[b, n, 0]]
    assert masked_absolute_error(p, t, hidden).item() == pytest.approx(sum(total) / len(total), rel=1e-12)
    assert masked_absolute_error(p, t, hidden & False).item() == 0


@pytest.mark.parametrize("beta", [0.3, 1.0, 2.0])
def test_smooth_absolute_error_is_its_definition_and_the_target_gets_no_gradient(beta):
    p, t = rows(6, 4).requires_grad_(), rows(6, 4, seed=1).requires_grad_()
    distances = (p - t).detach().abs().flatten().tolist()
    assert min(distances) < beta < max(distances)
    total = sum(d * d / (2 * beta) if d < beta else d - beta / 2 for d in distances)
    loss = smooth_absolute_error(p, t, beta)
    assert loss.item() == pytest.approx(total / 24, rel=1e-12)
    loss.backward()
    assert t.grad is None
    assert p.grad is not None


LOSSES = {
    "nt_xent": lambda z: nt_xent(*z.chunk(2), 0.3),
    "contrastive": lambda z: contrastive(z, GROUPS["mixed"], 0.1, 1.1),
    "triplet": lambda z: triplet(z, GROUPS["mixed"], 0.4, "all"),
    "cosine_distance": lambda z: cosine_distance(z, POINTS["random"].flip(0)),
    "masked_patch_error": lambda z: masked_patch_error(
        z.view(4, 4, 6), rows(4, 4, 6, seed=3), torch.tensor([[0, 1]] * 4)
    ),
    "squared_error": lambda z: squared_error(z, POINTS["random"].flip(0)),
    "masked_absolute_error": lambda z: masked_absolute_error(
        z, rows(*POINTS["random"].shape, seed=3), torch.arange(len(z))[:, None] % 3 > 0
    ),
    "smooth_absolute_error": lambda z: smooth_absolute_error(z, rows(*POINTS["random"].shape, seed=3), 0.7),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_equals_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], POINTS["random"].clone().requires_grad_(), eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_does_not_reach_the_loss(name):
    z = POINTS["random"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSSES[name](z)
    torch.testing.assert_close(inside, LOSSES[name](z), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_value_that_is_not_finite_is_refused(name):
    z = POINTS["random"].clone()
    z[3, 2] = float("inf")
    with pytest.raises(FloatingPointError, match="not finite"):
        LOSSES[name](z)
