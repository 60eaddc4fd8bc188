"""Fine-tuning: the rows of its table, and training and exporting one of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import nn

from medssl import catalog
from medssl.encoders.export import save_encoder
from medssl.encoders.timm2d import weights_available
from medssl.errors import UserError
from medssl.files import atomic
from medssl.runs.predictions import RUN, RUN_FROZEN, PredictedRow
from medssl.scoring import probes
from medssl.scoring.baselines import RANDOM_INIT_FROZEN, Baseline, FeatureSources
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource, from_encoder
from medssl.scoring.probe_heads import fit_head
from medssl.scoring.trained_rows import LabelDraw, TrainedRow
from medssl.scoring.training import LONGER, TrainingSettings, end_to_end, predictor, train_supervised
from medssl.tasks.supervised import Supervised
from medssl.train.optim import Optim

SCRATCH, LONG_SCRATCH, PROBE, RANDOM_PROBE, IMAGENET = BASELINES = (
    "scratch",
    f"scratch {LONGER}x",
    "linear probe",
    "random frozen",
    "ImageNet",
)
HEADS = ("probe", "random")


@dataclass(frozen=True)
class FinetunedRow(TrainedRow):
    """A row with its settings.

    Attributes:
        settings: with its own steps and optimizer.
        blocks: the number of last blocks that are trained; None: all.
        features: of the frozen encoder, if the head begins at their linear probe; None: at random.
    """

    settings: TrainingSettings
    blocks: int | None = None
    features: FeatureSource | None = None


@dataclass(frozen=True)
class Finetuning:
    """The data and settings that all rows of a table share.

    Attributes:
        settings, blocks, head: of the pretrained rows; `head` is one of HEADS. scratch: optimizer of the others.
    """

    sources: FeatureSources
    splits: EvalSplits
    settings: TrainingSettings
    scratch: Optim
    blocks: int | None
    head: str

    def described(self) -> dict[str, Any]:
        """Return the JSON values that the trained weights depend on, apart from row and draw."""
        splits = {k: v for k, v in self.splits.described().items() if k not in ("flags", "overlap", "test")}
        splits["validation"] = self.splits.val.described()
        splits |= {"positive": list(self.splits.target.positive), "weights": self.sources.encoder.weights}
        settings = asdict(self.settings) | {"augment": self.settings.augment.as_dict(), "blocks": self.blocks}
        settings |= {"head": self.head, "scratch": asdict(self.scratch) | {"longer": LONGER}}
        return {
            "version": 3,
            "splits": splits,
            "settings": {k: v for k, v in settings.items() if k not in ("save_every", "seed")},
        }

    def rows(self, baselines: Sequence[str]) -> list[FinetunedRow]:
        """Return the trained rows, the run's own first; flags an ImageNet baseline whose weights are not on this machine."""
        sources, settings = self.sources, self.settings
        if not sources.pretrained().by_depth():  # type: ignore[operator]
            raise UserError(f"{sources.encoder.name} has no trainable weights; score it with medssl probe")
        rows = [self._tuned(RUN, sources.pretrained, sources.of_run())]
        for name, times in ((SCRATCH, 1), (LONG_SCRATCH, LONGER)):
            if name in baselines:
                own = replace(settings, optim=self.scratch, steps=times * settings.steps)
                rows.append(FinetunedRow(Baseline.RANDOM_INIT.value, end_to_end(times), sources.initial, own))
        if IMAGENET in baselines:
            encoder = sources.config.encoder
            spec = encoder.spec("encoder") | {"pretrained": True}
            if "pretrained" in encoder.options and len(self._size) == 2 and weights_available(spec["model"]):

                def imagenet() -> nn.Module:
                    return catalog.build(spec, channels=sources.encoder.channels, size=self._size)

                features = from_encoder(imagenet(), sources.encoder.input, sources.device)
                rows.append(self._tuned(Baseline.IMAGENET.value, imagenet, features))
            else:
                self.splits.flags.append(f"no row for ImageNet: its weights of {encoder.name} are not on this machine")
        return rows

    def _tuned(self, source: str, start: Callable[[], nn.Module], features: FeatureSource) -> FinetunedRow:
        probed = features if self.head == "probe" else None
        return FinetunedRow(source, "fine-tuned", start, self.settings, self.blocks, probed)

    @property
    def _size(self) -> tuple[int, ...]:
        return self.sources.encoder.size

    def probed(self, baselines: Sequence[str], subsets: probes.Subsets, draws: int) -> list[PredictedRow]:
        """Return the rows of linear probes on frozen features, on the same draws of labels."""
        sources, splits, frozen = self.sources, self.splits, {}
        if splits.target.kind.linear_model:
            if PROBE in baselines:
                frozen[RUN_FROZEN] = sources.of_run()
            if RANDOM_PROBE in baselines:
                frozen[RANDOM_INIT_FROZEN] = sources.frozen(Baseline.RANDOM_INIT)
        seed, tests = self.settings.seed, splits.predicted
        options: dict[str, Any] = {"subsets": subsets, "seed": seed, "device": sources.device}
        labelled = probes.describe_draws(splits, subsets, seed, trained=draws)
        return [
            probes.predicted_row(
                name, "linear", found * (draws // len(found)), budget, labelled[budget], val=len(tests) - 1 or None
            )
            for name, source in frozen.items()
            for budget, found in probes.linear(source, splits, tests, **options).items()
        ]

    def check(self, draws: Sequence[LabelDraw]) -> None:
        """Raise UserError for draws with a single scan or a single class."""
        target = self.splits.target
        for draw in draws:
            y = self.splits.train.y[draw.rows]
            if len(y) < 2:
                raise UserError(f"label_budgets={draw.budget} is {len(y)} scan; a batch needs 2 or more")
            if target.kind.least_squares and not y.std():
                raise UserError(
                    f"label_budgets={draw.budget}: all {len(y)} scans have the same {target}; give more labels"
                )

    def predict(self, folder: Path, row: FinetunedRow, draw: LabelDraw, export: bool) -> list[np.ndarray]:
        """Train a row in `folder` and predict (N, …) each of `EvalSplits.predicted`; `export` keeps encoder and head."""
        labelled, target = self.splits.train.take(draw.rows), self.splits.target
        wanted, settings = self.sources.encoder.input, replace(row.settings, seed=draw.seed)
        loss = target.kind.target_loss(labelled.y, target.width)
        head = None
        if row.features is not None:
            by = self.settings.seed, settings.device
            head = fit_head(row.features, self.splits, draw.rows, draw.budget, *by)
        method = train_supervised(folder, row.start(), wanted, loss, labelled, settings, row.blocks, head)
        predicted = predictor(method, wanted, settings.device)
        p = [predicted(part.store, part.rows) for part in self.splits.predicted]
        if export:
            self._export(folder, method, labelled.y)
        return p

    def _export(self, folder: Path, method: Supervised, y: np.ndarray) -> None:
        """Write the encoder, its config, and head.safetensors."""
        target, (weight, bias) = self.splits.target, method.linear()
        with atomic(folder / "head.safetensors") as part:
            save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()}, part)
        head: dict[str, Any] = {"target": str(target), "task": target.task, "classes": list(target.names)}
        if target.kind.least_squares:  # the head predicts the standardised target
            head |= {"mean": float(y.mean()), "std": float(y.std())}
        encoder = self.sources.encoder
        trained = {"store": self.splits.train.store.fingerprint, "scans": len(y), "from": encoder.weights}
        trained["flags"] = self.splits.flags
        save_encoder(folder, method.encoder, replace(encoder, head=head, fine_tuned=trained))
