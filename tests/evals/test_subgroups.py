import numpy as np
import pytest
from scipy.stats import binom, norm

from medssl.evals.metrics.metrics import ACCURACY, AUROC, MACRO_AUROC, MEAN
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.resampling import resamples
from medssl.evals.stats.subgroups import bands, by_subgroup


def cohort(seed, patients=120, groups=3, worse=0.0):
    """Two scans a patient; the score of group "g0" tells the classes less well by `worse`."""
    r = np.random.default_rng(seed)
    y, group = r.integers(0, 2, patients), np.arange(patients) % groups
    s = np.repeat((1.5 - worse * (group == 0)) * (y - 0.5), 2) + r.normal(size=2 * patients)
    ids = np.repeat([f"{i:03}" for i in range(patients)], 2)
    return np.repeat(y, 2), np.c_[norm.cdf(-s), norm.cdf(s)], ids, np.repeat([f"g{g}" for g in group], 2)


def test_each_subgroup_has_the_score_of_its_scans():
    y, p, patient, group = cohort(0)
    found = by_subgroup(AUROC, y, p, patient, group, n=200)
    assert [(g.name, g.n, g.patients, g.why) for g in found.groups] == [(f"g{i}", 80, 40, "") for i in range(3)]
    for g in found.groups:
        rows = group == g.name
        assert g.score == score(AUROC, y[rows], p[rows], patient[rows], n=200)
    values = {g.name: g.score.value for g in found.groups}
    assert (found.largest, found.smallest) == (max(values, key=values.get), min(values, key=values.get))
    assert found.gap.score.value == max(values.values()) - min(values.values())


def test_the_gap_is_judged_on_joint_resamples_of_patients():
    """Against the plain way. Every patient has a scan in both views, so that the two move together."""
    y, p, patient, _ = cohort(1, patients=60)
    view, hit = np.tile(["PA", "lateral"], 60), p[:, 1] + 0.05 * np.tile([0, 1], 60)
    found = by_subgroup(MEAN, y, hit, patient, view, n=300, seed=4, level=0.9)
    seen, deviations, apart = {}, [], []
    for v in ("lateral", "PA"):
        seen[v] = hit[view == v].mean()
    for counts in np.concatenate(list(resamples(60, 300, seed=4, rows=300))).astype(int):
        means = {v: np.repeat(hit[view == v], counts).mean() for v in seen}
        d = [means[v] - seen[v] for v in seen]
        deviations.append(max(d) - min(d))
        apart.append(means["lateral"] - means["PA"])
    gap, q = seen["lateral"] - seen["PA"], np.quantile(deviations, 0.9)
    assert (found.largest, found.smallest) == ("lateral", "PA")
    s = found.gap.score
    assert (s.value, s.low, s.high) == pytest.approx((gap, max(0, gap - q), gap + q), abs=1e-12)
    assert found.gap.se == pytest.approx(np.std(apart, ddof=1), abs=1e-12)
    assert found.gap.p == pytest.approx(np.mean(np.array(deviations) >= gap), abs=1 / 150)
    assert (s.n, s.patients) == (120, 60)
    assert s.how == "90 % bootstrap interval about the range of 2 subgroups over 60 patients, 300 resamples"


def test_alike_subgroups_have_no_gap_though_resamples_of_the_range_would_always_show_one():
    alarms = naive = 0
    for i in range(100):
        r = np.random.default_rng(i)
        x, group = r.normal(size=150), np.repeat(list("abcde"), 30)
        found = by_subgroup(MEAN, x, x, np.arange(150), group, n=200, seed=i).gap
        alarms += found.score.low > 0
        assert found.score.low >= 0
        assert (found.p < 0.05) == (found.score.low > 0)
        means = np.array([x[group == g][r.integers(30, size=(200, 30))].mean(1) for g in "abcde"])
        naive += np.quantile(np.ptp(means, axis=0), 0.025) > 0
    assert alarms <= binom.ppf(0.999, 100, 0.05)
    assert naive == 100


def test_a_gap_that_is_there_is_found_and_held():
    hits = found = 0
    for i in range(50):
        r = np.random.default_rng(i)
        x, group = r.normal(size=160), np.repeat(list("abcd"), 40)
        x[group == "a"] += 1
        gap = by_subgroup(MEAN, x, x, np.arange(160), group, n=200, seed=i).gap
        hits += gap.score.low <= 1 <= gap.score.high
        found += gap.p < 0.05
    assert hits >= binom.ppf(0.001, 50, 0.95)
    assert found >= 45
    y, p, patient, group = cohort(0, patients=300, worse=1.2)
    d = by_subgroup(AUROC, y, p, patient, group, n=200)
    assert d.smallest == "g0"
    assert d.gap.score.low > 0


def test_who_cannot_be_judged_is_listed_with_the_reason():
    y, p, patient, group = cohort(2, patients=180, groups=2)
    group = group.astype(object)
    group[:8], group[8:108], group[108:138], group[138:178] = "four", None, "sick", "rare"
    p[8:108] = np.eye(2)[y[8:108]]  # the unknown are the easiest, and still take no part in the gap
    y[108:138] = y[138:142] = 1
    y[142:178] = 0
    found = by_subgroup(AUROC, y, p, patient, group, n=200)
    assert [(g.name, g.n, g.patients, g.why) for g in found.groups] == [
        ("four", 8, 4, "4 patients, fewer than 10"),
        ("g0", 90, 45, ""),
        ("g1", 92, 46, ""),
        ("rare", 40, 20, "2 patients in the rarest class, fewer than 10"),
        ("sick", 30, 15, "AUROC is undefined here: a class was missing"),
        ("unknown", 100, 50, ""),
    ]
    assert [g.score is None for g in found.groups] == [bool(g.why) for g in found.groups]
    assert {found.largest, found.smallest} == {"g0", "g1"}
    assert "range of 2 subgroups" in found.gap.score.how


def test_one_subgroup_has_no_gap():
    y, p, patient, _ = cohort(0)
    found = by_subgroup(ACCURACY, y, p, patient, [""] * 240, n=100)
    assert found.groups[0].name == "unknown"
    assert found.groups[0].score is not None
    assert found.gap is None
    assert found.why == "0 subgroups to compare; a gap needs two"


def test_labels_that_a_subgroup_lacks_make_it_incomparable():
    """The second label is easy, and "b" has nobody with it: its mean would be over the hard one alone."""
    r = np.random.default_rng(0)
    y = r.integers(0, 2, (80, 2)).astype(float)
    p = np.c_[r.random(80), y[:, 1]]
    y[40:, 1] = 0
    found = by_subgroup(MACRO_AUROC, y, p, np.arange(80), np.repeat(["a", "b"], 40), least=5, n=100)
    assert found.groups[1].why == "not comparable, 1 of 2 labels left out because they have one class"
    assert found.gap is None


def test_bands_of_numbers_in_their_order():
    words = bands([39.9, 40, 59, 60, 100, np.nan, -1], [40, 60, 100])
    assert words.tolist() == ["< 40", "40 to < 60", "40 to < 60", "60 to < 100", ">= 100", None, "< 40"]
    assert bands([5], [40], "years").tolist() == ["< 40 years"]
    x = np.repeat([90.0, 50, 30, 110, np.nan], 10)
    found = by_subgroup(MEAN, x, np.ones(50), np.arange(50), bands(x, [40, 60, 100]), n=100)
    assert [g.name for g in found.groups] == ["< 40", "40 to < 60", "60 to < 100", ">= 100", "unknown"]
    sites = np.repeat(["site 10", "site 9"], 25)
    assert [g.name for g in by_subgroup(MEAN, x, np.ones(50), np.arange(50), sites, n=100).groups] == [
        "site 9",
        "site 10",
    ]
    with pytest.raises(ValueError, match="increase"):
        bands([1], [60, 40])


def test_one_group_a_scan():
    y, p, patient, group = cohort(0)
    with pytest.raises(ValueError, match="one group per scan"):
        by_subgroup(AUROC, y, p, patient, group[1:])
