"""A label that is associated with the site gets one line above its score; one that does not gets none."""

import numpy as np
import pytest

from medssl.scoring.site_confounding import Sites, describe_sites
from medssl.scoring.targets import Target

TWO = Target(("lesion",), "classification", ("no", "yes"))


def sites(y, site, per_patient=1):
    y = np.asarray(y)
    return Sites(y, np.asarray(site, object), np.array([f"p{i // per_patient}" for i in range(len(y))]))


def drawn(rng, n, share):
    """n patients at two sites; `share` of those at north and 1 - share of those at south have the lesion."""
    north = rng.random(n) < 0.5
    y = (rng.random(n) < np.where(north, share, 1 - share)).astype(np.int64)
    return sites(y, np.where(north, "north", "south"))


def test_the_line_has_the_association_and_the_score_of_the_site_alone():
    """By hand: 40 + 10 at north, 10 + 40 at south. V is the phi coefficient .6; the AUROC is .8."""
    y, site = np.repeat([1, 0, 1, 0], [40, 10, 10, 40]), np.repeat(["north", "south"], 50)
    (line,) = describe_sites(TWO, sites(y, site), sites(y, site), 0)
    assert "lesion is associated with the site: Cramér's V 0.600 [" in line
    assert "among the 100 training scans of 2 sites" in line
    assert "the site alone has AUROC 0.800 [" in line
    assert "on the 100 test scans" in line


def test_planted_ones_are_found_and_clean_ones_are_not_reported():
    rng = np.random.default_rng(0)
    found = [len(describe_sites(TWO, drawn(rng, 150, 0.75), drawn(rng, 60, 0.75), s)) for s in range(20)]
    clean = [len(describe_sites(TWO, drawn(rng, 150, 0.5), drawn(rng, 60, 0.5), s)) for s in range(40)]
    assert (sum(found), sum(clean)) == (20, 0)


def test_many_small_sites_are_no_confounder():
    """Each of 50 sites has three patients: their labels differ by chance, and together they are pooled."""
    rng = np.random.default_rng(1)
    y, site = rng.integers(0, 2, 150), [f"s{i // 3}" for i in range(150)]
    assert describe_sites(TWO, sites(y, site), sites(y, site), 0) == []


def test_scans_of_one_patient_are_one_piece_of_evidence():
    """The same scans are clear evidence of 60 patients, and none of 4."""
    y, site = np.repeat([1, 0, 1, 0], [20, 10, 10, 20]), np.repeat(["north", "south"], 30)
    assert len(describe_sites(TWO, sites(y, site), sites(y, site), 0)) == 1
    assert describe_sites(TWO, sites(y, site, 15), sites(y, site, 15), 0) == []


def test_a_hospital_elsewhere_is_judged_by_training_alone():
    rng = np.random.default_rng(2)
    (line,) = describe_sites(TWO, drawn(rng, 200, 0.9), sites([0, 1] * 20, ["west"] * 40), 0)
    assert "AUROC" not in line


@pytest.mark.parametrize("task", ["multilabel", "ordinal", "regression", "survival"])
def test_every_kind_of_target_is_looked_at(task):
    rng = np.random.default_rng(3)

    def of(n, planted):
        north = rng.random(n) < 0.5
        hit = np.where(rng.random(n) < (0.9 if planted else 0.5), north, ~north)
        other = rng.integers(0, 2, n).astype(float)
        other[:5] = np.nan
        y = {
            "multilabel": np.stack([hit.astype(float), other], 1),
            "ordinal": hit + rng.integers(0, 2, n),
            "regression": 2.0 * hit + rng.normal(size=n),
            "survival": np.stack([rng.exponential(size=n) + 0.1, hit], 1),
        }[task]
        return sites(y, np.where(north, "north", "south"))

    names = {"multilabel": ("a", "b"), "ordinal": ("0", "1", "2")}.get(task, ())
    target = Target(("time", "event") if task == "survival" else ("x",), task, names)
    (line,) = describe_sites(target, of(200, True), of(80, True), 0)
    assert line.startswith(f"{target} is associated with the site: ")
    assert ("AUROC" in line) == (task in ("multilabel", "ordinal"))
    assert describe_sites(target, of(200, False), of(80, False), 0) == []


def test_an_unknown_site_and_the_site_itself_say_nothing():
    rng = np.random.default_rng(4)
    known = drawn(rng, 200, 0.95)
    unknown = known._replace(site=np.array(["unknown"] * 200, object))
    assert describe_sites(TWO, unknown, unknown, 0) == []
    assert describe_sites(Target(("site",), "classification", ("north", "south")), known, known, 0) == []
