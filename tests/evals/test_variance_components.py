import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, chi2, norm

from medssl.errors import UserError
from medssl.evals.metrics.metrics import AUROC, MEAN
from medssl.evals.stats.variance_components import Components, components, crossed, mean_squares, required_sample_size

N, S, D = 40, 6, 5
TRUE = {"patients": 1.0, "seed": 0.2, "draw": 0.3, "residual": 0.05}  # standard deviations; of patients that of one
BLUR = 0.4  # of one patient under one seed, beyond the above: a seed's luck with a patient


def predictions(r, sd=TRUE, blur=BLUR, shape=(S, D), patients=N):
    """(S, D, patients) numbers whose mean is the score."""
    s, d = shape
    return (
        sd["patients"] * r.normal(size=patients)
        + sd["seed"] * r.normal(size=(s, 1, 1))
        + sd["draw"] * r.normal(size=(1, d, 1))
        + sd["residual"] * r.normal(size=(s, d, 1))
        + blur * r.normal(size=(s, 1, patients))
    )


def of(p, **options):
    return components(MEAN, np.zeros(p.shape[-1]), p, np.arange(p.shape[-1]), **{"n": 100} | options)


def test_mean_squares_are_their_sums():
    x = np.random.default_rng(0).normal(size=(3, 4))
    mean, row, column = x.mean(), x.mean(1), x.mean(0)
    rows = sum(4 * (row[i] - mean) ** 2 for i in range(3)) / 2
    columns = sum(3 * (column[j] - mean) ** 2 for j in range(4)) / 3
    rest = sum((x[i, j] - row[i] - column[j] + mean) ** 2 for i in range(3) for j in range(4)) / 6
    np.testing.assert_allclose(mean_squares(x), [rows, columns, rest], atol=1e-12)
    np.testing.assert_allclose(crossed(x), [(rows - rest) / 4, (columns - rest) / 3, rest], atol=1e-12)
    np.testing.assert_allclose(crossed(x[:, :1]), [x[:, 0].var(ddof=1), np.nan, np.nan], atol=1e-12)
    np.testing.assert_allclose(crossed(x[:1]), [np.nan, x[0].var(ddof=1), np.nan], atol=1e-12)
    assert np.isnan(crossed(x[:1, :1])).all()


def test_crossed_variances_are_unbiased():
    """4000 grids, with a seed variance so small that it often comes out negative."""
    r = np.random.default_rng(1)
    x = 0.1 * r.normal(size=(4000, 4, 1)) + r.normal(size=(4000, 1, 3)) + 0.5 * r.normal(size=(4000, 4, 3))
    found = crossed(x)
    assert (found[:, 0] < 0).mean() > 0.3
    np.testing.assert_array_less(np.abs(found.mean(0) - [0.01, 1, 0.25]), 4 * found.std(0) / np.sqrt(4000))


@pytest.fixture(scope="module")
def simulated():
    """300 experiments, their components and their grand means."""
    r = np.random.default_rng(2)
    p = [predictions(r) for _ in range(300)]
    return [of(x, seed=i) for i, x in enumerate(p)], np.array([x.mean() for x in p])


def test_components_are_unbiased(simulated):
    found, _ = simulated
    stays = {k: np.array([c.variances[k][0] for c in found]) for k in TRUE}
    falls = {k: np.array([c.variances[k][1] for c in found]) for k in TRUE}
    shrink = 1 - 1 / N  # of a bootstrap variance
    expected_falls = {"patients": 1 / N, "seed": BLUR**2 / N, "draw": 0.0, "residual": 0.0}
    for k, sd in TRUE.items():
        expected = 0 if k == "patients" else sd**2
        if k == "seed":
            expected += BLUR**2 / N * (1 - shrink)  # what the bootstrap misses
        error = 4 * stays[k].std() / np.sqrt(300)
        assert stays[k].mean() == pytest.approx(expected, abs=error + 1e-12), k
        error = 4 * falls[k].std() / np.sqrt(300)
        assert falls[k].mean() == pytest.approx(expected_falls[k] * shrink, abs=error + 1e-6), k


def test_the_standard_error_is_that_of_new_experiments(simulated):
    """Nothing is counted twice: patients, seeds, draws and a seed's luck with these patients."""
    found, means = simulated
    expected = 1 / N + (0.2**2 + BLUR**2 / N) / S + 0.3**2 / D + 0.05**2 / (S * D)
    assert means.var() == pytest.approx(expected, rel=4 * np.sqrt(2 / 300))  # the simulation is what it should be
    variance = np.array([c.se**2 for c in found])
    assert variance.mean() == pytest.approx(expected, abs=4 * variance.std() / np.sqrt(300) + 0.025 * expected)


def test_intervals_cover(simulated):
    found, _ = simulated
    truth = {
        "patients": 1 / np.sqrt(N),
        "seed": np.sqrt(0.2**2 + BLUR**2 / N),
        "draw": 0.3,
        "residual": 0.05,
    }
    low, high = binom.interval(0.998, 300, 0.95)
    for k, sd in truth.items():
        hits = sum(getattr(c, k).low <= sd <= getattr(c, k).high for c in found)
        assert low <= hits <= high, (k, hits)
        assert all(getattr(c, k).low <= getattr(c, k).value <= getattr(c, k).high for c in found)


def test_a_seeds_luck_with_these_patients_is_not_counted_twice_and_a_residual_is_no_seed():
    """300 experiments in which both are far larger than patients and seeds."""
    sd, r = {"patients": 0.3, "seed": 0.1, "draw": 0.1, "residual": 0.4}, np.random.default_rng(11)
    found = [of(predictions(r, sd=sd, blur=3.0, shape=(4, 3)), seed=i) for i in range(300)]
    common = np.mean([c.patients.value**2 for c in found])  # 0.3**2 / N, and more as negative ones are set to 0
    assert 0.3**2 / N < common < 0.25 * (3.0**2 / N / 4)  # the latter is what the seeds' luck adds to their mean
    seen = math.sqrt(0.1**2 + 3.0**2 / N)
    hits = sum(c.seed.low <= seen <= c.seed.high for c in found)
    assert binom.ppf(0.001, 300, 0.95) <= hits <= binom.ppf(0.999, 300, 0.95)
    seen = np.array([c.seed.value**2 for c in found])
    assert seen.mean() == pytest.approx(0.1**2 + 3.0**2 / N, abs=4 * seen.std() / np.sqrt(300))


def test_the_interval_of_seeds_is_tukey_and_williamss():
    """Williams, 1962, with the F and chi-square quantiles of tables; above 0 just when the F-test finds the seeds."""
    x = np.random.default_rng(13).normal(size=(3, 4)) + np.array([[0.0], [1], [4]])
    rows, _, rest = mean_squares(x)
    c = of(np.repeat(x[..., None], 5, axis=-1))
    F_high, F_low, chi_high, chi_low = 7.259856, 1 / 39.331458, 7.377759, 0.05063562  # F(2, 6), chi-square(2)
    low, high = (2 * (rows - F_high * rest) / (4 * chi_high), 2 * (rows - F_low * rest) / (4 * chi_low))
    assert (c.seed.low**2, c.seed.high**2) == pytest.approx((low, high), rel=1e-5)
    r = np.random.default_rng(14)
    for _ in range(40):
        x = r.normal(size=(3, 4)) + r.normal(size=(3, 1))
        rows, _, rest = mean_squares(x)
        assert (of(np.repeat(x[..., None], 5, axis=-1)).seed.low > 0) == (rows / rest > F_high)


def test_degrees_of_freedom_follow_the_tails():
    """A sample variance of two values is nearly certain, that of one patient among 40 is not at all."""
    for x in (np.arange(N) % 2.0, np.eye(N)[0], np.random.default_rng(12).normal(size=N)):
        z = x - x.mean()
        kurtosis = sum(z**4) / N / (sum(z**2) / N) ** 2
        df = max(2 / (kurtosis / N - (N - 3) / (N * (N - 1)) + 2 / 500), 1)
        assert f"interval, {df:.0f} degrees of freedom" in of(x[None, None], n=500).patients.how


def test_a_score_is_the_root_of_its_variance(simulated):
    for c in simulated[0][:20]:
        for k in TRUE:
            assert getattr(c, k).value ** 2 == pytest.approx(sum(c.variances[k]), abs=1e-12)
            assert (getattr(c, k).n, getattr(c, k).patients) == (N, N)


def test_scans_of_a_patient_come_together():
    """Four equal scans of each patient are no more patients."""
    p = predictions(np.random.default_rng(3))
    once = of(p)
    four = components(MEAN, np.zeros(4 * N), np.repeat(p, 4, axis=-1), np.repeat(np.arange(N), 4), n=100)
    for k in TRUE:
        assert getattr(four, k).value == pytest.approx(getattr(once, k).value, abs=1e-12)
        assert getattr(four, k).high == pytest.approx(getattr(once, k).high, abs=1e-12)
    assert (four.seed.n, four.seed.patients) == (4 * N, N)


def test_a_difference_is_that_of_each_cell():
    r = np.random.default_rng(4)
    a, b = predictions(r), predictions(r)
    direct, against = of(a - b), of(a, against=b)
    for k in TRUE:
        assert getattr(against, k).value == pytest.approx(getattr(direct, k).value, abs=1e-9)
    y = np.arange(60) % 2
    p = [[np.c_[1 - q, q] for q in norm.cdf(r.normal(y - 0.5, 1, (2, 60)))] for _ in range(3)]
    same = components(AUROC, y, p, np.arange(60), against=p, n=100)
    assert same.se == 0
    assert components(AUROC, y, p, np.arange(60), n=100).se > 0.02


def test_many_patients_are_excluded_in_groups():
    p = predictions(np.random.default_rng(5), patients=1000)
    c = of(p, n=2000)
    width = np.log(c.patients.high / c.patients.low)
    expected = np.log(chi2.ppf(0.975, 182) / chi2.ppf(0.025, 182)) / 2  # 1 / 182 = 1 / 200 groups + 1 / 2000 resamples
    assert width == pytest.approx(expected, rel=0.2)


def test_what_one_cannot_tell_is_said_and_not_0():
    r = np.random.default_rng(6)
    one_seed, one_draw, one = (of(predictions(r, shape=shape)) for shape in ((1, D), (S, 1), (1, 1)))
    assert one_seed.seed.how == one.seed.how == "cannot be estimated from one encoder seed"
    assert one_draw.draw.how == one.draw.how == "cannot be estimated from one label draw"
    assert str(one_seed.seed) == str(one_seed.residual) == str(one_draw.residual) == "undefined"
    assert "with the residual as there is one encoder seed" in one_seed.draw.how
    assert "with the residual as there is one label draw" in one_draw.seed.how
    assert one_draw.seed.value > 0
    assert np.isnan(one.variances["seed"]).all()
    assert one.se == pytest.approx(one.patients.value, abs=1e-12)
    alone = components(MEAN, np.zeros(1), predictions(r, patients=1), np.zeros(1), n=100)
    assert alone.patients.how == "cannot be estimated from one patient"
    assert alone.seed.value > 0


def test_a_negative_estimate_is_set_to_0_and_said():
    x = np.array([[1.0, 2.0], [2.0, 1.0]])[..., None] + np.zeros(5)  # all interaction
    c = of(x)
    assert c.seed.value == c.draw.value == 0
    assert "negative and is set to 0" in c.seed.how
    assert "negative" not in c.residual.how
    assert c.residual.value == pytest.approx(1, abs=1e-12)


def test_wrong_grids_are_refused():
    p = predictions(np.random.default_rng(7))
    for wrong in ([], [[]], [list(p[0]), list(p[1])[1:]]):
        with pytest.raises(UserError, match="every encoder seed on the same label draws"):
            components(MEAN, np.zeros(N), wrong, np.arange(N), n=100)
    with pytest.raises(UserError, match="every encoder seed"):
        of(p, against=p[1:])
    with pytest.raises(UserError, match="AUROC is undefined on these test scans, because a class was missing"):
        components(AUROC, np.zeros(4, int), [[np.full((4, 2), 0.5)]], np.arange(4), n=100)


def made(variances, S=4, D=2, people=100):
    """Components with given variances: (stays, falls) of each source."""
    c = of(predictions(np.random.default_rng(8), shape=(S, D), patients=people))
    nothing = dict.fromkeys(TRUE, (0.0, 0.0))
    return Components(c.patients, c.seed, c.draw, c.residual, nothing | variances, S, D)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(1e-6, 1e-2), min_size=5, max_size=5), st.floats(0.01, 0.5))
def test_as_many_as_needed_have_the_power_and_one_fewer_has_not(v, difference):
    parts = made({"patients": (0.0, v[0]), "seed": (v[1], v[2]), "draw": (v[3], 0.0), "residual": (v[4], 0.0)})
    found = required_sample_size(difference, parts)

    def power(patients, seeds):
        """Of the normal test with n patients and k seeds, from the model itself."""
        shrunk = 100 / patients
        variance = v[0] * shrunk + (v[1] + v[2] * shrunk) / seeds + v[3] / 2 + v[4] / (2 * seeds)
        return norm.cdf(difference / math.sqrt(variance) - norm.ppf(0.975))

    for k, of_k in ((found.patients, lambda k: power(k, 4)), (found.seeds, lambda k: power(100, k))):
        if math.isinf(k):
            assert of_k(1e15) < 0.8 + 1e-9
        else:
            assert of_k(k) >= 0.8 - 1e-9
            assert k == 1 or of_k(k - 1) < 0.8


def test_needed_in_closed_form():
    """A difference of half a standard deviation needs 32 (80 %) or 43 (90 %) pairs, as in every textbook."""
    of_patients, of_seeds = made({"patients": (0.0, 0.01)}), made({"seed": (1.0, 0.0)})
    assert required_sample_size(0.5, of_patients).patients == required_sample_size(-0.5, of_patients).patients == 32
    assert (required_sample_size(0.5, of_seeds).seeds, required_sample_size(0.5, of_seeds, power=0.9).seeds) == (32, 43)
    assert required_sample_size(0.5, of_seeds).patients == math.inf


def test_a_simulated_trial_of_that_many_finds_the_difference_4_times_in_5():
    sd = {"patients": 1.0, "seed": 0.05, "draw": 0.0, "residual": 0.0}
    k = required_sample_size(0.2, made({"patients": (0.0, 1 / 100), "seed": (0.05**2, 0.0)}, D=1)).patients
    r = np.random.default_rng(9)
    found = 0
    for _ in range(400):
        p = 0.2 + predictions(r, sd=sd, blur=0.0, shape=(4, 1), patients=int(k))
        found += abs(p.mean()) > 1.96 * np.sqrt(1 / k + 0.05**2 / 4)
    low, high = binom.interval(0.998, 400, 0.8)
    assert low <= found <= high


@pytest.mark.parametrize(
    ("difference", "variances", "shape", "words"),
    [
        (0.1, {"patients": (0.0, 0.01), "seed": (0.001, 0.0)}, (4, 2),
         "; about 980 patients (with 4 seeds) would be needed, and no number of seeds would suffice (with 100 patients)"),
        (0.1, {"patients": (0.0, 0.001), "seed": (0.001, 0.003)}, (4, 2),
         "; about 180 patients (with 4 seeds) or about 15 seeds (with 100 patients) would be needed"),
        (0.1, {"seed": (0.02, 0.0)}, (4, 2),
         "; about 16 seeds (with 100 patients) would be needed, and no number of patients would suffice (with 4 seeds)"),
        (0.0, {"patients": (0.0, 0.01)}, (4, 2),
         "; no number of patients would suffice (with 4 seeds), and no number of seeds would suffice (with 100 patients)"),
        (0.02, {"patients": (0.0, 0.01)}, (1, 2),
         "; about 20,000 patients (with 1 seed) would be needed, and the effect of more seeds cannot be estimated from one"),
        (0.1, {"draw": (0.01, 0.0)}, (1, 2),
         "; no number of patients would suffice (with 1 seed), and the effect of more seeds cannot be estimated from one"),
        (0.5, {"patients": (0.0, 0.01)}, (4, 2), ", which suffices for a single comparison"),
    ],
)  # fmt: skip
def test_words(difference, variances, shape, words):
    seeds = "4 seeds" if shape[0] == 4 else "1 seed"
    parts = made(variances, *shape)
    assert str(required_sample_size(difference, parts)) == f"n = 100 patients and {seeds}{words}"


def test_one_patient_cannot_say_what_more_would_do():
    alone = of(predictions(np.random.default_rng(10), patients=1))
    assert (
        str(required_sample_size(0.1, alone))
        == "n = 1 patients and 6 seeds; the effect of more cannot be estimated from one patient"
    )
