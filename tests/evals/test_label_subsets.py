import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from medssl.errors import UserError
from medssl.evals.stats.label_subsets import Budget, draw_label_subsets, keyed_order, parse_budget, subset_of_size

SHARES = [Budget(share=s) for s in (0.05, 0.2, 0.5, 1.0)]


@st.composite
def cohorts(draw, pure=True):
    """(y, patient, classes): every patient with 1 to 4 scans, of one class if pure."""
    K = draw(st.integers(2, 4))
    label = draw(st.lists(st.integers(0, K - 1), min_size=8, max_size=50))
    scans = draw(st.lists(st.integers(1, 4), min_size=len(label), max_size=len(label)))
    patient = np.repeat([f"p{i}" for i in range(len(label))], scans)
    y = np.repeat(label, scans)
    if not pure:
        y = np.array(draw(st.lists(st.integers(0, K - 1), min_size=len(patient), max_size=len(patient))))
    assume(len(set(y.tolist())) > 1)
    return y, patient


def drawn(*args, **options):
    """The draws, or [] where they are refused."""
    try:
        return draw_label_subsets(*args, **options)
    except UserError:
        return []


@given(cohorts(pure=False), st.integers(0, 5))
def test_draws_are_nested_whole_and_hold_every_class(cohort, seed):
    y, patient = cohort
    before = np.array([], int)
    for budget in SHARES:
        for d in drawn(y, patient, [budget], [seed]):
            assert set(before) <= set(d.rows)
            assert not set(patient[d.rows]) & set(np.delete(patient, d.rows))
            assert set(y[d.rows]) == set(y)
            assert len(d.rows) <= budget.of(len(y))
            assert (np.diff(d.rows) > 0).all()
            before = d.rows
    assert len(before) == len(y)  # the last is all, and never refused


@given(cohorts(), st.integers(0, 5))
def test_the_order_of_scans_and_other_budgets_have_no_say(cohort, seed):
    y, patient = cohort
    mixed = np.random.default_rng(0).permutation(len(y))
    for budget in SHARES:
        alone = drawn(y, patient, [budget], [seed])
        moved = drawn(y[mixed], patient[mixed], [budget], [seed])
        assert [set(patient[d.rows]) for d in alone] == [set(patient[mixed][d.rows]) for d in moved]
    both = drawn(y, patient, SHARES[2:], [seed, seed + 1])
    assert [(d.budget, d.seed) for d in both] == [(b, s) for b in SHARES[2:] for s in (seed, seed + 1)][: len(both)]
    for d in both:
        np.testing.assert_array_equal(d.rows, draw_label_subsets(y, patient, [d.budget], [d.seed])[0].rows)


@given(cohorts(), st.integers(0, 3))
def test_class_shares_are_as_close_as_whole_patients_allow(cohort, seed):
    y, patient = cohort
    kinds, counts = np.unique(y, return_counts=True)
    largest = np.unique(patient, return_counts=True)[1].max()
    for budget in SHARES:
        for d in drawn(y, patient, [budget], [seed]):
            n = len(d.rows)
            for k, count in zip(kinds, counts, strict=True):
                # one patient for the class's own rounding, and one for each class that the head put before its turn
                assert abs((y[d.rows] == k).sum() - n * count / len(y)) <= largest * len(kinds)


def test_shares_are_exact_where_they_can_be():
    y = np.repeat([0, 1, 2], [60, 30, 10])
    patient = np.arange(100)
    for d in draw_label_subsets(y, patient, [Budget(share=s) for s in (0.1, 0.2, 0.5)], range(3)):
        np.testing.assert_array_equal(np.bincount(y[d.rows]), np.array([60, 30, 10]) * len(d.rows) // 100)
    for d in draw_label_subsets(y, patient, [Budget(scans=n) for n in (3, 9, 30)], range(3), balanced=True):
        np.testing.assert_array_equal(np.bincount(y[d.rows]), np.full(3, len(d.rows) // 3))


def test_shares_are_of_scans_and_mixed_patients_count_for_their_rarest_class():
    y = np.repeat([0, 1], 40)
    patient = np.r_[np.repeat(np.arange(10), 4), np.arange(100, 140)]
    for d in draw_label_subsets(y, patient, [Budget(scans=24)], range(5)):
        assert np.bincount(y[d.rows]).tolist() == [12, 12]
    y, patient = np.zeros(80, int), np.repeat(np.arange(40), 2)
    y[:16:2] = 1  # 8 of 40 patients have a scan of each class
    for d in draw_label_subsets(y, patient, [Budget(scans=20)], range(5)):
        assert y[d.rows].sum() == 2


def test_seeds_draw_differently_and_uniformly():
    y, patient = np.repeat([0, 1], [30, 10]), np.arange(40)
    found = draw_label_subsets(y, patient, [Budget(scans=8)], range(400))
    often = np.bincount(np.concatenate([d.rows for d in found]), minlength=40) / 400
    # 6 of 30 and 2 of 10: each is drawn with probability 1/5, SD .02
    assert np.abs(often - 0.2).max() < 4 * 0.02
    assert len({tuple(d.rows) for d in found}) > 390


def test_who_else_is_there_does_not_change_who_comes_first():
    names = [f"p{i}" for i in range(50)]
    all_, half = keyed_order(names, 3), keyed_order(names[::2], 3)
    assert [names[i] for i in all_ if i % 2 == 0] == [names[::2][i] for i in half]
    assert (keyed_order(names, 4) != all_).any()


def test_balanced_draws_end_where_a_class_does():
    y, patient = np.repeat([0, 1], [30, 5]), np.arange(35)
    assert np.bincount(y[draw_label_subsets(y, patient, [Budget(scans=10)], [0], balanced=True)[0].rows]).tolist() == [
        5,
        5,
    ]
    with pytest.raises(UserError, match=r"runs out of a class after 1[01]; draw fewer"):
        draw_label_subsets(y, patient, [Budget(scans=20)], [0], balanced=True)
    with pytest.raises(UserError, match="balanced draws need classes"):
        draw_label_subsets(y.astype(float), patient, [Budget(scans=10)], [0], task="regression", balanced=True)


def test_draws_that_cannot_be_are_refused_in_words():
    y, patient = np.repeat([0, 1, 2], 10), np.repeat(np.arange(15), 2)
    with pytest.raises(
        UserError, match=r"5 labelled scans cannot contain all of class 0, class 1, class 2; the smallest .* 6"
    ):
        draw_label_subsets(y, patient, [Budget(scans=5)], [0])
    with pytest.raises(UserError, match="31 labelled scans, and there are 30"):
        draw_label_subsets(y, patient, [Budget(scans=31)], [0])
    with pytest.raises(UserError, match="cannot contain all scans of one patient"):
        draw_label_subsets(np.arange(4.0), np.zeros(4), [Budget(scans=3)], [0], task="regression")
    with pytest.raises(ValueError, match="one patient per labelled scan"):
        draw_label_subsets(y, patient[:5], [Budget(scans=5)], [0])
    with pytest.raises(UserError, match="Did you mean 'classification'"):
        draw_label_subsets(y, patient, [Budget(scans=6)], [0], task="classificatio")


def test_every_kind_of_task_draws_what_its_models_need():
    r = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 2)
    labels = (r.random((120, 3)) < [0.5, 0.1, 0.03]).astype(float)
    labels[r.random((120, 3)) < 0.2] = np.nan
    value = r.normal(size=60)[patient]
    outcome = np.c_[r.exponential(size=60), r.random(60) < 0.1][patient]
    for d in draw_label_subsets(labels, patient, [Budget(scans=n) for n in (14, 40)], range(5), task="multilabel"):
        assert [set(v[~np.isnan(v)]) for v in labels[d.rows].T] == [{0, 1}] * 3
    for d in draw_label_subsets(outcome, patient, [Budget(scans=20)], range(5), task="survival"):
        events = outcome[d.rows, 1].sum() / 2
        assert events in (1, 2)  # of 10 patients, as of 60 six had it
    fifths = np.searchsorted(np.quantile(value, [0.2, 0.4, 0.6, 0.8]), value, side="right")
    for d in draw_label_subsets(value, patient, [Budget(scans=20)], range(5), task="regression"):
        assert np.bincount(fifths[d.rows]).tolist() == [4] * 5
    levels = np.minimum(patient // 12, 4)
    for d in draw_label_subsets(levels, patient, [Budget(share=0.2)], range(5), task="ordinal"):
        assert set(levels[d.rows]) == set(range(5))


def test_like_draws_what_fits_and_never_nothing():
    y, patient = np.repeat([0, 1], [30, 10]), np.repeat(np.arange(10), 4)
    for n, expected in ((1, 4), (4, 4), (11, 8), (40, 40), (99, 40)):
        rows = subset_of_size(y, patient, n, task="classification", seed=1)
        assert len(rows) == expected
        assert len(set(patient[rows])) == expected / 4
    np.testing.assert_array_equal(
        subset_of_size(y, patient, 20, task="classification", seed=2),
        draw_label_subsets(y, patient, [Budget(scans=20)], [2])[0].rows,
    )


@pytest.mark.parametrize(
    ("given", "budget", "words"),
    [
        (50, Budget(scans=50), "50 scans"),
        ("50", Budget(scans=50), "50 scans"),
        (" 20 scans ", Budget(scans=20), "20 scans"),
        (0.1, Budget(share=0.1), "10 %"),
        ("10 %", Budget(share=0.1), "10 %"),
        ("0.5%", Budget(share=0.005), "0.5 %"),
        ("all", Budget(share=1.0), "all"),
        (1.0, Budget(share=1.0), "all"),
        ("100 %", Budget(share=1.0), "all"),
        (1, Budget(scans=1), "1 scans"),
        (np.int64(7), Budget(scans=7), "7 scans"),
    ],
)
def test_budgets_are_read_as_meant(given, budget, words):
    assert parse_budget(given) == budget
    assert str(budget) == words


@pytest.mark.parametrize(
    "given", [0, -3, "0", 0.0, 1.5, "0 %", "101 %", "ten", "", True, float("nan"), "inf", "1/2", "1/0 %"]
)
def test_budgets_that_are_none_are_refused(given):
    with pytest.raises(UserError, match="not a label budget"):
        parse_budget(given)


def test_shares_of_scans_are_rounded_to_the_nearest():
    assert [Budget(share=0.01).of(n) for n in (4708, 10, 150, 250)] == [47, 1, 2, 2]
    assert Budget(share=0.29).of(100) == 29
