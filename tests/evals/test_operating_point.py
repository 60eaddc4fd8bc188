import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

import tiny
from medssl.errors import UserError
from medssl.evals.stats.operating_point import (
    NPV,
    PPV,
    SENSITIVITY,
    SPECIFICITY,
    at_prevalence,
    decision_curve,
    decisions,
    net_benefit,
    operating_point,
    threshold_at,
)
from medssl.evals.stats.resampling import resamples


def draw(seed, N=60, digits=1):
    r = np.random.default_rng(seed)
    y = np.r_[0, 1, r.integers(0, 2, N - 2)]
    return y, np.round(r.normal(size=N) + y, digits)


@given(st.integers(0, 10**6), st.integers(4, 60), st.sampled_from([0, 1, 9]), st.floats(0.05, 0.95))
@settings(max_examples=80, deadline=None)
def test_the_threshold_is_the_lowest_score_that_is_specific_enough(seed, N, digits, specificity):
    y, s = draw(seed, N, digits)
    enough = [t for t in s if sum((s < t) & (y == 0)) >= specificity * sum(y == 0)]
    if enough:
        assert threshold_at(y, s, specificity) == min(enough)
    else:
        with pytest.raises(UserError, match="cannot be reached"):
            threshold_at(y, s, specificity)


def test_the_threshold_comes_from_validation_and_stays_in_every_resample():
    """Against the plain way: choose on validation, then pick the scans of the drawn patients and count."""
    val, (y, s) = draw(0, 100, 9), draw(1, 80, 9)
    patient = np.arange(80) // 2
    found = operating_point(val, (y, s), [f"{i:02}" for i in patient], 0.8, [0.01], n=200)
    negatives = np.sort(val[1][val[0] == 0])
    assert (negatives < found.threshold).mean() >= 0.8
    assert found.threshold <= val[1][val[1] > negatives[int(np.ceil(0.8 * len(negatives))) - 1]].min()
    names = list(found.scores)
    assert names == ["sensitivity", "specificity", "PPV", "NPV", "PPV at 1 %", "NPV at 1 %"]
    called, sick = s >= found.threshold, y == 1
    for metric, kind, right in (
        ("sensitivity", sick, called),
        ("specificity", ~sick, ~called),
        ("PPV", called, sick),
        ("NPV", ~called, ~sick),
    ):
        k, share = len(set(patient[kind])), right[kind].mean()
        alone = [right[kind & (patient != i)].mean() - share for i in set(patient[kind])]
        m = np.array([(patient[kind] == i).sum() for i in set(patient[kind])])
        t = stats.t.ppf(0.975, m.sum() ** 2 / (m**2).sum() - 1)
        n = share * (1 - share) / ((k - 1) / k * np.square(alone).sum()) * (1.959963984540054 / t) ** 2
        expected = tiny.wilson(share, n)
        assert (found.scores[metric].low, found.scores[metric].high) == pytest.approx(expected, abs=1e-9)
    values = []
    for counts in np.concatenate(list(resamples(40, 200, seed=0, rows=200))).astype(int):
        rows = np.repeat(np.arange(80), counts[patient])
        called, sick = s[rows] >= found.threshold, y[rows] == 1
        se, sp = called[sick].mean(), (~called[~sick]).mean()
        ppv = 0.01 * se / (0.01 * se + 0.99 * (1 - sp))
        npv = 0.99 * sp / (0.99 * sp + 0.01 * (1 - se))
        values.append([ppv, npv])
    ends = tiny.ends(min(len(set(patient[y == k])) for k in (0, 1)))
    for score, (low, high) in zip(list(found.scores.values())[4:], np.quantile(values, ends, axis=0).T, strict=True):
        assert (score.low, score.high) == pytest.approx((low, high), abs=1e-12)
    assert "specificity 0.8 on 100 validation scans" in found.how
    assert operating_point(val, (1 - y, -s), patient, 0.8, n=100).threshold == found.threshold


@given(st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_decisions_are_scored_as_scikit_learn_does_and_a_weight_is_a_repetition(seed):
    y, s = draw(seed)
    p, called = decisions(s, 0.5), (s >= 0.5).astype(int)
    r = np.random.default_rng(seed)
    w, count = r.choice([0.3, 1, 2], 60), r.integers(0, 4, 60)
    count[:2] = 1
    for metric, f, of in (
        (SENSITIVITY, sk.recall_score, 1),
        (SPECIFICITY, sk.recall_score, 0),
        (PPV, sk.precision_score, 1),
        (NPV, sk.precision_score, 0),
    ):
        expected = f(y, called, pos_label=of, sample_weight=w, zero_division=np.nan)
        assert metric(y, p, w) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    for metric in (SENSITIVITY, SPECIFICITY, PPV, NPV, net_benefit(0.3), *at_prevalence(0.2)):
        repeated = metric(np.repeat(y, count), np.repeat(p, count, axis=0))
        assert metric(y, p, count) == pytest.approx(repeated, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("prevalence", [0.001, 0.3, 0.9])
def test_predictive_values_at_a_prevalence_are_those_of_a_cohort_of_that_prevalence(prevalence):
    y, s = draw(3)
    p = decisions(s, 0.4)
    cohort = np.where(y == 1, prevalence / (y == 1).sum(), (1 - prevalence) / (y == 0).sum())
    ppv, npv = at_prevalence(prevalence)
    assert ppv(y, p) == pytest.approx(PPV(y, p, cohort), abs=1e-12)
    assert npv(y, p) == pytest.approx(NPV(y, p, cohort), abs=1e-12)


def test_a_threshold_above_all_negatives_is_reported():
    y = np.r_[np.zeros(10, int), 1, 1]
    test = draw(0)
    found = operating_point((y, np.arange(12.0)), test, np.arange(60), 0.95, n=100)
    assert found.threshold == 10
    assert "its specificity on other scans is unknown" in found.how
    assert "unknown" not in operating_point((y, np.arange(12.0)), test, np.arange(60), 0.8, n=100).how
    nobody = operating_point((y, np.arange(12.0)), (test[0], test[1] - 99), np.arange(60), 0.8, n=100).scores
    assert np.isnan(nobody["PPV"].value)
    assert (nobody["sensitivity"].value, nobody["specificity"].value) == (0, 1)


def test_net_benefit_is_its_definition():
    y, s = draw(0, digits=9)
    p = 1 / (1 + np.exp(-s))
    curve = decision_curve(y, np.c_[1 - p, p], np.arange(60), [0.05, 0.4], n=200)
    for point in curve:
        t = point.threshold
        tp = sum(1 for i in range(60) if p[i] >= t and y[i] == 1)
        fp = sum(1 for i in range(60) if p[i] >= t and y[i] == 0)
        assert point.model.value == pytest.approx(tp / 60 - fp / 60 * t / (1 - t), abs=1e-12)
        assert point.treat_all.value == pytest.approx(y.mean() - (1 - y.mean()) * t / (1 - t), abs=1e-12)
        assert point.gain.value == pytest.approx(point.model.value - point.treat_all.value, abs=1e-12)
    sure = np.full((60, 2), 0.5)
    (point,) = decision_curve(y, sure, np.arange(60), [0.3], n=100)
    assert point.as_dict() == {"threshold": 0.3} | {
        k: getattr(point, k).as_dict() for k in ("model", "treat_all", "gain")
    }
    gain = point.gain  # it treats all as well, in every resample
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: threshold_at([0, 0, 0], [1.0, 2, 3], 0.9), "all 3 validation scans have one class"),
        (lambda: threshold_at([0, 1], [1.0, 2], 1.0), "between 0 and 1"),
        (lambda: threshold_at([0, 0, 1], [2.0, 2, 2], 0.5), "2 of 2 negative scans share"),
        (lambda: at_prevalence(0), "prevalence"),
        (lambda: net_benefit(1), "net benefit"),
    ],
)
def test_what_cannot_be_done_is_said(call, words):
    with pytest.raises(UserError, match=words):
        call()


@pytest.mark.parametrize(("y", "s"), [([0, 2], [0.0, 1]), ([0, 1], [0.0, np.nan]), ([0, 1], [[0.0], [1]]), ([], [])])
def test_wrong_arrays_are_refused(y, s):
    with pytest.raises(ValueError, match="classes"):
        threshold_at(y, s, 0.9)
