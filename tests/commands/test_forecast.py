"""The forecast: no test patient takes part, the same patients stay together, and its words follow from its numbers."""

import json

import numpy as np
import pytest

import medssl
import tiny
from medssl.commands.train.forecast import answers_of
from medssl.errors import UserError
from medssl.runs.predictions import PredictedRow, Predictions, predictions_of
from medssl.store.set_aside import without_test
from medssl.store.store import Store

COUNTS = {"train": 330, "val": 40, "test": 60}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forecast")
    drawn, at, arrays = tiny.resampled(n=sum(COUNTS.values())).array[:, 0], 0, {}
    for split, n in COUNTS.items():
        arrays |= {f"{split}_images": drawn[at : at + n], f"{split}_labels": np.arange(at, at + n)[:, None] % 2}
        at += n
    np.savez(folder / "discs.npz", **arrays)
    made = medssl.ingest(folder / "discs.npz", folder / "store", key=tiny.secret(folder / "key"), workers=1)
    return Store.open(made)


def test_no_test_scan_is_left_and_the_rest_is_split_anew_by_patient(store):
    held = without_test(store, seed=3)
    assert len(held) == COUNTS["train"] + COUNTS["val"]
    test = set(store.column("scan")[store.rows("test")])
    assert not test & set(held.column("scan"))
    groups = {split: set(held.column("group")[held.rows(split)]) for split in COUNTS}
    assert not groups["train"] & groups["test"] | groups["train"] & groups["val"] | groups["val"] & groups["test"]
    shares = {split: len(held.rows(split)) / len(held) for split in COUNTS}
    assert shares == pytest.approx({"train": 0.55, "val": 0.15, "test": 0.30}, abs=0.08)
    assert without_test(store, seed=3).column("split").tolist() == held.column("split").tolist()
    other = without_test(store, seed=4)
    assert other.column("split").tolist() != held.column("split").tolist()
    assert len({store.fingerprint, held.fingerprint, other.fingerprint}) == 3
    assert np.array_equal(held[0], store[int(np.flatnonzero(store.column("scan") == held.column("scan")[0])[0])])


def test_too_few_patients_are_refused(store):
    few = Store.open(store.path, where=f"scan == '{store.column('scan')[store.rows('train')[0]]}'")
    with pytest.raises(UserError, match=r"the 1 training and validation patients of .* are too few to set some aside"):
        without_test(few)


def test_the_answer_is_about_the_best_rival_at_each_budget(tmp_path):
    y = np.arange(80) % 2
    good, fair, poor = (y * gain + np.random.default_rng(i).normal(0, 1, 80) for i, gain in enumerate((3, 1.5, 0)))

    def row(source, probe, p, budget="all"):
        p = np.stack([-p, p], 1)
        return PredictedRow(source, probe, [p], budget, [["0"]], [])

    about = {"task": "classification", "classes": ["0", "1"]}
    kept = Predictions(about, y.astype(str), y.astype(str), y, [
        row("run", "linear", fair), row("raw pixels", "linear", poor), row("supervised", "end to end", good),
        row("run", "linear", fair, "20 scans"), row("raw pixels", "linear", poor, "20 scans"),
    ])  # fmt: skip
    kept.patient = np.arange(80)
    everything, few = answers_of(kept)
    assert (everything.rival, few.rival) == ("supervised, end to end", "raw pixels")
    assert everything.chance < 0.1 < 0.9 < few.chance
    assert "all labels: unlikely" in str(everything)
    assert "20 scans: likely" in str(few)
    assert f"{few.gain.score}" in str(few)


def test_a_forecast_trains_a_part_of_the_recipe_on_training_patients(store, tmp_path):
    result = medssl.forecast(
        store.path, "label", tmp_path / "run", recipe="digits_28", share=0.002, label_budgets=[10, "all"]
    )
    assert [a["budget"] for a in result["answers"]] == ["10 scans", "all labels"]
    assert result["full_run_seconds"] > 0
    assert "Judged by" in str(result)
    config = json.loads((tmp_path / "run" / "encoder.json").read_text())
    assert config
    (kept,) = predictions_of(tmp_path / "run")
    assert not set(kept.scan) & set(store.column("scan")[store.rows("test")])
