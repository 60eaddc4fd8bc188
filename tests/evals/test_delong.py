import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from medssl.evals.metrics.metrics import AUROC
from medssl.evals.stats import delong

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
    auc, cov = delong.covariance(y, s, patient)
    expected_auc, expected_cov = by_loops(y, s, patient)
    np.testing.assert_allclose(auc, expected_auc, atol=1e-8)
    np.testing.assert_allclose(cov, expected_cov, atol=1e-8)
    np.testing.assert_allclose(auc, [roc_auc_score(y, x) for x in s], atol=1e-12)
    np.testing.assert_allclose(auc, [AUROC(y, np.c_[-x, x]) for x in s], atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([None, 1]))
def test_with_one_scan_a_patient_it_is_delong(seed, digits):
    y, s, _ = cohort(seed, patients=25, most=1, digits=digits)
    _, cov = delong.covariance(y, s, np.arange(len(y)))
    np.testing.assert_allclose(cov, delong_by_loops(y, s), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_only_the_order_of_scores_and_the_grouping_of_scans_matter(seed):
    y, s, patient = cohort(seed, patients=20)
    auc, cov = delong.covariance(y, s, patient)
    r = np.random.default_rng(seed)
    order, name = r.permutation(len(y)), {p: f"{r.random()}" for p in patient}
    renamed = np.array([name[p] for p in patient])
    for other in (
        delong.covariance(y[order], s[:, order], renamed[order]),
        delong.covariance(y, np.exp(3 * s), patient),
        delong.covariance(1 - y, -s, patient),
    ):
        np.testing.assert_allclose(other[0], auc, atol=1e-12)
        np.testing.assert_allclose(other[1], cov, atol=1e-12)
    flipped = delong.covariance(y, -s, patient)
    np.testing.assert_allclose(flipped[0], 1 - auc, atol=1e-12)
    np.testing.assert_allclose(flipped[1], cov, atol=1e-12)


def test_the_variance_is_that_of_new_patients():
    """Over 1000 cohorts: the mean of the estimates is the variance of the AUROC and of the difference."""
    found = [delong.covariance(*cohort(i)) for i in range(1000)]
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
            a = delong.score(y, s[0], units)
            out[words].append(a.low <= TRUE <= a.high)
            out[f"test by {words}"].append(delong.paired(y, s[0], s[1], units).p < 0.05)
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
    auc, cov = delong.covariance(y, s, patient)
    k, se = student.ppf(0.975, 19), np.sqrt(cov[0, 0])  # 20 patients of each class
    logit = delong.score(y, s[0], patient)
    assert logit.value == auc[0]
    odds, wide = auc[0] / (1 - auc[0]), np.exp(k * se / (auc[0] * (1 - auc[0])))
    ends = odds / wide / (1 + odds / wide), odds * wide / (1 + odds * wide)
    assert (logit.low, logit.high) == pytest.approx(ends, abs=1e-12)
    assert logit.how == "95 % Obuchowski logit interval over 40 patients, t with 19 degrees of freedom"
    d = delong.paired(y, s[0], s[1], patient)
    assert d.score.value == pytest.approx(auc[0] - auc[1], abs=1e-12)
    assert d.se == pytest.approx(np.sqrt(cov[0, 0] + cov[1, 1] - 2 * cov[0, 1]), abs=1e-12)
    edge = delong.paired(y, s[0], s[1], patient, level=1 - d.p).score  # the interval of this level ends at 0
    assert min(abs(edge.low), abs(edge.high)) == pytest.approx(0, abs=1e-9)
    narrow = delong.score(y, s[0], patient, level=0.5)
    assert logit.low < narrow.low < narrow.high < logit.high


def test_intervals_stay_between_0_and_1():
    y, s, patient = cohort(0, patients=12, most=2)
    a = delong.score(y, s[0] + 0.7 * y, patient)
    assert 0 < a.low < a.value < a.high < 1
    assert "rarer class, so the interval is rough" in a.how


def test_equal_models_differ_by_nothing():
    y, s, patient = cohort(1)
    d = delong.paired(y, s[0], 2 * s[0] + 1, patient)
    assert (d.score.value, d.score.low, d.score.high, d.p) == (0, 0, 0, 1)


def test_what_has_no_interval_says_why():
    y = np.arange(20) % 2
    perfect = delong.score(y, y * 1.0, np.arange(20))
    assert perfect.value == 1
    assert np.isnan(perfect.low)
    assert "the classes do not overlap" in perfect.how
    worst = delong.paired(y, y, -y, np.arange(20))
    assert worst.score.value == 1
    assert np.isnan([worst.p, worst.se, worst.score.low, worst.score.high]).all()
    one = delong.score(y, np.arange(20), np.where(y, "a", np.arange(20).astype(str)))
    assert one.how.startswith("no interval from 1 patients of the rarer class")
    assert np.isnan(delong.paired(y, y, y, np.zeros(20)).p)
    assert str(delong.score(np.ones(5, int), np.arange(5), np.arange(5))) == "undefined"


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
        delong.score(y, s, np.arange(len(y)))
