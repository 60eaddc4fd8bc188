"""Intervals and p-values against closed forms, other libraries and simulated cohorts whose truth is known."""

from functools import cache

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom, binomtest, norm

import tiny
from medssl.evals.metrics.metrics import (
    ACCURACY,
    AUPRC,
    AUROC,
    BALANCED_ACCURACY,
    CONCORDANCE,
    ECE,
    MACRO_AUROC,
    MAE,
    MEAN,
    QUADRATIC_KAPPA,
    R2,
    SPEARMAN,
)
from medssl.evals.stats.bootstrap import differences, paired, score, score_seeds, scores
from medssl.evals.stats.calibration import IN_THE_LARGE, NLL, SLOPE
from medssl.evals.stats.operating_point import NPV, PPV, SENSITIVITY, SPECIFICITY, decisions
from medssl.evals.stats.significance import holm


def two(s):
    return np.c_[norm.cdf(-s), norm.cdf(s)]


def cohort(seed, patients, scans, auroc, shared):
    """Patients of one class each with 1 to `scans` scans; `shared` is the share of the variance that is the patient's."""
    r = np.random.default_rng(seed)
    at = np.repeat(np.arange(2 * patients), r.integers(1, scans + 1, 2 * patients))
    y = at % 2
    noise = np.sqrt(shared) * r.normal(size=2 * patients)[at] + np.sqrt(1 - shared) * r.normal(size=len(at))
    return y, np.sqrt(2) * norm.ppf(auroc) * y + noise, at


def placements(y, s):
    """DeLong et al., 1988, eq. 4 and 5, as loops."""
    pos, neg = s[y == 1], s[y == 0]
    psi = [[1.0 if a > b else 0.5 if a == b else 0.0 for b in neg] for a in pos]
    return [sum(row) / len(neg) for row in psi], [sum(col) / len(pos) for col in zip(*psi, strict=True)]


@pytest.mark.parametrize("digits", [0, 1, 9])
def test_paired_aurocs_are_delongs_test_with_students_t(digits):
    r = np.random.default_rng(digits)
    y = np.r_[np.ones(14, int), np.zeros(25, int)]
    common = r.normal(size=39)
    a, b = (np.round(common + shift * y + r.normal(size=39), digits) for shift in (1.5, 0.7))
    v = [
        [np.subtract(*each) for each in zip(*pair, strict=True)]
        for pair in zip(placements(y, a), placements(y, b), strict=True)
    ]
    parts = [np.var(x, ddof=1) / len(x) for x in v]
    df = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, v, strict=True))
    d = paired(AUROC, y, [two(a)], [two(b)], np.arange(39))
    assert d.score.value == pytest.approx(np.mean(v[0]), abs=1e-12)
    assert d.se == pytest.approx(np.sqrt(sum(parts)), rel=1e-9)
    assert d.p == pytest.approx(2 * stats.t.sf(abs(np.mean(v[0])) / np.sqrt(sum(parts)), df), rel=1e-9)
    assert d.score.high - d.score.value == pytest.approx(stats.t.ppf(0.975, df) * np.sqrt(sum(parts)), rel=1e-9)


def test_an_auroc_has_wilsons_interval_at_delongs_variance():
    r = np.random.default_rng(4)
    y = np.r_[np.ones(20, int), np.zeros(30, int)]
    s = r.normal(size=50) + 0.8 * y
    parts = [np.var(x, ddof=1) / len(x) for x in placements(y, s)]
    df = sum(parts) ** 2 / (parts[0] ** 2 / 19 + parts[1] ** 2 / 29)
    found = score(AUROC, y, two(s), np.arange(50))
    n = found.value * (1 - found.value) / sum(parts) * (norm.ppf(0.975) / stats.t.ppf(0.975, df)) ** 2
    assert [found.low, found.high] == pytest.approx(tiny.wilson(found.value, n), abs=1e-9)
    assert found.how == "95 % Wilson interval by a jackknife over 50 patients"


def test_all_scans_of_a_patient_are_left_out_together():
    """By loops: without each patient in turn; copies of every scan add nothing."""
    y, s, at = cohort(1, 15, 4, 0.75, 0.5)
    value = AUROC(y, two(s))
    left = [AUROC(y[at != i], two(s[at != i])) - value for i in range(30)]
    d = paired(AUROC, y, [two(s)], [two(0 * s)], at)
    assert d.se == pytest.approx(np.sqrt(14 / 15 * np.square(left).sum()), rel=1e-9)
    once, twice = score(AUROC, y, two(s), at), score(AUROC, np.tile(y, 2), two(np.tile(s, 2)), np.tile(at, 2))
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high), abs=1e-9)


@pytest.mark.parametrize("k", [2, 5, 12, 60])
def test_scores_of_1_and_0_have_clopper_and_pearsons_bounds(k):
    """Of the patients that the score is about: all, those of a class, or the fewer of the two that are ordered."""
    y = np.r_[np.ones(k, int), np.zeros(k + 3, int)]
    right, wrong, who = two(2.0 * y - 1), two(1 - 2.0 * y), np.arange(len(y))
    for metric, n in (
        (ACCURACY, 2 * k + 3),
        (AUROC, k),
        (SENSITIVITY, k),
        (SPECIFICITY, k + 3),
        (PPV, k),
        (NPV, k + 3),
    ):
        for p, hits, value in ((right, n, 1), (wrong, 0, 0)):
            if metric in (PPV, NPV) and not hits:
                n = 2 * k + 3 - n
            found, exact = score(metric, y, p, who), binomtest(n if hits else 0, n).proportion_ci()
            assert found.value == value
            assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-9), metric.name
            assert found.how.startswith("exact 95 % bound from")
    found = score(BALANCED_ACCURACY, y, right, who)
    assert found.low == pytest.approx((0.025 ** (1 / k) + 0.025 ** (1 / (k + 3))) / 2, abs=1e-12)


def test_scans_of_one_patient_do_not_make_a_bound_exact():
    y = np.repeat(np.arange(24) % 2, 20)
    found = score(AUROC, y, two(2.0 * y - 1), np.repeat(np.arange(24), 20))
    assert found.low == pytest.approx(0.025 ** (1 / 12), abs=1e-12)


@pytest.mark.parametrize("metric", [AUROC, AUPRC, BALANCED_ACCURACY, SENSITIVITY, NLL], ids=lambda m: m.name)
def test_one_patient_of_a_class_has_no_interval(metric):
    r = np.random.default_rng(0)
    y = np.r_[1, np.zeros(99, int)]
    p = two(r.normal(size=100)) if metric is not SENSITIVITY else decisions(r.random(100), 0.5)
    found = score(metric, y, p, np.arange(100), n=500)
    assert np.isnan([found.low, found.high]).all()
    assert found.how.startswith("no interval from 1 patients in the rarest class")
    assert "[no interval]" in str(found)
    d = paired(metric, y, [p], [p[::-1]], np.arange(100))
    assert np.isnan([d.p, d.se, d.score.low]).all()
    assert "p =" not in str(d)


def test_two_patients_one_of_each_class_have_no_interval_however_many_scans():
    y = np.repeat([1, 0], 12)
    assert np.isnan(score(AUROC, y, two(np.random.default_rng(0).normal(size=24)), y).low)


def test_a_value_lies_inside_its_interval():
    """Of every metric, few patients and many; an ECE is biased upwards and so were its resamples."""
    for seed in range(40):
        r = np.random.default_rng(seed)
        n = int(r.choice([12, 40, 150]))
        y = np.r_[0, 1, 0, 1, r.integers(0, 2, n - 4)]
        s = r.normal(size=n) + r.choice([0, 1, 3]) * y
        at, number, time = r.integers(0, n, n), r.normal(size=n) + s, np.c_[r.exponential(size=n) + 1, y]
        found = scores([AUROC, AUPRC, ACCURACY, BALANCED_ACCURACY, ECE, NLL, IN_THE_LARGE, SLOPE], y, two(s), at, n=200)
        for metric, a, b in (
            (MAE, number, s),
            (R2, number, s),
            (SPEARMAN, number, s),
            (CONCORDANCE, time, s),
            (MEAN, y, s),
        ):
            found[metric.name] = score(metric, a, b, at, n=200)
        found["kappa"] = score(QUADRATIC_KAPPA, y, two(s), at, n=200)
        for name, each in found.items():
            if not np.isnan(each.low):
                assert each.low <= each.value <= each.high, (seed, name)


def test_the_interval_of_an_ece_holds_the_true_one():
    """Calibrated probabilities have an ECE of 0, which no estimate is; too sure ones by .1 in every bin have .1."""
    held = {0.0: 0, 0.1: 0}
    for i in range(200):
        r = np.random.default_rng(i)
        p = r.uniform(0.5, 0.85, 100)
        for wrong in held:
            y = (r.random(100) < p).astype(int)
            said = p + wrong
            found = score(ECE, y, np.c_[1 - said, said], np.arange(100))
            held[wrong] += found.low <= wrong <= found.high
            assert found.low <= found.value <= found.high
    assert held[0.0] >= 198
    assert held[0.1] >= 186


@cache
def many_models():
    """Six arms on 25 + 25 patients: one is perfect, the others are coin flips."""
    r = np.random.default_rng(0)
    y = np.repeat([1, 0], 25)
    arms = [two(2.0 * y - 1), *(two(r.normal(size=50)) for _ in range(5))]
    return y, arms


def test_p_has_no_floor():
    """The best p of 2,000 resamples times 15 comparisons is above .01; a perfect model is told apart from coin flips."""
    y, arms = many_models()
    pairs = [(i, j) for i in range(6) for j in range(i)]
    p = [paired(AUROC, y, [arms[i]], [arms[j]], np.arange(50)).p for i, j in pairs]
    adjusted = dict(zip(pairs, holm(p), strict=True))
    assert max(adjusted[i, 0] for i in range(1, 6)) < 1e-4
    assert min(adjusted[i, j] for i, j in pairs if j) > 0.05


@pytest.mark.parametrize("metric", [AUROC, AUPRC, ACCURACY, ECE, NLL, MAE, SPEARMAN, CONCORDANCE], ids=lambda m: m.name)
def test_no_verdict_depends_on_the_seed(metric):
    r = np.random.default_rng(1)
    y = np.arange(80) % 2
    a, b = (r.normal(size=80) + shift * y for shift in (1.0, 0.3))
    if metric in (MAE, SPEARMAN):
        y = y + r.normal(size=80)
    elif metric is CONCORDANCE:
        y = np.c_[r.exponential(size=80), y]
    else:
        a, b = two(a), two(b)
    found = [paired(metric, y, [a], [b], np.arange(80), n=n, seed=s) for n, s in ((100, 0), (2000, 1), (2000, 2))]
    assert found[0] == found[1] == found[2]
    assert 0 < found[0].p < 1


def test_where_every_patient_shows_the_difference_it_is_a_sign_test():
    """12 patients a class ordered rightly by one and wrongly by the other model: p = 2 / 2^12."""
    y = np.repeat([1, 0], 12)
    d = paired(AUROC, y, [two(2.0 * y - 1)], [two(1 - 2.0 * y)], np.arange(24))
    assert d.score.value == 1
    assert d.p == pytest.approx(binomtest(12, 12).pvalue, rel=1e-12)
    assert (d.score.low, d.score.high) == pytest.approx((2 * 0.025 ** (1 / 12) - 1, 1), abs=1e-12)
    back = paired(AUROC, y, [two(1 - 2.0 * y)], [two(2.0 * y - 1)], np.arange(24))
    assert (back.score.low, back.score.high, back.p) == pytest.approx((-d.score.high, -d.score.low, d.p), abs=1e-12)
    none = paired(MAE, np.zeros(9), [np.ones(9)], [np.zeros(9)], np.arange(9))
    assert np.isnan([none.p, none.score.low]).all()


def test_equal_models_whose_seeds_scatter_are_told_apart_as_seldom_as_they_should():
    """Two seeds of each: of independent seeds little is known, and 19 of 20 cohorts must not find a difference."""
    y, wrong, reps = np.arange(120) % 2, 0, 150
    for i in range(reps):
        r = np.random.default_rng(i)
        base = r.normal(size=120)
        a, b = ([two(r.normal(1.5, 0.4) * y + base + 0.6 * r.normal(size=120)) for _ in range(2)] for _ in range(2))
        wrong += paired(AUROC, y, a, b, np.arange(120)).p < 0.05
    assert wrong <= binom.ppf(0.99, reps, 0.05)


@pytest.mark.parametrize(("auroc", "patients", "scans"), [(0.98, 20, 20), (0.98, 50, 1), (0.6, 10, 1), (0.995, 30, 20)])
def test_intervals_of_an_auroc_cover_it(auroc, patients, scans):
    """High ones too, where percentiles cover 63 to 87 %, and where the errors of all scans are due to few patients."""
    reps, hits = 150, 0
    for i in range(reps):
        y, s, at = cohort(i, patients, scans, auroc, 0.7)
        found = score(AUROC, y, two(s), at)
        hits += found.low <= auroc <= found.high
    assert hits >= binom.ppf(0.01, reps, 0.94)


def test_more_patients_than_blocks_are_left_out_in_blocks():
    y, s, at = cohort(2, 400, 2, 0.8, 0.5)
    whole, few = (score(AUROC, y, two(s), at, n=n) for n in (2000, 200))
    assert few.how.endswith("over 800 patients, in 200 blocks")
    assert (few.high - few.low) == pytest.approx(whole.high - whole.low, rel=0.15)
    assert score(AUROC, y, two(s), at, n=200, seed=1) != few


def test_seeds_widen_a_score_by_their_own_t():
    """Accuracies of 4 models on the same patients, of whom as many are right, but others: only the seeds differ in number."""
    right = np.arange(200) < np.array([120, 130, 150, 160])[:, None]
    y = np.zeros(200, int)
    p = [np.where(r[:, None], [0.9, 0.1], [0.1, 0.9]) for r in right]
    found = score_seeds(ACCURACY, y, p, np.arange(200))
    value, t_seeds = 0.7, stats.t.ppf(0.975, 3)
    seeds = right.mean(1).var(ddof=1) / 4
    mean, t_patients = right.mean(0), stats.t.ppf(0.975, 199)
    patients = mean.var(ddof=1) / 200
    between = ((right - right.mean(1, keepdims=True)) - (mean - value)).var(1).sum() / 3 / 4 / 199
    half = np.sqrt(t_patients**2 * (patients - between) + t_seeds**2 * seeds)
    n = value * (1 - value) * norm.ppf(0.975) ** 2 / half**2
    assert found.value == pytest.approx(value)
    assert [found.low, found.high] == pytest.approx(tiny.wilson(value, n), abs=1e-9)


def test_several_differences_are_each_as_alone():
    y, s, at = cohort(0, 30, 2, 0.8, 0.5)
    a, b = two(s), two(s + np.random.default_rng(0).normal(size=len(s)))
    found = differences([AUROC, NLL, ECE], y, a, b, at)
    for metric in (AUROC, NLL, ECE):
        assert found[metric.name] == paired(metric, y, [a], [b], at).score


def test_a_rare_label_does_not_decide_for_all_labels():
    """Ten labels, one with two positives: its part of the mean is a tenth, and the interval is near that of the nine."""
    r = np.random.default_rng(0)
    y = (r.random((300, 10)) < 0.4).astype(float)
    y[:, 0] = np.arange(300) < 2
    p = norm.cdf(r.normal(size=(300, 10)) + y)
    ten, nine = score(MACRO_AUROC, y, p, np.arange(300)), score(MACRO_AUROC, y[:, 1:], p[:, 1:], np.arange(300))
    assert ten.high - ten.low < 4 * (nine.high - nine.low)
    assert "only 2 patients in the rarest class of a label" in ten.how
