import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medssl.errors import UserError
from medssl.evals.bootstrap import score
from medssl.evals.linear import PENALTIES, cross_entropy, fit, held_out, linear_probe, standardiser
from medssl.evals.metrics import AUROC


def problem(seed, N, D, K):
    """Correlated features of very different scales, overlapping classes."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(N, D)) @ r.normal(size=(D, D)) * np.logspace(-2, 2, D) + 5
    z = (x - x.mean(0)) / x.std(0) @ r.normal(size=(D, K)) / np.sqrt(D) + 2 * r.gumbel(size=(N, K))
    y = z.argmax(1)
    y[:K] = np.arange(K)
    return x, y


def objective(x, y, weights, bias, C):
    """scikit-learn's, over C * N. One logit for two classes."""
    z = x @ weights + bias
    if z.shape[1] == 1:
        z = np.c_[np.zeros(len(z)), z]
    z = z - z.max(1, keepdims=True)
    loss = np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]
    return loss.mean() + (weights**2).sum() / (2 * C * len(y))


@pytest.mark.parametrize(("N", "D", "K"), [(200, 20, 2), (40, 90, 2), (150, 12, 4), (50, 80, 3)])
def test_every_penalty_reaches_scikit_learns_optimum(N, D, K):
    x, y = problem(0, N, D, K)
    mean, scale = standardiser(x)
    z = (x - mean) * scale
    for C, model in zip(PENALTIES, fit(x, y, K, PENALTIES), strict=True):
        theirs = LogisticRegression(C=C, tol=1e-10, max_iter=20000).fit(z, y)
        best = objective(z, y, theirs.coef_.T, theirs.intercept_, C)
        ours = objective(z, y, model.weights, model.bias, C)
        assert model.converged
        assert ours <= best * (1 + 1e-5)
        if C <= 1:
            np.testing.assert_allclose(model.predict(x), theirs.predict_proba(z), atol=2e-3)


def test_more_features_than_scans_takes_another_road_to_the_same_place():
    x, y = problem(1, 60, 30, 2)
    wide = np.c_[x, x @ np.random.default_rng(0).normal(size=(30, 100)), np.zeros((60, 40))]
    tall = np.tile(wide, (4, 1))  # the same problem at C / 4, with more scans than features
    few, many = fit(wide, y, 2, [0.01, 1.0]), fit(tall, np.tile(y, 4), 2, [0.0025, 0.25])
    for a, b in zip(few, many, strict=True):
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-3 * np.abs(b.weights).max())
        np.testing.assert_allclose(a.predict(wide), b.predict(wide), atol=1e-4)


def test_dead_columns_are_ignored_even_when_they_wake_up_in_the_test():
    x, y = problem(2, 80, 6, 2)
    dead = np.full((80, 2), [0.1, 1e6])
    alone = next(fit(x, y, 2, [1.0])).predict(x)
    both = next(fit(np.c_[x, dead], y, 2, [1.0]))
    np.testing.assert_allclose(both.predict(np.c_[x, dead + 1e3]), alone, atol=1e-4)


def test_the_penalty_has_the_lowest_validation_cross_entropy():
    x, y = problem(3, 400, 40, 3)
    train, val = (x[:100], y[:100]), (x[100:250], y[100:250])
    probe = linear_probe(train, val, [x[250:], x[:0]], classes=3)
    losses = {
        C: cross_entropy(val[1], m.predict(val[0])) for C, m in zip(PENALTIES, fit(*train, 3, PENALTIES), strict=True)
    }
    assert min(losses, key=losses.__getitem__) == probe.C
    assert probe.loss == losses[probe.C]
    assert probe.path == [(C, losses[C]) for C in PENALTIES[: PENALTIES.index(probe.C) + 3]]  # two worse ones end it
    assert probe.how == f"logistic regression, C = {probe.C:g} by cross-entropy on 150 validation scans"
    assert [p.shape for p in probe.probabilities] == [(150, 3), (0, 3)]
    np.testing.assert_allclose(probe.probabilities[0].sum(1), 1)


def test_the_test_set_has_no_say():
    x, y = problem(4, 200, 10, 2)
    a = linear_probe((x[:100], y[:100]), (x[100:], y[100:]), [x[:5]], classes=2)
    b = linear_probe((x[:100], y[:100]), (x[100:], y[100:]), [1e6 * x, x[:5]], classes=2)
    assert a.path == b.path
    np.testing.assert_array_equal(a.probabilities[0], b.probabilities[1])


def test_without_validation_scans_held_out_patients_choose():
    x, y = problem(5, 200, 10, 2)
    patient = np.array([f"p{i // 2}" for i in range(200)])
    probe = linear_probe((x, y), None, [x], classes=2, patient=patient, seed=1)
    empty = linear_probe((x, y), (x[:0], y[:0]), [x], classes=2, patient=patient, seed=1)
    assert probe.path == empty.path
    assert "held-out training patients" in probe.how
    held = held_out(y, patient, 1)
    inner = linear_probe((x[~held], y[~held]), (x[held], y[held]), [], classes=2)
    assert inner.path == probe.path
    # the winner is fitted again, on everybody
    np.testing.assert_allclose(probe.probabilities[0], next(fit(x, y, 2, [probe.C])).predict(x), atol=1e-12)
    with pytest.raises(ValueError, match="patients"):
        linear_probe((x, y), None, [x], classes=2)


def test_held_out_patients_are_whole_keyed_and_of_every_class():
    r = np.random.default_rng(0)
    at = r.integers(0, 50, 300)
    label = (np.arange(50) < 8).astype(int)
    patient = np.array([f"p{i}" for i in at])
    held = held_out(label[at], patient, 0)
    assert not set(patient[held]) & set(patient[~held])
    assert set(label[at][held]) == set(label[at][~held]) == {0, 1}
    assert len(set(patient[held])) == pytest.approx(0.2 * 50, abs=2)
    order = r.permutation(300)
    np.testing.assert_array_equal(held_out(label[at][order], patient[order], 0), held[order])
    assert (held_out(label[at], patient, 1) != held).any()


def test_a_class_unseen_in_training_gets_no_probability():
    x, y = problem(6, 120, 8, 3)
    for gone in range(3):
        p = next(fit(x[y != gone], y[y != gone], 3, [0.1])).predict(x)
        assert (p[:, gone] == 0).all()
        np.testing.assert_allclose(p.sum(1), 1)
        assert p.argmax(1)[y != gone].tolist() != [(gone + 1) % 3] * (y != gone).sum()


def test_probes_that_cannot_be_are_refused_in_words():
    x, y = problem(7, 40, 4, 2)
    with pytest.raises(UserError, match="one class"):
        linear_probe((x, 0 * y), (x, y), [], classes=2)
    with pytest.raises(UserError, match="label more patients"):
        linear_probe((x[:2], np.array([0, 1])), None, [], classes=2, patient=np.array(["a", "b"]))
    x[3, 2] = np.nan
    with pytest.raises(UserError, match="finite"):
        linear_probe((x, y), (x, y), [], classes=2)


def test_raw_pixels_of_pneumonia(shared):
    """.927 [.901, .949] is scikit-learn's on this rebuilt set; validation chooses the penalty, never the test."""
    with np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz") as f:
        x = {s: f[f"{s}_images"].reshape(len(f[f"{s}_images"]), -1) / 255 for s in ("train", "val", "test")}
        y = {s: f[f"{s}_labels"].ravel().astype(int) for s in x}
    probe = linear_probe((x["train"], y["train"]), (x["val"], y["val"]), [x["test"]], classes=2)
    s = score(AUROC, y["test"], probe.probabilities[0], np.arange(624))  # no patient ids: a patient per image
    assert s.value == pytest.approx(0.927, abs=0.003)
    assert (s.low, s.high) == pytest.approx((0.901, 0.949), abs=0.004)
