import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from medssl.errors import UserError
from medssl.evals.probes import newton
from medssl.evals.probes.cox import TIES, Partial, cox_probes, fit_cox, partial_likelihood
from medssl.evals.probes.linear_designs import standardiser
from medssl.evals.probes.model_selection import PENALTIES, hold_out


def cohort(seed, N, D, tick=5.0):
    """Features, and times in whole ticks, so that many are tied, with about a third censored."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(N, D)) @ r.normal(size=(D, D)) + 3
    eta = (x - x.mean(0)) / x.std(0) @ r.normal(size=D) / np.sqrt(D)
    died, lost = r.exponential(size=N) * np.exp(-eta), r.exponential(size=N) * 2
    time = np.ceil(np.minimum(died, lost) * tick)
    return x, np.c_[time, died <= lost]


def likelihood(y, eta, ties):
    """Minus the log partial likelihood per event, by the definition: for each time, its events and those at risk."""
    total, events = 0.0, 0
    for t in np.unique(y[y[:, 1] == 1, 0]):
        dead = [i for i in range(len(y)) if y[i, 0] == t and y[i, 1] == 1]
        at_risk = sum(np.exp(eta[i]) for i in range(len(y)) if y[i, 0] >= t)
        tied = sum(np.exp(eta[i]) for i in dead)
        for number, i in enumerate(dead):
            share = number / len(dead) if ties == "efron" else 0
            total -= eta[i] - np.log(at_risk - share * tied)
        events += len(dead)
    return total / events


@pytest.mark.parametrize("ties", TIES)
def test_the_likelihood_is_the_definition_with_many_ties(ties):
    _, y = cohort(0, 40, 2, tick=3.0)
    assert len(np.unique(y[y[:, 1] == 1, 0])) < y[:, 1].sum() / 2
    eta = np.random.default_rng(1).normal(size=40)
    assert partial_likelihood(y, eta, ties) == pytest.approx(likelihood(y, eta, ties), rel=1e-12)
    order = np.random.default_rng(2).permutation(40)
    assert partial_likelihood(y[order], eta[order] + 500, ties) == pytest.approx(likelihood(y, eta, ties), rel=1e-10)


def test_ties_are_treated_as_requested_and_do_not_matter_without_ties():
    _, y = cohort(0, 40, 2, tick=3.0)
    eta = np.random.default_rng(1).normal(size=40)
    assert partial_likelihood(y, eta, "efron") < partial_likelihood(y, eta, "breslow")
    y[:, 0] += np.arange(40) / 1000
    assert partial_likelihood(y, eta, "efron") == pytest.approx(partial_likelihood(y, eta, "breslow"), rel=1e-12)


@pytest.mark.parametrize("ties", TIES)
def test_derivatives_are_those_of_the_likelihood(ties):
    x, y = cohort(3, 30, 4, tick=3.0)
    problem = Partial.of(torch.from_numpy(x), y, ties, 2)
    w = torch.from_numpy(np.random.default_rng(4).normal(size=(2, 4)) / 3)
    g, diagonal, curvature = problem.expand(w)
    dense, h = problem.dense(w), 1e-5
    for i, e in enumerate(torch.eye(4, dtype=w.dtype)):
        slope = [likelihood(y, x @ (v + h * e).numpy(), ties) - likelihood(y, x @ (v - h * e).numpy(), ties) for v in w]
        turn = (problem.expand(w + h * e)[0] - problem.expand(w - h * e)[0]) / (2 * h)
        np.testing.assert_allclose(g[:, i], np.array(slope) / (2 * h), atol=1e-7)
        np.testing.assert_allclose(dense[:, i], turn, atol=1e-7)
        np.testing.assert_allclose(curvature(e.expand_as(w)), turn, atol=1e-7)
        assert (diagonal[:, i] >= turn[:, i]).all()


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize(("N", "D"), [(60, 4), (20, 12)])
def test_every_penalty_reaches_the_optimum_of_the_definition(N, D, ties):
    x, y = cohort(5, N, D)
    mean, scale = standardiser(x)
    z, C = (x - mean) * scale, np.array([1e-3, 0.1, 10])
    model = fit_cox(x, y, C, ties=ties)
    for i in range(len(C)):

        def f(w, C=C[i]):
            return likelihood(y, z @ w, ties) + (w**2).sum() / (2 * C * y[:, 1].sum())

        best, ours = minimize(f, np.zeros(D), method="BFGS", options={"gtol": 1e-7}).fun, f(model.weights[i])
        assert model.converged[i]
        assert ours * (1 - newton.GAP) <= best
        assert ours <= best * (1 + 1e-5)
        np.testing.assert_allclose(model.predict(x, i), z @ model.weights[i], atol=1e-10)


def test_both_ways_to_a_newton_step_end_at_the_same_place(monkeypatch):
    x, y = cohort(6, 80, 30)
    factored = fit_cox(x, y, np.array([0.1, 100]))
    monkeypatch.setattr(newton, "DENSE", 0)
    iterated = fit_cox(x, y, np.array([0.1, 100]))
    assert factored.converged.all()
    assert iterated.converged.all()
    assert (factored.weights != iterated.weights).any()
    np.testing.assert_allclose(factored.weights, iterated.weights, atol=1e-3)


def test_a_patient_counts_once_however_many_scans_he_has():
    x, y = cohort(7, 40, 3)
    patient = np.array([f"p{i}" for i in range(40)])
    r = np.random.default_rng(7)
    repeated = np.repeat(np.arange(40), r.integers(1, 5, 40))
    jitter = r.normal(size=(len(repeated), 3))
    sums = np.zeros((40, 3))
    np.add.at(sums, repeated, jitter)
    jitter -= (sums / np.bincount(repeated)[:, None])[
        repeated
    ]  # scans of a patient differ, their mean is the patient's
    once = fit_cox(x, y, np.array([0.1, 10]), patient=patient)
    often = fit_cox(x[repeated] + jitter, y[repeated], np.array([0.1, 10]), patient=patient[repeated])
    np.testing.assert_allclose(often.weights, once.weights, atol=1e-8)
    as_strangers = fit_cox(x[repeated], y[repeated], np.array([0.1, 10]))
    assert np.abs(as_strangers.weights - once.weights).max() > 1e-2
    # scans with times of their own are observations of their own
    apart = y[repeated] + np.c_[np.arange(len(repeated)) / 1e3, np.zeros(len(repeated))]
    own = fit_cox(x[repeated], apart, np.array([0.1]), patient=patient[repeated])
    np.testing.assert_allclose(own.weights, fit_cox(x[repeated], apart, np.array([0.1])).weights, atol=1e-8)


def test_the_penalty_has_the_best_likelihood_of_validation_patients():
    x, y = cohort(8, 240, 6)
    patient = np.repeat([f"p{i}" for i in range(120)], 2)
    y = np.repeat(y[::2], 2, axis=0)
    train, val = (x[:120], y[:120]), (x[120:200], y[120:200])
    [probe] = cox_probes(train, val, [x[200:], x[:0]], patient=patient[:120], val_patient=patient[120:200])
    model = fit_cox(*train, np.array(PENALTIES), patient=patient[:120])
    for i, (C, loss) in enumerate(probe.path):
        assert PENALTIES[i] == C
        risk = model.predict(x[120:200], i).reshape(-1, 2).mean(1)  # a patient's two scans
        assert loss == pytest.approx(likelihood(y[120:200:2], risk, "efron"))
    assert probe.loss == min(loss for _, loss in probe.path)
    assert probe.how.startswith(f"Cox regression, C = {probe.C:g} by partial likelihood on 80 validation scans")
    assert [len(p) for p in probe.predictions] == [40, 0]
    np.testing.assert_allclose(probe.predictions[0], model.predict(x[200:], PENALTIES.index(probe.C)), atol=1e-6)


def test_an_event_with_nobody_else_at_risk_has_no_effect():
    x, _ = cohort(12, 10, 3)
    model = fit_cox(x, np.c_[np.arange(1, 11), np.arange(1, 11) == 10].astype(float), np.array([1.0]))
    assert model.converged.all()
    assert (model.predict(x) == 0).all()


def test_risk_orders_unseen_patients():
    x, y = cohort(9, 300, 5)
    [probe] = cox_probes((x[:150], y[:150]), (x[150:200], y[150:200]), [x[200:]])
    risk, (t, e) = probe.predictions[0], y[200:].T
    pairs = [(risk[i] > risk[j]) for i in range(100) for j in range(100) if e[i] and t[i] < t[j]]
    assert np.mean(pairs) > 0.65


def test_subsets_and_held_out_patients_choose_as_in_linear_probes():
    x, y = cohort(10, 120, 4)
    patient = np.array([f"p{i}" for i in range(120)])
    train, val = (x[:80], y[:80]), (x[80:], y[80:])
    rows = np.arange(30)
    [few] = cox_probes(train, val, [x], subsets=[rows], patient=patient[:80], val_patient=patient[80:])
    assert few.how.startswith("Cox regression on 30 scans, C = ")
    assert "partial likelihood on 30 validation scans" in few.how
    [inner] = cox_probes(train, None, [x], patient=patient[:80], seed=1)
    held = hold_out(y[:80], patient[:80], 1, "survival")
    assert f"on {held.sum()} scans of held-out training patients" in inner.how
    model = fit_cox(x[:80][~held], y[:80][~held], np.array(PENALTIES))
    expected = [partial_likelihood(y[:80][held], model.predict(x[:80][held], i)) for i in range(len(PENALTIES))]
    assert [loss for _, loss in inner.path] == pytest.approx(expected)
    again = fit_cox(x[:80], y[:80], np.array([inner.C])).predict(x)
    np.testing.assert_allclose(inner.predictions[0], again, atol=1e-6)


def test_regressions_that_cannot_be_are_refused_in_words():
    x, y = cohort(11, 30, 3)
    censored = y * [1, 0]
    with pytest.raises(UserError, match="none of 30 training patients had the event"):
        cox_probes((x, censored), (x, y), [])
    with pytest.raises(UserError, match="none of the 30 patients used to select the penalty had the event"):
        cox_probes((x, y), (x, censored), [])
    with pytest.raises(UserError, match="one training patient"):
        cox_probes((x[:3], np.tile([4.0, 1], (3, 1))), (x, y), [], patient=["a", "a", "a"])
    with pytest.raises(UserError, match="constant"):
        cox_probes((0 * x, y), (x, y), [])
    with pytest.raises(UserError, match="2 of 30 training scans lack a time above 0"):
        cox_probes((x, np.where(np.arange(30)[:, None] < 2, [np.nan, 1], y)), (x, y), [])
    with pytest.raises(UserError, match="finite"):
        cox_probes((x * np.inf, y), (x, y), [])
    with pytest.raises(ValueError, match="a time and an event"):
        cox_probes((x, y[:, 0]), (x, y), [])
    with pytest.raises(ValueError, match="ties"):
        cox_probes((x, y), (x, y), [], ties="exact")
