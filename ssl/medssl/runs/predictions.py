"""Predictions for each test scan, kept so that runs can be compared on the same patients: RUN/predictions/COMMAND-DIGEST.npz.

One file holds all rows of one score table; a table in scores.json names its file. With numpy alone:

    f = np.load(path)
    about, rows = json.loads(str(f["about"])), json.loads(str(f["rows"]))
    rows[0]["source"], rows[0]["probe"], rows[0]["label_budget"]   # "run", "linear", "all"
    f["scan"], f["patient"], f["y"]                                # (N,), (N,), (N, …): the test scans and their targets
    f["p0"]                                                        # (draws, N, …): what rows[0] predicts for them
    f["val_scan"], f["val_patient"], f["val_y"], f["v0"]           # the same for the validation scans, where there are any

scan and patient are the pseudonyms of the store. y and p are as the metrics of the task take them (`medssl.evals.metrics`):

    task            y                                          p
    classification  (N,) number of the class in about[classes]    (N, classes) probabilities
    multilabel      (N, findings) 0, 1 or nan where unknown       (N, findings) probabilities
    ordinal         (N,) level                                    (N, levels) probabilities
    regression      (N,) value                                    (N,) value
    survival        (N, 2) time, event                            (N,) log risk
    per_case        (N,) not scored                               (N,) a measure of the scan, such as Dice or MAP@R

`about` has the command, the target with its task and classes, the test set, the stores' fingerprints, the flags of the table, and
in `asked` everything else that two tables must have in common to be compared. A row has its source, probe and label budget, the
number of its draws of labels and which scans they are (`drawn`), and in `fits` the penalty chosen for each draw (see `fit_of`).
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic, digest

RUN, RUN_FROZEN, RUN_ENCODER = "run", "run, frozen", "run, encoder alone"
"""Sources of features: all that the run pretrained; its encoder without training it on labels; its encoder without its decoder.
Others are names of baselines."""

POOLED = ("attentive", "mil")
"""Probes beside the linear one; tables with other ones are kept side by side."""


@dataclass
class PredictedRow:
    """Predictions of one probe on one kind of features with one label budget.

    Attributes:
        source: RUN, RUN_FROZEN or the name of a baseline.
        probe: linear, attentive, mil, kNN, fine-tuned, …
        p: one array per draw of labels, (N, …) as the task's metrics take it; for per_case one number per scan.
        label_budget: "all", "10 %" or "50 scans".
        drawn: the labelled scans of all draws in words, with a digest; "" where all training scans are used.
        val: the same as `p` for the validation scans; empty where there are none.
        fits: one dict per draw about the choice of the penalty (C, loss, path, converged, how); empty without a penalty.
    """

    source: str
    probe: str
    p: list[np.ndarray]
    label_budget: str = "all"
    drawn: str = ""
    val: list[np.ndarray] = field(default_factory=list)
    fits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str, str]:
        """Source, probe and label budget, unique within a table."""
        return self.source, self.probe, self.label_budget

    @property
    def converged(self) -> bool:
        """Return whether the fits of all draws converged."""
        return all(fit["converged"] for fit in self.fits)


@dataclass
class PredictedScans:
    """The scans of a split: scan, patient (N,) pseudonyms, and y (N, …) targets as the metrics take them."""

    scan: np.ndarray
    patient: np.ndarray
    y: np.ndarray


@dataclass
class Predictions:
    """All rows of one score table, with the test scans they are for.

    Attributes:
        about: command, target, task, classes, test, train_store, test_store, flags, overlap and asked: see the file's docstring.
        scan, patient: (N,) pseudonyms. y: (N, …) targets as the metrics take them.
        val: the validation scans that `PredictedRow.val` is for, or None.
    """

    about: dict[str, Any]
    scan: np.ndarray
    patient: np.ndarray
    y: np.ndarray
    rows: list[PredictedRow] = field(default_factory=list)
    val: PredictedScans | None = None

    @property
    def file(self) -> str:
        """The file's name in a run folder: the same for the same question on the same label budgets."""
        rows = [{"label_budget": row.label_budget, "drawn": row.drawn, "probe": row.probe} for row in self.rows]
        return f"predictions/{self.about['command']}-{digest(identity(self.about | {'rows': rows}))}.npz"

    def write(self, run: Path) -> Path:
        """Write the file atomically, in place of an older one of the same name, and return its path."""
        path = run / self.file
        described = [
            {"source": r.source, "probe": r.probe, "label_budget": r.label_budget, "draws": len(r.p)}
            | {"drawn": r.drawn, "fits": r.fits}
            for r in self.rows
        ]
        arrays = {f"p{i}": np.stack(r.p).astype(np.float64) for i, r in enumerate(self.rows)}
        arrays |= {"scan": self.scan.astype(str), "patient": self.patient.astype(str), "y": self.y}
        if self.val is not None:
            arrays |= {f"v{i}": np.stack(r.val).astype(np.float64) for i, r in enumerate(self.rows) if r.val}
            arrays |= {"val_scan": self.val.scan.astype(str), "val_patient": self.val.patient.astype(str)}
            arrays["val_y"] = self.val.y
        texts = {"about": json.dumps(self.about), "rows": json.dumps(described)}
        with atomic(path) as part, part.open("wb") as f:
            np.savez_compressed(f, **texts, **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Raises UserError for a file that is damaged or was written by an earlier version."""
        try:
            with np.load(path, allow_pickle=False) as f:
                about = json.loads(str(f["about"]))
                if "asked" not in about:
                    raise UserError(f"{path} was written by an earlier medssl; delete it and score again")
                rows = [
                    PredictedRow(
                        r["source"], r["probe"], list(f[f"p{i}"]), r["label_budget"], r["drawn"],
                        list(f[f"v{i}"]) if f"v{i}" in f else [], r["fits"],
                    )
                    for i, r in enumerate(json.loads(str(f["rows"])))
                ]  # fmt: skip
                val = PredictedScans(f["val_scan"], f["val_patient"], f["val_y"]) if "val_y" in f else None
                return cls(about, f["scan"], f["patient"], f["y"], rows, val)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(f"{path} is damaged; delete it and score again") from e


def predictions_of(run: Path) -> list[Predictions]:
    """Return all predictions kept in a run folder, in a fixed order."""
    return [Predictions.read(path) for path in sorted((run / "predictions").glob("*.npz"))]


def identity(table: Mapping[str, Any]) -> list[Any]:
    """Return the JSON values that a score table has in common with another only if it answers the same question.

    Raises KeyError for a table that lacks them.
    """
    rows = table.get("rows", [])
    budgets = sorted({(row["label_budget"], row["drawn"]) for row in rows})
    pooled = sorted({row["probe"] for row in rows} & set(POOLED))
    return [table["command"], table["target"], table["asked"], budgets, *([pooled] if pooled else [])]


def describe_mismatch(predictions: Sequence[Predictions]) -> str:
    """Return how the test scans or their targets differ; "" if they are the same."""
    first = predictions[0]
    for other in predictions[1:]:
        mine, theirs = set(first.scan.tolist()), set(other.scan.tolist())
        if mine != theirs:
            return f"{len(mine - theirs)} test scans are only in the first run's table and {len(theirs - mine)} only in another's"
        at = np.argsort(first.scan, kind="stable"), np.argsort(other.scan, kind="stable")
        if not np.array_equal(first.y[at[0]], other.y[at[1]], equal_nan=first.y.dtype.kind == "f"):
            return "the labels of the test scans differ"
    return ""


def different_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the keys with different values in `a` and `b`, or in only one of them."""
    return [k for k in dict.fromkeys([*a, *b]) if k not in a or k not in b or a[k] != b[k]]


def describe_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return what was asked differently: "k is 1 and 20, balanced is true and false"."""
    return ", ".join(f"{k} is {in_words(a.get(k))} and {in_words(b.get(k))}" for k in different_keys(a, b))


def in_words(value: Any) -> str:
    """Return a JSON value in words."""
    if isinstance(value, list):
        return ", ".join(map(in_words, value)) or "none"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
