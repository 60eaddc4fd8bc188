from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from scipy.stats import binom, norm

import tiny
from medssl.evals.metrics.metrics import (
    ACCURACY,
    AUPRC,
    AUROC,
    CONCORDANCE,
    ECE,
    LEVEL_ERROR,
    MACRO_AUROC,
    MAE,
    MEAN,
    QUADRATIC_KAPPA,
    R2,
    SPEARMAN,
    Metric,
)
from medssl.evals.stats.bootstrap import difference, difference_seeds, paired, score, score_seeds, scores
from medssl.evals.stats.calibration import NLL
from medssl.evals.stats.resampling import replicates, resamples
from medssl.evals.task_types.task_types import task_type

CLASS_METRICS = task_type("classification").metrics
TRUE = norm.cdf(1 / np.sqrt(2))  # AUROC of N(1, 1) against N(0, 1)


def two(s):
    return np.c_[norm.cdf(-s), norm.cdf(s)]


def cohort(seed, patients=80, shared=0.5):
    """Patients of one class each with 1 to 4 scans; `shared` is the share of variance that belongs to the patient."""
    r = np.random.default_rng(seed)
    at = np.repeat(np.arange(patients), r.integers(1, 5, patients))
    label = np.arange(patients) % 2
    noise = np.sqrt(shared) * r.normal(size=patients)[at] + np.sqrt(1 - shared) * r.normal(size=len(at))
    return label[at], two(label[at] + noise - 0.5), np.array([f"p{i}" for i in at])


def covered(shared, by_patient, repetitions=200):
    hits = 0
    for i in range(repetitions):
        y, p, patient = cohort(i, shared=shared)
        s = score(AUROC, y, p, patient if by_patient else np.arange(len(y)), n=400, seed=i)
        hits += s.low <= TRUE <= s.high
    return hits


@pytest.mark.parametrize("shared", [0.5, 1.0])
def test_intervals_over_patients_cover_the_true_value(shared):
    low, high = binom.interval(0.998, 200, 0.95)
    assert low <= covered(shared, by_patient=True) <= high


def test_intervals_over_images_do_not_when_a_patients_images_are_alike():
    assert covered(1.0, by_patient=False) < binom.ppf(0.001, 200, 0.95)


def test_resamples_draw_as_many_patients_as_there_are():
    counts = np.concatenate(list(resamples(50, 1000, seed=3, rows=64)))
    assert counts.shape == (1000, 50)
    assert (counts.sum(1) == 50).all()
    np.testing.assert_allclose(counts.mean(), 1)
    np.testing.assert_allclose(counts.var(), 1 - 1 / 50, rtol=0.02)  # multinomial
    np.testing.assert_array_equal(counts, np.concatenate(list(resamples(50, 1000, seed=3, rows=999))))
    assert (counts != np.concatenate(list(resamples(50, 1000, seed=4, rows=64)))).any()


RESAMPLED = [Metric(m.name, m.many, m.check) for m in CLASS_METRICS]  # without what would give them another interval


def rare(y, patient):
    """Patients of the rarer class: what an interval's width is expanded by."""
    found = min(len(set(np.asarray(patient)[y == k])) for k in (0, 1))
    assert found < len(set(patient))
    return found


def test_an_interval_is_the_percentiles_of_recomputed_resamples():
    """Against the plain way: pick the scans of the drawn patients, compute, take percentiles."""
    y, p, patient = cohort(0, patients=30)
    names, at = np.unique(patient, return_inverse=True)
    by_name = {m.name: m for m in RESAMPLED}
    values = {name: [] for name in by_name}
    for counts in np.concatenate(list(resamples(len(names), 300, seed=5, rows=7))).astype(int):
        rows = np.repeat(np.arange(len(y)), counts[at])
        for name, m in by_name.items():
            values[name].append(m(y[rows], p[rows]))
    for name, s in scores(RESAMPLED, y, p, patient, n=300, seed=5).items():
        assert s.value == by_name[name](y, p)
        np.testing.assert_allclose([s.low, s.high], np.quantile(values[name], tiny.ends(rare(y, patient))), atol=1e-12)
        assert (s.n, s.patients) == (len(y), 30)
        assert s.how == "95 % percentile bootstrap over 30 patients, 300 resamples"


def test_the_order_of_scans_and_the_names_of_metrics_do_not_matter():
    y, p, patient = cohort(1)
    order = np.random.default_rng(0).permutation(len(y))
    for metric in (AUROC, NLL):
        a = score(metric, y, p, patient, n=200)
        b = score(metric, y[order], p[order], patient[order], n=200)
        assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-12)
        assert scores([ACCURACY, metric], y, p, patient, n=200)[metric.name] == a
    assert score(NLL, y, p, patient, n=200, seed=1) != score(NLL, y, p, patient, n=200)


def test_a_wider_level_is_wider():
    y, p, patient = cohort(2)
    a, b = (score(AUROC, y, p, patient, n=200, level=level) for level in (0.8, 0.95))
    assert b.low < a.low < a.high < b.high
    assert a.how.startswith("80 %")


def test_undefined_resamples_are_excluded_and_counted():
    """The R2 of seven patients is undefined where a resample holds no two different values."""
    y, p = np.array([0.0, 0, 0, 0, 5, 5, 5]), np.array([0.0, 1, 2, 0, 4, 3, 5])
    s = score(R2, y, p, np.arange(7), n=1000)
    missing = int(s.how.split("resamples, ")[1].split()[0])
    assert missing == pytest.approx(1000 * ((4 / 7) ** 7 + (3 / 7) ** 7), abs=16)
    assert "only 7 patients, so the true" in s.how


def test_an_end_among_undefined_resamples_is_no_end():
    y, p = np.array([0.0, 0, 0, 0, 0, 5, 5]), np.array([0.0, 1, 2, 0, 1, 4, 3])
    s = score(R2, y, p, np.arange(7), n=1000)  # undefined on a tenth of the resamples
    assert s.value == R2(y, p)
    assert np.isnan([s.low, s.high]).all()
    assert s.how.startswith("undefined on too many resamples: 95 % percentile bootstrap over 7 patients")


def test_one_patient_has_no_interval():
    s = score(AUROC, np.array([0, 1, 1]), two(np.array([0.0, 1, 2])), np.array(["a"] * 3), n=100)
    assert s.value == 1
    assert np.isnan([s.low, s.high]).all()
    assert s.how.startswith("no interval from 1 patients")


@pytest.mark.parametrize(
    "metric", [MAE, R2, SPEARMAN, MEAN, QUADRATIC_KAPPA, LEVEL_ERROR, ECE, AUPRC], ids=lambda m: m.name
)
def test_where_all_patients_agree_there_is_no_interval(metric):
    y = np.arange(60) % 2
    p = {MAE: y, R2: y, SPEARMAN: y, MEAN: np.full(60, 0.7)}.get(metric, np.eye(2)[y])
    s = score(metric, y, p, np.arange(60), n=100)
    assert np.isnan([s.low, s.high]).all()
    assert s.how.startswith("no interval, because the value stays the same")


def test_a_paired_difference_is_narrower_than_its_parts():
    y, p, patient = cohort(3, patients=200)
    worse = two(norm.ppf(p[:, 1]) + 0.2 * np.random.default_rng(0).normal(size=len(y)))
    d = difference(AUROC, y, p, worse, patient, n=500)
    a, b = (score(AUROC, y, q, patient, n=500) for q in (p, worse))
    assert d.value == pytest.approx(a.value - b.value, abs=1e-12)
    assert d.high - d.low < 0.5 * (a.high - a.low)
    same = difference(AUROC, y, p, p, patient, n=500)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    back = difference(AUROC, y, worse, p, patient, n=500)
    assert (back.low, back.high) == pytest.approx((-d.high, -d.low), abs=1e-12)


def test_differences_over_seeds_cover_the_true_difference():
    """Models whose quality changes from seed to seed: the interval is about the mean over seeds, not these seeds."""
    hits = naive = 0
    for i in range(100):
        y, p, patient = cohort(i, patients=60, shared=1.0)
        r = np.random.default_rng(1000 + i)
        s = norm.ppf(p[:, 1])
        shift = 0.5 * r.normal(size=5)  # the label helps some seeds and hurts others; on average it does nothing
        a = [two(s + d * y) for d in shift]
        b = [two(s) for _ in shift]
        d = difference_seeds(AUROC, y, a, b, patient, n=200, seed=i)
        one = difference(AUROC, y, a[0], b[0], patient, n=200, seed=i)
        centre = np.mean(norm.cdf((1 + 0.5 * norm.ppf((np.arange(999) + 0.5) / 999)) / np.sqrt(2))) - TRUE
        hits += d.low <= centre <= d.high
        naive += one.low <= centre <= one.high
    assert hits >= 80  # five seeds: a t interval would cover 95, percentiles somewhat less
    assert naive <= 50


def test_seeds_come_in_pairs():
    y, p, patient = cohort(0)
    with pytest.raises(ValueError, match="paired"):
        difference_seeds(AUROC, y, [p, p], [p], patient)
    how = difference_seeds(AUROC, y, [p] * 3, [p] * 3, patient, n=100).how
    assert "over 3 seeds and 80 patients" in how
    assert "few" not in how


def test_seeds_alone_are_students_t():
    """Patients who are all alike leave the seeds: a one-sample t-test of their differences."""
    apart = np.array([0.3, 0.1, 0.4, -0.2])
    a = [np.full(40, d) for d in apart]
    for level in (0.5, 0.95):
        d = paired(MEAN, np.zeros(40), a, [np.zeros(40)] * 4, np.arange(40), level=level)
        test = stats.ttest_1samp(apart, 0)
        ends = test.confidence_interval(level)
        assert (d.score.low, d.score.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
        assert d.p == pytest.approx(test.pvalue, abs=1e-9)


def test_patients_must_match_scans():
    y, p, patient = cohort(0)
    with pytest.raises(ValueError, match="one patient per scan"):
        score(AUROC, y, p, patient[1:])


def test_other_tasks_are_resampled_by_patient_too():
    """Against the plain way, on what is not a class."""
    r = np.random.default_rng(0)
    patient, risk = np.repeat(np.arange(30), 2), np.round(r.normal(size=60), 1)
    time = np.c_[r.exponential(np.exp(-risk)).round(1), r.integers(0, 2, 60)]
    labels = r.choice([0, 1, np.nan], size=(60, 3), p=[0.45, 0.45, 0.1])
    in_class = [len(set(patient[labels[:, j] == k])) for j in range(3) for k in (0, 1)]
    for metric, y, p, few in (
        (replace(CONCORDANCE, parts=MAE.parts), time, risk, len(set(patient[time[:, 1] == 1]))),
        (SPEARMAN, time[:, 0], risk, 30),
        (replace(MACRO_AUROC, parts=MAE.parts), labels, np.c_[risk, -risk, risk**2], min(in_class)),
        (MEAN, patient.astype(str), risk, 30),
    ):
        values = []
        for counts in np.concatenate(list(resamples(30, 200, seed=1, rows=64))).astype(int):
            rows = np.repeat(np.arange(60), counts[patient])
            values.append(metric(y[rows], p[rows]))
        s = score(metric, y, p, [f"{i:02}" for i in patient], n=200, seed=1)
        np.testing.assert_allclose([s.low, s.high], np.quantile(values, tiny.ends(few)), atol=1e-12)
        assert s.how == "95 % percentile bootstrap over 30 patients, 200 resamples"


def test_few_of_what_a_metric_needs_is_said():
    r = np.random.default_rng(0)
    risk, ids = r.normal(size=40), np.arange(40)
    assert "only 3 patients with an event" in score(CONCORDANCE, np.c_[risk + 9, ids < 3], risk, ids, n=100).how
    labels = np.c_[ids < 20, ids < 4, ids < 0].astype(float)
    how = score(MACRO_AUROC, labels, np.c_[risk, risk, risk], ids, n=100).how
    assert "only 4 patients in the rarest class of a label" in how
    assert "1 of 3 labels left out because they have one class" in how
    assert score(MAE, risk, risk**2, ids, n=100).how == "95 % percentile bootstrap over 40 patients, 100 resamples"
    assert "only 5 patients, so the true" in score(MAE, risk, risk**2, ids // 8, n=100).how


@pytest.mark.parametrize("data", ["normal", "skewed", "ties", "zeros"])
@pytest.mark.parametrize("seeds", [1, 3])
def test_p_is_below_alpha_just_when_the_interval_leaves_out_0(data, seeds):
    """Over shifts that put 0 everywhere, on differences that are smooth and on ones that often tie."""
    r = np.random.default_rng(0)
    x = {
        "normal": r.normal(size=40),
        "skewed": r.exponential(size=40),
        "ties": r.integers(-1, 2, 40).astype(float),
        "zeros": 0.01 * r.normal(size=40),
    }[data]
    x = np.stack([x - x.mean() + 0.2 * x.std() * s for s in range(seeds)])
    seen = set()
    for shift in np.linspace(-3, 3, 61) * (x.std() + 0.01) / 3:
        for level in (0.95, 0.8):
            d = paired(MEAN, np.zeros(40), list(x + shift), [np.zeros(40)] * seeds, np.arange(40), level=level)
            out = d.score.low > 0 or d.score.high < 0
            assert (d.p < 1 - level) == out
            seen.add(out)
    assert seen == {True, False}


def test_p_and_the_interval_agree_where_a_class_is_rare():
    """Six patients of 60: both count the six."""
    seen = set()
    for i in range(60):
        r = np.random.default_rng(i)
        y = (np.arange(60) < 6).astype(int)
        a, b = (two(r.normal(size=60) + shift * y) for shift in (2.5, 0.5))
        d = paired(AUROC, y, [a], [b], np.arange(60), n=2000)
        assert (d.p < 0.05) == (d.score.low > 0 or d.score.high < 0)
        seen.add(d.p < 0.05)
    assert seen == {True, False}


def test_a_paired_p_and_se_of_a_mean_are_the_t_tests():
    """Of 200 patients; and as often below .05 as it should be where there is no difference."""
    r = np.random.default_rng(1)
    a, b = r.normal(0.15, 1, 200), r.normal(size=200)
    d = paired(MEAN, np.zeros(200), [a], [b], np.arange(200), n=4000)
    t = stats.ttest_rel(a, b)
    assert d.p == pytest.approx(t.pvalue, rel=1e-9)
    assert d.se == pytest.approx((a - b).std(ddof=1) / np.sqrt(200), rel=1e-9)
    assert d.score == difference(MEAN, np.zeros(200), a, b, np.arange(200), n=4000)
    wrong = 0
    for i in range(200):
        a, b = np.random.default_rng(i).normal(size=(2, 60))
        wrong += paired(MEAN, np.zeros(60), [a], [b], np.arange(60), n=400, seed=i).p < 0.05
    assert binom.ppf(0.001, 200, 0.05) <= wrong <= binom.ppf(0.999, 200, 0.05)


def test_no_difference_and_no_interval_have_their_p():
    y, p, patient = cohort(0)
    assert paired(AUROC, y, [p], [p], patient, n=100).p == 1
    one = paired(ACCURACY, y[:2], [p[:2]], [p[:2]], ["a", "a"], n=100)
    assert np.isnan([one.p, one.se]).all()


def test_scores_over_seeds_hold_patients_and_seeds():
    y, p, patient = cohort(0)
    assert score_seeds(AUROC, y, [p], patient, n=200) == score(AUROC, y, p, patient, n=200)
    other = two(norm.ppf(p[:, 1]) + y)
    s = score_seeds(AUROC, y, [p, other] * 5, patient, n=200)
    assert s.value == pytest.approx((AUROC(y, p) + AUROC(y, other)) / 2)
    assert s.how == "95 % Wilson interval by a jackknife over 10 seeds and 80 patients"
    few, many = (score_seeds(AUROC, y, [p, other] * k, patient, n=200) for k in (1, 5))
    assert few.low < many.low < many.high < few.high
    with pytest.raises(ValueError, match="at least one seed"):
        score_seeds(AUROC, y, [], patient)


def grid(seeds, draws, n, sd_seed, sd_draw, rng):
    """Numbers per case of seeds by draws: what a seed or a draw adds is common to all cases."""
    common = rng.normal(0, sd_seed, (seeds, 1, 1)) + rng.normal(0, sd_draw, (1, draws, 1))
    return (rng.normal(0, 1, n) + common).reshape(-1, n)


@pytest.mark.parametrize(("sd_seed", "sd_draw"), [(0.5, 0.0), (0.0, 0.5), (0.4, 0.4)])
def test_seeds_and_draws_are_crossed(sd_seed, sd_draw):
    """The variance of the mean of a grid is patients / n + seed / S + draw / D; as one list, S * D would divide the latter."""
    S, D, n, rng = 6, 5, 100, np.random.default_rng(0)
    ratios = []
    for _ in range(60):
        p = grid(S, D, n, sd_seed, sd_draw, rng)
        found = paired(MEAN, np.zeros(n), list(p), [0 * x for x in p], np.arange(n), draws=D, n=400)
        ratios.append(found.se**2)
    assert np.mean(ratios) == pytest.approx(1 / n + sd_seed**2 / S + sd_draw**2 / D, rel=0.25)


def test_one_seed_of_many_draws_names_draws():
    p = list(grid(1, 4, 30, 0, 1, np.random.default_rng(1)))
    how = score_seeds(MEAN, np.zeros(30), p, np.arange(30), draws=4).how
    assert "over 4 draws of labels and 30 patients" in how
    assert "seeds" not in how
    with pytest.raises(ValueError, match="cannot be divided into seeds of 3 draws"):
        score_seeds(MEAN, np.zeros(30), p, np.arange(30), draws=3)


def test_intervals_of_few_patients_cover_as_often_as_they_say():
    """Means of 12 patients: plain percentiles cover 90 %, Student's t 95 %."""
    rng, plain, ours, reps = np.random.default_rng(0), 0, 0, 1500
    for _ in range(reps):
        x = rng.normal(size=12)
        found = score(MEAN, x, x, np.arange(12), n=400)
        ours += found.low <= 0 <= found.high
        each = replicates([(MEAN, x, x)], np.arange(12), 400, 0)[0]
        low, high = np.quantile(each, [0.025, 0.975])
        plain += low <= 0 <= high
    assert binom.cdf(plain, reps, 0.93) < 1e-3
    assert 0.93 < ours / reps < 0.965
