"""What a scoring command keeps: predictions for validation scans, penalties, every budget, and all before anything fails."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import medssl
import tiny
from medssl.errors import UserError
from medssl.evals.probes.knn import knn_probe
from medssl.evals.probes.linear import linear_probes
from medssl.results import Result
from medssl.runs.predictions import predictions_of
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.probes import linear, predicted_row
from medssl.scoring.score_table import compute_scores, keep, read_tables

SMALL = {"encoder": "mlp", "encoder_options": {"widths": [16]}, "size": 16, "steps": 2, "batch": 8, "monitor_every": 0}


def ingest(folder, splits, name="store", sites=None):
    """One image of each of 80 patients, brighter for one class; days and death for survival."""
    source, rng = folder / "scans", np.random.default_rng(0)
    source.mkdir(exist_ok=True)
    lines = ["file,patient,label,days,died,split,site"]
    for i in range(80):
        pixels = rng.integers(0, 200, (24, 24)) + 40 * (i % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(source / f"{i:02}.png")
        days, site = 50 + 30 * (i % 2) + rng.integers(20), sites[i] if sites else ""
        lines.append(f"{i:02}.png,p{i},{'ab'[i % 2]},{days},{int(rng.random() < 0.7)},{splits[i % len(splits)]},{site}")
    table = folder / f"{name}.csv"
    table.write_text("\n".join(lines) + "\n")
    targets = ["label", "days", "died"]
    return medssl.ingest(
        source, folder / name, labels=table, targets=targets, key=tiny.secret(folder / "key"), workers=1
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    store = medssl.Store.open(ingest(folder, ["train", "train", "val", "test", "test", "train", "val", "test"]).path)
    return store, medssl.pretrain(store, folder / "run", **SMALL)


def kept(run, command):
    """The predictions of the only table of a command."""
    (found,) = [p for p in predictions_of(run) if p.about["command"] == command]
    return found


def test_validation_predictions_of_every_probe_are_kept_and_are_those_of_the_probe(made):
    store, run = made
    sources, splits = FeatureSources.load(run, store, "label", SplitOptions(device="cpu"))
    x, x_val, x_test = (sources.of_run()(store, part.rows) for part in (splits.train, splits.val, splits.test))
    medssl.probe(run, store, "label", baselines=["supervised"])
    medssl.knn(run, store, "label", k=3, baselines=[])
    medssl.transfer(run, store, "label", [], baselines=[])
    medssl.finetune(run, store, "label", label_budgets=["all", 10], draws=2, steps=2, baselines=["linear probe"])
    (fitted,) = linear_probes(
        (x, splits.train.y), (x_val, splits.val.y), [x_test, x_val], classes=2, patient=splits.train.patient
    )
    near = knn_probe(x, splits.train.y, splits.train.patient, x_val, splits.val.patient, 2, k=3)
    for command, expected in (("probe", fitted.predictions[1]), ("knn", near), ("transfer", fitted.predictions[1])):
        found = kept(run, command)
        assert found.val.scan.tolist() == store.column("scan")[splits.val.rows].tolist()
        assert found.val.patient.tolist() == splits.val.patient.tolist()
        assert found.val.y.tolist() == splits.val.y.tolist()
        np.testing.assert_allclose(found.rows[0].val[0], expected, atol=1e-12)
        assert all(len(row.val) == len(row.p) and row.val[0].shape == (len(splits.val), 2) for row in found.rows)
    tuned = kept(run, "finetune")
    assert all(len(row.val) == len(row.p) == 2 for row in tuned.rows)
    assert {row.val[1].shape for row in tuned.rows} == {(len(splits.val), 2)}
    own = next(row for row in tuned.rows if row.key == ("run", "fine-tuned", "all"))
    assert not np.array_equal(own.val[0], own.val[1])


def test_a_cox_model_keeps_them_too(made):
    store, run = made
    medssl.survive(run, store, "days", "died", positive="1", baselines=[])
    found = kept(run, "survive")
    assert found.rows[0].val[0].shape == (len(found.val.scan),)
    assert found.rows[0].fits[0]["how"].startswith("Cox regression, C = ")


def test_the_chosen_penalty_of_every_draw_is_kept(made):
    store, run = made
    result = medssl.probe(run, store, "label", label_budgets=[10, "all"], draws=3, baselines=["raw pixels"])
    sources, splits = FeatureSources.load(run, store, "label", SplitOptions(device="cpu"))
    (expected,) = linear(sources.of_run(), splits, [splits.test])["all"]
    rows = {(row["source"], row["label_budget"]): row for row in result["rows"]}
    assert [len(row["fits"]) for row in rows.values()] == [3, 1, 3, 1]
    (fit,) = rows["run", "all"]["fits"]
    assert (fit["C"], fit["loss"], fit["converged"]) == (expected.C, pytest.approx(expected.loss, rel=1e-9), True)
    assert min(fit["path"], key=lambda pair: pair[1])[0] == fit["C"]
    found = next(p for p in predictions_of(run) if p.file == result["predictions"])
    assert [row.fits for row in found.rows] == [row["fits"] for row in result["rows"]]


def test_a_fit_that_did_not_converge_is_said_above_the_table(made):
    store, run = made
    sources, splits = FeatureSources.load(run, store, "label", SplitOptions(device="cpu"))
    (good,) = linear(sources.of_run(), splits, [splits.test])["all"]
    rows = [predicted_row("run", "linear", [good]), predicted_row("PCA", "linear", [replace(good, converged=False)])]
    table = compute_scores("probe", splits, rows, "mine", 0)
    *others, flag = table.as_dict()["flags"]
    assert not any("converge" in other for other in others)
    assert flag == "PCA, linear, label budget all: a fit did not converge, so the score may be too low"
    assert f"! {flag}" in str(table)
    assert table.predictions.about["flags"] == [*others, flag]


def test_a_budget_does_not_erase_another_and_the_same_one_is_replaced(made, tmp_path):
    store, run = made
    for file in [*run.glob("predictions/*"), run / "scores.json"]:
        file.unlink(missing_ok=True)
    for budgets in (["all"], [20], ["all"], [10, 20]):
        medssl.probe(run, store, "label", label_budgets=budgets, draws=2, baselines=[])
    tables = read_tables(run / "scores.json")
    assert [[row["label_budget"] for row in t["rows"]] for t in tables] == [
        ["20 scans"], ["all"], ["10 scans", "20 scans"],
    ]  # fmt: skip
    assert "label budget" in str(medssl.probe(run, store, "label", label_budgets=[20], draws=2, baselines=[]))
    assert {t["predictions"] for t in tables} == {p.file for p in predictions_of(run)}
    assert all((run / t["predictions"]).exists() for t in tables)


def test_a_failure_below_the_table_costs_no_score(made):
    store, run = made
    sources, splits = FeatureSources.load(run, store, "label", SplitOptions(device="cpu"))
    table = compute_scores(
        "probe", splits, [predicted_row("run", "linear", linear(sources.of_run(), splits, [splits.test])["all"])], "x", 0,
        asked={"of": "a table with a failure"},
    )  # fmt: skip

    def fails() -> Result:
        raise ValueError("below the table")

    with pytest.raises(ValueError, match="below the table"):
        keep(run, table, lambda: Result({"above": 1}), fails)
    (found,) = [t for t in read_tables(run / "scores.json") if "of" in t["asked"]]
    assert found["rows"][0]["scores"]["AUROC"]["value"] is not None
    assert (run / found["predictions"]).exists()


def test_every_command_works_without_validation_patients(tmp_path):
    store = ingest(tmp_path, ["train", "train", "test", "test"])
    run = medssl.pretrain(store.path, tmp_path / "run", **SMALL)
    result = medssl.probe(run, store.path, "label", label_budgets=["all", 10], draws=2, baselines=[])
    assert result["operating_point"] is None
    assert "no operating point: no validation scan has the label" in str(result)
    medssl.knn(run, store.path, "label", baselines=[])
    medssl.survive(run, store.path, "days", "died", positive="1", baselines=[])
    medssl.transfer(run, store.path, "label", [], baselines=[])
    medssl.finetune(run, store.path, "label", label_budgets=[10], draws=1, steps=1, baselines=["linear probe"])
    assert [t["command"] for t in read_tables(run / "scores.json")] == ["probe", "knn", "survive", "finetune"]
    assert all(p.val is None and not any(row.val for row in p.rows) for p in predictions_of(run))


def test_test_where_selects_test_scans_of_the_same_store(made):
    """It takes what where= takes, and leaves training alone."""
    store, run = made
    whole = medssl.probe(run, store, "label", baselines=[])
    died = store.column("label:died")[store.rows("test")] == "1"
    some = medssl.probe(run, store.path, "label", baselines=[], test_where="died == '1' and not height > 24")
    assert 0 < some["n_test"] == died.sum() < whole["n_test"]
    assert (some["n_train"], some["asked"]["training scans"]) == (whole["n_train"], whole["asked"]["training scans"])
    with pytest.raises(UserError, match="test_where=width > 99 selects no test scan"):
        medssl.probe(run, store, "label", baselines=[], test_where="width > 99")
    with pytest.raises(UserError, match=r"^test_where=.*Did you mean 'died'"):
        medssl.probe(run, store, "label", baselines=[], test_where="dieed == '1'")


def test_a_fine_tuned_encoder_carries_the_flags_of_its_table(tmp_path):
    store = ingest(tmp_path, ["train", "train", "test", "test"], sites=["ab"[i % 2] for i in range(80)])
    run = medssl.pretrain(store.path, tmp_path / "run", **SMALL)
    result = medssl.finetune(run, store.path, "label", label_budgets=["all"], draws=1, steps=1, baselines=[])
    config = json.loads((run / result["encoder"] / "encoder.json").read_text("utf-8"))
    assert config["fine_tuned"]["flags"] == result["flags"]
    assert any("label is associated with the site" in flag for flag in result["flags"])
