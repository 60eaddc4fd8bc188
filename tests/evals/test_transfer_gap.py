"""The drop between two hospitals: its value is the difference, its variance the sum, and it does not see pairs."""

import re

import numpy as np
import pytest

from medssl.evals.metrics.metrics import AUROC, MAE, MEAN
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.transfer_gap import ScoredSet, transfer_gap


def classes(n, shift, seed):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    s = 1 / (1 + np.exp(-(rng.normal(0, 1, n) + shift * y)))
    return ScoredSet(y, np.stack([1 - s, s], 1), np.array([f"{seed}-{i // 2}" for i in range(n)]))


def test_the_value_is_the_difference_and_the_interval_holds_it():
    home, away = classes(400, 2.0, 0), classes(300, 0.5, 1)
    lost = transfer_gap(AUROC, home, away)
    assert lost.value == pytest.approx(AUROC(home.y, home.p) - AUROC(away.y, away.p), abs=1e-12)
    assert 0 < lost.low < lost.value < lost.high
    assert (lost.n, lost.patients) == (700, 350)


def test_the_variances_add():
    """Means of independent cases, where the standard error is known: sqrt(s_a^2 / n_a + s_b^2 / n_b)."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, 200), rng.normal(0, 3, 500)
    lost = transfer_gap(MEAN, ScoredSet(a, a, np.arange(200)), ScoredSet(b, b, np.arange(500)), n=8000)
    se = np.sqrt(a.var() / 200 + b.var() / 500)
    assert (lost.high - lost.low) / 2 == pytest.approx(1.96 * se, rel=0.05)


def test_the_ends_are_those_of_the_two_intervals_added_as_squares():
    home, away = classes(400, 2.0, 0), classes(300, 0.5, 1)
    a, b, lost = score(AUROC, *home), score(AUROC, *away), transfer_gap(AUROC, home, away)
    assert lost.value - lost.low == pytest.approx(np.hypot(a.value - a.low, b.high - b.value), abs=1e-12)
    assert lost.high - lost.value == pytest.approx(np.hypot(a.high - a.value, b.value - b.low), abs=1e-12)


def test_perfect_at_home_is_not_certain_at_home():
    """Twenty patients a class are all right at home, where every resample agrees; the home score may still be .83."""
    y = np.arange(40) % 2
    home, away = ScoredSet(y, np.eye(2)[y], np.arange(40)), classes(300, 0.5, 1)
    b, lost = score(AUROC, *away), transfer_gap(AUROC, home, away)
    assert lost.value - lost.low == pytest.approx(np.hypot(1 - 0.025 ** (1 / 20), b.high - b.value), abs=1e-12)


def test_the_same_scans_twice_are_not_paired():
    """A paired difference of a model with itself would have no width; here the two sets are different people."""
    home = classes(200, 1.0, 3)
    lost = transfer_gap(AUROC, home, home)
    alone = score(AUROC, home.y, home.p, home.patient)
    assert lost.value == 0
    assert (lost.high - lost.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(2), rel=0.1)


def test_a_set_with_one_patient_of_a_class_has_no_interval_and_says_so():
    home, away = classes(40, 1.0, 4), classes(3, 1.0, 5)._replace(patient=np.arange(3))
    lost = transfer_gap(AUROC, home, away)
    assert np.isnan([lost.low, lost.high]).all()
    assert lost.how.startswith("no interval, because a set has none")
    assert "no interval from 1 patients in the rarest class" in lost.how


def numbers(n, seed):
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n)
    return ScoredSet(y, y + rng.normal(size=n), np.arange(n))


def test_a_bootstrapped_metric_resamples_both_sets_independently():
    """With the same resamples of the same set, the distances to both ends would be the same."""
    home = numbers(100, 6)
    lost = transfer_gap(MAE, home, home, n=300)
    assert re.fullmatch(r"95 % interval from those of both sets.*(300 resamples.*){2}", lost.how)
    assert lost.value - lost.low != pytest.approx(lost.high - lost.value, rel=1e-6)


def test_the_level_is_that_of_both_intervals():
    home, away = numbers(100, 6), numbers(150, 7)
    wide, narrow = (transfer_gap(MAE, home, away, level=level) for level in (0.95, 0.5))
    assert narrow.how.startswith("50 % interval")
    assert (narrow.high - narrow.low) / (wide.high - wide.low) == pytest.approx(0.6745 / 1.96, rel=0.1)
