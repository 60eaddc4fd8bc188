"""Alignment, uniformity, intrinsic dimension and normality of features against loops, closed forms and scipy."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from medssl.evals.label_free.geometry import (
    alignment,
    common,
    directions,
    epps_pulley,
    sigreg,
    spread,
    two_nn,
    uniformity,
)


def cloud(N=12, V=3, D=5, seed=0):
    r = np.random.default_rng(seed)
    return r.normal(size=(N, 1, D)) + 0.5 * r.normal(size=(N, V, D)) + 0.3


def unit(v):
    return v / math.sqrt(sum(c * c for c in v))


def squared(a, b):
    return sum((p - q) ** 2 for p, q in zip(unit(a), unit(b), strict=True))


def test_spread_is_one_when_even_and_zero_when_collapsed():
    assert spread(np.random.default_rng(0).normal(size=(2000, 64))) == pytest.approx(1, abs=0.02)
    assert spread(np.tile([1.0, 2, 3], (5, 1))) == pytest.approx(0, abs=1e-12)


def test_alignment_is_the_mean_over_pairs_of_views():
    x = cloud()
    pairs = [squared(x[n, v], x[n, w]) for n in range(12) for v, w in combinations(range(3), 2)]
    assert alignment(x) == pytest.approx(np.mean(pairs), abs=1e-9)
    assert alignment(np.repeat(x[:, :1], 2, axis=1)) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="V >= 2"):
        alignment(x[:, :1])


def test_common_is_alignment_over_that_of_two_scans():
    x = cloud()
    apart = [squared(x[n, v], x[m, w]) for n, m in combinations(range(12), 2) for v in range(3) for w in range(3)]
    assert common(x) == pytest.approx(alignment(x) / np.mean(apart), abs=1e-9)
    assert math.isnan(common(np.ones((4, 2, 3))))


def test_views_of_nothing_in_common_are_at_chance_and_an_offset_does_not_hide_it():
    r = np.random.default_rng(0)
    unrelated = r.normal(size=(400, 2, 16))
    assert common(unrelated) == pytest.approx(1, abs=0.05)
    assert alignment(unrelated + 50) < 0.01  # what the published measure says of it: perfect
    assert common(unrelated + 50) == pytest.approx(1, abs=0.05)


def test_uniformity_is_its_equation():
    x = cloud()[:, 0]
    energy = [math.exp(-2 * squared(a, b)) for a, b in combinations(x, 2)]
    assert uniformity(x) == pytest.approx(math.log(np.mean(energy)), abs=1e-9)
    assert uniformity(np.ones((5, 3))) == pytest.approx(0, abs=1e-12)
    even = np.random.default_rng(0).normal(size=(300, 512))
    assert uniformity(even) == pytest.approx(-4, abs=0.02)  # orthogonal: squared distance 2


def two_nn_by_loops(x):
    near = []
    for i, a in enumerate(x):
        first, second = sorted(math.dist(a, b) for j, b in enumerate(x) if j != i)[:2]
        if first > 0:
            near.append(math.log(second / first))
    n, kept = len(near), int(0.9 * len(near))
    ratio, y = sorted(near)[:kept], [-math.log(1 - (i + 1) / n) for i in range(kept)]
    return np.dot(ratio, y) / np.dot(ratio, ratio)


def test_two_nn_is_its_regression_and_leaves_equal_scans_out():
    x = cloud(N=60)[:, 0]
    assert two_nn(x) == pytest.approx(two_nn_by_loops(x), abs=1e-9)
    twice = np.concatenate([x, x[:5]])
    assert two_nn(twice) == pytest.approx(two_nn_by_loops(twice), abs=1e-9)
    assert math.isnan(two_nn(np.ones((10, 4))))


@pytest.mark.parametrize("d", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_manifold(d):
    """However it is bent in 20 dimensions."""
    r = np.random.default_rng(d)
    u = r.uniform(size=(1500, d))
    x = np.hstack([np.sin(u), np.cos(u), u**2]) @ r.normal(size=(3 * d, 20))
    assert two_nn(x) == pytest.approx(d, rel=0.12)


def closed(x):
    """The Epps-Pulley integral with weight exp(-t^2 / 2), done by hand."""
    d = x[:, None] - x
    root = math.sqrt(2 * math.pi)
    return (
        root * np.exp(-(d**2) / 2).mean()
        - 2 * math.sqrt(math.pi) * np.exp(-(x**2) / 4).mean()
        + math.sqrt(2 * math.pi / 3)
    )


def test_epps_pulley_is_its_closed_form_and_scipys_integral():
    x = np.random.default_rng(0).normal(size=(40, 3)) * [1, 2, 0.3] + [0, 1, 0]
    x[0] *= 4
    got = epps_pulley(x)
    assert got == pytest.approx([closed(column) for column in x.T], abs=1e-10)

    def integrand(t):
        return abs(np.exp(1j * t * x[:, 1]).mean() - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)

    assert got[1] == pytest.approx(quad(integrand, -12, 12, limit=200)[0], abs=1e-8)


def test_sigreg_is_the_mean_over_keyed_directions_of_scaled_features():
    x = cloud(N=50, D=7)[:, 0] * np.arange(1, 8)
    z = (x - x.mean(0)) / math.sqrt(np.mean((x - x.mean(0)) ** 2))
    a = directions(7, 3)
    assert np.linalg.norm(a, axis=0) == pytest.approx(1)
    assert sigreg(x, seed=3) == pytest.approx(np.mean([closed(z @ column) for column in a.T]), abs=1e-9)
    assert sigreg(x, seed=3) == sigreg(x, seed=3) != sigreg(x, seed=4)


def test_sigreg_of_normal_features_is_noise_of_known_size():
    r = np.random.default_rng(0)
    mean = np.mean([sigreg(r.normal(size=(200, 40))) for _ in range(20)])
    # the integral of (1 - (1 + t^2) exp(-t^2)) exp(-t^2 / 2): the variance of the mean of exp(itx) where x is centred
    assert mean == pytest.approx(math.sqrt(2 * math.pi) * (1 - 3**-0.5 - 3**-1.5) / 200, rel=0.05)
    assert sigreg(r.exponential(size=(200, 2))) > 5 * mean
    assert math.isnan(sigreg(np.ones((5, 3))))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 50), scale=st.floats(0.01, 100))
def test_order_and_scale_change_nothing(seed, scale):
    """A shuffled set is the same set: MONAI's measure of domain shift takes it for another."""
    x = cloud(N=20, seed=seed)
    order = np.random.default_rng(seed).permutation(20)
    for f in (alignment, common):
        assert f(scale * x[order]) == pytest.approx(f(x), rel=1e-9)
    for f in (spread, uniformity, two_nn, sigreg):
        assert f(scale * x[order, 0]) == pytest.approx(f(x[:, 0]), rel=1e-7)


@settings(max_examples=10, deadline=None)
@given(offset=st.floats(-100, 100))
def test_an_offset_changes_only_what_is_on_the_sphere(offset):
    x = cloud(N=20)[:, 0]
    for f in (two_nn, sigreg):
        assert f(x + offset) == pytest.approx(f(x), rel=1e-6)
