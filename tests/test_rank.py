import math

import numpy as np
import pytest

from medssl.evals.rank import feature_std, flat_at_chance, rankme, verdict


def gaussian(N=2000, D=64, k=64, offset=0.0, seed=0):
    """N scans in k of D directions, equally strong, around `offset`."""
    r = np.random.default_rng(seed)
    return r.normal(size=(N, k)) @ np.linalg.qr(r.normal(size=(D, k)))[0].T + offset


def test_rankme_is_its_equation():
    s = np.array([3.0, 2.0, 1.0])
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 3)))[0] * s
    p = s / 6 + 1e-7
    got = rankme(x)
    assert got["raw"] == pytest.approx(math.exp(-(p * np.log(p)).sum()), abs=1e-9)
    assert got["of"] == 3


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


def test_spread_is_one_when_even_and_zero_when_collapsed():
    assert feature_std(gaussian()) == pytest.approx(1, abs=0.02)
    assert feature_std(np.tile([1.0, 2, 3], (5, 1))) == pytest.approx(0, abs=1e-12)


def test_verdict_has_words_for_each_collapse_and_none_for_health():
    assert verdict(gaussian(k=64)) is None
    assert verdict(gaussian(k=4)) is None
    assert "onto about 1.0 of 64 directions" in (verdict(gaussian(k=1)) or "")
    assert "almost the same for every scan" in (verdict(1e-4 * gaussian() + 1) or "")


def test_a_loss_flat_at_chance_is_named_with_its_value():
    chance = math.log(256)
    flat = [8.0] * 5 + [chance + 0.05 * (-1) ** i for i in range(40)]
    words = flat_at_chance(flat, chance)
    assert words is not None
    assert words.startswith("loss has stayed at ln 256 = 5.545 (chance) for the last 40 logged steps")
    assert flat_at_chance(flat[:39], chance) is None  # too early to say
    assert flat_at_chance([*flat[:-1], 5.0], chance) is None  # it moves
    assert "0.300 (chance)" in (flat_at_chance([0.3] * 40, 0.3) or "")
    assert flat_at_chance([0.0] * 40, 0.0) is None
    assert flat_at_chance([float("nan")] * 40, chance) is None
