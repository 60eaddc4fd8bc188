"""What the leak check finds within the test set reaches the scores: the patients of one image count once in intervals."""

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import medssl
import tiny
from medssl.runs.predictions import predictions_of
from medssl.store.store import Store


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run, and a store of 48 patients, in whose test eight pictures are there twice, under two names each."""
    folder = tmp_path_factory.mktemp("repeated")
    (folder / "scans").mkdir()
    rng = np.random.default_rng(0)
    lines = ["file,patient_id,split,label"]
    pictures = []
    for i in range(48):
        split = ("train", "val", "test")[i // 16]
        pictures.append(rng.integers(0, 200, (24, 24)) + 40 * (i % 2) if i < 40 else pictures[i - 8])
        Image.fromarray(pictures[i].astype(np.uint8)).save(folder / f"scans/{i:02}.png")
        lines.append(f"{i:02}.png,p{i:02},{split},{i % 2}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    options = {"labels": folder / "labels.csv", "targets": ["label"], "key": tiny.secret(folder / "key"), "workers": 1}
    store = medssl.ingest(folder / "scans", folder / "store", **options)
    small = {"encoder": "mlp", "encoder_options": {"widths": [16]}, "size": 16, "steps": 2, "batch": 8}
    return store, medssl.pretrain(store, folder / "run", monitor_every=0, **small)


def test_repeated_test_images_count_once_in_every_interval(made):
    """Although the groups of the store do not say so."""
    store, run = made
    columns = store.table.column_names
    apart = store.table.set_column(columns.index("group"), "group", pa.array(store.column("patient").tolist()))
    found = medssl.knn(run, Store(store.path, store.info, apart), "label", baselines=[], k=3)
    assert (found["n_test"], found["patients_test"]) == (16, 16)
    (row,) = found["rows"]
    assert {score["patients"] for score in row["scores"].values()} == {8}
    assert "at least 8 of the 16 test images" in str(found)
    assert "and count as one patient in intervals" in str(found)
    (kept,) = predictions_of(run)
    assert len(set(kept.patient)) == 8
