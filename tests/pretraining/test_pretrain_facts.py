"""Facts that `guided` predicts and unlearns: which a store offers, what is refused before training, and a whole run."""

import csv
import math

import numpy as np
import pytest
from PIL import Image

import medssl
import tiny
from medssl.errors import UserError
from medssl.pretraining.pretrain_targets import PretrainTargets
from medssl.runs.run_folder import Run
from medssl.store.store import Store

SCANS = 40


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ages of 40 patients, two sites, one view and a label; every fourth scan has no age."""
    folder, rng = tmp_path_factory.mktemp("facts"), np.random.default_rng(0)
    (folder / "scans").mkdir()
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", "site", "view", "age", "lesion"))
        for i in range(SCANS):
            Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(folder / f"scans/{i:02}.png")
            age = "" if i % 4 == 3 else 20 + i
            split = "train" if i < 32 else "test"
            writer.writerow((f"{i:02}.png", f"P{i}", split, "north" if i % 2 else "south", "PA", age, "yes"))
    return Store.open(
        medssl.ingest(
            folder / "scans", folder / "store", labels=folder / "table.csv", targets=["lesion"],
            key=tiny.secret(folder / "key"), workers=1,
        )
    )  # fmt: skip


def targets(store, predict, unlearn):
    spec = {"_target_": "medssl.methods.adversarial.guided.Guided", "predict": predict, "unlearn": unlearn}
    return PretrainTargets.of(store, store.rows("train"), "guided", spec, None, "auto", None)


def test_both_facts_of_each_scan_are_numbers_or_classes_and_unknown_ones_nan(store):
    found = targets(store, "age", "site")
    rows = found.rows_of(tiny.method("guided"))
    assert rows.shape == (len(store), 2)
    age, site = store.column("fact:age"), store.column("site")
    for row, (years, place), split in zip(rows, zip(age, site, strict=True), store.column("split"), strict=True):
        if split != "train":
            assert np.isnan(row).all(), "test patients teach nothing"
        else:
            assert row[1] == ["north", "south"].index(place)
            assert np.isnan(row[0]) if years is None or math.isnan(years) else row[0] == years
    losses = [found.given[f"{option}_loss"] for option in ("predict", "unlearn")]
    assert [(loss.name, loss.outputs) for loss in losses] == [("regression", 1), ("classification", 2)]
    assert found.described()["unlearn"]["names"] == ["north", "south"]
    assert found.described()["predict"]["columns"] == ["fact:age"]


@pytest.mark.parametrize(
    ("predict", "unlearn", "words"),
    [
        ("age", "scanner", r"no training scan of .* has a known scanner; choose another of \['site', 'age', 'view'\]"),
        ("age", "scaner", r"has no metadata 'scaner'\. Did you mean 'scanner'"),
        ("lesion", "site", "has no metadata 'lesion'"),
        ("age", "view", r"view is PA wherever it is known in .*; choose what differs"),
        ("site", "site", r"method\.predict and method\.unlearn are both site; name two facts"),
    ],
)
def test_facts_that_cannot_be_used_are_refused_before_training(store, tmp_path, predict, unlearn, words):
    with pytest.raises(UserError, match=words):
        medssl.pretrain(
            store, tmp_path / "run", method="guided", method_options={"predict": predict, "unlearn": unlearn}, steps=1
        )
    assert not (tmp_path / "run").exists()


def test_a_run_is_trained_on_facts_and_records_them(store, tmp_path):
    out = medssl.pretrain(
        store, tmp_path / "run", method="guided", method_options={"predict": "age", "unlearn": "site", "hidden": 8},
        encoder="cnn", encoder_options={"widths": [8, 16]}, steps=2, batch=16, monitor_every=0,
    )  # fmt: skip
    assert Run(out).config().target["predict"]["columns"] == ["fact:age"]
    assert (out / "encoder.safetensors").exists() or any(out.glob("encoder*"))
    with pytest.raises(UserError, match="does not learn from labels"):
        medssl.pretrain(
            store, tmp_path / "labels", method="guided", target="lesion", method_options={"unlearn": "site"}
        )


def test_more_clusters_than_training_scans_are_refused_before_training(store, tmp_path):
    with pytest.raises(UserError, match=r"method\.clusters=33 must be at least 2 and at most the 32 training scans"):
        medssl.pretrain(store, tmp_path / "run", method="deepcluster", method_options={"clusters": 33}, steps=1)
    assert not (tmp_path / "run").exists()
