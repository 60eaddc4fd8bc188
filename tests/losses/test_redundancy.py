"""Losses on batch statistics against their definitions written as loops, closed forms, and finite differences."""

import math

import pytest
import torch

import tiny
from medssl.losses.redundancy import barlow_twins, vicreg
from medssl.methods.base import Clock


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B = rows(7, 4), rows(7, 4, seed=1) * torch.tensor([0.1, 0.5, 1.0, 2.0])


def column(z, j):
    return [float(v) for v in z[:, j]]


def covariance(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    return sum((u - mx) * (v - my) for u, v in zip(x, y, strict=True)) / (len(x) - 1)


def whitened(n, d):
    """Return n centred rows whose d features have variance 1 (dividing by n) and no covariance."""
    z = rows(n, d, seed=2)
    q, _ = torch.linalg.qr(z - z.mean(0))
    return q * math.sqrt(n)


@pytest.mark.parametrize("weights", [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (25.0, 25.0, 1.0)])
def test_vicreg_is_its_definition(weights):
    near = sum((float(A[i, j]) - float(B[i, j])) ** 2 for i in range(7) for j in range(4)) / 28
    vary, covary = 0.0, 0.0
    for z in (A, B):
        for j in range(4):
            vary += max(0.0, 1 - math.sqrt(covariance(column(z, j), column(z, j)) + 1e-4)) / 8
            covary += sum(covariance(column(z, i), column(z, j)) ** 2 for i in range(4) if i != j) / 4
    expected = sum(w * term for w, term in zip(weights, (near, vary, covary), strict=True))
    assert expected > 0
    assert vicreg(A, B, *weights).item() == pytest.approx(expected, rel=1e-9)


def test_variance_counts_only_below_one_and_covariance_only_off_the_diagonal():
    wide = 3 * whitened(12, 4)
    assert vicreg(wide, wide, 0, 1, 0).item() == 0
    assert vicreg(wide, wide, 0, 0, 1).item() == pytest.approx(0, abs=1e-20)
    assert vicreg(wide, wide.flip(1), 0, 1, 1).item() == pytest.approx(0, abs=1e-20)
    assert vicreg(wide / 6, wide, 0, 1, 0).item() == pytest.approx((1 - math.sqrt(0.25 * 12 / 11 + 1e-4)) / 2)


def test_vicreg_does_not_see_where_the_features_lie():
    moved = torch.tensor([5.0, -3.0, 100.0, 0.1], dtype=torch.float64)
    assert vicreg(A + moved, B + moved, 25, 25, 1).item() == pytest.approx(vicreg(A, B, 25, 25, 1).item(), rel=1e-9)


@pytest.mark.parametrize("redundancy", [0.0, 0.005, 1.0])
def test_barlow_is_its_definition(redundancy):
    def correlation(x, y):
        var = [covariance(v, v) * 6 / 7 + 1e-5 for v in (x, y)]
        return covariance(x, y) * 6 / 7 / math.sqrt(var[0] * var[1])

    total = 0.0
    for i in range(4):
        for j in range(4):
            c = correlation(column(A, i), column(B, j))
            total += (1 - c) ** 2 if i == j else redundancy * c**2
    assert barlow_twins(A, B, redundancy).item() == pytest.approx(total, rel=1e-9)


def test_barlow_of_identical_white_views_is_zero_in_any_scale_and_place():
    white = whitened(12, 4)
    moved = white * torch.tensor([2.0, 5.0, 1.0, 9.0]) + 3
    assert barlow_twins(white, moved, 1.0).item() == pytest.approx(0, abs=1e-9)
    assert barlow_twins(white, moved.flip(1), 0.5).item() == pytest.approx(4 + 0.5 * 4, rel=1e-4)
    assert barlow_twins(white, -white, 1.0).item() == pytest.approx(4 * 4, rel=1e-4)


@pytest.mark.parametrize("name", ["vicreg", "barlow"])
def test_the_loss_of_constant_features_is_chance(name):
    method = tiny.method(name)
    with torch.no_grad():
        method.projector[-1].weight.zero_()
    out = method(tiny.batch_for(method), Clock(0, 10))
    assert out["loss"].item() == pytest.approx(out["chance"].item(), rel=1e-6)


LOSSES = {"vicreg": lambda a, b: vicreg(a, b, 25.0, 25.0, 1.0), "barlow": lambda a, b: barlow_twins(a, b, 0.005)}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], [A.clone().requires_grad_(), B.clone().requires_grad_()])


@pytest.mark.parametrize("name", LOSSES)
def test_constant_features_have_a_finite_loss_and_gradient(name):
    a, b = (torch.full((6, 3), 7.3).requires_grad_() for _ in range(2))
    LOSSES[name](a, b).backward()
    assert torch.isfinite(a.grad).all()
