"""VoCo: predict by how much a random crop overlaps each of the base crops that tile the scan.

Wu et al., 2024, https://arxiv.org/abs/2402.17300. The similarity of a crop and a base crop is the positive part of the cosine of
their features, averaged over the student's crop with the teacher's base crop and the reverse, as in the authors' code.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.overlap import distinct_bases, overlap_loss
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.heads import mlp
from medssl.methods.parts.patches import crop_resize
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.rng import uniform


class VoCo(Method):
    """Encoder and projector of crops, each resized to the encoder's input, and their moving average, the teacher.

    grid: the scan is cut into grid x grid base crops along its last two axes; in 3D they keep the whole first axis. crops:
    random crops of a scan, as large as a base crop. hidden, out: widths of the projector. momentum: of the teacher.
    """

    corners: Tensor  # (grid^2, dims): where base crops begin, as shares of the scan
    share: Tensor  # (dims,): the size of a crop

    def __init__(self, encoder: Any, grid: int, crops: int, hidden: int, out: int, momentum: float):
        super().__init__()
        if not 2 <= grid <= min(encoder.size[-2:]):
            raise UserError(f"method.grid must lie between 2 and {min(encoder.size[-2:])} pixels, got {grid}")
        if crops < 1:
            raise UserError(f"method.crops must be 1 or more, got {crops}")
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum must lie between 0 and 1, got {momentum}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, hidden, out)
        self.teacher = make_teacher(nn.Sequential(self.encoder, self.projector))
        self.crops, self.momentum = crops, momentum
        cells = torch.cartesian_prod(torch.arange(grid), torch.arange(grid)) / grid
        self.register_buffer("corners", F.pad(cells, (len(encoder.size) - 2, 0)), persistent=False)
        share = torch.full((len(encoder.size),), 1 / grid)
        share[:-2] = 1
        self.register_buffer("share", share, persistent=False)

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.Sequential(self.encoder, self.projector)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        u = uniform(batch["key"], 0, METHOD_SLOT, self.crops * len(self.share)).view(len(x), self.crops, -1)
        starts = u.to(x.dtype) * (1 - self.share)  # (B, Q, dims)
        cut = torch.cat([starts, self.corners.to(x.dtype).expand(len(x), -1, -1)], 1)
        size = torch.tensor(x.shape[2:], dtype=x.dtype).to(x.device, non_blocking=True)
        shown = crop_resize(
            x.repeat_interleave(cut.shape[1], 0), cut.flatten(0, 1) * size,
            (self.share * size).expand(len(x) * cut.shape[1], -1), tuple(x.shape[2:]),
        )  # fmt: skip
        student = self.projector(self.encoder(shown)).unflatten(0, (len(x), -1))
        with torch.no_grad():
            teacher = self.teacher(shown).unflatten(0, (len(x), -1))
        crops_s, bases_s = student[:, : self.crops], student[:, self.crops :]
        crops_t, bases_t = teacher[:, : self.crops], teacher[:, self.crops :]
        similarity = (_positive_cosine(crops_s, bases_t) + _positive_cosine(crops_t, bases_s)) / 2
        overlap = self.overlaps(starts)
        loss = overlap_loss(similarity, overlap) + distinct_bases(bases_s)
        constant = overlap_loss(torch.ones_like(similarity), overlap) + 1  # the loss of constant features
        return {"loss": loss, "chance": constant.detach()}

    def overlaps(self, starts_BQA: Tensor) -> Tensor:
        """Return the share of each crop that lies in each base crop, (B, Q, grid^2); they add up to 1 for a crop."""
        apart = (starts_BQA[:, :, None] - self.corners.to(starts_BQA.dtype)).abs()
        along = (1 - apart / self.share).clamp(min=0)
        return torch.where(along < 1e-5, 0.0, along).prod(-1)  # a crop that only touches does not overlap

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), self.momentum)


def _positive_cosine(a_BQD: Tensor, b_BKD: Tensor) -> Tensor:
    with torch.autocast(a_BQD.device.type, enabled=False):
        wide = torch.promote_types(a_BQD.dtype, torch.float32)
        return (F.normalize(a_BQD.to(wide), dim=2) @ F.normalize(b_BKD.to(wide), dim=2).transpose(1, 2)).relu()
