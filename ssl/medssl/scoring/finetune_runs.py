"""One training on labels in a folder of its own: gone on with when it was stopped, not done again when it is finished."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import save_file
from torch import nn

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import save_encoder
from medssl.errors import UserError
from medssl.files import atomic
from medssl.runs.config import Choice
from medssl.scoring import features
from medssl.scoring.eval_splits import EvalSplits
from medssl.tasks.supervised import Supervised
from medssl.train.optim import Optim


@dataclass(frozen=True)
class FinetuneRow:
    """A line of the table: what it is called, the weights it starts from, and which of them are trained."""

    features: str
    reader: str
    start: Callable[[], nn.Module]
    optim: Optim
    blocks: int | None


class LabelSubset(NamedTuple):
    """A budget in words, the seed that drew it, and the positions of its scans in training."""

    budget: str
    seed: int
    rows: np.ndarray


@dataclass(frozen=True)
class FinetuneSettings:
    """What all fits of a table have in common. See `medssl.finetune`."""

    steps: int
    batch: int
    augment: Choice
    device: str


@dataclass(frozen=True)
class FinetuneRuns:
    """Fits that answer one question, each in a folder below `home`. encoder: config of the run's encoder."""

    home: Path
    splits: EvalSplits
    encoder: EncoderConfig
    fit: FinetuneSettings
    save_every: int

    def folder(self, row: FinetuneRow, draw: LabelSubset) -> Path:
        """Of one fit."""
        name = f"{draw.budget} {draw.seed} {row.features} {row.reader}"
        return self.home / name.replace("%", "percent").replace(",", "").replace(" ", "-")

    def predict(self, row: FinetuneRow, draw: LabelSubset, keep: bool) -> np.ndarray:
        """(N, …) for the test scans; with `keep` the trained encoder and head stay in the folder."""
        folder, test, target = self.folder(row, draw), self.splits.test, self.splits.target
        done = folder / "test.npy"
        if not done.exists() or (keep and not (folder / "encoder.json").exists()):
            part, fit = self.splits.train.take(draw.rows), self.fit
            target_loss = target.kind.target_loss(part.y, target.width)
            method = features.learn(
                row.start(), self.encoder.input, target_loss, part.store, part.rows, part.y, folder,
                views=fit.augment.spec("augment"), steps=fit.steps, batch=min(fit.batch, len(part)), seed=draw.seed,
                device=fit.device, optim=row.optim, blocks=row.blocks, save_every=self.save_every,
            )  # fmt: skip
            p = features.predictor(method, self.encoder.input, fit.device)(test.store, test.rows)
            if keep:
                self._hand_over(folder, method, part.y)
            with atomic(done) as beside, beside.open("wb") as f:
                np.save(f, p)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        try:
            return np.load(done, allow_pickle=False)
        except (ValueError, EOFError, OSError) as e:
            raise UserError(f"{done} is damaged; delete it and run the same command again") from e

    def _hand_over(self, folder: Path, method: Supervised, y: np.ndarray) -> None:
        """The encoder's pair and its head."""
        target, (weight, bias) = self.splits.target, method.linear()
        with atomic(folder / "head.safetensors") as part:
            save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()}, part)
        head: dict[str, Any] = {"target": str(target), "task": target.task, "classes": list(target.names)}
        if target.task == "regression":
            head |= {"mean": float(y.mean()), "std": float(y.std())}  # of the target, which scores are in units of
        trained = {"store": self.splits.train.store.fingerprint, "scans": len(y), "from": self.encoder.weights}
        save_encoder(folder, method.encoder, replace(self.encoder, head=head, fine_tuned=trained))
