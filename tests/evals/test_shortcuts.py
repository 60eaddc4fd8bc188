"""Scores without a fact against loops, scikit-learn and closed forms; and evidence on cohorts whose answer is planted."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm, spearmanr
from scipy.stats.contingency import association as scipy_association
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from medssl.evals.explain.association import association
from medssl.evals.explain.evidence import NONE, PART, POSSIBLE, ConfounderData, Evidence, audit_confounder, conclusion
from medssl.evals.explain.shortcuts import ConfoundRegression, auroc_balanced, auroc_within, design, edges
from medssl.evals.metrics.metrics import AUROC, MACRO_AUROC
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import positions, replicates, resamples
from medssl.evals.stats.score import Score


def drawn(seed, n, K=2, values=3, ties=True):
    """Classes, probabilities with ties, and a fact."""
    r = np.random.default_rng(seed)
    p = r.dirichlet(np.ones(K), n)
    return r.integers(0, K, n), np.round(p, 1) if ties else p, r.integers(0, values, n)


def pairs_within(positive, s, fact, w):
    """Straight from the definition."""
    right = total = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            if fact[i] == fact[j]:
                total += w[i] * w[j]
                right += w[i] * w[j] * ((s[i] > s[j]) + (s[i] == s[j]) / 2)
    return right / total if total else np.nan


def balanced_loops(positive, s, fact, w):
    """Weights P(label) P(fact) / P(label, fact) of the values that have both, then all pairs."""
    new = np.zeros(len(w))
    for i in range(len(w)):
        cell, other = (w[(fact == fact[i]) & (positive == c)].sum() for c in (positive[i], not positive[i]))
        new[i] = w[i] * (cell + other) / cell if cell and other else 0
    if not new[positive].sum() or not new[~positive].sum():
        return np.nan
    keep = new > 0
    return roc_auc_score(positive[keep], s[keep], sample_weight=new[keep])


LOOPS = [(auroc_within, pairs_within), (auroc_balanced, balanced_loops)]


@pytest.mark.parametrize(("made", "loops"), LOOPS)
@given(st.integers(0, 10**6), st.integers(2, 30), st.sampled_from([2, 3]), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_classes_are_scored_as_loops_do(made, loops, seed, n, K, values):
    y, p, fact = drawn(seed, n, K, values)
    w = np.random.default_rng(seed).integers(0, 3, n).astype(float)
    expected = np.mean([loops(y == k, p[:, k], fact, w) for k in (range(K) if K > 2 else [1])])
    assert made("classification", fact)(y, p, w) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    assume(not np.isnan(expected))
    all_pairs = AUROC(y, p, w)
    assert made("classification", fact, change=True)(y, p, w) == pytest.approx(expected - all_pairs, abs=1e-12)


@pytest.mark.parametrize(("made", "loops"), LOOPS)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_labels_are_the_mean_over_those_that_are_defined_on_the_scans_that_know_them(made, loops, seed, n, values):
    r = np.random.default_rng(seed)
    y = r.choice([0, 1, np.nan], (n, 3), p=[0.4, 0.4, 0.2])
    p, fact, w = np.round(r.random((n, 3)), 1), r.integers(0, values, n), r.integers(0, 3, n).astype(float)
    known = [~np.isnan(c) for c in y.T]
    each = np.array([loops(y[k, i] == 1, p[k, i], fact[k], w[k]) for i, k in enumerate(known)])
    expected = each[~np.isnan(each)].mean() if (~np.isnan(each)).any() else np.nan
    assert made("multilabel", fact)(y, p, w) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    whole = [MACRO_AUROC(y[:, [i]], p[:, [i]], w) for i in range(3)]  # the change is of labels that have both
    differences = [a - b for a, b in zip(each, whole, strict=True) if not np.isnan(a)]
    expected = np.mean(differences) if differences else np.nan
    assert made("multilabel", fact, change=True)(y, p, w) == pytest.approx(expected, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("made", [auroc_within, auroc_balanced])
@given(st.integers(0, 10**6), st.integers(2, 25), st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_whole_weights_are_repetitions(made, seed, n, K):
    y, p, fact = drawn(seed, n, K)
    w = np.random.default_rng(seed + 1).integers(0, 4, n)
    again = np.repeat(np.arange(n), w)
    assume(len(again))
    for change in (False, True):
        weighted = made("classification", fact, change=change)(y, p, w.astype(float))
        repeated = made("classification", fact[again], change=change)(y[again], p[again])
        assert weighted == pytest.approx(repeated, abs=1e-12, nan_ok=True)


def test_resamples_of_patients_are_the_metric_of_the_repeated_scans():
    """So the bootstrap of `auroc_within` is that of scans drawn again, not of weights fixed once."""
    y, p, fact = drawn(3, 60)
    patient = np.arange(60) // 2
    names = [f"{i:02}" for i in patient]
    metric = auroc_within("classification", fact)
    assert (positions(names, 60) == patient).all()
    found = replicates([(metric, y, p)], patient, 200, 5)[0]
    by_hand = []
    for counts in np.concatenate(list(resamples(30, 200, seed=5, rows=200))).astype(int):
        again = np.repeat(np.arange(60), counts[patient])
        by_hand.append(pairs_within(y[again] == 1, p[again, 1], fact[again], np.ones(len(again))))
    np.testing.assert_allclose(found, by_hand, atol=1e-12)
    made = score(metric, y, p, names, n=200, seed=5)
    assert made.low < metric(y, p) < made.high
    assert (made.n, made.patients) == (60, 30)


def population(n, a, b, goes, seed=0):
    """Score a*label + b*fact + N(0, 1) of two labels and a fact with P(fact = 1 | label) = 1/2 +- goes/2."""
    r = np.random.default_rng(seed)
    y = r.integers(0, 2, n)
    fact = (r.random(n) < 0.5 + goes * (y - 0.5)).astype(int)
    s = norm.cdf(a * y + b * fact + r.normal(size=n))
    return y, np.c_[1 - s, s], fact


@pytest.mark.parametrize(("a", "b", "goes"), [(1.0, 2.0, 0.6), (0.0, 2.0, 0.8), (1.2, 0.0, 0.7), (1.0, 2.0, 0.0)])
def test_closed_forms_of_normal_scores(a, b, goes):
    """Within is the label's part alone; balanced is a population where the fact is a coin; the AUROC has the fact's part too."""
    y, p, fact = population(40_000, a, b, goes)
    for metric, together in ((AUROC, goes), (auroc_balanced("classification", fact), 0.0)):
        high = {1: 0.5 + together / 2, 0: 0.5 - together / 2}  # of fact = 1, by label
        expected = sum(
            (high[1] if f else 1 - high[1])
            * (high[0] if g else 1 - high[0])
            * norm.cdf((a + b * (f - g)) / np.sqrt(2))
            for f in (0, 1) for g in (0, 1)
        )  # fmt: skip
        assert metric(y, p) == pytest.approx(expected, abs=0.012)
    assert auroc_within("classification", fact)(y, p) == pytest.approx(norm.cdf(a / np.sqrt(2)), abs=0.012)


def test_a_fact_alone_scores_a_half_within_and_balanced():
    r = np.random.default_rng(1)
    fact = r.integers(0, 4, 200)
    y = (r.random(200) < 0.1 + 0.25 * fact).astype(int)
    s = np.array([0.9, 0.2, 0.4, 0.7])[fact]
    p = np.c_[1 - s, s]
    assert auroc_within("classification", fact)(y, p) == pytest.approx(0.5, abs=1e-12)
    assert auroc_balanced("classification", fact)(y, p) == pytest.approx(0.5, abs=1e-12)
    alike = np.zeros(200)  # a fact that does not vary takes nothing away
    for made in (auroc_within, auroc_balanced):
        assert made("classification", alike)(y, p) == pytest.approx(AUROC(y, p), abs=1e-12)


def test_numbers_within_are_the_mean_of_spearmans_by_weight():
    r = np.random.default_rng(2)
    y, label = np.round(r.normal(size=90), 1), np.repeat([0, 1, 2], [20, 60, 10])
    p = y + 3 * label + r.normal(size=90)
    expected = sum(spearmanr(y[label == k], p[label == k]).statistic * n for k, n in ((0, 20), (1, 60), (2, 10))) / 90
    assert auroc_within("regression", label)(y, p) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="not scored by AUROC"):
        auroc_within("survival", label)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_nothing_linear_is_left_of_a_fact_that_was_regressed_out(kind):
    r = np.random.default_rng(3)
    fact = r.integers(0, 4, 80) if kind == "classification" else r.normal(60, 15, 80)
    x = r.normal(size=(80, 5)) + np.outer(fact, r.normal(size=5))
    less = ConfoundRegression.fit(x, fact, kind)
    left, columns = less(x, fact), design(kind, fact)(fact)
    for z in columns.T:
        assert np.abs([np.corrcoef(z, c)[0, 1] for c in left.T]).max() < 1e-12 * np.abs(x).max()
    plain = fact[:, None].astype(float)  # the number itself is in the span of its spline
    assert LinearRegression().fit(plain, left).score(plain, left) < 1e-12


def test_it_is_fitted_on_training_scans_alone_as_scikit_learn_would():
    r = np.random.default_rng(4)
    fact, other = r.integers(0, 3, 60), r.integers(0, 3, 25)
    x, z = r.normal(size=(60, 4)), r.normal(size=(25, 4)) + 5
    dummies = np.eye(3)
    reference = LinearRegression().fit(dummies[fact], x)
    np.testing.assert_allclose(
        ConfoundRegression.fit(x, fact, "classification")(z, other), z - reference.predict(dummies[other]), atol=1e-10
    )


def test_a_curve_of_a_number_goes_and_a_change_of_spread_stays():
    r = np.random.default_rng(5)
    age = r.uniform(20, 90, 3000)
    curve = ((age - 55) / 20) ** 2
    left = ConfoundRegression.fit(np.c_[curve, r.normal(size=3000) * (age - 15)], age, "regression")(
        np.c_[curve, r.normal(size=3000) * (age - 15)], age
    )
    assert np.abs(left[:, 0]).max() < 1e-8 * np.abs(curve).max()
    assert spearmanr(np.abs(left[:, 1]), age).statistic > 0.4
    far = design("regression", age)(np.array([200.0, 210.0, 220.0]))  # linear outside
    np.testing.assert_allclose(far[2] - far[1], far[1] - far[0], atol=1e-9)
    assert design("regression", age)(np.zeros(0)).shape == (0, far.shape[1])


def test_what_cannot_be_designed_is_refused():
    with pytest.raises(ValueError, match="does not vary"):
        design("classification", [1, 1])
    with pytest.raises(ValueError, match="not occur in training"):
        design("classification", [0, 1])([2])
    assert edges(np.arange(101)) == [20, 40, 60, 80]
    assert edges([1] * 9 + [5]) == [1]


@given(st.integers(0, 10**6), st.integers(6, 80), st.integers(2, 4), st.integers(2, 3))
@settings(max_examples=25, deadline=None)
def test_cramers_v_is_scipys(seed, n, values, K):
    r = np.random.default_rng(seed)
    y, fact = r.integers(0, K, n), r.integers(0, values, n)
    seen = np.array([[((fact == f) & (y == k)).sum() for k in np.unique(y)] for f in np.unique(fact)])
    assume(min(seen.shape) > 1)
    found = association("classification", fact, "classification", y, np.arange(n), n=100)
    assert found.value == pytest.approx(scipy_association(seen, method="cramer"), abs=1e-12)
    assert 0 <= found.low <= found.value <= max(found.high, 1)


def test_the_correlation_ratio_is_the_share_of_the_spread_between_classes():
    r = np.random.default_rng(6)
    y = r.integers(0, 3, 120)
    x = 50 + 10 * r.normal(size=120) + 8 * y
    between = sum((y == k).sum() * (x[y == k].mean() - x.mean()) ** 2 for k in range(3))
    found = association("regression", x, "classification", y, np.arange(120), n=100)
    assert found.value == pytest.approx(np.sqrt(between / ((x - x.mean()) ** 2).sum()), abs=1e-12)
    labels = np.stack([y == 0, y == 1], 1).astype(float)
    labels[:30, 1] = np.nan
    each = [
        association("regression", x[k], "classification", c[k].astype(int), np.arange(k.sum()), n=100).value
        for c, k in zip(labels.T, ~np.isnan(labels.T), strict=True)
    ]
    found = association("regression", x, "multilabel", labels, np.arange(120), n=100)
    assert found.value == pytest.approx(np.sqrt(np.mean(np.square(each))), abs=1e-12)


def test_a_field_that_determines_the_label_has_an_association_of_one():
    y = np.repeat([0, 1, 2], 20)
    assert association("classification", y[::-1], "classification", y, np.arange(60), n=100).value == pytest.approx(1)
    assert association("regression", y * 2.0, "classification", y, np.arange(60), n=100).value == pytest.approx(1)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_interval_of_an_association_contains_0_or_the_true_value(kind):
    """Of 100 cohorts of 60 patients; percentiles of the resampled lengths would never hold 0."""
    none, some, missed = 0, 0, 0
    for seed in range(100):
        r = np.random.default_rng(seed)
        y, patient = np.repeat(r.integers(0, 2, 60), 2), np.arange(120) // 2
        alone = r.integers(0, 3, 60) if kind == "classification" else r.normal(size=60)
        with_y = (
            np.where(r.random(60) < 0.5, y[::2], r.integers(0, 2, 60))
            if kind == "classification"
            else y[::2] + r.normal(size=60)
        )
        truth = 0.5 if kind == "classification" else np.sqrt(0.2)  # spread between 1/4, within 1
        none += association(kind, np.repeat(alone, 2), "classification", y, patient, n=200, seed=seed).low == 0
        found = association(kind, np.repeat(with_y, 2), "classification", y, patient, n=200, seed=seed)
        some += found.low <= truth <= found.high
        missed += found.low == 0
    assert none >= 88  # 92 to 98 % in larger simulations
    assert some >= 88
    assert missed < 20


def cohort(seed, goes, a, b, kind="classification", sizes=(150, 30, 90)):
    """Feature 0 shows the label by `a`, feature 1 the fact by `b`; the fact is the label for a share `goes` of patients."""
    r = np.random.default_rng(seed)
    sets = []
    for name, n in zip("tve", sizes, strict=True):
        y = r.integers(0, 2, n)
        fact = (
            np.where(r.random(n) < goes, y, r.integers(0, 2, n))
            if kind == "classification"
            else 2 * goes * y + r.normal(size=n)
        )
        at = np.repeat(np.arange(n), r.integers(1, 3, n))
        x = r.normal(size=(len(at), 4))
        x[:, 0] += a * y[at]
        x[:, 1] += b * fact[at]
        sets.append(
            ConfounderData({"run": x, "noise": x[:, 2:]}, y[at], fact[at], np.array([f"{name}{i}" for i in at]))
        )
    return sets


def evidence(*args, fact="scanner", **kwargs):
    kind = kwargs.get("kind", "classification")
    return audit_confounder(
        fact,
        kind,
        ("A", "B") if kind == "classification" else (),
        "classification",
        2,
        *cohort(*args, **kwargs),
        seed=0,
    )


@pytest.fixture(scope="module")
def all_of_it():
    return evidence(0, 0.8, 0.0, 3.0)


def test_a_score_that_is_all_fact(all_of_it):
    """The label is not in the features: within the fact the AUROC is a half, and that is said."""
    e = all_of_it
    assert e.finding == PART
    assert e.predicted["run"]["AUROC"].low > 0.95
    assert e.predicted_difference["noise"].high < 0
    assert e.alone.low <= 0.9 <= e.alone.high  # (1 + goes) / 2
    assert e.association_train.low <= 0.8 <= e.association_train.high  # goes
    for left in (e.within, e.balanced, e.regressed_out):
        assert left.low <= 0.5 <= left.high
    assert e.differences["within"].value == pytest.approx(e.within.value - e.score.value, abs=1e-12)
    assert e.differences["regressed_out"].value == pytest.approx(e.regressed_out.value - e.score.value, abs=1e-12)
    said = e.sentence("lesion")
    assert said.startswith("scanner: the features predict it (AUROC 0.9")
    assert "alone it predicts lesion on test scans" in said
    assert "where it is not shown to be above chance" in said
    assert said.endswith(": part of the score comes from the scanner.")


def test_nothing_of_the_test_scans_is_fitted():
    """The regression is of training scans: scikit-learn's, and the same probe on what is left, give the very score."""
    train, val, test = cohort(6, 0.7, 1.5, 3.0)
    found = audit_confounder("scanner", "classification", ("A", "B"), "classification", 2, train, val, test, seed=0)
    reference = LinearRegression().fit(train.field[:, None], train.x["run"])
    left = [s.x["run"] - reference.predict(s.field[:, None]) for s in (train, val, test)]
    (probe,) = linear_probes((left[0], train.y), (left[1], val.y), [left[2]], classes=2, patient=train.patient)
    assert found.regressed_out.value == pytest.approx(AUROC(test.y, probe.predictions[0]), abs=1e-9)


def test_a_score_that_is_part_fact():
    e = evidence(1, 0.7, 1.5, 3.0, sizes=(300, 60, 200))
    assert e.finding == PART
    h = {1: 0.85, 0: 0.15}  # (1 + goes) / 2, of fact = 1 by label, and of label = 1 by fact
    truth = sum(
        (h[1] if f else 1 - h[1]) * (h[0] if g else 1 - h[0]) * norm.cdf(1.5 * (1 - h[f] + h[g]) / np.sqrt(2))
        for f in (0, 1) for g in (0, 1)
    )  # fmt: skip
    assert e.regressed_out.low <= truth <= e.regressed_out.high  # disease that goes with the fact went out with it
    assert 0.5 < truth < norm.cdf(1.5 / np.sqrt(2))
    assert 0.5 < e.within.low <= e.within.value < e.score.low
    assert e.differences["regressed_out"].high < 0
    assert "within one scanner the score falls from" in e.sentence("lesion")
    assert "not shown to be above chance" not in e.sentence("lesion")


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_no_finding_for_a_predicted_field_without_association_with_the_label(kind):
    found = Counter()
    for seed in range(8):
        e = evidence(100 + seed, 0.0, 1.5, 3.0, kind=kind)
        found[e.finding] += 1
        assert e.predicted["run"]["AUROC" if kind == "classification" else "Spearman"].low > 0.5
    assert found[PART] == 0
    assert found[POSSIBLE] <= 2


def test_a_fact_that_goes_with_the_label_but_is_not_in_the_features_takes_nothing_away():
    e = evidence(3, 0.6, 1.5, 0.0, sizes=(300, 60, 200))
    assert e.finding != PART
    assert (
        e.predicted_within_label.low <= 0.5 <= e.predicted_within_label.high
    )  # told by the label alone, and that is seen among scans of one label
    assert e.differences["within"].high > 0


def test_a_number_in_bands(all_of_it):
    e = evidence(4, 1.0, 0.0, 3.0, kind="regression", fact="age")
    assert e.finding == PART
    assert "R2" in e.predicted["run"]
    said = e.sentence("lesion")
    assert "correlation ratio" in said
    assert "within bands of age the score falls" in said
    together = conclusion([all_of_it, e], "lesion")
    assert together == "Part of the score of lesion comes from the scanner and the age."


def test_a_field_that_is_the_label_cannot_be_separated_from_it():
    e = evidence(5, 1.0, 0.0, 3.0)
    assert np.isnan(e.within.value)
    assert e.finding == POSSIBLE
    assert "the two cannot be told apart" in e.sentence("lesion")
    assert e.as_dict("lesion")["within"]["value"] is None


def stated(told, alone, trained, change, fact="view"):
    """Evidence with these intervals."""

    def s(ends):
        if np.isnan(ends[0]):
            return Score(0.9, *ends, 100, 50, "no interval: few patients")
        return Score(sum(ends) / 2, *ends, 100, 50, "said")

    some = s((0.6, 0.9))
    return Evidence(
        fact, "classification", ("AP", "PA"), "AUROC", {"run": {"AUROC": s(told)}}, some, {}, s(alone), s(trained), some,
        some, some, some, some, {"within": s(change), "regressed_out": s(change), "balanced": s(change)},
    )  # fmt: skip


TOLD, GOES, FALLS, SILENT, NOTHING = (0.8, 0.9), (0.6, 0.7), (-0.2, -0.1), (0.4, 0.6), (-0.1, 0.1)


@pytest.mark.parametrize(
    ("told", "alone", "trained", "change", "finding"),
    [
        (TOLD, GOES, (0.1, 0.3), FALLS, PART),
        (SILENT, GOES, (0.1, 0.3), FALLS, NONE),  # the encoder does not see it
        (TOLD, SILENT, (0.0, 0.3), FALLS, NONE),  # it says nothing of the label
        (TOLD, SILENT, (0.1, 0.3), FALLS, POSSIBLE),  # it does in training
        (TOLD, GOES, (0.0, 0.3), NOTHING, POSSIBLE),
        (TOLD, GOES, (0.1, 0.3), (0.01, 0.1), NONE),  # it costs score
        (TOLD, (0.3, 0.4), (0.1, 0.3), (0.0, 0.1), NONE),
    ],
)
def test_what_is_claimed_follows_from_the_intervals(told, alone, trained, change, finding):
    e = stated(told, alone, trained, change)
    assert e.finding == finding
    said = e.sentence("lesion")
    assert ("the features predict it" in said) == (told == TOLD)
    assert ("alone it predicts" in said) == (alone == GOES)
    assert ("is reversed on test scans" in said) == (alone == (0.3, 0.4))
    assert ("it is associated with lesion in training" in said) == (trained[0] > 0)
    assert ("the score falls" in said) == (change == FALLS)
    assert ("the score rises" in said) == (change == (0.01, 0.1))
    assert ("part of the score comes from the view." in said) == (finding == PART)
    assert ("neither shown nor excluded" in said) == (finding == POSSIBLE)


UNKNOWN = (np.nan, np.nan)  # a score without an interval


@pytest.mark.parametrize(
    ("told", "alone", "trained", "change", "finding", "said"),
    [
        (UNKNOWN, GOES, (0.1, 0.3), FALLS, POSSIBLE, "whether the features predict it is not known"),
        (TOLD, UNKNOWN, (0.1, 0.3), FALLS, POSSIBLE, "whether it alone predicts lesion on test scans is not known"),
        (TOLD, UNKNOWN, (0.0, 0.3), FALLS, POSSIBLE, "whether it alone predicts lesion on test scans is not known"),
        (TOLD, SILENT, UNKNOWN, FALLS, POSSIBLE, "whether it is associated with lesion in training is not known"),
        (TOLD, GOES, (0.1, 0.3), UNKNOWN, POSSIBLE, "whether the score falls within one view is not known"),
        (UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, POSSIBLE, "is neither shown nor excluded"),
        # another score suffices
        (SILENT, UNKNOWN, UNKNOWN, UNKNOWN, NONE, "the features are not shown to predict it"),
        (UNKNOWN, GOES, (0.1, 0.3), (0.01, 0.1), NONE, "the score rises"),
        (UNKNOWN, SILENT, (0.0, 0.3), FALLS, NONE, "alone it is not shown to predict"),
    ],
)
def test_a_score_without_an_interval_excludes_nothing_and_its_reason_is_said(
    told, alone, trained, change, finding, said
):
    e = stated(told, alone, trained, change)
    assert e.finding == finding
    sentence = e.sentence("lesion")
    assert said in sentence
    assert sentence.count("no interval: few patients") == (told, alone, trained, change).count(UNKNOWN)
    assert ("neither shown nor excluded" in sentence) == (finding == POSSIBLE)
    assert ("No shortcut was found" in conclusion([e], "lesion")) == (finding == NONE)


def test_the_verdict_names_every_fact_once():
    facts = [
        stated(TOLD, GOES, (0.1, 0.3), FALLS, "view"),
        stated(TOLD, GOES, (0.1, 0.3), NOTHING, "age"),
        stated(SILENT, SILENT, (0.0, 0.1), NOTHING, "sex"),
        stated(SILENT, SILENT, (0.0, 0.1), NOTHING, "site"),
    ]
    assert conclusion(facts, "lesion") == (
        "Part of the score of lesion comes from the view. "
        "Whether part of the score of lesion comes from the age is neither shown nor excluded. "
        "No shortcut was found in the metadata at hand: sex and site."
    )
    assert conclusion(facts[2:3], "lesion") == "No shortcut was found in the metadata at hand: sex."


def test_a_value_of_one_test_patient_is_no_absence_of_a_shortcut():
    """The AUROC of predicting it then has no interval, though the features show it and it goes with the label in training."""
    train, val, test = cohort(7, 0.8, 0.0, 6.0)
    (first, *_) = test.patient[test.field == 1]
    kept = (test.field == 0) | (test.patient == first)
    few = ConfounderData({k: v[kept] for k, v in test.x.items()}, test.y[kept], test.field[kept], test.patient[kept])
    e = audit_confounder("scanner", "classification", ("A", "B"), "classification", 2, train, val, few, seed=0)
    assert np.isnan(e.prediction.low)
    assert e.association_train.low > 0
    assert e.finding == POSSIBLE
    assert f"whether the features predict it is not known (AUROC {e.prediction}" in e.sentence("lesion")
    assert e.prediction.how in e.sentence("lesion")
