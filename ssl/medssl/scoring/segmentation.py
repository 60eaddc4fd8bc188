"""Segmentation: scans with masks, the rows of the table, and training and measuring one of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medssl.encoders.export import load_decoder
from medssl.errors import UserError
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.metrics.segmentation import MEASURES, case
from medssl.evals.probes import dense
from medssl.evals.sliding_window import Grid, Net
from medssl.evals.stats.bootstrap import score_seeds
from medssl.evals.stats.score import Score
from medssl.progress import track
from medssl.rng import seed_from
from medssl.runs.predictions import RUN, RUN_ENCODER, RUN_FROZEN, PredictedRow
from medssl.scoring.baselines import RANDOM_INIT_FROZEN, Baseline, FeatureSources
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, Stores
from medssl.scoring.features import check_input
from medssl.scoring.kept_segmentation import keep_network
from medssl.scoring.targets import Subset, Target
from medssl.scoring.trained_rows import LabelDraw, TrainedRow
from medssl.scoring.training import LONGER, TrainingSettings, end_to_end, train_in
from medssl.store.masks import labels_to_classes, mask_labels, resample_masks
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store
from medssl.tasks.segment import Segment

SCRATCH, LONG_SCRATCH, *_ = BASELINES = (
    "scratch", f"scratch {LONGER}x", "frozen", "random frozen", "dense linear", "dense kNN"
)  # fmt: skip


@dataclass(frozen=True)
class SegmentationRow(TrainedRow):
    """A row and its model: "train" all weights, the "decoder" only, or a probe of every pixel, "linear" or "kNN".

    decoder: whether the decoder starts from the run's, rather than from random weights. times: the steps of training, as a
    multiple of the settings'.
    """

    model: str
    decoder: bool = False
    times: int = 1


@dataclass(frozen=True)
class Segmentation:
    """The data and settings that all rows of a table share.

    Attributes:
        labels: the values in masks, background first. width: channels of the decoder's finest level.
        tolerance: tolerance of the surface Dice, in mm, or in pixels where no spacing is known.
    """

    sources: FeatureSources
    splits: EvalSplits
    settings: TrainingSettings
    labels: tuple[int, ...]
    width: int
    tolerance: float

    def __post_init__(self) -> None:
        Segment(self.sources.pretrained(), len(self.labels), self.width)  # refuses an encoder without feature maps

    def described(self) -> dict[str, Any]:
        """Return the JSON values that the models depend on, apart from row and draw."""
        settings = asdict(self.settings) | {"augment": self.settings.augment.as_dict()}
        return {
            "version": 1,
            "splits": {k: v for k, v in self.splits.described().items() if k not in ("flags", "overlap", "test")},
            "weights": self.sources.encoder.weights,
            **({"decoder": self.sources.encoder.decoder} if self.sources.encoder.decoder else {}),
            "settings": {k: v for k, v in settings.items() if k not in ("save_every", "seed")},
            "model": {"labels": list(self.labels), "width": self.width, "tolerance": self.tolerance},
        }

    def rows(self, baselines: Sequence[str]) -> list[SegmentationRow]:
        """Return the rows of the table, the run's own first; with a pretrained decoder, the encoder alone is the second."""
        pretrained, initial, random = self.sources.pretrained, self.sources.initial, Baseline.RANDOM_INIT.value
        rows = (
            {
                name: [SegmentationRow(random, end_to_end(times), initial, "train", times=times)]
                for name, times in ((SCRATCH, 1), (LONG_SCRATCH, LONGER))
            }
            | {
                "frozen": [SegmentationRow(RUN_FROZEN, "decoder only", pretrained, "decoder")],
                "random frozen": [SegmentationRow(RANDOM_INIT_FROZEN, "decoder only", initial, "decoder")],
            }
            | {
                f"dense {model}": [
                    SegmentationRow(RUN, f"dense {model}", pretrained, model),
                    SegmentationRow(random, f"dense {model}", initial, model),
                ]
                for model in ("linear", "kNN")
            }
        )
        own = [SegmentationRow(RUN, "fine-tuned", pretrained, "train", self.sources.encoder.decoder is not None)]
        if own[0].decoder:
            own.append(SegmentationRow(RUN_ENCODER, "fine-tuned", pretrained, "train"))
        return [*own, *(r for name in baselines for r in rows[name])]

    def predict(self, folder: Path, row: SegmentationRow, draw: LabelDraw) -> list[np.ndarray]:
        """Return MEASURES of every test scan and class, one array (N, classes - 1, 4), of a model trained in `folder`."""
        test, classes = self.splits.test, len(self.labels)
        model = self._model(folder, row, draw)
        grid = Grid(test.store, self.sources.encoder.input, self.settings.device)
        spacing = test.store.column("spacing")
        found = []
        for at, patient in track(zip(test.rows.tolist(), test.patient, strict=True), "segment", len(test), "scan"):
            mask = test.store.mask(at)
            assert mask is not None
            predicted = grid.segment(model(patient), at)
            found.append(case(predicted, labels_to_classes(mask, self.labels), classes, spacing[at], self.tolerance))
        return [np.stack(found)]

    def _model(self, folder: Path, row: SegmentationRow, draw: LabelDraw) -> Callable[[str], Net]:
        """Return the network for the scans of a test patient."""
        labelled, wanted, classes = self.splits.train.take(draw.rows), self.sources.encoder.input, len(self.labels)
        store, device = labelled.store, self.settings.device
        resampled = resampled_for_encoder(store, wanted)
        masks = resample_masks(store, self.labels, resampled.size, wanted.spacing)
        encoder = row.start()
        if row.model in ("linear", "kNN"):
            options: dict[str, Any] = {"seed": draw.seed, "device": device}
            pixels = dense.sample(encoder, resampled, masks, labelled.rows, store.column("patient"), classes, **options)
            if row.model == "kNN":
                return dense.by_neighbours(encoder, pixels)
            fitted = dense.linear(encoder, pixels)
            return lambda patient: fitted
        with torch.random.fork_rng():
            torch.manual_seed(seed_from(draw.seed, 1))
            decoder = load_decoder(self.sources.path, self.sources.encoder, classes) if row.decoder else None
            method = Segment(encoder, classes, self.width, row.model == "decoder", decoder)
            settings = replace(self.settings, seed=draw.seed, steps=row.times * self.settings.steps)
            train_in(folder, method, store, labelled.rows, wanted, settings, masks)
        if (row.source, row.model) == (RUN, "train"):
            keep_network(folder, method, self.labels, self.width)
        method = method.eval().to(device)

        def net(x: Tensor) -> Tensor:
            return method.scores(x).softmax(1)

        return lambda patient: net


def load_mask_splits(
    sources: FeatureSources, store: str | Path | Store, options: SplitOptions
) -> tuple[EvalSplits, tuple[int, ...]]:
    """Return the splits of the scans with masks, and the values in the training masks, background first.

    Raises UserError if there are no training or test masks, and as `load_splits` does.
    """
    home, away, test_rows, name = Stores.open(store, options)
    for each in (home, away):
        check_input(sources.encoder.input, each)
    subsets = (_with_mask(home, home.rows("train")), _with_mask(home, home.rows("val")), _with_mask(away, test_rows))
    for subset, what in ((subsets[0], "training"), (subsets[2], "test")):
        if not len(subset):
            raise UserError(
                f"no {what} scan of {subset.store.path} has a mask; ingest images and masks together (see masks= there)"
            )
    labels = mask_labels(home, subsets[0].rows)
    if len(labels) < 2:
        raise UserError(f"the training masks of {home.path} contain only background")
    target = Target(("mask",), "per_case", tuple(map(str, labels[1:])))
    splits = EvalSplits.checked(sources.run, sources.encoder, target, subsets, name, options.allow_overlap)
    if unseen := sorted(set(mask_labels(away, subsets[2].rows)) - set(labels)):
        splits.flags.append(f"labels {', '.join(map(str, unseen))} are in test masks only, and count as background")
    return splits, labels


def measured_scores(p: Sequence[np.ndarray], test: Subset, seed: int, k: int | None = None) -> dict[str, Score]:
    """Return MEASURES, averaged over scans and draws; each scan's is the mean over classes, or that of class `k`."""
    return {
        measure: score_seeds(MEAN, test.y, [per_case(draw, i, k) for draw in p], test.patient, draws=len(p), seed=seed)
        for i, measure in enumerate(MEASURES)
    }


def per_case(measured: np.ndarray, measure: int, k: int | None = None) -> np.ndarray:
    """Return one measure of every scan, (N,): the mean over classes, or the value of class `k`."""
    return measured[:, :, measure].mean(1) if k is None else measured[:, k, measure]


def dice_rows(rows: Sequence[PredictedRow]) -> list[PredictedRow]:
    """Return rows whose predictions are the Dice of every scan."""
    return [replace(row, p=[per_case(draw, 0) for draw in row.p]) for row in rows]


def _with_mask(store: Store, rows: np.ndarray) -> Subset:
    """Return the scans among `rows` that have a mask; y is the number of voxels that are not background."""
    with_mask = rows[store.column("mask")[rows] != ""]
    masks = (store.mask(row) for row in with_mask.tolist())
    y = np.array([0 if mask is None else np.count_nonzero(mask) for mask in masks], np.float64)
    return Subset(store, with_mask, y, len(rows) - len(with_mask), 0)
