"""Multi-task learning: one encoder learns from the known labels and from a self-supervised method on all scans.

loss = loss of the known labels + weight * loss of the method: the shared representation of multi-task learning (Caruana,
1997, https://doi.org/10.1023/A:1007379606734) with self-supervision as the second task, as in S4L (Zhai et al., 2019,
https://arxiv.org/abs/1905.03670, equation 1).
"""

from typing import Any

from torch import Tensor, nn

from medssl import catalog
from medssl.errors import UserError
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method


class MultiTask(Method):
    """A linear head on encoder(view 0) learns the label; a second method shares the encoder.

    method: its name in configs/method. options: its options. weight: of its loss; 0 is supervised training.
    """

    target = "label"
    target_loss: TargetLoss

    def __init__(
        self, encoder: Any, method: str, options: dict[str, Any] | None, weight: float, target_loss: TargetLoss
    ):
        super().__init__()
        if weight < 0:
            raise UserError(f"method.weight must be 0 or more, got {weight}")
        spec = catalog.spec("method", method, **(options or {}))
        spec.pop("_run_", None)
        if catalog.takes(spec, "target_loss") == "yes":
            raise UserError(f"method.method={method} learns from labels itself; choose one that needs none")
        if catalog.takes(spec, "teacher") == "yes":
            raise UserError(f"method.method={method} needs a teacher, which multitask has not; choose another")
        if any(catalog.takes(spec, given) == "yes" for given in ("rows", "unlearn_loss")):
            raise UserError(f"method.method={method} cannot share an encoder with labels; use another, such as simclr")
        self.encoder, self.target_loss, self.weight = encoder, target_loss, weight
        self.other = catalog.build(spec, encoder=encoder)
        if self.other.target or not any(p.requires_grad for p in encoder.parameters()):
            raise UserError(f"method.method={method} cannot share an encoder with labels; use another, such as simclr")
        self.views, self.small_views, self.parts = self.other.views, self.other.small_views, self.other.parts
        self.compares_scans = self.other.compares_scans
        self.head = nn.Linear(encoder.dim, target_loss.outputs)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        labels = self.target_loss.loss_of_known(self.head(self.encoder(batch["views"][0])), batch["target"])
        other = self.other(batch, clock)["loss"]
        return {"loss": labels + self.weight * other, "labels": labels.detach(), "other": other.detach()}

    def after_step(self, clock: Clock) -> None:
        self.other.after_step(clock)
