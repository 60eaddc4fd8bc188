"""Predictions for each test scan, kept so that runs can be compared on the same patients: RUN/predictions/*.npz."""

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic, digest

RUN, RUN_FROZEN = "run", "run, frozen"
"""Sources of features: the run's encoder, and the same without training it on labels. Others are names of baselines."""


@dataclass
class PredictedRow:
    """Predictions of one probe on one kind of features with one label budget.

    Attributes:
        source: RUN, RUN_FROZEN or the name of a baseline.
        probe: linear, kNN, fine-tuned, …
        p: one array per draw of labels, (N, …) as the task's metrics take it; for per_case one number per scan.
        label_budget: "all", "10 %" or "50 scans".
    """

    source: str
    probe: str
    p: list[np.ndarray]
    label_budget: str = "all"

    @property
    def key(self) -> tuple[str, str, str]:
        """Source, probe and label budget, unique within a table."""
        return self.source, self.probe, self.label_budget


@dataclass
class Predictions:
    """All rows of one score table, with the test scans they are for.

    Attributes:
        about: the command; name, task and classes of the target; the fingerprint of the test store.
        scan, patient: (N,) pseudonyms. y: (N, …) targets as the metrics take them.
    """

    about: dict[str, Any]
    scan: np.ndarray
    patient: np.ndarray
    y: np.ndarray
    rows: list[PredictedRow] = field(default_factory=list)

    @property
    def question(self) -> tuple[str, ...]:
        """Values that must be equal for two runs to be compared."""
        return tuple(json.dumps(self.about[k]) for k in ("command", "target", "task", "classes", "test_store"))

    def write(self, run: Path) -> Path:
        """Write the file atomically, in place of an older one with the same `question`, and return its path."""
        path = run / "predictions" / f"{self.about['command']}-{digest(self.question)}.npz"
        described = [
            {"source": r.source, "probe": r.probe, "label_budget": r.label_budget, "draws": len(r.p)} for r in self.rows
        ]
        arrays = {f"p{i}": np.stack(r.p).astype(np.float64) for i, r in enumerate(self.rows)}
        with atomic(path) as part, part.open("wb") as f:
            np.savez_compressed(
                f, about=json.dumps(self.about), rows=json.dumps(described), scan=self.scan.astype(str),
                patient=self.patient.astype(str), y=self.y, **arrays,  # type: ignore[arg-type]
            )  # fmt: skip
        return path

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Raises UserError for a file that is damaged or was written by an earlier version."""
        try:
            with np.load(path, allow_pickle=False) as f:
                if "entries" in f:
                    raise UserError(f"{path} was written by an earlier medssl; delete it and score again")
                rows = [
                    PredictedRow(r["source"], r["probe"], list(f[f"p{i}"]), r["label_budget"])
                    for i, r in enumerate(json.loads(str(f["rows"])))
                ]
                return cls(json.loads(str(f["about"])), f["scan"], f["patient"], f["y"], rows)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(f"{path} is damaged; delete it and score again") from e


def predictions_of(run: Path) -> list[Predictions]:
    """Return all predictions kept in a run folder, in a fixed order."""
    return [Predictions.read(path) for path in sorted((run / "predictions").glob("*.npz"))]


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
