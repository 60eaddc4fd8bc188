from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medssl.errors import UserError
from medssl.evals.stats.significance import critical_difference, holm, ranking, wilcoxon

# Demšar, 2006, table 6: AUC of C4.5 and its variants on 14 data sets; 0.9751 is printed 0.975 and ranked above another
DEMSAR = {
    "C4.5": [0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957],
    "+m": [0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978],
    "+cf": [0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946],
    "+m+cf": [0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970],
}


def rejected(p, alpha):
    """Holm's procedure as he wrote it: from the smallest on, stop at the first that is not below alpha / what is left."""
    out = set()
    for k, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > alpha / (len(p) - k):
            break
        out.add(i)
    return out


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_its_procedure(p):
    adjusted = holm(p)
    for alpha in (*adjusted[adjusted < 1], 0.01, 0.05, 0.5):
        for nudge in (alpha * (1 - 1e-9), alpha * (1 + 1e-9)):
            assert set(np.flatnonzero(adjusted <= nudge)) == rejected(p, nudge)
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    assert ((adjusted >= p) & (adjusted <= 1)).all()
    reverse = holm(p[::-1])[::-1]
    np.testing.assert_allclose(reverse, adjusted, atol=1e-8)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02], atol=1e-8)
    np.testing.assert_allclose(holm([0.01, np.nan, 0.04]), [0.02, np.nan, 0.04], atol=1e-8)  # nan is no test
    assert holm([]).shape == (0,)
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([0.1, 1.2])


def test_holm_keeps_the_chance_of_any_false_finding():
    """400 families of 10 tests, 8 of them of nothing, two of something large."""
    p = np.random.default_rng(0).random((400, 10))
    p[:, :2] = 1e-6
    assert sum((p[i, 2:] < 0.05).any() for i in range(400)) > 100
    assert sum((holm(p[i])[2:] < 0.05).any() for i in range(400)) <= stats.binom.ppf(0.999, 400, 0.05)


def by_signs(d):
    """The exact p-value: over all ways to give the ranked differences signs, zeros split."""
    rank = stats.rankdata(np.abs(d))
    nonzero = rank[d != 0]
    expected = nonzero.sum() / 2
    seen = abs(rank[d > 0].sum() - expected)
    ways = [
        abs(sum(r for r, up in zip(nonzero, signs, strict=True) if up) - expected)
        for signs in product((0, 1), repeat=len(nonzero))
    ]
    return np.mean(np.array(ways) >= seen - 1e-9)


@pytest.mark.parametrize("digits", [6, 1])
def test_wilcoxon_is_exact_for_few_tasks(digits):
    r = np.random.default_rng(2)
    for T in (6, 7, 8):
        a, b = r.normal(0.5, 1, T).round(digits), r.normal(size=T).round(digits)
        assert wilcoxon(a, b) == pytest.approx(by_signs((a - b).round(9)), abs=1e-8)
        assert wilcoxon(b, a) == pytest.approx(wilcoxon(a, b), abs=1e-8)


def test_rounding_does_not_break_ties():
    a, b = np.array([0.8, 0.9, 0.7, 0.6, 0.95, 0.5]), np.array([0.7, 0.8, 0.6, 0.7, 0.85, 0.4])
    assert wilcoxon(a, b) == pytest.approx(by_signs(np.array([1.0, 1, 1, -1, 1, 1])), abs=1e-8)


def test_ties_of_two_models_count_for_both():
    d = np.array([0.0, 0, 0.1, 0.1, 0.3, -0.4, 0.5, 0.6, -0.2])
    assert wilcoxon(d, 0 * d) == pytest.approx(by_signs(d), abs=1e-8)
    assert by_signs(d) != by_signs(d[d != 0])


def test_wilcoxon_refuses_input_it_cannot_test():
    with pytest.raises(UserError, match=r"5 tasks are too few.*p = 0.0625; score the models on at least 6 tasks"):
        wilcoxon(np.arange(5), np.zeros(5))
    assert wilcoxon(np.arange(6) + 1, np.zeros(6)) == pytest.approx(2 / 2**6, abs=1e-12)
    with pytest.raises(UserError, match="the same on all 6 tasks"):
        wilcoxon(np.arange(6), np.arange(6))
    with pytest.raises(UserError, match="1 of the 6 tasks"):
        wilcoxon([np.nan, 1, 2, 3, 4, 5], np.zeros(6))


def test_ranking_of_the_paper():
    found = ranking(DEMSAR, alpha=0.05)
    assert found.names == ("+m+cf", "+m", "+cf", "C4.5")
    assert found.ranks == pytest.approx((1.964, 2.0, 2.893, 3.143), abs=5e-4)
    assert found.critical == pytest.approx(1.25, abs=0.005)
    assert ranking(DEMSAR, alpha=0.1).critical == pytest.approx(1.12, abs=0.005)
    # the paper does not correct for ties: X = 9.28, F(3, 39) = 3.69; with its correction X is larger
    assert found.friedman < stats.f.sf(3.69, 3, 39)
    assert found.friedman == pytest.approx(friedman_by_anova(np.array(list(DEMSAR.values()))), abs=1e-8)


def friedman_by_anova(table):
    """Iman and Davenport's F is the analysis of variance of the ranks, tasks as blocks (Conover, 1999)."""
    rank = stats.rankdata(-table, axis=0)
    k, T = rank.shape
    between = T * ((rank.mean(1) - rank.mean()) ** 2).sum()
    rest = ((rank - rank.mean(1, keepdims=True) - rank.mean(0) + rank.mean()) ** 2).sum()
    return stats.f.sf(between / (k - 1) / (rest / ((k - 1) * (T - 1))), k - 1, (k - 1) * (T - 1))


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (7, 2.949), (10, 3.164)])
def test_critical_differences_of_the_table(k, q):
    """Demšar, 2006, table 5a."""
    assert critical_difference(k, 14) == pytest.approx(q * (k * (k + 1) / (6 * 14)) ** 0.5, rel=5e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 6), st.sampled_from([0.0, 0.5, 1.5]))
def test_cliques_are_the_largest_groups_that_cannot_be_told_apart(seed, k, spread):
    r = np.random.default_rng(seed)
    table = {f"m{i}": r.normal(spread * i, 1, 20) for i in range(k)}
    found = ranking(table)
    p = {frozenset(pair): value for pair, value in found.p.items()}
    raw = {frozenset(q): wilcoxon(table[q[0]], table[q[1]]) for q in combinations(table, 2)}
    for pair, value in zip(raw, holm(list(raw.values())), strict=True):
        assert p[pair] == pytest.approx(value, abs=1e-8)
    groups = [set(g) for n in range(2, k + 1) for g in combinations(table, n)]
    alike = [g for g in groups if all(p[frozenset(q)] >= 0.05 for q in combinations(g, 2))]
    largest = [g for g in alike if not any(g < other for other in alike)]
    assert sorted(map(sorted, found.cliques)) == sorted(map(sorted, largest))
    for clique in found.cliques:
        assert list(clique) == sorted(clique, key=found.names.index)


def test_the_verdict_on_two_models_does_not_depend_on_a_third():
    r = np.random.default_rng(3)
    a = r.normal(0, 1, 30)
    table = {"a": a, "b": a - 0.5 + 0.5 * r.normal(size=30), "c": a - 5 + r.normal(size=30)}
    found = ranking(table)
    changed = ranking(table | {"c": a - 50 + r.normal(size=30)})
    assert found.p[("a", "b")] == changed.p[("a", "b")]


def test_lower_is_better_for_a_negative_sign():
    r = np.random.default_rng(4)
    table = {name: r.normal(shift, 1, 12) for name, shift in (("x", 0), ("y", 1), ("z", 3))}
    up, down = ranking(table), ranking({k: -v for k, v in table.items()}, sign=-1)
    assert up == down
    assert up.names[0] == "z"


def test_models_that_always_tie_cannot_be_told_apart_and_unanimity_has_a_p():
    base = np.arange(8.0)
    found = ranking({"a": base, "b": base, "c": base - 1})
    assert found.ranks == (1.5, 1.5, 3.0)
    assert found.p[("a", "b")] == 1
    assert ("a", "b") in found.cliques
    unanimous = ranking({"a": base + 2, "b": base + 1, "c": base})
    assert unanimous.friedman == pytest.approx(6.0**-7)  # one order of six, in eight tasks
    assert unanimous.cliques == ()


def test_ranking_refuses_input_it_cannot_rank():
    base = np.arange(20.0)
    with pytest.raises(UserError, match="at least 3 models and got 2"):
        ranking({"a": base, "b": base})
    with pytest.raises(UserError, match=r"6 tasks are too few for p < 0.05 after 3 comparisons.*at least 7 tasks"):
        ranking({"a": base[:6], "b": base[:6] + 1, "c": base[:6] + 2})
    with pytest.raises(UserError, match="score the same on all 20 tasks"):
        ranking({"a": base, "b": base, "c": base})
    with pytest.raises(UserError, match="1 of the 20 tasks"):
        ranking({"a": base, "b": base + 1, "c": np.where(base == 3, np.nan, base)})
    with pytest.raises(ValueError, match="sign"):
        ranking({"a": base, "b": base + 1, "c": base + 2}, sign=0)


def test_as_many_tasks_as_needed_can_tell_models_apart():
    base = np.arange(7.0)
    found = ranking({"a": base, "b": base + 1.1, "c": base + 2.5})
    assert max(found.p.values()) < 0.05
