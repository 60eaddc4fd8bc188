"""The scoring commands on one small cohort: every kind of task, budgets of labels, use, subgroups, retrieval, transfer."""

import csv
import json

import numpy as np
import pytest

import medssl
import tiny
from medssl.errors import UserError
from medssl.evals.metrics.metrics import AUROC
from medssl.evals.probes.knn import knn_probe
from medssl.evals.probes.retrieval import retrieve
from medssl.evals.stats.bootstrap import score
from medssl.reporting.clinical_use import meaning, subgroups
from medssl.runs.predictions import predictions_of
from medssl.scoring import baselines
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import SplitOptions
from medssl.synthetic.cohort import person, write_cohort

SEED, COLUMNS = 3, ("lesion", "found", "grade", "brightness", "days", "died")


def cohort(folder, patients, seed, key):
    """A store whose table has a target of every kind; the lesion is in the image, the others go with it or are noise."""
    made = write_cohort(folder / "cohort", patients=patients, size=32, seed=seed)
    rng = np.random.default_rng(seed)
    with (made / "labels.csv").open() as f:
        files = [row["file"] for row in csv.DictReader(f)]
    each = {}
    for i in range(patients):
        who, noise = person(seed, i), rng.integers(3)
        found = (
            "|".join(w for w, there in (("lesion", who.lesion), ("scanner B", who.scanner == "B")) if there) or "none"
        )
        days, died = 100 - 60 * who.lesion + rng.integers(1, 30), rng.random() < 0.7
        each[i] = (
            "yes" if who.lesion else "no",
            found,
            min(2, who.lesion + noise // 2),
            10.5 * who.lesion + noise,
            days,
            int(died),
        )
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "sex", "age", *COLUMNS))
        for i, name in enumerate(files):
            who = person(seed, int(name.split("/")[0]))
            value = each[int(name.split("/")[0])]
            writer.writerow((name, who.sex, who.age, *value[:3], f"{value[3] + i / 1000:.3f}", *value[4:]))
    return medssl.ingest(
        made / "scans", folder / "store", labels=folder / "table.csv", targets=list(COLUMNS), key=tiny.secret(key)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    store = cohort(folder, 70, SEED, folder / "key")
    run = medssl.pretrain(
        store.path, folder / "run", encoder="cnn", encoder_options={"widths": [8, 16]}, size=16, steps=4, batch=16,
        monitor_every=0,
    )  # fmt: skip
    return folder, store, run


def entry(run, command, *key):
    """The predictions that were written last for that row, and the row."""
    every = [p for p in predictions_of(run) if (p.about["command"], p.about["target"]) == (command, "lesion")]
    pairs = [(p, row) for p in every for row in p.rows if row.key == key]
    return max(pairs, key=lambda pair: (run / pair[0].file).stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("target", "task", "metrics"),
    [
        ("found", "multilabel", ["macro AUROC", "macro AUPRC"]),
        ("grade", "ordinal", ["quadratic kappa", "MAE in levels", "AUROC"]),
        ("brightness", "regression", ["MAE", "R2", "Spearman"]),
    ],
)
def test_every_task_type_is_scored_by_linear_and_knn_probes(made, target, task, metrics):
    _, store, run = made
    for command in (medssl.probe, medssl.knn):
        result = command(run, store.path, target, task=task, baselines=["raw pixels"])
        assert result["task"] == task
        assert [list(row["scores"]) for row in result["rows"]] == [metrics, metrics]
        for row in result["rows"]:
            for s in row["scores"].values():
                if s["low"] is None:
                    assert (
                        "no interval, because the value stays the same" in s["how"]
                        or "undefined on too many" in s["how"]
                    )
                else:
                    assert s["low"] <= s["value"] <= s["high"]
                assert s["patients"] == result["patients_test"]
    assert result["sign"] == (-1 if target == "brightness" else 1)


def test_survival_is_scored_by_concordance_and_raw_pixels_see_the_lesion(made):
    _, store, run = made
    result = medssl.survive(run, store.path, "days", "died", baselines=["raw pixels"])
    rows = {r["features"]: r["scores"]["concordance"] for r in result["rows"]}
    assert set(rows) == {"simclr cnn", "raw pixels"}
    assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in rows.values())
    with pytest.raises(UserError, match="Did you mean 'days'"):
        medssl.survive(run, store.path, "day", "died")


def test_budgets_are_rows_of_their_own_paired_with_the_run(made):
    _, store, run = made
    result = medssl.probe(run, store.path, "lesion", label_budgets=["20", "all"], draws=3, baselines=["PCA"])
    rows = {(r["features"], r["label_budget"]): r for r in result["rows"]}
    assert set(rows) == {(f, b) for f in ("simclr cnn", "PCA") for b in ("20 scans", "all")}
    few = rows["simclr cnn", "20 scans"]
    assert few["draws"] == 3
    assert "3 draws of labels" in few["scores"]["AUROC"]["how"]
    assert "3 draws of labels" in rows["PCA", "20 scans"]["difference"]["how"]
    answer, found = entry(run, "probe", "run", "linear", "20 scans")
    each = [AUROC(answer.y, p) for p in found.p]
    assert len(set(each)) > 1
    assert few["scores"]["AUROC"]["value"] == pytest.approx(np.mean(each), abs=1e-12)


def test_the_clinical_meaning_of_a_score_is_below_it(made):
    _, store, run = made
    result = medssl.probe(run, store.path, "lesion", baselines=[], prevalences=[0.02])
    assert {"sensitivity", "specificity", "PPV", "NPV", "PPV at 2 %", "NPV at 2 %"} == set(
        result["operating_point"]["scores"]
    )
    assert "validation scans" in result["operating_point"]["how"]
    assert "operating point for 'yes'" in str(result)
    assert set(result["calibration"]["difference"]) == {"ECE", "NLL"}
    assert {"sex", "age", "scanner"} <= set(result["subgroups"])
    (n,) = {sum(g["n"] for g in found["groups"]) for found in result["subgroups"].values()}
    assert n == result["n_test"]
    kept = json.loads(json.dumps(result))
    page = meaning(kept) + subgroups(kept)
    for word in (
        "At a prevalence of 2 %:",
        "Of 1,000 such scans, 20 have",
        "PPV at 2 %",
        "temperature-scaled",
        "Reliability curve",
        "Decision curve",
        "By scanner",
        "fewer than",
    ):
        assert word in page
    low = result["operating_point"]["scores"]["sensitivity"]["low"]
    assert f"[{low:.3f}, " in page
    sick = entry(run, "probe", "run", "linear", "all")[0].y.mean()
    assert result["prevalence"] == pytest.approx(sick)
    for point in result["decision_curve"]["curve"]:
        odds = point["threshold"] / (1 - point["threshold"])
        assert point["treat_all"]["value"] == pytest.approx(sick - (1 - sick) * odds, abs=1e-9)


def test_neighbours_are_those_of_the_features(made):
    """The command's predictions are the function's on the run's own features: no scan is mixed up on the way."""
    _, store, run = made
    medssl.knn(run, store.path, "lesion", k=5, baselines=[])
    sources, splits = FeatureSources.load(run, store.path, "lesion", SplitOptions(device="cpu"))
    source, train, test = sources.of_run(), splits.train, splits.test
    x, x_test = source(store, train.rows), source(store, test.rows)
    expected = knn_probe(x, train.y, train.patient, x_test, test.patient, 2, k=5)
    answer, found = entry(run, "knn", "run", "kNN", "all")
    np.testing.assert_array_equal(found.p[0], expected)
    assert answer.scan.tolist() == store.column("scan")[test.rows].tolist()


def test_retrieval_is_averaged_over_queries_with_their_patients(made):
    _, store, run = made
    result = medssl.retrieve(run, store.path, "lesion", gallery="test", baselines=["raw pixels"])
    assert {r["probe"] for r in result["rows"]} == {"MAP@R", "R-precision", "P@1"}
    sources, splits = FeatureSources.load(run, store.path, "lesion", SplitOptions(device="cpu"))
    test = splits.test
    expected = retrieve(sources.of_run()(store, test.rows), test.y, test.patient)
    row = next(r for r in result["rows"] if (r["features"], r["probe"]) == ("simclr cnn", "MAP@R"))
    assert row["scores"]["mean"]["value"] == pytest.approx(expected.map_at_r.mean(), abs=1e-12)
    with pytest.raises(UserError, match="by a class or by findings"):
        medssl.retrieve(run, store.path, "brightness")
    with pytest.raises(UserError, match="gallery is 'all'"):
        medssl.retrieve(run, store.path, "lesion", gallery="all")


def test_what_is_lost_elsewhere_is_home_minus_there(made, tmp_path):
    folder, store, run = made
    other = cohort(tmp_path, 25, 99, folder / "key")
    result = medssl.transfer(run, store.path, "lesion", [str(other.path)], baselines=["raw pixels"])
    (table,) = result["others"]
    assert table["patients_test"] == 25
    home, there = sorted(
        (p for p in predictions_of(run) if p.about["command"] == "transfer"), key=lambda p: len(set(p.patient)) == 25
    )
    for i, row in enumerate(table["rows"]):
        a, b = (AUROC(p.y, p.rows[i].p[0]) for p in (home, there))
        assert row["scores"]["transfer gap"]["value"] == pytest.approx(a - b, abs=1e-12)
        assert row["scores"]["AUROC away"]["value"] == pytest.approx(b, abs=1e-12)
        assert row["scores"]["transfer gap"]["patients"] == len(set(home.patient)) + 25
        alone = score(AUROC, there.y, there.rows[i].p[0], there.patient)
        assert row["scores"]["transfer gap"]["high"] - row["scores"]["transfer gap"]["low"] > alone.high - alone.low


def test_cached_features_are_used_and_a_damaged_cache_is_recomputed(made):
    _, store, run = made
    sources, splits = FeatureSources.load(run, store.path, "lesion", SplitOptions(device="cpu"))
    rows = splits.test.rows
    first = sources.frozen("PCA")(store, rows)
    calls = []
    key = ["test", 1]
    made_once = [
        baselines.cached(store.path / "cache", key, lambda: calls.append(1) or np.arange(3.0)) for _ in range(2)
    ]
    assert calls == [1]
    assert made_once[0].tolist() == made_once[1].tolist()
    for path in (store.path / "cache").glob("array-*.npy"):
        path.write_bytes(path.read_bytes()[:100])
    np.testing.assert_array_equal(sources.frozen("PCA")(store, rows), first)


def test_words_that_mean_nothing_are_named(made):
    _, store, run = made
    with pytest.raises(UserError, match="there is no baseline 'raw'"):
        medssl.probe(run, store.path, "lesion", baselines=["raw"])
    with pytest.raises(UserError, match="'ten' is not a label budget"):
        medssl.probe(run, store.path, "lesion", label_budgets=["ten"])
    with pytest.raises(UserError, match="k must be at least 1"):
        medssl.knn(run, store.path, "lesion", k=0)
    with pytest.raises(UserError, match="probe is 'knn'; it may be linear or kNN"):
        medssl.transfer(run, store.path, "lesion", [str(store.path)], probe="knn")
