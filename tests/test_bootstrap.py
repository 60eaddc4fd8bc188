import numpy as np
import pytest
from scipy.stats import binom, norm

from medssl.evals.bootstrap import difference, difference_seeds, resamples, score, scores
from medssl.evals.metrics import ACCURACY, AUROC, OF_TASK

CLASS_METRICS = OF_TASK["classes"]
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
def test_intervals_over_patients_cover_the_truth(shared):
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


def test_an_interval_is_the_percentiles_of_recomputed_resamples():
    """Against the plain way: pick the scans of the drawn patients, compute, take percentiles."""
    y, p, patient = cohort(0, patients=30)
    names, at = np.unique(patient, return_inverse=True)
    by_name = {m.name: m for m in CLASS_METRICS}
    values = {name: [] for name in by_name}
    for counts in np.concatenate(list(resamples(len(names), 300, seed=5, rows=7))).astype(int):
        rows = np.repeat(np.arange(len(y)), counts[at])
        for name, m in by_name.items():
            values[name].append(m(y[rows], p[rows]))
    for name, s in scores(CLASS_METRICS, y, p, patient, n=300, seed=5).items():
        assert s.value == by_name[name](y, p)
        np.testing.assert_allclose([s.low, s.high], np.quantile(values[name], [0.025, 0.975]), atol=1e-12)
        assert (s.n, s.patients) == (len(y), 30)
        assert s.how == "95 % percentile bootstrap over 30 patients, 300 resamples"


def test_the_order_of_scans_and_the_names_of_metrics_do_not_matter():
    y, p, patient = cohort(1)
    order = np.random.default_rng(0).permutation(len(y))
    a = score(AUROC, y, p, patient, n=200)
    b = score(AUROC, y[order], p[order], patient[order], n=200)
    assert (a.low, a.high) == pytest.approx((b.low, b.high), abs=1e-12)
    assert scores([ACCURACY, AUROC], y, p, patient, n=200)["AUROC"] == a
    assert score(AUROC, y, p, patient, n=200, seed=1) != a


def test_a_wider_level_is_wider():
    y, p, patient = cohort(2)
    a, b = (score(AUROC, y, p, patient, n=200, level=level) for level in (0.8, 0.95))
    assert b.low < a.low < a.high < b.high
    assert a.how.startswith("80 %")


def test_undefined_resamples_are_left_out_and_counted():
    y, p, patient = np.array([1, 0, 0, 0, 0]), two(np.array([2.0, 0, 0.5, 3, -1])), np.arange(5)
    s = score(AUROC, y, p, patient, n=1000)
    missing = int(s.how.split("resamples, ")[1].split()[0])
    assert missing == pytest.approx(1000 * (0.8**5 + 0.2**5), abs=60)
    assert "only 1 patients in the rarest class" in s.how
    assert 0 <= s.low < s.high <= 1


def test_one_patient_has_no_interval():
    s = score(AUROC, np.array([0, 1, 1]), two(np.array([0.0, 1, 2])), np.array(["a"] * 3), n=100)
    assert s.value == 1
    assert np.isnan([s.low, s.high]).all()
    assert s.how.startswith("no interval from 1 patients")


def test_a_perfect_score_admits_that_its_interval_is_too_narrow():
    y = np.arange(60) % 2
    s = score(AUROC, y, two(y * 9.0), np.arange(60), n=100)
    assert (s.low, s.high) == (1, 1)
    assert "wider than shown" in s.how


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
    assert "3 seeds are few" in how
    assert "few" not in difference_seeds(AUROC, y, [p] * 10, [p] * 10, patient, n=100).how


def test_one_seed_fewer_is_drawn_than_there_are():
    """Two of four seeds are always right, patients do not matter: a resample is the mean of three fair coins."""
    y = np.arange(40) % 2
    right, wrong = np.eye(2)[y], np.eye(2)[1 - y]
    d = difference_seeds(ACCURACY, y, [right, right, wrong, wrong], [wrong] * 4, np.arange(40), n=1000, level=0.5)
    assert (d.low, d.value, d.high) == (pytest.approx(1 / 3), 0.5, pytest.approx(2 / 3))


def test_patients_must_match_scans():
    y, p, patient = cohort(0)
    with pytest.raises(ValueError, match="one patient per scan"):
        score(AUROC, y, p, patient[1:])
