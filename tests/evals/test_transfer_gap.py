"""The drop between two hospitals: its value is the difference, its variance the sum, and it does not see pairs."""

import numpy as np
import pytest

import tiny
from medssl.evals.metrics.metrics import AUROC, MEAN
from medssl.evals.stats.bootstrap import replicates, score
from medssl.evals.stats.transfer_gap import AWAY, HOME, ScoredSet, transfer_gap
from medssl.rng import seed_from


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


def test_a_rare_class_of_one_set_widens_the_interval():
    home, away = classes(400, 2.0, 0), classes(300, 0.5, 1)
    few = np.isin(away.patient, np.unique(away.patient)[:12]) | (away.y == 0)
    away = ScoredSet(*(np.asarray(part)[few] for part in away))
    assert len(set(away.patient[away.y == 1])) == 12
    drawn = []
    for tested, stream in ((home, HOME), (away, AWAY)):
        at = np.unique(tested.patient, return_inverse=True)[1]
        drawn.append(replicates([(AUROC, *AUROC.check(tested.y, tested.p))], at, 2000, seed_from(0, stream))[0])
    lost = transfer_gap(AUROC, home, away)
    assert [lost.low, lost.high] == pytest.approx(np.quantile(drawn[0] - drawn[1], tiny.ends(12)), abs=1e-12)


def test_the_same_scans_twice_are_not_paired():
    """A paired difference of a model with itself would have no width; here the two sets are different people."""
    home = classes(200, 1.0, 3)
    lost = transfer_gap(AUROC, home, home)
    alone = score(AUROC, home.y, home.p, home.patient)
    assert lost.value == 0
    assert (lost.high - lost.low) / (alone.high - alone.low) == pytest.approx(np.sqrt(2), rel=0.1)


def test_a_set_without_a_class_is_said():
    home, away = classes(40, 1.0, 4), classes(4, 1.0, 5)._replace(patient=np.arange(4))
    how = transfer_gap(AUROC, home, away).how
    assert "left out because a class was missing" in how
    assert "only 2 patients in the rarest class" in how
