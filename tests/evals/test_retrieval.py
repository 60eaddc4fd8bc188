"""Retrieval is pytorch-metric-learning's where patients are distinct, and a loop's where they are not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

from medssl.errors import UserError
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.probes import retrieval
from medssl.evals.probes.knn import unit
from medssl.evals.probes.retrieval import retrieve
from medssl.evals.stats.bootstrap import score

NAMES = {"precision_at_1": "p_at_1", "r_precision": "r_precision", "mean_average_precision_at_r": "map_at_r"}


def theirs(x, y, gallery=None, per_class=False):
    calculator = AccuracyCalculator(include=tuple(NAMES), return_per_class=per_class, device=torch.device("cpu"))
    reference = () if gallery is None else (unit(gallery[0]), gallery[1])
    return calculator.get_accuracy(unit(x), y, *reference)


@pytest.mark.parametrize("K", [1, 4, 40])
@pytest.mark.parametrize("other", [False, True])
def test_equal_to_pytorch_metric_learning(K, other):
    r = np.random.default_rng(K)
    x, y = r.normal(size=(150, 6)), r.integers(0, K, 150)
    x += 0.7 * r.normal(size=(K, 6))[y]
    y[0] = K  # nobody else is of its kind
    gallery = (r.normal(size=(90, 6)), r.integers(0, K, 90), [f"g{i}" for i in range(90)]) if other else None
    ours = retrieve(x, y, [f"q{i}" for i in range(150)], gallery)
    assert 0 in ours.lone
    assert sorted([*ours.rows, *ours.lone]) == list(range(150))
    for name, value in theirs(x, y, gallery).items():
        assert getattr(ours, NAMES[name]).mean() == pytest.approx(value, abs=1e-8), name
    kinds = np.unique(y[ours.rows])
    for name, values in theirs(x, y, gallery, per_class=True).items():
        mine = [getattr(ours, NAMES[name])[y[ours.rows] == k].mean() for k in kinds]
        np.testing.assert_allclose(mine, [v for v in values if not np.isnan(v)], atol=1e-8)


def slow(x, kinds, patient, g, g_kinds, g_patient):
    """Straight from the definition; a kind is a set, and two are alike that share a member."""
    out = []
    for q, kind, who in zip(unit(x).astype(float), kinds, patient, strict=True):
        others = [j for j in range(len(g)) if g_patient[j] != who]
        others.sort(key=lambda j: (-(q * unit(g)[j].astype(float)).sum(), j))
        hit = [bool(kind & g_kinds[j]) for j in others]
        R = sum(hit)
        if R:
            at_r = sum(sum(hit[: i + 1]) / (i + 1) for i in range(R) if hit[i]) / R
            out.append((R, hit[0], sum(hit[:R]) / R, at_r))
        else:
            out.append((0, 0, 0, 0))
    return np.array(out, float)


@given(st.integers(0, 10**6), st.integers(1, 25), st.integers(1, 25), st.booleans(), st.booleans(), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_equal_to_its_definition_with_patients_copies_and_labels(seed, M, N, labels, itself, people):
    r = np.random.default_rng(seed)
    base = r.normal(size=(6, 3))
    x, g = base[r.integers(0, 6, M)], base[r.integers(0, 6, N)]  # exact copies: ties at every rank
    x[::2], g[::2] = r.normal(size=x[::2].shape), r.normal(size=g[::2].shape)
    who, g_who = (np.array([f"p{i}" for i in r.integers(0, people, n)]) for n in (M, N))
    y, g_y = ((r.random((n, 3)) < 0.4).astype(float) if labels else r.integers(0, 3, n) for n in (M, N))
    if labels:
        y[r.random(y.shape) < 0.2] = np.nan
    if itself:
        g, g_y, g_who = x, y, who
    sets = [[set(np.flatnonzero(v == 1)) if labels else {v} for v in part] for part in (y, g_y)]
    expected = slow(x, sets[0], who, g, sets[1], g_who)
    if not expected[:, 0].any():
        with pytest.raises(UserError, match="nothing can be retrieved"):
            retrieve(x, y, who, None if itself else (g, g_y, g_who))
        return
    ours = retrieve(x, y, who, None if itself else (g, g_y, g_who))
    np.testing.assert_array_equal(ours.rows, np.flatnonzero(expected[:, 0]))
    np.testing.assert_array_equal(ours.lone, np.flatnonzero(expected[:, 0] == 0))
    mine = np.stack([ours.relevant, ours.p_at_1, ours.r_precision, ours.map_at_r], 1)
    np.testing.assert_allclose(mine, expected[ours.rows], atol=1e-12)


def test_a_patients_own_scans_are_neither_found_nor_missed():
    x = np.array([[1, 0.0], [1, 0.01], [0.9, 0.3], [0, 1]])
    ours = retrieve(x, np.zeros(4, int), ["a", "a", "b", "c"])
    np.testing.assert_array_equal(ours.relevant, [2, 2, 3, 3])
    lone = retrieve(x, np.array([0, 0, 1, 1]), ["a", "a", "b", "c"])
    np.testing.assert_array_equal(lone.lone, [0, 1])


def test_of_equal_scans_the_lower_row_comes_first():
    gallery = (np.ones((4, 2)), np.array([1, 0, 0, 1]), list("abcd"))
    ours = retrieve(np.ones((1, 2)), np.array([1]), ["q"], gallery)
    assert (ours.p_at_1[0], ours.r_precision[0], ours.map_at_r[0]) == (1, 0.5, 0.5)
    assert retrieve(np.ones((1, 2)), np.array([0]), ["q"], gallery).map_at_r[0] == 0.25


def test_the_answer_does_not_depend_on_the_size_of_a_block(monkeypatch):
    r = np.random.default_rng(0)
    x, y, who = r.normal(size=(70, 5)), r.integers(0, 3, 70), r.integers(0, 30, 70)
    whole = retrieve(x, y, who)
    monkeypatch.setattr(retrieval, "BLOCK", 210)
    for name in ("rows", "relevant", "p_at_1", "r_precision", "map_at_r"):
        np.testing.assert_array_equal(getattr(retrieve(x, y, who), name), getattr(whole, name))


def test_a_patient_bootstrap_of_the_mean_makes_it_a_score():
    r = np.random.default_rng(0)
    y, who = r.integers(0, 2, 90), r.integers(0, 30, 90)
    ours = retrieve(r.normal(size=(90, 4)) + y[:, None], y, who)
    made = score(MEAN, ours.rows, ours.map_at_r, who[ours.rows], n=200)
    assert made.value == pytest.approx(ours.map_at_r.mean())
    assert made.low < made.value < made.high
    assert (made.n, made.patients) == (90, len(set(who)))


def test_what_is_no_class_is_refused():
    with pytest.raises(UserError, match="choose a class"):
        retrieve(np.eye(2), [0.5, 1.5], ["a", "b"])
    with pytest.raises(UserError, match="finite"):
        retrieve(np.array([[np.nan]]), [1], ["a"])
    with pytest.raises(ValueError, match="one kind and one patient"):
        retrieve(np.eye(2), [1, 1], ["a"])
    with pytest.raises(ValueError, match="do not fit"):
        retrieve(np.eye(2), [1, 1], ["a", "b"], (np.eye(3), [1, 1, 1], list("abc")))
