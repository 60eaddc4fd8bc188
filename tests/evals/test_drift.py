"""Drift: the test against loops and its definition, patients as units, and what is refused."""

from itertools import combinations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import binom

from medssl.evals.label_free.drift import components, distances, drift, gaussian_kernel, mmd_test


def cohort(seed, patients=24, most=4, shift=0.0, dim=6):
    r = np.random.default_rng(seed)
    at = np.repeat(np.arange(patients), r.integers(1, most + 1, patients))
    new = at % 2 == 1
    x = r.normal(size=(patients, dim))[at] + 0.3 * r.normal(size=(len(at), dim))
    x[new, 0] += shift
    return x, new, at


def test_the_statistic_is_the_mean_over_pairs_and_p_counts_all_permutations():
    x = cohort(0, patients=7, most=1, shift=1.0)[0]
    square = cdist(x, x, "sqeuclidean")
    width = np.median([square[i, j] for i in range(7) for j in range(7) if i != j])
    kernel = gaussian_kernel(x)
    assert kernel == pytest.approx(np.exp(-square / width))
    groups = np.arange(7) % 2 == 1

    def mmd2(one):
        inside = [np.mean([kernel[i, j] for i in g for j in g if i != j]) for g in (one, [*set(range(7)) - set(one)])]
        return sum(inside) - 2 * np.mean([kernel[i, j] for i in one for j in {*range(7)} - set(one)])

    every = [mmd2(one) for one in combinations(range(7), 3)]
    exact = np.mean(np.array(every) >= mmd2(tuple(np.flatnonzero(groups))) - 1e-12)
    assert mmd_test(kernel, groups, 4000, 0) == pytest.approx(exact, abs=0.03)


def test_without_drift_it_rejects_as_often_as_it_says_also_with_many_scans_of_a_patient():
    """Permuting scans in place of patients rejects in nearly all of these looks."""
    reps = 120
    found = [drift(*cohort(seed, patients=20, most=8), seed=seed) for seed in range(reps)]
    assert sum(d.p <= 0.05 for d in found) <= binom.isf(0.005, reps, 0.05)
    outside = sum(not d.told_apart.low <= 0.5 <= d.told_apart.high for d in found)
    assert outside <= binom.isf(0.005, reps, 0.05)


def test_the_number_of_scans_of_a_patient_is_no_drift():
    """New patients with one scan each against patients with eight: the means of patients have another spread."""
    reps, rejected = 60, 0
    for seed in range(reps):
        r = np.random.default_rng(seed)
        at = np.r_[np.repeat(np.arange(20), 8), np.arange(20, 40)]
        x = r.normal(size=(40, 4))[at] + 1.5 * r.normal(size=(len(at), 4))
        rejected += drift(x, at >= 20, at, seed=seed).p <= 0.05
    assert rejected <= binom.isf(0.005, reps, 0.05)


def test_a_shift_is_found_and_told_apart():
    x, new, at = cohort(0, patients=60, shift=3.0)
    found = drift(x, new, at)
    assert found.p == 1 / 1000
    assert found.told_apart.low > 0.8
    assert found.told_apart.patients == 30
    assert found.distance.shape == (new.sum(),)


def test_a_change_of_the_spread_is_found_that_no_line_separates():
    r = np.random.default_rng(0)
    new = np.arange(200) % 2 == 1
    x = r.normal(size=(200, 4)) * np.where(new, 2.0, 1.0)[:, None]
    found = drift(x, new, np.arange(200))
    assert found.p < 0.01
    assert found.told_apart.low < 0.5


def test_it_depends_on_neither_the_order_nor_the_scale():
    x, new, at = cohort(1, most=1, shift=1.0)
    order = np.random.default_rng(0).permutation(len(x))
    a, b = drift(x, new, at), drift(1e3 * x[order] - 7, new[order], at[order])
    assert (a.p, a.told_apart.value) == pytest.approx((b.p, b.told_apart.value))


def test_components_are_whitened_on_one_scan_of_each_patient():
    x, _, at = cohort(2, most=6)
    one = np.unique(at, return_index=True)[1]
    z = components(x, one)
    assert np.cov(z[one].T, bias=True) == pytest.approx(np.eye(z.shape[1]), abs=1e-9)
    assert z[one].mean(0) == pytest.approx(0, abs=1e-9)
    thin = np.c_[x[:, :2], x[:, :1] + x[:, 1:2], np.full(len(x), 3.0)]
    assert components(thin, one).shape == (len(x), 2)


def test_the_most_unusual_scan_is_the_farthest_from_the_patients_of_the_reference():
    x = np.zeros((9, 2))
    x[5:, 0] = [1, 2, 3, 10]
    at, new = np.array([0, 0, 1, 1, 2, 3, 4, 5, 6]), np.arange(9) >= 5
    assert distances(x, at, new).tolist() == [1, 2, 3, 10]


def test_bad_input_is_refused():
    x, new, at = cohort(0)
    with pytest.raises(ValueError, match="2 patients are in both groups"):
        drift(np.r_[x, x[:2]], np.r_[new, True, False], np.r_[at, 0, 1])
    with pytest.raises(ValueError, match="needs 4 patients of each group, got 3"):
        drift(x[at < 7], new[at < 7], at[at < 7])
    with pytest.raises(ValueError, match="finite"):
        drift(np.where(x == x[0], np.nan, x), new, at)
