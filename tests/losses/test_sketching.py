"""LeJEPA's and VISReg's losses against their definitions written as loops, closed forms, finite differences, and VICReg."""

import math
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch.nn.functional import normalize

from medssl.losses.redundancy import barlow_twins, vicreg
from medssl.losses.sketching import normal_quantiles, sigreg, toward_centre, visreg


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Z, DIRECTIONS = rows(7, 4) * torch.tensor([0.1, 0.5, 1.0, 2.0]) + 0.3, rows(5, 4, seed=1)


def projected(z, direction):
    return [float(row @ direction / direction.norm()) for row in z]


def test_sigreg_is_its_definition():
    t = [3 * k / 16 for k in range(17)]
    total = 0.0
    for direction in DIRECTIONS:
        x, values = projected(Z, direction), []
        for f in t:
            real = sum(math.cos(f * v) for v in x) / 7 - math.exp(-f * f / 2)
            imaginary = sum(math.sin(f * v) for v in x) / 7
            values.append((real**2 + imaginary**2) * math.exp(-f * f / 2))
        total += 7 * 2 * sum((a + b) / 2 * 3 / 16 for a, b in pairwise(values))
    assert sigreg(Z, DIRECTIONS).item() == pytest.approx(total / 5, rel=1e-9)
    assert sigreg(Z, 9 * DIRECTIONS).item() == pytest.approx(total / 5, rel=1e-9)


def test_sigreg_is_least_for_a_gaussian_of_variance_one_and_mean_zero():
    z, several = rows(4000, 3, seed=2), rows(50, 3, seed=3)
    found = {name: sigreg(x, several).item() / 4000 for name, x in {
        "gaussian": z, "wide": 2 * z, "narrow": z / 2, "moved": z + 1, "flat": z * torch.tensor([1.0, 1, 0]),
        "uniform": (z.erf()) * 1.7, "constant": 0 * z,
    }.items()}  # fmt: skip
    assert found["gaussian"] < 0.001
    assert min(v for k, v in found.items() if k != "gaussian") > 0.0015


def test_visreg_is_its_definition():
    mean = [sum(float(v) for v in Z[:, j]) / 7 for j in range(4)]
    std = [math.sqrt(sum((float(v) - mean[j]) ** 2 for v in Z[:, j]) / 7) for j in range(4)]
    scale, centre = sum((1 - s) ** 2 for s in std) / 4, sum(m * m for m in mean) / 4
    white = (Z - torch.tensor(mean, dtype=torch.float64)) / (torch.tensor(std, dtype=torch.float64) + 1e-4)
    shape, q = 0.0, [stats.norm.ppf((k + 1) / 8) for k in range(7)]
    spread = math.sqrt(sum(v * v for v in q) / 7)
    for direction in DIRECTIONS:
        for x, v in zip(sorted(projected(white, direction)), q, strict=True):
            shape += (x - v / spread) ** 2 / 35
    for weights in ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.5, 2.0, 3.0)):
        expected = sum(w * v for w, v in zip(weights, (scale, shape, centre), strict=True))
        assert visreg(Z, DIRECTIONS, *weights).item() == pytest.approx(expected, rel=1e-9)


def test_visregs_shape_sees_neither_place_nor_scale_and_constant_features_have_a_finite_gradient():
    moved = (Z * torch.tensor([3.0, 1.0, 5.0, 2.0]) + torch.tensor([9.0, -2.0, 0.0, 1.0])).double()
    assert visreg(moved, DIRECTIONS, 0, 1, 0).item() == pytest.approx(visreg(Z, DIRECTIONS, 0, 1, 0).item(), rel=2e-3)
    same = torch.ones(5, 4, requires_grad=True)
    loss = visreg(same, DIRECTIONS.float(), 1, 1, 0)
    loss.backward()
    assert loss.item() == pytest.approx(2, rel=1e-6)
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize("n", [8, 64])
def test_quantiles_have_the_spread_of_what_is_compared_with_them(n):
    q = normal_quantiles(n)
    assert q.square().mean().item() == pytest.approx(1, rel=1e-12)
    raw = torch.tensor([stats.norm.ppf(k / (n + 1)) for k in range(1, n + 1)], dtype=torch.float64)
    torch.testing.assert_close(q / q[-1], raw / raw[-1])
    assert raw.square().mean().item() == pytest.approx({8: 0.57, 64: 0.89}[n], abs=0.01)


def test_scale_gets_no_gradient_from_the_shape():
    """Along a scaling of all rows the second term does not change, up to the constant beside the deviation."""
    z = (Z - Z.mean(0)).requires_grad_()
    (grad,) = torch.autograd.grad(visreg(z, DIRECTIONS, 0, 1, 0), z)
    x = (z / (z.std(0, correction=0) + 1e-4)).detach().requires_grad_()
    p = x @ normalize(DIRECTIONS, dim=1).T
    (grad_x,) = torch.autograd.grad((p.sort(0).values - normal_quantiles(7)[:, None]).square().mean(), x)
    expected = grad_x / (z.std(0, correction=0) + 1e-4)
    torch.testing.assert_close(grad, expected - expected.mean(0))  # as if the deviation were a number


def test_gradients_equal_finite_differences():
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sigreg(z, DIRECTIONS), z)
    assert torch.autograd.gradcheck(lambda z: visreg(z, DIRECTIONS, 1, 0, 1), z)
    assert torch.autograd.gradcheck(lambda z: toward_centre(z, 2), rows(3, 5, 4).requires_grad_())


def test_views_move_toward_the_mean_of_the_global_ones():
    z = rows(3, 5, 4)
    centre = (z[0] + z[1]) / 2
    expected = sum(float(((z[v] - centre) ** 2).sum()) for v in range(3)) / 60
    assert toward_centre(z, 2).item() == pytest.approx(expected, rel=1e-9)


# equivalences ------------------------------------------------------------------------------------------------------


def test_of_two_views_the_distance_to_their_centre_is_a_quarter_of_vicregs_invariance():
    z = rows(2, 6, 4)
    assert toward_centre(z, 2).item() == pytest.approx(vicreg(*z, 1, 0, 0).item() / 4, rel=1e-12)


@pytest.mark.parametrize("name", ["variance", "covariance", "barlow", "scale", "shape"])
def test_centring_before_a_variance_is_redundant(name):
    losses = {
        "variance": lambda a, b: vicreg(a, b, 0, 1, 0),
        "covariance": lambda a, b: vicreg(a, b, 0, 0, 1),
        "barlow": lambda a, b: barlow_twins(a, b, 0.005),
        "scale": lambda a, b: visreg(a, DIRECTIONS, 1, 0, 0),
        "shape": lambda a, b: visreg(a, DIRECTIONS, 0, 1, 0),
    }
    a, b = Z.clone().requires_grad_(), (Z + rows(7, 4, seed=4)).requires_grad_()
    centred = [x - x.mean(0) for x in (a, b)]
    before, after = losses[name](a, b), losses[name](*centred)
    assert after.item() == pytest.approx(before.item(), rel=1e-9)
    for one, two in zip(*(torch.autograd.grad(v, (a, b), allow_unused=True) for v in (before, after)), strict=True):
        if one is not None:
            torch.testing.assert_close(one, two)


def test_of_standardised_equal_views_vicregs_covariance_is_barlows_redundancy():
    z = Z - Z.mean(0)
    z = z / z.std(0, correction=0)
    barlow = barlow_twins(z, z, 1.0)  # its diagonal is 1, up to the constant in its variances
    expected = 2 / 4 * (7 / 6) ** 2 * barlow.item()
    assert vicreg(z, z, 0, 0, 1).item() == pytest.approx(expected, rel=1e-4)


def test_vicregs_variance_is_visregs_scale_without_its_square_and_below_one_only():
    narrow = Z / 10
    std = narrow.std(0, correction=0)
    assert visreg(narrow, DIRECTIONS, 1, 0, 0).item() == pytest.approx((1 - std).square().mean().item(), rel=1e-9)
    of_vicreg = (1 - (narrow.var(0) + 1e-4).sqrt()).mean().item()
    assert vicreg(narrow, narrow, 0, 1, 0).item() == pytest.approx(of_vicreg, rel=1e-9)
    wide = 5 * rows(9, 4)
    assert vicreg(wide, wide, 0, 1, 0).item() == 0
    assert visreg(wide, DIRECTIONS, 1, 0, 0).item() > 1
