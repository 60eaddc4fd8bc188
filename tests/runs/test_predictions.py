"""What a scoring command predicted comes back as it was, and two files are compared scan by scan."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from medssl.errors import UserError
from medssl.runs import predictions
from medssl.runs.predictions import (
    PredictedRow,
    PredictedScans,
    Predictions,
    describe_differences,
    describe_mismatch,
    predictions_of,
)

ABOUT = {
    "command": "probe",
    "target": "lesion",
    "task": "classification",
    "classes": ["no", "yes"],
    "test_store": "abc",
    "asked": {"test scans": "6 scans of 3 patients [abc]", "k": 20},
}
FIT = {"C": 0.1, "loss": 0.3, "converged": True, "how": "linear model, C = 0.1", "path": [[0.01, 0.4], [0.1, 0.3]]}


def made(order=None, about=None, n=6):
    rng = np.random.default_rng(0)
    order = np.arange(n) if order is None else np.asarray(order)
    p = rng.random((n, 2))
    y = np.arange(n) % 2
    rows = [
        PredictedRow("run", "linear", [p[order], p[order] / 2], "all", "2 draws", [p[:3], p[:3] / 2], [FIT, FIT]),
        PredictedRow("PCA", "linear", [p[order]], "10 %", "1 scan"),
    ]
    scan, patient = np.array([f"s{i}" for i in range(n)]), np.array([f"p{i // 2}" for i in range(n)])
    val = PredictedScans(np.array(["v0", "v1", "v2"]), np.array(["w0", "w0", "w1"]), np.array([0, 1, 1]))
    return Predictions(ABOUT | (about or {}), scan[order], patient[order], y[order], rows, val)


def test_written_and_read_is_the_same(tmp_path):
    before = made()
    before.write(tmp_path)
    (after,) = predictions_of(tmp_path)
    assert after.about == before.about
    assert [e.key for e in after.rows] == [("run", "linear", "all"), ("PCA", "linear", "10 %")]
    assert [len(e.p) for e in after.rows] == [2, 1]
    np.testing.assert_array_equal(np.stack(after.rows[0].p), np.stack(before.rows[0].p))
    np.testing.assert_array_equal(np.stack(after.rows[0].val), np.stack(before.rows[0].val))
    assert [(r.drawn, len(r.val), r.fits) for r in after.rows] == [("2 draws", 2, [FIT, FIT]), ("1 scan", 0, [])]
    for name in ("scan", "patient", "y"):
        assert getattr(after, name).tolist() == getattr(before, name).tolist()
        assert getattr(after.val, name).tolist() == getattr(before.val, name).tolist()


def test_the_documented_way_to_read_a_file_works_with_numpy_alone(tmp_path):
    """The code in the docstring, as it stands there."""
    path = made().write(tmp_path)
    code = re.search(r"With numpy alone:\n\n(.*?)\n\n", predictions.__doc__, re.S)[1]
    found = {"np": np, "json": json, "path": path}
    lines = [line.strip() for line in code.splitlines()]
    values = []
    for line in lines:
        if " = " in line:
            exec(line, found)
        else:
            values.append(eval(line, found))
    (source, probe, budget), (scan, patient, y), p, (val_scan, val_patient, val_y, v) = values
    assert (source, probe, budget) == ("run", "linear", "all")
    assert found["about"] == ABOUT
    assert (scan.tolist(), patient.tolist(), y.tolist()) == (
        [f"s{i}" for i in range(6)], ["p0", "p0", "p1", "p1", "p2", "p2"], [0, 1, 0, 1, 0, 1],
    )  # fmt: skip
    np.testing.assert_array_equal(p, np.stack(made().rows[0].p))
    np.testing.assert_array_equal(v, np.stack(made().rows[0].val))
    assert (val_scan.tolist(), val_patient.tolist(), val_y.tolist()) == (
        ["v0", "v1", "v2"],
        ["w0", "w0", "w1"],
        [0, 1, 1],
    )


def test_an_answer_replaces_the_older_one_to_the_same_question_and_no_other(tmp_path):
    made().write(tmp_path)
    made().write(tmp_path)
    assert len(predictions_of(tmp_path)) == 1
    made(about={"target": "other"}).write(tmp_path)
    assert len(predictions_of(tmp_path)) == 2
    made(about={"asked": ABOUT["asked"] | {"k": 1}}).write(tmp_path)
    assert len(predictions_of(tmp_path)) == 3


def test_a_budget_does_not_erase_another(tmp_path):
    made().write(tmp_path)
    fewer = made()
    fewer.rows = [replace(fewer.rows[0], label_budget="20 scans", drawn="5 draws of 20 scans")]
    fewer.write(tmp_path)
    other_draws = made()
    other_draws.rows = [replace(fewer.rows[0], drawn="3 draws of 20 scans")]
    other_draws.write(tmp_path)
    assert sorted({r.label_budget for p in predictions_of(tmp_path) for r in p.rows}) == ["10 %", "20 scans", "all"]
    assert len(predictions_of(tmp_path)) == 3


def test_a_file_of_an_earlier_version_is_refused_as_such(tmp_path):
    about = {k: v for k, v in ABOUT.items() if k != "asked"}
    (tmp_path / "predictions").mkdir()
    np.savez(tmp_path / "predictions" / "probe-0.npz", about=json.dumps(about), rows="[]", scan=[], patient=[], y=[])
    with pytest.raises(UserError, match=r"probe-0\.npz was written by an earlier medssl; delete it and score again"):
        predictions_of(tmp_path)


def test_what_was_asked_differently_is_named():
    a, b = {"k": 20, "steps": 1, "classes": ["no", "yes"], "lr": 0.001}, {"k": 1, "steps": 1, "classes": ["no", "yes"]}
    assert describe_differences(a, b) == "k is 20 and 1, lr is 0.001 and none"
    assert describe_differences(a, a) == ""


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
