"""The short form of the benchmark of pretraining, on a part of PneumoniaMNIST: only that it runs, and what it prints."""

import sys

import numpy as np
import pytest
import quality_pays

import medssl


def test_the_short_form_runs(shared, tmp_path, monkeypatch, capsys):
    archive = np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz")
    counts = {"train": 150, "val": 60, "test": 60}
    rows = {split: np.linspace(0, len(archive[f"{split}_labels"]) - 1, n).astype(int) for split, n in counts.items()}
    parts = {
        f"{split}_{kind}": archive[f"{split}_{kind}"][at] for split, at in rows.items() for kind in ("images", "labels")
    }
    (tmp_path / "data" / "medmnist").mkdir(parents=True)
    np.savez(tmp_path / "data" / "medmnist" / "pneumoniamnist_rebuilt.npz", **parts)
    monkeypatch.setitem(
        quality_pays.TASKS,
        "pneumonia",
        quality_pays.Task("medmnist/pneumoniamnist_rebuilt.npz", "chest_xray_28", "label", (20,), draws=2),
    )
    words = (
        f"--data {tmp_path}/data --work {tmp_path}/work --tasks pneumonia virus --seeds 1 --threads 1 --short".split()
    )
    monkeypatch.setattr(sys, "argv", ["quality_pays.py", *words])
    quality_pays.main()
    out = capsys.readouterr().out
    assert "virus: " in out
    assert "is not there; left out" in out
    for row in ("run, pooled+pyramid", "k-means patch pyramid", "label budget 20 scans", "validation scans"):
        assert row in out


@pytest.mark.parametrize("name", quality_pays.TASKS)
def test_every_task_names_a_recipe(name):
    assert medssl.recipe(quality_pays.TASKS[name].recipe)["method"]
