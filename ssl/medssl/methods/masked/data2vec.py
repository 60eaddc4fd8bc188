"""data2vec: predict what a slow teacher makes of the whole scan, at patches that the student does not see.

Baevski et al., 2022, https://arxiv.org/abs/2202.03555: blocks of patches are hidden as in BEiT; the target of a patch is the
mean over the teacher's last blocks of their outputs, each normalised over its features. As in their code for images, these are
the outputs of whole blocks, and not of their feed-forward parts, for which the paper argues.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.regression import smooth_absolute_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.frozen_teacher import FrozenTeacher, token_teacher
from medssl.methods.parts.teacher import ema_update
from medssl.methods.parts.token_masks import hide_blocks
from medssl.schedule import cosine


class Data2Vec(Method):
    """Encoder tokens (B, N, dim) of a masked scan -> a linear layer -> targets (B, N, dim) of the whole scan, where hidden.

    ratio: share of hidden patches. smallest: share of the smallest block. aspect: largest ratio of a block's edges. top:
    number of the teacher's last blocks that are averaged; None: half of them. beta: error above which the loss is linear.
    momentum: of the teacher at step 0, rising to 1 on a half cosine. teacher: one that is frozen instead, with as many patches.
    """

    def __init__(
        self, encoder: Any, ratio: float, smallest: float, aspect: float, top: int | None, beta: float, momentum: float,
        teacher: FrozenTeacher | None = None,
    ):  # fmt: skip
        super().__init__()
        if not hasattr(encoder, "tokens"):
            raise UserError(
                f"data2vec needs an encoder with tokens, and {type(encoder).__name__} has none; use encoder=vit"
            )
        if not 0 < smallest <= ratio < 1 or aspect < 1:
            words = f"{smallest}, {ratio} and {aspect}"
            raise UserError(f"needs 0 < method.smallest <= method.ratio < 1 and method.aspect >= 1, got {words}")
        if int(len(encoder.pos) * ratio) == 0:
            raise UserError(f"method.ratio={ratio} of {len(encoder.pos)} patches hides none; raise it")
        self.frozen, self.teacher = teacher is not None, token_teacher(encoder, teacher)
        depth = len((encoder if teacher is None else teacher.encoder).blocks)
        top = (depth + 1) // 2 if top is None else top
        if not 1 <= top <= depth:
            raise UserError(f"method.top must lie between 1 and the teacher's {depth} blocks, got {top}")
        if beta <= 0:
            raise UserError(f"method.beta must be positive, got {beta}")
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum must lie between 0 and 1, got {momentum}")
        self.encoder, self.top, self.beta, self.momentum = encoder, top, beta, momentum
        self.mask = ratio, smallest, aspect
        self.hole = nn.Parameter(torch.zeros(encoder.dim))
        self.predictor = nn.Linear(encoder.dim, self.teacher.dim)

    def teacher_student(self) -> tuple[nn.Module, nn.Module] | None:
        return None if self.frozen else (self.teacher, self.encoder)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        hidden = hide_blocks(batch["key"], 0, METHOD_SLOT, self.encoder.grid, *self.mask)
        predicted = self.predictor(self.encoder.tokens(x, hidden_BN=hidden, hole=self.hole)[hidden])
        with torch.no_grad():
            seen = self.teacher.depths(x)[-self.top :]
            target = torch.stack([F.layer_norm(h, h.shape[-1:]) for h in seen]).mean(0)[hidden]
        return {"loss": smooth_absolute_error(predicted, target, self.beta)}

    def after_step(self, clock: Clock) -> None:
        if not self.frozen:
            ema_update(self.teacher, self.encoder, cosine(clock.frac, self.momentum, 1.0))
