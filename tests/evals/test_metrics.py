import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from medssl.evals.metrics.metrics import (
    ACCURACY,
    AUPRC,
    AUROC,
    BALANCED_ACCURACY,
    CONCORDANCE,
    ECE,
    LEVEL_ERROR,
    MACRO_AUPRC,
    MACRO_AUROC,
    MAE,
    MEAN,
    QUADRATIC_KAPPA,
    R2,
    SPEARMAN,
    weighted,
)
from medssl.evals.stats.score import Difference, Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import TASK_TYPES, task_type

CLASS_METRICS = task_type("classification").metrics


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


def draw_task(task, seed, N):
    """y and p of that kind of task, with ties in both and labels unknown here and there."""
    r = np.random.default_rng(seed)
    if task in ("classification", "ordinal"):
        return draw(seed, N, K=int(r.integers(2, 5)), ties=bool(seed % 2), weighted=False)[:2]
    if task == "multilabel":
        y = r.choice([0, 1, np.nan], size=(N, 3), p=[0.6, 0.2, 0.2])
        return y, np.round(r.random((N, 3)), 1)
    p = np.round(r.normal(size=N), 1)
    if task == "survival":
        return np.c_[np.round(r.exponential(2, N)), r.integers(0, 2, N)], p
    return np.round(p + r.normal(size=N), 1), p


@given(st.sampled_from(sorted(TASK_TYPES)), st.integers(0, 10**6), st.integers(8, 40))
@settings(max_examples=150, deadline=None)
def test_a_weight_is_a_repetition(task, seed, N):
    """Whole weights, 0 among them, are the same as repeating scans: what lets the bootstrap reweight."""
    y, p = draw_task(task, seed, N)
    count = np.random.default_rng(seed).integers(0, 4, N)
    if task in ("classification", "ordinal"):
        count[: p.shape[1]] = 1
    count[0] = 1
    weights = np.stack([count, np.ones(N)]).astype(float)
    for m in task_type(task).metrics:
        repeated = m(np.repeat(y, count, axis=0), np.repeat(p, count, axis=0))
        assert m(y, p, count) == pytest.approx(repeated, abs=1e-12, nan_ok=True)
        np.testing.assert_allclose(m.many(y, p, weights), [repeated, m(y, p)], atol=1e-12)


@given(st.integers(0, 10**6), st.integers(6, 60))
@settings(max_examples=40, deadline=None)
def test_labels_are_averaged_where_they_are_known_and_have_both_classes(seed, N):
    y, p = draw_task("multilabel", seed, N)
    y[:, 2] = 0  # never seen: left out
    w = np.random.default_rng(seed).choice([0.3, 1, 2], N)
    for m, f in ((MACRO_AUROC, sk.roc_auc_score), (MACRO_AUPRC, sk.average_precision_score)):
        each = []
        for column, s in zip(y.T, p.T, strict=True):
            k = ~np.isnan(column)
            if {0, 1} <= set(column):
                each.append(f(column[k], s[k], sample_weight=w[k]))
        assert m(y, p, w) == pytest.approx(np.mean(each) if each else np.nan, abs=1e-12, nan_ok=True)


@given(st.integers(0, 10**6), st.integers(5, 60), st.integers(2, 5))
@settings(max_examples=40, deadline=None)
def test_ordinal_metrics_are_scikit_learns(seed, N, K):
    y, p, w = draw(seed, N, K, ties=False, weighted=True)
    top = p.argmax(1)
    expected = sk.cohen_kappa_score(y, top, weights="quadratic", labels=np.arange(K), sample_weight=w)
    assert QUADRATIC_KAPPA(y, p, w) == pytest.approx(expected, abs=1e-12)
    assert LEVEL_ERROR(y, p, w) == pytest.approx(sk.mean_absolute_error(y, top, sample_weight=w), abs=1e-12)


@given(st.integers(0, 10**6), st.integers(3, 60))
@settings(max_examples=40, deadline=None)
def test_metrics_of_values_are_scikit_learns_and_scipys(seed, N):
    y, p = draw_task("regression", seed, N)
    r = np.random.default_rng(seed)
    w, count = r.choice([0.3, 1, 2], N), r.integers(1, 4, N)
    y[0], p[0] = 9, 8  # neither is constant
    assert MAE(y, p, w) == pytest.approx(sk.mean_absolute_error(y, p, sample_weight=w), abs=1e-12)
    assert R2(y, p, w) == pytest.approx(sk.r2_score(y, p, sample_weight=w), abs=1e-12)
    expected = stats.spearmanr(np.repeat(y, count), np.repeat(p, count)).statistic
    assert SPEARMAN(y, p, count) == pytest.approx(expected, abs=1e-12)
    assert MEAN(y, p, w) == pytest.approx(np.average(p, weights=w), abs=1e-12)


def harrell(y, risk, w):
    right = pairs = 0.0
    for i in range(len(y)):
        for j in range(len(y)):
            outlived = y[i, 0] < y[j, 0] or (y[i, 0] == y[j, 0] and not y[j, 1])
            if i != j and y[i, 1] and outlived:
                pairs += w[i] * w[j]
                right += w[i] * w[j] * (0.5 if risk[i] == risk[j] else float(risk[i] > risk[j]))
    return right / pairs if pairs else np.nan


@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 200))
@settings(max_examples=40, deadline=None)
def test_concordance_is_its_definition_whatever_the_block(seed, N, block):
    y, risk = draw_task("survival", seed, N)
    w = np.random.default_rng(seed).choice([0, 0.3, 1, 2], N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weighted, "BLOCK", block)
        assert CONCORDANCE(y, risk, w) == pytest.approx(harrell(y, risk, w), abs=1e-12, nan_ok=True)


def test_concordance_without_censoring_of_two_times_is_the_auroc():
    r = np.random.default_rng(0)
    early, risk = r.integers(0, 2, 50), np.round(r.normal(size=50), 1)
    s = (risk - risk.min()) / np.ptp(risk)
    y = np.c_[2 - early, np.ones(50)]
    assert CONCORDANCE(y, risk) == pytest.approx(AUROC(early, np.c_[1 - s, s]), abs=1e-12)


def test_a_constant_has_no_correlation_and_nobody_to_compare_is_undefined():
    x = np.array([0.1, 0.2, 0.7])
    assert np.isnan(SPEARMAN(np.full(3, 0.1), x, [0.1, 0.3, 0.7]))
    assert np.isnan(SPEARMAN(x, np.full(3, 0.1), [0.1, 0.3, 0.7]))
    assert np.isnan(R2(np.full(3, 0.1), x, [0.1, 0.3, 0.7]))
    assert np.isnan(R2(x, x, [0, 0, 0.7]))
    assert np.isnan(QUADRATIC_KAPPA(np.zeros(3, int), np.eye(3)[[0, 0, 0]], [0.1, 0.3, 0.7]))
    assert np.isnan(CONCORDANCE(np.c_[x, np.zeros(3)], x))
    for task in set(TASK_TYPES) - {"classification"}:
        y, p = draw_task(task, 0, 20)
        assert all(np.isnan(m(y, p, np.zeros(20))) for m in task_type(task).metrics)


def test_metrics_have_the_right_sign():
    assert {m.name for t in TASK_TYPES.values() for m in t.metrics if m.sign < 0} == {"ECE", "MAE", "MAE in levels"}


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
    for metric in (AUROC, QUADRATIC_KAPPA):
        with pytest.raises(ValueError, match=words):
            metric(y, p)


@pytest.mark.parametrize(
    ("metric", "y", "p", "words"),
    [
        (MACRO_AUROC, np.array([[0, 2]]), np.zeros((1, 2)), "0, 1 or nan"),
        (MACRO_AUROC, np.array([0, 1]), np.zeros(2), "needs labels"),
        (MACRO_AUROC, np.array([[0, 1]]), np.array([[0, np.nan]]), "probabilities contain nan"),
        (MAE, np.array([1.0, np.nan]), np.zeros(2), "values contain nan"),
        (MAE, np.array([1.0, 2]), np.zeros((2, 1)), "needs values"),
        (CONCORDANCE, np.array([[1.0, 2], [1, 0]]), np.zeros(2), "events must be 1"),
        (CONCORDANCE, np.array([[np.inf, 1], [1, 0]]), np.zeros(2), "times contain nan"),
        (CONCORDANCE, np.array([1.0, 2]), np.zeros(2), "needs times"),
        (MEAN, np.array(["a", "b"]), np.array([0.5, np.nan]), "cases contain nan"),
        (MEAN, np.array(["a", "b"]), np.zeros(3), "one number for each"),
    ],
)
def test_wrong_input_of_other_tasks_is_refused(metric, y, p, words):
    with pytest.raises(ValueError, match=words):
        metric(y, p)


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


def test_a_difference_survives_json_and_prints_its_p():
    d = Difference(Score(0.012, 0.003, 0.02, 9, 9, "paired"), 0.0149, 0.004)
    assert str(d) == "0.012 [0.003, 0.020], p = 0.015"
    assert str(Difference(d.score, 0.0009, 0.1)).endswith("p < 0.001")
    assert Difference.from_dict(d.as_dict()) == d
    nothing = Difference(Score(0.5, np.nan, np.nan, 1, 1, ""), np.nan, np.nan)
    assert str(nothing) == "0.500 [no interval]"
    assert str(Difference.from_dict(nothing.as_dict())) == str(nothing)


def test_a_table_is_aligned_and_describes_its_intervals():
    how = "95 % percentile bootstrap over 312 patients, 2000 resamples"
    rows = [
        {"features": "raw pixels", "AUROC": Score(0.927, 0.901, 0.949, 624, 312, how)},
        {"features": "simclr", "AUROC": Score(0.95, 0.93, 0.96, 624, 312, how), "minus run": None},
    ]
    lines = text_table(rows, ["features", "AUROC", "minus run"]).splitlines()
    assert lines[0].split() == ["features", "AUROC", "minus", "run"]
    assert lines[2] == "raw pixels  0.927 [0.901, 0.949]  –"
    assert lines[3] == "simclr      0.950 [0.930, 0.960]  –"
    assert lines[4] == f"Intervals in brackets: {how}, 624 scans."


def test_intervals_made_in_two_ways_are_distinguished():
    rows = [{"a": Score(0.5, 0.4, 0.6, 9, 9, "one way"), "b": Score(0.5, 0.4, 0.6, 9, 9, "another way")}]
    assert text_table(rows, ["a", "b"]).splitlines()[3:] == [
        "Intervals of a: one way, 9 scans.",
        "Intervals of b: another way, 9 scans.",
    ]


def test_intervals_that_differ_in_their_numbers_share_a_line():
    made = [
        Score(0.1, 0.0, 0.2, n, 9, f"jackknife, bias of up to {bias}") for n, bias in ((9, 0.02), (9, 0.015), (8, 0.1))
    ]
    lines = text_table([{"ECE": score} for score in made], ["ECE"]).splitlines()
    assert lines[5:] == ["Intervals in brackets: jackknife, bias of up to 0.015 to 0.1, 8 to 9 scans."]


def test_a_table_wider_than_the_terminal_comes_in_parts_that_fit(monkeypatch):
    rows = [
        {"features": f"network {k}", "probe": "end to end"}
        | {m: Score(k / 10, 0.0, 1.0, 9, 9, "one way") for m in "abcd"}
        for k in range(3)
    ]
    columns = ["features", "probe", *"abcd"]
    whole = text_table(rows, columns)
    monkeypatch.setenv("COLUMNS", "72")
    shown = text_table(rows, columns)
    assert max(map(len, whole.splitlines())) > 72
    assert max(map(len, shown.splitlines())) <= 72
    parts = shown.split("\n\n")
    assert [part.splitlines()[0].split()[2:] for part in parts] == [["a", "b"], ["c", "d"]]
    assert all("network 2, end to end  0.200 [0.000, 1.000]  0.200 [0.000, 1.000]" in part for part in parts)
    monkeypatch.setenv("COLUMNS", str(max(map(len, whole.splitlines()))))
    assert text_table(rows, columns) == whole


@pytest.mark.parametrize("bare", [0.9, 3, np.float64(0.9), "0.9", " 91 %", "nan"])
def test_a_number_without_an_interval_cannot_be_printed(bare):
    with pytest.raises(TypeError, match="Score"):
        text_table([{"AUROC": bare}], ["AUROC"])
