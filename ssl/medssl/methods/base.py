"""The contract of every pretraining method: one nn.Module that owns an encoder, its heads and its loss."""

from typing import Any, ClassVar, NamedTuple, TypedDict

from torch import Tensor, nn

from medssl.augmentations.recipes import SmallViews
from medssl.encoders.unet_decoder import UNetDecoder
from medssl.losses.target_losses import TargetLoss
from medssl.rng import Key

METHOD_SLOT = 1000  # the first slot of medssl.rng for randomness inside a method; views use the slots below


class Batch(TypedDict, total=False):
    """The input of a method."""

    views: list[Tensor]  # `Method.views` tensors (B, C, *spatial), float32, standardised; then the small views
    key: Key  # for randomness inside the method: rng.uniform(batch["key"], view, slot, n), slot >= METHOD_SLOT
    target: Tensor  # named by `Method.target`: (B,) int64 classes or groups, or float32 numbers (B,) or (B, L)


class Clock(NamedTuple):
    """The progress of a run. Schedules are pure functions of it and need no state."""

    step: int
    steps: int

    @property
    def frac(self) -> float:
        """Progress in [0, 1)."""
        return self.step / self.steps

    def part(self, parts: int, until: float = 1.0) -> int:
        """Return the current one, counted from 0, of equal `parts` of the first share `until` of the run; after it, `parts`."""
        return parts if self.frac >= until else min(int(self.frac / until * parts), parts - 1)


class Method(nn.Module):
    """Base class of all methods. Subclass it once, never twice: a variant is an argument or another file.

    State that outlives a step lives in buffers. A constructor with a parameter `target_loss` is given the TargetLoss of
    the label in target=…, or None if the parameter has that default and there is no label; one with `rows` the rows (N,)
    int64 of the training scans in the store, which are those of `Key.scan`; and one with `predict_loss` and `unlearn_loss`
    the TargetLosses of the facts that its options `predict` and `unlearn` name.

    Attributes:
        views: number of views of each scan.
        paired_within: "patient" or "study": the last view is of another scan of the same patient or study, if there is one.
            "series": it is of another series of the same study, with the random numbers of view 0, so that both are cropped
            and turned alike; scans whose study has no other series are left out. "": nothing is paired. A method with an
            argument `pairs` (scan, patient, study) has it from there.
        small_views: the small views of each scan, which come after those; see `methods.parts.small_views`.
        target: content of batch["target"]: "" for nothing, "patient" or "study" for groups (B,) int64, "label" for the
            label in target=…, with unknown values marked as in `TargetLoss.known`, or "facts" for those of `predict` and
            `unlearn`, (B, 2) float32, nan where unknown.
        compares_scans: whether the loss compares scans with each other, so that a pass over a single scan teaches nothing.
        parts: number of trainings that follow each other in equal parts of the run, each with its own parameters.
        shards: whether strategy=fsdp can train it: all parameters are changed by the optimiser alone, and none is a scalar.
        encoder: a module with channels, size, dim and whatever else the method needs: tokens, layers, …
        projector: (B, dim) -> (B, out), or None. The collapse monitor watches its outputs.
        target_loss: the TargetLoss of a method that learns from labels, or None.
        run: for a method without a yaml, its defaults for other options of pretrain, as `_run_` in a yaml.
    """

    views: int = 1
    paired_within: str = ""
    small_views: SmallViews = SmallViews()
    target: str = ""
    compares_scans: bool = False
    parts: int = 1
    shards: bool = True
    encoder: Any
    projector: Any
    target_loss: TargetLoss | None = None
    run: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.projector = None  # not on the class, where it would hide the module of an instance

    @property
    def fewest_scans(self) -> int:
        """The fewest scans in a pass: two for losses that compare scans and for statistics over the rows of a batch."""
        return 2 if self.compares_scans or any(isinstance(m, nn.BatchNorm1d) for m in self.modules()) else 1

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        """Return {"loss": scalar, …}; the other scalars are logged, and two of them have a meaning:

        "chance" is the loss of constant features: the collapse monitor reports a loss that stays there. "error" falls
        as the method learns, for losses that do not, such as an energy.
        """
        raise NotImplementedError

    def after_step(self, clock: Clock) -> None:
        """Update teachers, queues and statistics after the optimiser's step."""

    def teacher_student(self) -> tuple[nn.Module, nn.Module] | None:
        """Return a teacher and the student that it averages, for the collapse monitor; None without a teacher."""
        return None

    def kept_decoder(self) -> UNetDecoder | None:
        """Return the decoder that is exported beside the encoder, for segmentation to start from; None: none is kept."""
        return None
