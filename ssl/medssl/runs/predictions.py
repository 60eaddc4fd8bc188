"""What was predicted for each test scan, kept so that runs can be compared on the same patients: RUN/predictions/*.npz."""

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic


@dataclass
class TableRow:
    """One row of a table: what one reader made of one kind of features at one budget of labels.

    Attributes:
        features: "run" for the run's own, else the name of a baseline.
        reader: linear, kNN, fine-tuned, …
        labels: the budget in words, "all" or "10 %" or "50".
        p: one array per draw of the labels, (N, …) as the task's metrics take it; `cases`: a number per scan.
    """

    features: str
    reader: str
    p: list[np.ndarray]
    labels: str = "all"

    @property
    def name(self) -> tuple[str, str, str]:
        """What an entry is found by."""
        return self.features, self.reader, self.labels


@dataclass
class Predictions:
    """All entries of one table, with the test scans they are about.

    Attributes:
        about: the command, and of the target its name, task and classes, and the fingerprint of the test store.
        scan, patient: (N,) pseudonyms. y: (N, …) the truth as metrics take it.
    """

    about: dict[str, Any]
    scan: np.ndarray
    patient: np.ndarray
    y: np.ndarray
    entries: list[TableRow] = field(default_factory=list)

    @property
    def question(self) -> tuple[Any, ...]:
        """What must be equal for two runs to be compared."""
        return tuple(json.dumps(self.about[k]) for k in ("command", "target", "task", "classes", "test_store"))

    def write(self, run: Path) -> Path:
        """Atomic; an older answer to the same question is replaced. Returns the file."""
        name = hashlib.blake2b(json.dumps(self.question).encode(), digest_size=6).hexdigest()
        path = run / "predictions" / f"{self.about['command']}-{name}.npz"
        said = [
            {"features": e.features, "reader": e.reader, "labels": e.labels, "draws": len(e.p)} for e in self.entries
        ]
        arrays = {f"p{i}": np.stack(e.p).astype(np.float64) for i, e in enumerate(self.entries)}
        with atomic(path) as part, part.open("wb") as f:
            np.savez_compressed(
                f, about=json.dumps(self.about), entries=json.dumps(said), scan=self.scan.astype(str),
                patient=self.patient.astype(str), y=self.y, **arrays,  # type: ignore[arg-type]
            )  # fmt: skip
        return path

    @classmethod
    def read(cls, path: Path) -> "Predictions":
        """Raises UserError when the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as f:
                said = json.loads(str(f["entries"]))
                entries = [
                    TableRow(e["features"], e["reader"], list(f[f"p{i}"]), e["labels"]) for i, e in enumerate(said)
                ]
                return cls(json.loads(str(f["about"])), f["scan"], f["patient"], f["y"], entries)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(f"{path} is damaged; delete it and run the command that made it again") from e


def of_run(run: Path) -> list[Predictions]:
    """Everything a run has predicted, in a fixed order."""
    return [Predictions.read(path) for path in sorted((run / "predictions").glob("*.npz"))]


def same_scans(all_: Sequence[Predictions]) -> str:
    """ "" when these are about the same test scans with the same truth, else what differs."""
    first = all_[0]
    for other in all_[1:]:
        mine, theirs = set(first.scan.tolist()), set(other.scan.tolist())
        if mine != theirs:
            return f"{len(mine - theirs)} test scans are in the first run's table only and {len(theirs - mine)} in another's only"
        at = np.argsort(first.scan, kind="stable"), np.argsort(other.scan, kind="stable")
        if not np.array_equal(first.y[at[0]], other.y[at[1]], equal_nan=first.y.dtype.kind == "f"):
            return "the labels of the test scans differ"
    return ""
