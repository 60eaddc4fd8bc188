"""What segments in the table of `segment`: networks trained with a decoder, and probes of frozen pixels."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medssl import catalog
from medssl.encoders.config import EncoderConfig, InputConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.evals.metrics.segmentation import case
from medssl.evals.probes import dense
from medssl.evals.sliding_window import Grid, Net
from medssl.files import atomic
from medssl.progress import track
from medssl.rng import seed_from
from medssl.runs.config import Choice, PretrainConfig
from medssl.scoring import features
from medssl.scoring.targets import Subset
from medssl.store.masks import labels_to_classes, resample_masks
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store
from medssl.tasks.segment import Segment
from medssl.train.log import Log
from medssl.train.loop import train as train_loop
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

RIVALS = ("scratch", "frozen", "random frozen", "dense linear", "dense kNN")


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is called, the weights it starts from, and what is done with them.

    how: "train" all, a "decoder" alone, or read pixels by "linear" or "kNN".
    """

    features: str
    reader: str
    start: Callable[[], nn.Module]
    how: str


@dataclass(frozen=True)
class Fit:
    """What all lines of a table have in common. See `segment`."""

    labels: tuple[int, ...]
    steps: int
    batch: int
    lr: float
    weight_decay: float
    width: int
    augment: Choice
    tolerance: float
    save_every: int
    seed: int
    device: str


def lines(path: Path, config: PretrainConfig, encoder: EncoderConfig, rivals: list[str]) -> list[Row]:
    """The lines of the table, the run's own first."""

    def pretrained() -> nn.Module:
        return load_encoder(path)[0]

    def initial() -> nn.Module:
        return features.fresh(config, encoder.input)

    rows = [Row("run", "fine-tuned", pretrained, "train")]
    if "scratch" in rivals:
        rows.append(Row("random init", "end to end", initial, "train"))
    if "frozen" in rivals:
        rows.append(Row("run, frozen", "decoder only", pretrained, "decoder"))
    if "random frozen" in rivals:
        rows.append(Row("random init, frozen", "decoder only", initial, "decoder"))
    for how in ("linear", "kNN"):
        if f"dense {how}" in rivals:
            rows += [
                Row("run", f"dense {how}", pretrained, how),
                Row("random init", f"dense {how}", initial, how),
            ]
    return rows


def measured(
    folder: Path, row: Row, train: Subset, test: Subset, seed: int, wanted: InputConfig, fit: Fit
) -> np.ndarray:
    """(N, classes - 1, 4): MEASURES of every test case, by the line in `folder`, which is not done again."""
    done = folder / "test.npy"
    if not done.exists():
        net_for = _net(folder, row, train.store, train.rows, seed, wanted, fit)
        grid = Grid(test.store, wanted, fit.device)
        spacing = test.store.column("spacing")
        found = []
        for at, patient in track(zip(test.rows.tolist(), test.patient, strict=True), "segment", len(test), "scan"):
            truth = test.store.mask(at)
            assert truth is not None
            predicted = grid.segment(net_for(patient), at)
            found.append(
                case(predicted, labels_to_classes(truth, fit.labels), len(fit.labels), spacing[at], fit.tolerance)
            )
        with atomic(done) as part, part.open("wb") as f:
            np.save(f, np.stack(found))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    try:
        return np.load(done, allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{done} is damaged; delete it and run the same command again") from e


def _net(
    folder: Path, row: Row, store: Store, rows: np.ndarray, seed: int, wanted: InputConfig, fit: Fit
) -> Callable[[str], Net]:
    """test patient -> the network that segments his scans."""
    resampled = resampled_for_encoder(store, wanted)
    masks = resample_masks(store, fit.labels, resampled.size, wanted.spacing)
    encoder = row.start()
    if row.how in ("linear", "kNN"):
        pixels = dense.sample(
            encoder, resampled, masks, rows, store.column("patient"), len(fit.labels), seed=seed, device=fit.device
        )
        if row.how == "kNN":
            return dense.by_neighbours(encoder, pixels)
        fitted = dense.linear(encoder, pixels)
        return lambda patient: fitted
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 1))
        method = Segment(encoder, len(fit.labels), fit.width, frozen=row.how == "decoder")
        train_loop(
            Fabric(accelerator=fit.device, devices=1), method,
            TrainingData(resampled, rows, catalog.build(fit.augment.spec("augment"), size=resampled.size), masks),
            TrainOptions(
                fit.steps, min(fit.batch, len(rows)), seed, Optim(lr=fit.lr, weight_decay=fit.weight_decay),
                save_every=fit.save_every,
            ),
            folder / "checkpoints", Log(folder, "jsonl", {}),
        )  # fmt: skip
    method = method.eval().to(fit.device)

    def net(x: Tensor) -> Tensor:
        return method.scores(x).softmax(1)

    return lambda patient: net
