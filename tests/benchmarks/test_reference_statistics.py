import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_statistics import auroc_covariance, auroc_paired, auroc_score, bca_quantiles, bca_score, corrected_t
from scipy import stats
from scipy.stats import binom, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

import tiny
from medssl.errors import UserError
from medssl.evals.metrics.metrics import AUROC, MAE, MEAN
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import resamples

DELTA = 1.2
TRUE = norm.cdf(DELTA / np.sqrt(2))


def cohort(seed, patients=40, most=8, shared=0.5, mixed=0.25, digits=None):
    """Two models of equal worth on patients with 1 to `most` scans, some of both classes; ties when rounded."""
    r = np.random.default_rng(seed)
    at = np.repeat(np.arange(patients), r.integers(1, most + 1, patients))
    both = r.random(patients) < mixed
    y = np.where(both[at], r.integers(0, 2, len(at)), (np.arange(patients) % 2)[at])

    def two(k):
        z = r.normal(size=(3, k))
        return np.sqrt(0.5) * (z[:1] + z[1:])

    s = DELTA * y + np.sqrt(shared) * two(patients)[:, at] + np.sqrt(1 - shared) * two(len(at))
    return y, s if digits is None else s.round(digits), np.array([f"p{i}" for i in at])


def probabilities(s):
    return np.c_[norm.cdf(-s), norm.cdf(s)]


def by_loops(y, scores, patient):
    """Obuchowski, 1997, written as she defines it: every pair of scans is looked at."""
    ids = sorted(set(patient))
    pos, neg = [i for i in range(len(y)) if y[i] == 1], [i for i in range(len(y)) if y[i] == 0]
    M, N, R = len(pos), len(neg), len(scores)

    def psi(a, b):
        return 1.0 if a > b else 0.5 if a == b else 0.0

    auc = [sum(psi(s[i], s[j]) for i in pos for j in neg) / (M * N) for s in scores]
    v10 = [{c: sum(sum(psi(s[i], s[j]) for j in neg) / N for i in pos if patient[i] == c) for c in ids} for s in scores]
    v01 = [{c: sum(sum(psi(s[i], s[j]) for i in pos) / M for j in neg if patient[j] == c) for c in ids} for s in scores]
    m = {c: sum(patient[i] == c for i in pos) for c in ids}
    n = {c: sum(patient[j] == c for j in neg) for c in ids}
    I10, I01, I11 = sum(m[c] > 0 for c in ids), sum(n[c] > 0 for c in ids), len(ids)
    cov = np.zeros((R, R))
    for a in range(R):
        for b in range(R):
            x = {q: {c: v10[q][c] - m[c] * auc[q] for c in ids} for q in (a, b)}
            z = {q: {c: v01[q][c] - n[c] * auc[q] for c in ids} for q in (a, b)}
            S10 = I10 / ((I10 - 1) * M) * sum(x[a][c] * x[b][c] for c in ids)
            S01 = I01 / ((I01 - 1) * N) * sum(z[a][c] * z[b][c] for c in ids)
            S11 = I11 / (I11 - 1) * sum(x[a][c] * z[b][c] + x[b][c] * z[a][c] for c in ids)
            cov[a, b] = S10 / M + S01 / N + S11 / (M * N)
    return np.array(auc), cov


def delong_by_loops(y, scores):
    """DeLong et al., 1988: the sample covariances of placements over M and over N."""
    pos, neg = np.flatnonzero(y == 1), np.flatnonzero(y == 0)
    psi = [(s[pos][:, None] > s[neg]) + 0.5 * (s[pos][:, None] == s[neg]) for s in scores]
    return np.cov([q.mean(1) for q in psi]) / len(pos) + np.cov([q.mean(0) for q in psi]) / len(neg)


@pytest.mark.parametrize("digits", [None, 1, 0])
@pytest.mark.parametrize("seed", range(3))
def test_covariance_is_its_definition(seed, digits):
    y, s, patient = cohort(seed, patients=14, most=5, digits=digits)
    s = np.vstack([s, -s[0] + s[1]])
    auc, cov = auroc_covariance(y, s, patient)
    expected_auc, expected_cov = by_loops(y, s, patient)
    np.testing.assert_allclose(auc, expected_auc, atol=1e-8)
    np.testing.assert_allclose(cov, expected_cov, atol=1e-8)
    np.testing.assert_allclose(auc, [roc_auc_score(y, x) for x in s], atol=1e-12)
    np.testing.assert_allclose(auc, [AUROC(y, np.c_[-x, x]) for x in s], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1]))
def test_with_one_scan_a_patient_it_is_delong(seed, digits):
    y, s, _ = cohort(seed, patients=25, most=1, digits=digits)
    _, cov = auroc_covariance(y, s, np.arange(len(y)))
    np.testing.assert_allclose(cov, delong_by_loops(y, s), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_only_the_order_of_scores_and_the_grouping_of_scans_matter(seed):
    y, s, patient = cohort(seed, patients=20)
    auc, cov = auroc_covariance(y, s, patient)
    r = np.random.default_rng(seed)
    order, name = r.permutation(len(y)), {p: f"{r.random()}" for p in patient}
    renamed = np.array([name[p] for p in patient])
    for other in (
        auroc_covariance(y[order], s[:, order], renamed[order]),
        auroc_covariance(y, np.exp(3 * s), patient),
        auroc_covariance(1 - y, -s, patient),
    ):
        np.testing.assert_allclose(other[0], auc, atol=1e-12)
        np.testing.assert_allclose(other[1], cov, atol=1e-12)
    flipped = auroc_covariance(y, -s, patient)
    np.testing.assert_allclose(flipped[0], 1 - auc, atol=1e-12)
    np.testing.assert_allclose(flipped[1], cov, atol=1e-12)


def test_the_variance_is_that_of_new_patients():
    """Over 1000 cohorts: the mean of the estimates is the variance of the AUROC and of the difference."""
    found = [auroc_covariance(*cohort(i)) for i in range(1000)]
    auc, cov = np.array([f[0] for f in found]), np.mean([f[1] for f in found], 0)
    # a sample variance of 1000 is off by 4.5 %; the estimate itself by less, and biased by about 1 / patients
    np.testing.assert_allclose(cov[0, 0], auc[:, 0].var(), rtol=0.15)
    np.testing.assert_allclose(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1], (auc[:, 0] - auc[:, 1]).var(), rtol=0.15)


@pytest.fixture(scope="module")
def simulated():
    """Of 300 cohorts: does each interval hold the truth, does each test of two equal models reject."""
    out = {"patients": [], "images": [], "test by patients": [], "test by images": []}
    for i in range(300):
        y, s, patient = cohort(10_000 + i, patients=50, shared=0.6)
        for words, units in (("patients", patient), ("images", np.arange(len(y)))):
            a = auroc_score(y, s[0], units)
            out[words].append(a.low <= TRUE <= a.high)
            out[f"test by {words}"].append(auroc_paired(y, s[0], s[1], units).p < 0.05)
    return {k: int(np.sum(v)) for k, v in out.items()}


def test_intervals_over_patients_cover_and_those_over_images_do_not(simulated):
    low, high = binom.interval(0.998, 300, 0.95)
    assert low <= simulated["patients"] <= high
    assert simulated["images"] < 0.85 * 300


def test_the_paired_test_over_patients_keeps_its_level_and_that_over_images_does_not(simulated):
    assert simulated["test by patients"] <= binom.ppf(0.999, 300, 0.05)
    assert simulated["test by images"] > 0.15 * 300


def test_intervals_and_p_are_those_of_their_standard_error():
    y, s, patient = cohort(5, mixed=0)
    auc, cov = auroc_covariance(y, s, patient)
    k, se = student.ppf(0.975, 19), np.sqrt(cov[0, 0])  # 20 patients of each class
    logit = auroc_score(y, s[0], patient)
    assert logit.value == auc[0]
    odds, wide = auc[0] / (1 - auc[0]), np.exp(k * se / (auc[0] * (1 - auc[0])))
    ends = odds / wide / (1 + odds / wide), odds * wide / (1 + odds * wide)
    assert (logit.low, logit.high) == pytest.approx(ends, abs=1e-12)
    assert logit.how == "95 % Obuchowski logit interval over 40 patients, t with 19 degrees of freedom"
    d = auroc_paired(y, s[0], s[1], patient)
    assert d.score.value == pytest.approx(auc[0] - auc[1], abs=1e-12)
    assert d.se == pytest.approx(np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]), abs=1e-12)
    edge = auroc_paired(y, s[0], s[1], patient, level=1 - d.p).score  # the interval of this level ends at 0
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)
    narrow = auroc_score(y, s[0], patient, level=0.5)
    assert logit.low < narrow.low < narrow.high < logit.high


def test_intervals_stay_between_0_and_1():
    y, s, patient = cohort(0, patients=12, most=2)
    a = auroc_score(y, s[0] + 0.7 * y, patient)
    assert 0 < a.low < a.value < a.high < 1
    assert "rarer class, so the interval is rough" in a.how


def test_equal_models_differ_by_nothing():
    y, s, patient = cohort(1)
    d = auroc_paired(y, s[0], 2 * s[0] + 1, patient)
    assert (d.score.value, d.score.low, d.score.high, d.p) == (0, 0, 0, 1)


def test_a_missing_interval_has_a_reason():
    y = np.arange(20) % 2
    perfect = auroc_score(y, y * 1.0, np.arange(20))
    assert perfect.value == 1
    assert np.isnan(perfect.low)
    assert "the classes do not overlap" in perfect.how
    worst = auroc_paired(y, y, -y, np.arange(20))
    assert worst.score.value == 1
    assert np.isnan([worst.p, worst.se, worst.score.low, worst.score.high]).all()
    one = auroc_score(y, np.arange(20), np.where(y, "a", np.arange(20).astype(str)))
    assert one.how.startswith("no interval from 1 patients of the rarer class")
    assert np.isnan(auroc_paired(y, y, y, np.zeros(20)).p)
    assert str(auroc_score(np.ones(5, int), np.arange(5), np.arange(5))) == "undefined"


@pytest.mark.parametrize(
    ("y", "s", "words"),
    [
        ([0, 1, 2], [0.1, 0.2, 0.3], "0 or 1"),
        ([0, 1, np.nan], [0.1, 0.2, 0.3], "0 or 1"),
        ([0, 1, 1], [0.1, np.nan, 0.3], "nan"),
        ([0, 1], [0.1, 0.2, 0.3], "needs classes"),
    ],
)
def test_wrong_input_is_refused(y, s, words):
    with pytest.raises(ValueError, match=words):
        auroc_score(y, s, np.arange(len(y)))


def test_bca_is_scipys_on_the_same_resamples():
    """One scan a patient; SciPy is given our resamples and computes bias, acceleration and ends itself."""
    r = np.random.default_rng(0)
    for x, metric, statistic in (
        (r.exponential(size=40), MEAN, np.mean),
        (r.exponential(size=40), MAE, lambda x, axis: np.abs(x).mean(axis)),
        (r.integers(0, 2, 40).astype(float), MEAN, np.mean),
    ):
        counts = np.concatenate(list(resamples(40, 500, seed=2, rows=500)))
        given = stats.bootstrap((x,), statistic, n_resamples=2, method="percentile")
        given.bootstrap_distribution = counts @ x / 40
        expected = stats.bootstrap(
            (x,), statistic, n_resamples=0, bootstrap_result=given, method="BCa", vectorized=True,
            confidence_level=np.ptp(tiny.ends(40)),
        ).confidence_interval  # fmt: skip
        y = np.zeros(40)
        s = bca_score(metric, y, x, [f"{i:02}" for i in range(40)], n=500, seed=2)
        np.testing.assert_allclose([s.low, s.high], expected, rtol=0, atol=1e-12)
        assert s.how == "95 % BCa bootstrap over 40 patients, 500 resamples"


def test_bca_leaves_out_patients_not_scans():
    y, s, patient = cohort(5, patients=30, most=4)
    p = probabilities(s[0])
    rarer = min(len(set(patient[y == k])) for k in (0, 1))
    names, at = np.unique(patient, return_inverse=True)
    counts = np.concatenate(list(resamples(30, 300, seed=0, rows=300))).astype(int)
    rows = [np.repeat(np.arange(len(y)), c[at]) for c in counts]
    found = np.array([AUROC(y[i], p[i]) for i in rows])
    left = np.array([AUROC(y[at != i], p[at != i]) for i in range(len(names))])
    value = AUROC(y, p)
    u = left.mean() - left
    a = (u**3).sum() / 6 / (u**2).sum() ** 1.5
    z0 = norm.ppf((found < value).mean() + (found == value).mean() / 2)
    ends = [norm.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in norm.ppf(tiny.ends(rarer, 0.9))]
    s = bca_score(AUROC, y, p, patient, n=300, level=0.9)
    np.testing.assert_allclose([s.low, s.high], np.quantile(found, ends), atol=1e-10)
    plain = score(AUROC, y, p, patient, n=300, level=0.9)
    assert s.value == plain.value
    assert (s.low, s.high) != (plain.low, plain.high)


def test_an_impossible_bca_interval_is_reported():
    y = np.arange(60) % 2
    s = bca_score(AUROC, y, probabilities(y * 9.0), np.arange(60), n=100)
    assert (s.low, s.high) == (1, 1)
    assert s.how.startswith("95 % percentile bootstrap (BCa is undefined here) over 60 patients")
    only = np.arange(20) == 3  # without this patient there is no AUROC
    s = bca_score(AUROC, only.astype(int), probabilities(np.cos(np.arange(20))), np.arange(20), n=100)
    assert "BCa is undefined here" in s.how
    assert bca_quantiles(2.0, np.array([0.0, 1]), np.array([0.0, 1]), 0.95) is None


def test_corrected_t_is_its_formula():
    d = [0.02, 0.01, 0.05, -0.01, 0.03]
    found = corrected_t(d, 80, 20, scans=300)
    mean = sum(d) / 5
    s2 = sum((x - mean) ** 2 for x in d) / 4
    se = ((1 / 5 + 20 / 80) * s2) ** 0.5
    assert found.score.value == pytest.approx(mean, abs=1e-12)
    assert found.se == pytest.approx(se, abs=1e-12)
    k = 2.7764451051977987  # of t with 4 degrees of freedom, from a table
    assert (found.score.low, found.score.high) == pytest.approx((mean - k * se, mean + k * se), abs=1e-9)
    assert found.p == pytest.approx(2 * stats.t.sf(mean / se, 4), abs=1e-12)
    assert (found.score.n, found.score.patients) == (300, 100)
    assert found.score.how == "95 % corrected resampled t over 5 splits of 100 patients, 80 to train and 20 to test"
    back = corrected_t(np.negative(d), [80] * 5, [20] * 5, scans=300)
    assert back.p == pytest.approx(found.p, abs=1e-12)
    assert back.score.low == pytest.approx(-found.score.high, abs=1e-12)


def test_without_test_patients_it_would_be_students_t():
    d = np.random.default_rng(0).normal(0.3, 1, 12)
    expected = stats.ttest_1samp(d, 0)
    found = corrected_t(d, 1e12, 1, scans=1)
    assert found.p == pytest.approx(expected.pvalue, abs=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (found.score.low, found.score.high) == pytest.approx((interval.low, interval.high), abs=1e-9)


def test_p_is_below_5_percent_just_when_the_interval_leaves_out_0():
    r = np.random.default_rng(1)
    for i in range(50):
        found = corrected_t(r.normal(0.1 * i / 10, 1, 10), 90, 10, scans=100)
        assert (found.p < 0.05) == (found.score.low > 0 or found.score.high < 0)


def test_corrected_t_refuses_input_it_cannot_test():
    with pytest.raises(UserError, match="at least 2 splits and got 1"):
        corrected_t([0.1], 80, 20, scans=100)
    with pytest.raises(UserError, match=r"all 3 splits are equal \(0.1\)"):
        corrected_t([0.8 - 0.7, 0.9 - 0.8, 0.1], 80, 20, scans=100)  # 0.1 in three roundings
    with pytest.raises(UserError, match="1 of the 3 splits have no difference"):
        corrected_t([0.1, np.nan, 0.2], 80, 20, scans=100)
    for train, test in ((0, 20), (80, 0)):
        with pytest.raises(ValueError, match="above 0"):
            corrected_t([0.1, 0.2], train, test, scans=100)


def split_differences(seed, N=100, train=80, splits=10, dim=5):
    """Accuracy of least squares on one set of features less that on another, over splits; both sets are worth the same."""
    r = np.random.default_rng(seed)
    y = np.where(np.arange(N) % 2, 1.0, -1.0)
    x = r.normal(size=(2, N, dim)) + 0.25 * y[:, None]
    rows = np.array([r.permutation(N) for _ in range(splits)])
    fit, test = rows[:, :train], rows[:, train:]
    w = np.linalg.solve(x[:, fit].mT @ x[:, fit], x[:, fit].mT @ y[fit][..., None])
    right = np.sign(x[:, test] @ w)[..., 0] == y[test]
    return np.subtract(*right.mean(-1))


def test_on_repeated_splits_the_corrected_test_keeps_its_level_and_students_does_not():
    found = [split_differences(i) for i in range(300)]
    corrected = sum(corrected_t(d, 80, 20, scans=100).p < 0.05 for d in found)
    naive = sum(stats.ttest_1samp(d, 0).pvalue < 0.05 for d in found)
    assert corrected <= stats.binom.ppf(0.999, 300, 0.05)
    assert naive > 0.15 * 300
