"""What a scoring command predicted comes back as it was, and two files are compared scan by scan."""

import json

import numpy as np
import pytest

from medssl.errors import UserError
from medssl.runs.predictions import PredictedRow, Predictions, describe_mismatch, predictions_of

ABOUT = {
    "command": "probe",
    "target": "lesion",
    "task": "classification",
    "classes": ["no", "yes"],
    "test_store": "abc",
    "main": "AUROC",
}


def made(order=None, about=None, n=6):
    rng = np.random.default_rng(0)
    order = np.arange(n) if order is None else np.asarray(order)
    p = rng.random((n, 2))
    y = np.arange(n) % 2
    rows = [PredictedRow("run", "linear", [p[order], p[order] / 2]), PredictedRow("PCA", "linear", [p[order]], "10 %")]
    scan, patient = np.array([f"s{i}" for i in range(n)]), np.array([f"p{i // 2}" for i in range(n)])
    return Predictions(ABOUT | (about or {}), scan[order], patient[order], y[order], rows)


def test_written_and_read_is_the_same(tmp_path):
    before = made()
    before.write(tmp_path)
    (after,) = predictions_of(tmp_path)
    assert after.about == before.about
    assert [e.key for e in after.rows] == [("run", "linear", "all"), ("PCA", "linear", "10 %")]
    assert [len(e.p) for e in after.rows] == [2, 1]
    np.testing.assert_array_equal(np.stack(after.rows[0].p), np.stack(before.rows[0].p))
    for name in ("scan", "patient", "y"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist()


def test_an_answer_replaces_the_older_one_to_the_same_question_and_no_other(tmp_path):
    made().write(tmp_path)
    made().write(tmp_path)
    assert len(predictions_of(tmp_path)) == 1
    made(about={"target": "other"}).write(tmp_path)
    assert len(predictions_of(tmp_path)) == 2


def test_the_same_scans_in_another_order_are_the_same():
    assert describe_mismatch([made(), made([5, 3, 1, 0, 2, 4])]) == ""


def test_other_scans_and_other_labels_are_detected():
    other = made()
    other.scan = np.array(["s0", "s1", "s2", "s3", "s4", "x"])
    assert "1 test scans are only in the first run's table and 1" in describe_mismatch([made(), other])
    other = made()
    other.y = 1 - other.y
    assert "labels" in describe_mismatch([made(), other])


def test_a_damaged_file_is_named(tmp_path):
    path = made().write(tmp_path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=path.name):
        predictions_of(tmp_path)
    np.savez(path.with_suffix(""), about=json.dumps(ABOUT))
    with pytest.raises(UserError, match="damaged"):
        predictions_of(tmp_path)
