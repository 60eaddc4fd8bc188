"""The linear probe of a run, kept with it as numbers, so that it can be used on new scans."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError, nearest
from medssl.evals.probes.model_selection import Probe
from medssl.evals.task_types.task_types import task_type
from medssl.files import atomic, digest
from medssl.scoring.targets import Target

FOLDER = "probes"


@dataclass(frozen=True)
class KeptProbe:
    """A linear model of features: its predictions are a function of x @ weight.T + bias.

    Attributes:
        target: the name of the target in words. task, names: see `medssl.scoring.targets.Target`. unit: of a number.
        present: numbers of the classes or levels that training had.
        encoder: the digest of the encoder's weights that it was fitted on.
        weight (J, D), bias (J,): float64.
    """

    target: str
    task: str
    names: tuple[str, ...]
    unit: str
    present: tuple[int, ...]
    encoder: str
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    @classmethod
    def of(cls, target: Target, probe: Probe, y: NDArray[np.float64], encoder: str) -> "KeptProbe | None":
        """Return a fitted probe for keeping, None if its scores are not linear. y: the targets it was fitted on."""
        if probe.weight_bias is None:
            return None
        classes = target.kind.scored_by_class and y.ndim == 1
        present = tuple(int(v) for v in np.unique(y)) if classes else ()
        weight, bias = (np.asarray(v, np.float64) for v in probe.weight_bias)
        return cls(str(target), target.task, target.names, target.unit, present, encoder, weight, bias)

    def predict(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return predictions of features (N, D) as the task's metrics take them: (N, names) probabilities, or (N,) numbers."""
        example = np.array(self.present) if self.present else np.array([0.0, 1.0])
        if self.task == "multilabel":
            example = np.repeat(example[:, None], len(self.names), 1)
        link = task_type(self.task).encode(example, len(self.names)).predict
        return link(np.asarray(x, np.float64) @ self.weight.T + self.bias)

    def write(self, run: Path) -> Path:
        """Write it to RUN/probes, in place of an older one of the same target, and return its path."""
        path = run / FOLDER / f"{digest([self.target, self.task, self.names])}.npz"
        about = {k: getattr(self, k) for k in ("target", "task", "names", "unit", "present", "encoder")}
        with atomic(path) as part, part.open("wb") as f:
            np.savez(f, about=json.dumps(about), weight=self.weight, bias=self.bias)
        return path

    @classmethod
    def read(cls, path: Path) -> "KeptProbe":
        """Raises UserError for a damaged file."""
        try:
            with np.load(path, allow_pickle=False) as f:
                about = json.loads(str(f["about"]))
                lists = {k: tuple(about[k]) for k in ("names", "present")}
                return cls(**about | lists, weight=f["weight"], bias=f["bias"])
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as e:
            raise UserError(f"{path} is damaged; delete it and run medssl probe again") from e


def find_probe(run: Path, target: str | None, encoder: str) -> KeptProbe:
    """Return the probe of a target kept in a run; None: the only one.

    encoder: the digest of the run's weights. Raises UserError if there is none, or several, or it is of other weights.
    """
    found = {p.target: p for p in map(KeptProbe.read, sorted((run / FOLDER).glob("*.npz")))}
    again = f"medssl probe run={run} store=STORE target={target or 'LABEL'}"
    if not found:
        raise UserError(f"{run} keeps no linear probe; fit one: {again}")
    if target is None and len(found) > 1:
        raise UserError(f"{run} keeps probes of {', '.join(found)}; say which: target={next(iter(found))}")
    chosen = next(iter(found)) if target is None else target
    if chosen not in found:
        raise UserError(f"{run} keeps no linear probe of {chosen!r}.{nearest(chosen, found)} To fit it: {again}")
    if found[chosen].encoder != encoder:
        raise UserError(
            f"the probe of {chosen} in {run} was fitted on other weights of the encoder; fit it again: {again}"
        )
    return found[chosen]
