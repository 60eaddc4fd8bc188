"""RankMe, LiDAR and alpha-ReQ against loops and closed forms, and the faults that others have."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.evals.label_free.rank import alpha_req, lidar, rankme


def gaussian(N=2000, D=64, k=64, offset=0.0, seed=0):
    """N scans in k of D directions, equally strong, around `offset`."""
    r = np.random.default_rng(seed)
    return r.normal(size=(N, k)) @ np.linalg.qr(r.normal(size=(D, k)))[0].T + offset


def ladder(k, N=200, V=10, D=128, seed=0):
    """(N, V, D): scans differ along k directions of D, views of a scan along all, a little."""
    r = np.random.default_rng(seed)
    x = 0.3 * r.normal(size=(N, V, D))
    x[:, :, :k] += 5 * r.normal(size=(N, 1, k))
    return x @ np.linalg.qr(r.normal(size=(D, D)))[0]


def test_rankme_is_its_equation():
    s = np.array([3.0, 2.0, 1.0])
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 3)))[0] * s
    p = s / 6 + 1e-7
    got = rankme(x)
    assert got["raw"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), abs=1e-9)
    assert got["of"] == 3
    assert rankme(x[:3])["of"] == 2  # three scans have two directions around their mean


@pytest.mark.parametrize("k", [1, 2, 8, 64])
def test_rankme_counts_directions_and_order_does_not_matter(k):
    x = gaussian(k=k)
    rank = rankme(x)
    assert rank["centred"] == pytest.approx(k, rel=0.02)
    shuffled = rankme(np.random.default_rng(1).permutation(x))
    assert shuffled == pytest.approx(rank)
    assert rankme(7 * x) == pytest.approx(rank)


def test_an_offset_hides_directions_from_the_published_rank_only():
    plain, moved = rankme(gaussian()), rankme(gaussian(offset=5.0))
    assert moved["centred"] == pytest.approx(plain["centred"], rel=1e-6)
    assert moved["raw"] < 0.6 * plain["raw"]


def test_rank_of_equal_rows_is_none():
    rank = rankme(np.ones((10, 4)))
    assert rank["centred"] == 0
    assert rank["raw"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="finite"):
        rankme(np.array([[np.nan, 1], [0, 1]]))


def test_a_rank_grows_with_the_number_of_scans():
    """The same population: values at different N cannot be compared, as documented."""
    ranks = [rankme(gaussian(N=n, D=128, k=128))["centred"] for n in (32, 128, 512)]
    assert ranks[0] < 32
    assert ranks[0] < 0.5 * ranks[1] < ranks[2]


def by_loops(views, delta):
    """LiDAR as its paper writes it: sums over scans and views, a matrix square root, D eigenvalues."""
    N, V, D = views.shape
    centre = sum(views[n, v] for n in range(N) for v in range(V)) / (N * V)
    variance = sum(((views[n, v] - centre) ** 2).sum() for n in range(N) for v in range(V)) / (N * V * D)
    x = (views - centre) / math.sqrt(variance)
    B, W = np.zeros((D, D)), delta * np.eye(D)
    for n in range(N):
        mean = sum(x[n, v] for v in range(V)) / V
        B += np.outer(mean, mean) / N
        for v in range(V):
            W += np.outer(x[n, v] - mean, x[n, v] - mean) / (N * V)
    values, vectors = np.linalg.eigh(W)
    root = vectors @ np.diag(values**-0.5) @ vectors.T
    lam = np.linalg.eigvalsh(root @ B @ root).clip(0)
    p = lam / lam.sum() + 1e-7
    return math.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(("N", "V", "D"), [(40, 3, 12), (9, 4, 20)], ids=["more scans", "more dimensions"])
def test_lidar_is_its_equation(N, V, D):
    views = np.random.default_rng(N).normal(size=(N, 1, D)) + 0.4 * np.random.default_rng(1).normal(size=(N, V, D))
    for delta in (1e-4, 0.1):
        assert lidar(views, delta) == pytest.approx(by_loops(views, delta), rel=1e-6)


def test_lidar_orders_a_ladder_of_informative_directions():
    """stable-pretraining 0.1.8 orders it backwards when fed view by view, which is what its own forward gives."""
    few, more, most = (lidar(ladder(k)) for k in (4, 16, 64))
    assert few < more < most
    assert (few, more, most) == pytest.approx((4, 16, 64), rel=0.2)


def test_lidar_cannot_be_fed_view_by_view():
    views = ladder(16)
    with pytest.raises(ValueError, match=r"N scans, V views, D"):
        lidar(views.transpose(1, 0, 2))
    with pytest.raises(ValueError, match="needs finite features"):
        lidar(views.reshape(-1, 128))


def test_lidar_is_undefined_where_views_cannot_estimate_the_noise():
    """In 128 dimensions 40 scans with 2 views leave 88 in which views never differ, and these would be all that counts."""
    assert math.isnan(lidar(ladder(4, N=40, V=2)))
    assert math.isnan(lidar(np.ones((40, 3, 8))))


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(1e-3, 1e3), offset=st.floats(-10, 10), seed=st.integers(0, 99))
def test_lidar_and_alpha_do_not_depend_on_scale_offset_or_order(scale, offset, seed):
    views = ladder(4, N=30, V=3, D=24, seed=seed)
    order = np.random.default_rng(seed).permutation(30)
    moved = scale * (views[order] + offset)
    assert lidar(moved) == pytest.approx(lidar(views), rel=1e-6)
    assert alpha_req(moved[:, 0]) == pytest.approx(alpha_req(views[:, 0]), rel=1e-5)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_alpha_is_the_slope_of_a_power_law(alpha):
    r = np.random.default_rng(0)
    left = np.linalg.qr(r.normal(size=(400, 129)))[0]
    left = np.linalg.qr(left - left.mean(0))[0][:, :128]  # orthogonal columns that sum to 0
    x = left * np.arange(1, 129) ** (-alpha / 2) @ np.linalg.qr(r.normal(size=(128, 128)))[0]
    got = alpha_req(x + 3)
    assert got["alpha"] == pytest.approx(alpha, abs=1e-6)
    assert got["r2"] == pytest.approx(1, abs=1e-6)
    assert (got["first"], got["last"]) == (10, 100)


def test_alpha_is_a_regression_and_reports_its_fit():
    x = gaussian(N=300, D=40, k=40)
    got = alpha_req(x)
    lam = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
    i = np.arange(10, 41)
    slope, start = np.polyfit(np.log(i), np.log(lam[9:40]), 1)
    left = np.log(lam[9:40]) - slope * np.log(i) - start
    assert got["alpha"] == pytest.approx(-slope, rel=1e-6)
    assert got["r2"] == pytest.approx(1 - left.var() / np.log(lam[9:40]).var(), rel=1e-6)
    assert got["last"] == 40


def test_alpha_is_undefined_for_a_spectrum_that_ends():
    """A power law through eigenvalues that are rounding has whatever slope float32 gives it."""
    got = alpha_req(gaussian(N=300, D=128, k=12).astype(np.float32))
    assert math.isnan(got["alpha"])
    assert got["last"] == 12
