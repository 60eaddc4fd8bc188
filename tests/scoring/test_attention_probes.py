"""Attention probes through `medssl probe`: rows beside the linear probe, one prediction per patient, and what is refused."""

import json

import numpy as np
import pytest

import medssl
import tiny
from medssl.errors import UserError
from medssl.runs.predictions import predictions_of
from medssl.synthetic.cohort import write_cohort

RUN = {"size": 24, "steps": 4, "batch": 16, "monitor_every": 0}
FEW = {"baselines": ["random init", "raw pixels"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Patients with several scans, and runs with and without feature maps."""
    folder = tmp_path_factory.mktemp("attention")
    cohort = write_cohort(folder / "cohort", patients=40, size=32, seed=5)
    labels = (cohort / "labels.csv").read_text().splitlines()
    odd = ["odd", *(str(i % 2) for i in range(len(labels) - 1))]
    (folder / "labels.csv").write_text("".join(f"{a},{b}\n" for a, b in zip(labels, odd, strict=True)))
    options = {"labels": folder / "labels.csv", "targets": ["lesion", "odd"], "key": tiny.secret(folder / "key")}
    medssl.ingest(cohort / "scans", folder / "store", **options)
    medssl.pretrain(folder / "store", folder / "cnn", encoder="cnn", encoder_options={"widths": [8, 16]}, **RUN)
    medssl.pretrain(folder / "store", folder / "mlp", encoder="mlp", encoder_options={"widths": [8]}, **RUN)
    return folder


@pytest.fixture(scope="module")
def table(made):
    probes, budgets = ["linear", "attentive", "mil"], ["all", "50 %"]
    return medssl.probe(made / "cnn", made / "store", "lesion", probes=probes, label_budgets=budgets, draws=2, **FEW)


def kept(made, probe):
    """The predictions of the run's own row of all labels, and of the table it is in."""
    (found,) = (p for p in predictions_of(made / "cnn") if {"linear", "attentive", "mil"} == {r.probe for r in p.rows})
    return found, next(r for r in found.rows if (r.source, r.probe, r.label_budget) == ("run", probe, "all"))


def test_every_probe_has_its_rows_with_intervals_paired_with_the_runs_own(table):
    rows = {(r["features"], r["probe"], r["label_budget"]): r for r in table["rows"]}
    maps = {("simclr cnn", "attentive"), ("random init", "attentive")}
    pooled = {(f, p) for f in ("simclr cnn", "random init", "raw pixels") for p in ("linear", "mil")}
    assert set(rows) == {(*row, budget) for row in maps | pooled for budget in ("all", "50 %")}
    for (features, probe, budget), row in rows.items():
        assert row["draws"] == (1 if budget == "all" else 2)
        score = row["scores"]["AUROC"]
        assert score["low"] <= score["value"] <= score["high"]
        assert (row["difference"] is None) == (features == "simclr cnn")
        units = "patients" if probe == "mil" else "scans"
        assert all(fit["how"].endswith(f"validation {units}") or "range tried" in fit["how"] for fit in row["fits"])


def test_scans_of_a_patient_get_one_prediction_from_mil_and_their_own_from_the_others(table, made):
    for probe, same in (("mil", True), ("attentive", False), ("linear", False)):
        predictions, row = kept(made, probe)
        patients = [row.p[0][predictions.patient == p, 1] for p in np.unique(predictions.patient)]
        assert max(map(len, patients)) > 1
        assert all(len(set(p.tolist())) == 1 for p in patients) == same, probe
        assert row.val[0].shape == (len(predictions.val.scan), 2)


def test_a_table_of_other_probes_is_kept_beside_and_gives_the_same_rows(table, made):
    before = len(json.loads((made / "cnn" / "scores.json").read_text())["tables"])
    alone = medssl.probe(
        made / "cnn", made / "store", "lesion", probes="attentive", label_budgets=["all"], baselines=[]
    )
    assert len(json.loads((made / "cnn" / "scores.json").read_text())["tables"]) == before + 1
    (row,) = alone["rows"]
    first = next(r for r in table["rows"] if r["probe"] == "attentive" and r["label_budget"] == "all")
    assert row["scores"] == first["scores"]
    assert row["fits"] == first["fits"]


def test_what_makes_no_sense_is_refused_in_one_line(made, tmp_path):
    store, run = made / "store", made / "cnn"
    rng = np.random.default_rng(0)
    single = {}
    for part, n in (("train", 24), ("val", 8), ("test", 8)):
        single |= {
            f"{part}_images": rng.integers(0, 255, (n, 24, 24), np.uint8),
            f"{part}_labels": np.arange(n)[:, None] % 2,
        }
    (tmp_path / "source").mkdir()
    np.savez(tmp_path / "source" / "single.npz", **single)
    alone = medssl.ingest(tmp_path / "source", tmp_path / "single", key=made / "key")
    for folder, where, target, probes, words in [
        (made / "mlp", store, "lesion", ["attentive"], r"MLP has none; use probes=\[linear\]"),
        (run, store, "lesion", ["attentiv"], "probes has 'attentiv'. Did you mean 'attentive'"),
        (run, store, "lesion", [], "probes is empty; give linear, attentive, mil"),
        (run, store, "odd", ["mil"], r"\d+ of \d+ patients have scans with different ones"),
        (run, alone, "label", ["mil"], "every training patient has one"),
    ]:
        with pytest.raises(UserError, match=words) as refused:
            medssl.probe(folder, where, target, probes=probes, baselines=[])
        assert "\n" not in str(refused.value)
