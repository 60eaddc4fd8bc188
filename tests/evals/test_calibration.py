import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize_scalar
from scipy.special import expit, logit, softmax
from scipy.stats import binomtest, norm, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

import tiny
from medssl.errors import UserError
from medssl.evals.metrics.metrics import ECE
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.calibration import (
    IN_THE_LARGE,
    NLL,
    SLOPE,
    calibrate,
    fit_temperature,
    reliability,
    scaled,
)


def draw(seed, N=200, K=3, sharp=1.0):
    """Classes drawn from probabilities, and these probabilities made `sharp` times too sure."""
    r = np.random.default_rng(seed)
    z = r.normal(size=(N, K)) * 1.5
    y = (softmax(z, axis=1).cumsum(1) < r.random((N, 1))).sum(1).clip(max=K - 1)
    return y, softmax(sharp * z, axis=1)


def loss(y, p, temperature):
    q = p ** (1 / temperature)
    return -np.log(q[np.arange(len(y)), y] / q.sum(1)).mean()


@given(st.integers(0, 10**6), st.integers(2, 5), st.floats(0.3, 5))
@settings(max_examples=25, deadline=None)
def test_the_temperature_minimises_cross_entropy(seed, K, sharp):
    y, p = draw(seed, 80, K, sharp)
    found = fit_temperature(y, p)
    plain = minimize_scalar(lambda t: loss(y, p, np.exp(t)), bounds=np.log([0.01, 100]), options={"xatol": 1e-9})
    assert found.value == pytest.approx(np.exp(plain.x), rel=1e-5)
    assert found.after <= plain.fun + 1e-12
    assert (found.before, found.after) == pytest.approx((loss(y, p, 1), loss(y, p, found.value)), abs=1e-12)
    h = 1e-4  # the slope over 1 / temperature, by central differences, is 0 up to their own error
    there = [loss(y, p, 1 / (1 / found.value + d)) for d in (-h, h)]
    assert (there[1] - there[0]) / (2 * h) == pytest.approx(0, abs=1e-5)
    assert found.how == "temperature by cross-entropy on 80 scans"


def test_a_known_temperature_is_found_and_undone():
    y, p = draw(0, 20000, sharp=3.0)
    assert fit_temperature(y, p).value == pytest.approx(3, rel=0.03)
    own = fit_temperature(y, p).value
    assert fit_temperature(y, scaled(p, 2.0)).value == pytest.approx(own / 2, rel=1e-8)
    np.testing.assert_allclose(scaled(scaled(p, 5.0), 0.2), p, atol=1e-12)
    np.testing.assert_array_equal(scaled(p, 7.0).argmax(1), p.argmax(1))


def test_the_ends_of_the_range_are_said():
    y, p = np.array([0, 1]), np.array([[0.6, 0.4], [0.3, 0.7]])
    right, wrong = fit_temperature(y, p), fit_temperature(1 - y, p)
    assert (right.value, wrong.value) == (0.01, 100)
    assert right.how.endswith("end of the range tried")
    assert wrong.how.endswith("end of the range tried")
    sure = np.array([[1.0, 0], [0, 1], [1, 0]])  # zeros have logarithms that are finite
    assert np.isfinite(fit_temperature(np.array([0, 1, 1]), sure).after)


def test_without_validation_there_is_no_temperature():
    with pytest.raises(UserError, match="no validation scans"):
        calibrate((np.zeros(0, int), np.zeros((0, 2))), draw(0), np.arange(200))


def test_calibration_is_scored_before_and_after():
    val, test = draw(1, 400, 2, sharp=4.0), draw(2, 400, 2, sharp=4.0)
    c = calibrate(val, test, np.arange(400) // 2, n=200)
    np.testing.assert_allclose(c.p, scaled(test[1], c.temperature.value))
    for name, metric in (("ECE", ECE), ("NLL", NLL), ("calibration slope", SLOPE)):
        assert (c.before[name].value, c.after[name].value) == (metric(*test), metric(test[0], c.p))
    assert c.before["NLL"].value == pytest.approx(log_loss(test[0], test[1]), abs=1e-12)
    assert c.change["NLL"].value == pytest.approx(c.after["NLL"].value - c.before["NLL"].value, abs=1e-12)
    assert c.change["NLL"].high < 0
    assert c.change["ECE"].high < 0
    assert c.before["calibration slope"].high < 0.5
    assert c.after["calibration slope"].low < 1 < c.after["calibration slope"].high
    assert c.after["calibration in the large"].low < 0 < c.after["calibration in the large"].high
    three = calibrate(draw(1), draw(2), np.arange(200), n=100)
    assert list(three.before) == ["ECE", "NLL"]


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_the_slope_is_a_logistic_regression(seed):
    r = np.random.default_rng(seed)
    z = r.normal(0.5, 1.5, 60)
    y = (r.random(60) < expit(0.4 * z - 0.3)).astype(int)
    y[:2], z[:2], y[2:4], z[2:4] = [0, 1], 9, [0, 1], -9  # the classes overlap
    p = np.c_[expit(-z), expit(z)]
    count = r.integers(0, 4, 60)
    count[:4] = 1
    fitted = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000, solver="newton-cholesky")
    fitted.fit(z[:, None], y, sample_weight=count)
    assert SLOPE(y, p, count) == pytest.approx(fitted.coef_[0, 0], abs=1e-6)
    a = IN_THE_LARGE(y, p, count)
    assert (count * expit(a + logit(p[:, 1]))).sum() == pytest.approx((count * y).sum(), abs=1e-6)
    for metric in (SLOPE, IN_THE_LARGE, NLL):
        assert metric(y, p, count) == pytest.approx(metric(np.repeat(y, count), np.repeat(p, count, 0)), abs=1e-7)


def test_fits_are_found_where_newtons_plain_steps_overshoot():
    """Logits that are far too sure: of slope and intercept the residuals must balance."""
    for seed in range(100):
        r = np.random.default_rng(seed)
        x = np.clip(30 * r.standard_t(1.2, 40), -30, 30)
        y = (r.random(40) < expit(x / 20)).astype(int)
        y[:2], x[:2], y[2:4], x[2:4] = [0, 1], 3, [0, 1], -3
        p = np.c_[expit(-x), expit(x)]
        b = SLOPE(y, p)
        a = brentq(lambda a, b=b, x=x, y=y: (expit(a + b * x) - y).sum(), -1e3, 1e3, xtol=1e-13)
        assert ((expit(a + b * x) - y) * x).sum() == pytest.approx(0, abs=1e-5)
        assert (expit(IN_THE_LARGE(y, p) + x) - y).sum() == pytest.approx(0, abs=1e-5)


def test_slopes_that_do_not_exist_are_undefined():
    z = np.arange(6) - 2.5
    p = np.c_[expit(-z), expit(z)]
    apart = (z > 0).astype(int)
    assert np.isnan(SLOPE(apart, p))
    assert np.isnan(SLOPE(1 - apart, p))
    assert np.isnan(SLOPE(apart, np.full((6, 2), 0.5)))
    assert np.isnan(SLOPE(apart, p, [1, 1, 1, 0, 0, 0]))
    assert np.isnan(IN_THE_LARGE(np.ones(6, int), p))
    assert IN_THE_LARGE(apart, np.full((6, 2), 0.5)) == pytest.approx(0, abs=1e-9)
    many = SLOPE.many(np.array([0, 1, 0, 1, 0, 1]), p, np.array([[1.0] * 6, [0, 1, 0, 1, 0, 1], [1, 1, 0, 0, 0, 0]]))
    assert np.isnan(many).tolist() == [False, True, True]
    with pytest.raises(ValueError, match="two classes"):
        SLOPE(*draw(0))


@pytest.mark.parametrize("wrong", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_the_slope_of_classes_that_nearly_separate_is_undefined(seed, wrong):
    """All but one or two scans of 40 are ordered rightly: there is a slope, of any size, that these few decide."""
    r = np.random.default_rng(seed)
    y = np.arange(40) % 2
    z = np.where(y == 1, 0.01, -0.01) + 0.003 * r.normal(size=40)
    z[r.choice(40, wrong, replace=False)] *= -1
    found = score(SLOPE, y, np.c_[expit(-z), expit(z)], np.arange(40), n=400)
    assert str(found) == "undefined"
    assert "because a class was missing or the classes did not overlap" in found.how
    mixed = y + r.normal(size=40)
    assert not np.isnan(score(SLOPE, y, np.c_[expit(-mixed), expit(mixed)], np.arange(40), n=400).low)


def test_the_curve_adds_up_to_the_ece():
    y, p = draw(0, 300, sharp=2.0)
    hit, confidence, patient = p.argmax(1) == y, p.max(1), np.arange(300) // 3
    curve = reliability(hit, confidence, patient, n=100)
    assert sum(b.observed.n for b in curve) == 300
    gap = sum(b.observed.n * abs(b.observed.value - b.predicted.value) for b in curve) / 300
    assert gap == pytest.approx(ECE(y, p), abs=1e-12)
    for b in curve:
        inside = (confidence > b.low) & (confidence <= b.high)
        assert b.observed.n == b.predicted.n == inside.sum()
        assert b.observed.patients == len(set(patient[inside]))
        assert b.observed.value == pytest.approx(hit[inside].mean(), abs=1e-12)


def test_intervals_of_a_bin_are_of_its_patients():
    r = np.random.default_rng(0)
    patient, probability = np.arange(60) // 2, np.repeat([0.25, 0.75], 30)
    event = (r.random(60) < probability).astype(int)
    low, high = reliability(event, probability, [f"{i:02}" for i in patient], bins=2, n=200)
    assert (low.low, low.high, high.low, high.high) == (0, 0.5, 0.5, 1)
    x = event[:30].reshape(15, 2).mean(1)
    n = x.mean() * (1 - x.mean()) / (x.var(ddof=1) / 15) * (norm.ppf(0.975) / t.ppf(0.975, 14)) ** 2
    expected = tiny.wilson(x.mean(), n)
    assert (low.observed.low, low.observed.high) == pytest.approx(expected, abs=1e-12)
    none, all_of_them = reliability(np.arange(40) >= 20, np.repeat([0.25, 0.75], 20), np.arange(40), bins=2)
    for found, events in ((none.observed, 0), (all_of_them.observed, 20)):
        exact = binomtest(events, 20).proportion_ci()
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    assert [b.predicted.value for b in reliability([0, 1], [0.0, 1.0], ["a", "b"], n=100)] == [0, 1]
    assert reliability([0, 1], [0.5, 0.5], ["a", "b"], bins=2, n=100)[0].high == 0.5  # an edge is in the bin below it


@pytest.mark.parametrize(
    ("event", "probability"), [([0, 2], [0.1, 0.2]), ([0, 1], [0.1, 1.2]), ([0, 1], [0.1, np.nan]), ([0, 1], [0.1])]
)
def test_wrong_curves_are_refused(event, probability):
    with pytest.raises(ValueError, match="event"):
        reliability(event, probability, np.arange(len(event)))
