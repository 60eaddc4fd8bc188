import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from medssl.evals.compare import table
from medssl.evals.metrics import ACCURACY, AUPRC, AUROC, BALANCED_ACCURACY, ECE, OF_TASK
from medssl.evals.score import Score

CLASS_METRICS = OF_TASK["classes"]

def draw(seed, N, K, ties, weighted):
    """Every class present; with `ties`, scores take few values, so many scans share one."""
    r = np.random.default_rng(seed)
    y = np.concatenate([np.arange(K), r.integers(K, size=N - K)])
    p = r.dirichlet(np.ones(K), size=N)
    if ties:
        p = np.round(p * 4 + 0.3, 0) + 0.5
        p /= p.sum(1, keepdims=True)
    w = r.choice([0.3, 1.0, 2.0, 7.0], size=N) if weighted else None
    return y, p, w


cases = st.builds(draw, st.integers(0, 10**6), st.integers(8, 60), st.integers(2, 5), st.booleans(), st.booleans())


def one_vs_rest(f, y, p, w):
    K = p.shape[1]
    return np.mean([f(y == k, p[:, k], sample_weight=w) for k in (range(K) if K > 2 else [1])])


@given(cases)
@settings(max_examples=60, deadline=None)
def test_equal_to_scikit_learn(case):
    y, p, w = case
    top = p.argmax(1)
    assert AUROC(y, p, w) == pytest.approx(one_vs_rest(sk.roc_auc_score, y, p, w), abs=1e-12)
    assert AUPRC(y, p, w) == pytest.approx(one_vs_rest(sk.average_precision_score, y, p, w), abs=1e-12)
    assert ACCURACY(y, p, w) == pytest.approx(sk.accuracy_score(y, top, sample_weight=w), abs=1e-12)
    assert BALANCED_ACCURACY(y, p, w) == pytest.approx(sk.balanced_accuracy_score(y, top, sample_weight=w), abs=1e-12)


def test_multi_class_auroc_is_scikit_learns_macro_one_vs_rest():
    y, p, w = draw(1, 200, 4, ties=False, weighted=True)
    expected = sk.roc_auc_score(y, p, multi_class="ovr", average="macro", sample_weight=w)
    assert AUROC(y, p, w) == pytest.approx(expected, abs=1e-12)


@given(cases)
@settings(max_examples=50, deadline=None)
def test_ece_is_its_definition(case):
    y, p, w = case
    w = np.ones(len(y)) if w is None else w
    total = 0.0
    for m in range(1, 16):
        inside = [i for i in range(len(y)) if (m - 1) / 15 < p[i].max() <= m / 15]
        gap = sum(w[i] * (float(p[i].argmax() == y[i]) - p[i].max()) for i in inside)
        total += abs(gap)
    assert ECE(y, p, w) == pytest.approx(total / w.sum(), abs=1e-12)


def test_ece_by_hand():
    p = np.array([[0.1, 0.9], [0.1, 0.9], [0.4, 0.6], [1.0, 0.0]])
    assert ECE(np.array([1, 0, 1, 0]), p) == pytest.approx((2 * 0.4 + 0.4 + 0) / 4)


@given(cases, st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_a_weight_is_a_repetition(case, seed):
    """Whole weights, 0 among them, are the same as repeating scans: what lets the bootstrap reweight."""
    y, p, _ = case
    count = np.random.default_rng(seed).integers(0, 4, len(y))
    count[: p.shape[1]] = 1
    weights = np.stack([count, np.ones(len(y))]).astype(float)
    for m in CLASS_METRICS:
        repeated = m(np.repeat(y, count), np.repeat(p, count, axis=0))
        assert m(y, p, count) == pytest.approx(repeated, abs=1e-12)
        np.testing.assert_allclose(m.many(y, p, weights), [repeated, m(y, p)], atol=1e-12)


def test_a_class_without_weight_is_undefined():
    y, p, _ = draw(0, 30, 3, ties=False, weighted=False)
    w = (y != 2).astype(float)
    assert all(np.isnan(m(y, p, w)) for m in (AUROC, AUPRC, BALANCED_ACCURACY))
    two = np.c_[p[:, 0], 1 - p[:, 0]]
    for only in (0, 1):
        assert all(np.isnan(m(np.full(30, only), two)) for m in (AUROC, AUPRC, BALANCED_ACCURACY))
    assert not np.isnan(ACCURACY(y, p, w))
    assert all(np.isnan(m(y, p, np.zeros(30))) for m in CLASS_METRICS)


@pytest.mark.parametrize(
    ("y", "p", "words"),
    [
        (np.array([0, 1]), np.array([0.2, 0.8]), "probabilities"),
        (np.array([0, 2]), np.eye(2), "integers in"),
        (np.array([0.0, 1.0]), np.eye(2), "integers in"),
        (np.array([0, 1]), np.array([[np.nan, 1], [0, 1]]), "nan"),
        (np.array([0, 1, 1]), np.eye(2), "needs classes"),
    ],
)
def test_wrong_input_is_refused(y, p, words):
    with pytest.raises(ValueError, match=words):
        AUROC(y, p)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="not negative"):
        AUROC(np.array([0, 1]), np.eye(2), np.array([1, -1]))


def test_a_score_survives_json_and_prints_its_interval():
    s = Score(0.912, 0.887, 0.935, 624, 312, "95 % percentile bootstrap over 312 patients, 2000 resamples")
    assert str(s) == "0.912 [0.887, 0.935]"
    assert Score.from_dict(s.as_dict()) == s
    unknown = Score(0.5, np.nan, np.nan, 1, 1, "")
    assert unknown.as_dict()["low"] is None
    assert str(Score.from_dict(unknown.as_dict())) == "0.500 [no interval]"
    with pytest.raises(ValueError, match="upside down"):
        Score(0.5, 0.6, 0.4, 1, 1, "")


def test_a_table_is_aligned_and_says_how():
    how = "95 % percentile bootstrap over 312 patients, 2000 resamples"
    rows = [
        {"features": "raw pixels", "AUROC": Score(0.927, 0.901, 0.949, 624, 312, how)},
        {"features": "simclr", "AUROC": Score(0.95, 0.93, 0.96, 624, 312, how), "minus run": None},
    ]
    lines = table(rows, ["features", "AUROC", "minus run"]).splitlines()
    assert lines[0].split() == ["features", "AUROC", "minus", "run"]
    assert lines[2] == "raw pixels  0.927 [0.901, 0.949]  –"
    assert lines[3] == "simclr      0.950 [0.930, 0.960]  –"
    assert lines[4] == f"Brackets: {how}, 624 scans."


def test_brackets_made_in_two_ways_are_told_apart():
    rows = [{"a": Score(0.5, 0.4, 0.6, 9, 9, "one way"), "b": Score(0.5, 0.4, 0.6, 9, 9, "another way")}]
    assert table(rows, ["a", "b"]).splitlines()[3:] == [
        "Brackets of a: one way, 9 scans.",
        "Brackets of b: another way, 9 scans.",
    ]


@pytest.mark.parametrize("bare", [0.9, 3, np.float64(0.9), "0.9", " 91 %", "nan"])
def test_a_number_without_an_interval_cannot_be_printed(bare):
    with pytest.raises(TypeError, match="Score"):
        table([{"AUROC": bare}], ["AUROC"])
