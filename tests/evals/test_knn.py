import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsRegressor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.probes.knn import knn_probe, neighbours, unit


def draw(seed, N, M, D, patients, duplicates):
    r = np.random.default_rng(seed)
    x = r.normal(size=(N + M, D)).astype(np.float32)
    if duplicates:  # exact copies: ties at every rank
        x = x[r.integers(0, max(2, (N + M) // 6), N + M)]
    patient = np.array([f"p{i}" for i in r.integers(0, patients, N + M)])
    return x[:N], r.integers(0, 3, N), patient[:N], x[N:], patient[N:]


cases = st.builds(
    draw,
    st.integers(0, 10**6),
    st.integers(1, 80),
    st.integers(1, 30),
    st.integers(1, 9),
    st.integers(1, 30),
    st.booleans(),
)


def brute_force(x, y, patient, x_test, patient_test, K, k, T):
    a, b = (unit(v).astype(np.float64) for v in (x, x_test))
    p = np.full((len(b), K), 1 / K)
    rows = []
    for i in range(len(b)):
        s = np.array([(b[i] * row).sum() for row in a])
        near = [j for j in sorted(range(len(a)), key=lambda j: (-s[j], j)) if patient[j] != patient_test[i]][:k]
        votes = np.zeros(K)
        for j in near:
            votes[y[j]] += np.exp(s[j] / T)
        if near:
            p[i] = votes / votes.sum()
        rows.append(near + [-1] * (k - len(near)))
    return p, np.array(rows)


@given(cases, st.integers(1, 25))
@settings(max_examples=120, deadline=None)
def test_equal_to_brute_force(case, k):
    x, y, patient, x_test, patient_test = case
    p, rows = brute_force(*case, 3, k, 0.07)
    np.testing.assert_array_equal(neighbours(unit(x), patient, unit(x_test), patient_test, k)[0], rows)
    np.testing.assert_allclose(knn_probe(x, y, patient, x_test, patient_test, 3, k), p, atol=1e-9)


@given(cases, st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_never_the_same_patient_and_k_neighbours_where_there_are_k(case, k):
    x, _, patient, x_test, patient_test = case
    rows, similarity = neighbours(unit(x), patient, unit(x_test), patient_test, k)
    for i, mine in enumerate(rows):
        used = mine[mine >= 0]
        assert patient_test[i] not in patient[used]
        assert len(used) == len(set(used)) == min(k, (patient != patient_test[i]).sum())
        assert (np.diff(similarity[i][mine >= 0]) <= 0).all()


def test_a_patient_with_many_scans_does_not_hide_the_others():
    r = np.random.default_rng(0)
    x = np.concatenate([np.tile([[1.0, 0, 0]], (500, 1)), r.normal(size=(30, 3))])
    patient = np.array(["me"] * 500 + [f"p{i}" for i in range(30)])
    p = knn_probe(x, np.r_[np.zeros(500, int), np.ones(30, int)], patient, x[:3], patient[:3], classes=2, k=20)
    np.testing.assert_array_equal(p, [[0, 1]] * 3)


def test_one_test_scan_gets_the_same_answer_alone():
    x, y, patient, x_test, patient_test = draw(1, 300, 40, 16, 20, duplicates=True)
    together = knn_probe(x, y, patient, x_test, patient_test, 3)
    alone = [knn_probe(x, y, patient, x_test[[i]], patient_test[[i]], 3)[0] for i in range(40)]
    np.testing.assert_array_equal(together, alone)


def test_nobody_to_ask_means_every_class_is_equally_probable():
    x = np.eye(3)
    p = knn_probe(x, np.array([0, 1, 1]), ["a"] * 3, x, ["a", "a", "b"], classes=2, k=2)
    np.testing.assert_allclose(p[:2], 0.5)
    assert p[2, 1] > 0.99


def test_votes_are_weighted_by_similarity():
    x, q = np.array([[1.0, 0], [0.6, 0.8]]), np.array([[1.0, 0]])
    p = knn_probe(x, np.array([0, 1]), ["a", "b"], q, ["c"], classes=2, k=2, temperature=0.5)
    np.testing.assert_allclose(p[0, 1], 1 / (1 + np.exp((1 - 0.6) / 0.5)), rtol=1e-6)


def slow_mean(x, y, patient, x_test, patient_test, k, T=0.07):
    """For each label (N, L): the neighbours where it is known, else all others where it is known, else nan."""
    p = np.full((len(x_test), y.shape[1]), np.nan)
    _, rows = brute_force(x, np.zeros(len(x), int), patient, x_test, patient_test, 1, k, T)
    a, b = (unit(v).astype(np.float64) for v in (x, x_test))
    for i in range(len(x_test)):
        for label in range(y.shape[1]):
            votes = [(np.exp((b[i] * a[j]).sum() / T), y[j, label]) for j in rows[i] if j >= 0]
            votes = [v for v in votes if not np.isnan(v[1])]
            votes = votes or [(1, v) for v, who in zip(y[:, label], patient, strict=True) if who != patient_test[i]]
            votes = [v for v in votes if not np.isnan(v[1])]
            if votes:
                p[i, label] = sum(w * v for w, v in votes) / sum(w for w, _ in votes)
    return p


@given(cases, st.integers(1, 8), st.floats(0, 0.9))
@settings(max_examples=60, deadline=None)
def test_labels_are_voted_on_by_those_who_know_them(case, k, unknown):
    x, y, patient, x_test, patient_test = case
    r = np.random.default_rng(len(x))
    labels = np.where(r.random((len(y), 3)) < unknown, np.nan, y[:, None] == np.arange(3))
    expected = np.nan_to_num(slow_mean(x, labels, patient, x_test, patient_test, k), nan=0.5)
    np.testing.assert_allclose(
        knn_probe(x, labels, patient, x_test, patient_test, k=k, task="multilabel"), expected, atol=1e-9
    )


@given(cases, st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_a_number_is_the_weighted_mean_of_the_neighbours(case, k):
    x, y, patient, x_test, patient_test = case
    y = y * 1e3 + np.arange(len(y))
    expected = slow_mean(x, y[:, None], patient, x_test, patient_test, k)[:, 0]
    if np.isnan(expected).any():
        with pytest.raises(UserError, match="another patient"):
            knn_probe(x, y, patient, x_test, patient_test, k=k, task="regression")
    else:
        np.testing.assert_allclose(
            knn_probe(x, y, patient, x_test, patient_test, k=k, task="regression"), expected, rtol=1e-9
        )


def test_where_everything_is_known_labels_and_numbers_are_sklearns():
    x, _, _, x_test, _ = draw(3, 200, 30, 8, 300, duplicates=False)
    r = np.random.default_rng(0)
    who, who_test = [f"a{i}" for i in range(200)], [f"b{i}" for i in range(30)]
    for y, task in (((r.random((200, 4)) < 0.4).astype(float), "multilabel"), (r.normal(70, 12, 200), "regression")):
        model = KNeighborsRegressor(9, weights=lambda d: np.exp(-d / 0.07), metric="cosine").fit(x, y)
        np.testing.assert_allclose(
            knn_probe(x, y, who, x_test, who_test, k=9, task=task), model.predict(x_test), rtol=1e-4
        )


def test_one_label_known_of_all_is_the_second_of_two_classes():
    x, y, patient, x_test, patient_test = draw(4, 150, 40, 8, 60, duplicates=True)
    y = (y > 0).astype(int)
    p = knn_probe(x, y[:, None].astype(float), patient, x_test, patient_test, task="multilabel")[:, 0]
    np.testing.assert_allclose(p, knn_probe(x, y, patient, x_test, patient_test, 2)[:, 1], atol=1e-12)


def test_answers_that_are_none_are_refused():
    x, who = np.eye(3), ["a", "b", "c"]
    with pytest.raises(ValueError, match="0, 1 or nan"):
        knn_probe(x, np.full((3, 1), 2.0), who, x, who, task="multilabel")
    with pytest.raises(ValueError, match="finite number"):
        knn_probe(x, [1, np.nan, 2], who, x, who, task="regression")
    with pytest.raises(ValueError, match="one label per"):
        knn_probe(x, [1.0, 2.0], who, x, who, task="regression")


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(UserError, match="finite"):
        knn_probe(np.array([[np.inf]]), np.array([0]), ["a"], np.eye(1), ["b"], classes=2)


def test_raw_pixels_of_pneumonia(shared):
    with np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz") as f:
        x, x_test = (f[f"{s}_images"].reshape(len(f[f"{s}_images"]), -1) / 255 for s in ("train", "test"))
        y, y_test = (f[f"{s}_labels"].ravel().astype(int) for s in ("train", "test"))
    n, m = (np.arange(len(v)) for v in (y, y_test))
    p = knn_probe(x, y, [f"a{i}" for i in n], x_test, [f"b{i}" for i in m], classes=2, k=11)
    assert AUROC(y_test, p) > 0.85
