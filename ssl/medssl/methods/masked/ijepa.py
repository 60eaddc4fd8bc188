"""I-JEPA: from a block of a scan, predict what a slow teacher makes of other blocks of it. No reconstruction, no second view.

Assran et al., 2023, https://arxiv.org/abs/2301.08243, section 3, in two or three dimensions. As in their code, and not in the
paper, the teacher's tokens are normalised over their features, and the loss is the smooth absolute error.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medssl.encoders.vit import Block, sincos
from medssl.errors import UserError
from medssl.losses.regression import smooth_absolute_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.context_blocks import Blocks, context_and_targets
from medssl.methods.parts.frozen_teacher import FrozenTeacher, token_teacher
from medssl.methods.parts.step_key import step_key
from medssl.methods.parts.teacher import ema_update
from medssl.schedule import cosine


class IJEPA(Method):
    """Tokens of the context (B, K, dim) -> a narrow predictor -> the teacher's tokens of each target (B, count, P, dim).

    count: number of target blocks. scale: their smallest and largest share of the grid. aspect: of their edges. context: smallest
    and largest share of the context, before the targets are taken out of it. width, depth, heads: of the predictor, discarded
    after training; width is a multiple of 2 * spatial dimensions and of heads. momentum: of the teacher at step 0, rising to 1
    on a half cosine. teacher: one that is frozen instead, with as many patches.
    """

    positions: Tensor  # (N, width)

    def __init__(
        self, encoder: Any, count: int, scale: tuple[float, float], aspect: tuple[float, float],
        context: tuple[float, float], width: int, depth: int, heads: int, momentum: float,
        teacher: FrozenTeacher | None = None,
    ):  # fmt: skip
        super().__init__()
        if not hasattr(encoder, "tokens"):
            raise UserError(
                f"ijepa needs an encoder with tokens, and {type(encoder).__name__} has none; use encoder=vit"
            )
        for name, (low, high), most in (("scale", scale, 1.0), ("context", context, 1.0), ("aspect", aspect, 100.0)):
            if not 0 < low <= high <= most:
                raise UserError(f"method.{name} must be [low, high], 0 < low <= high <= {most:g}, got [{low}, {high}]")
        if not 0 <= momentum <= 1:
            raise UserError(f"method.momentum must lie between 0 and 1, got {momentum}")
        self.blocks = Blocks(count, *((low, high) for low, high in (scale, aspect, context)))
        patches, most = len(encoder.pos), self.blocks.most_patches(encoder.grid)
        if count < 1 or count * most >= patches:
            raise UserError(
                f"method.count={count} targets of up to {most} patches leave no context of {patches}; "
                "take 1 or more, fewer, or smaller patches"
            )
        self.encoder, self.momentum = encoder, momentum
        self.frozen, self.teacher = teacher is not None, token_teacher(encoder, teacher)
        self.narrow, self.hole = nn.Linear(encoder.dim, width), nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", sincos(encoder.grid, width), persistent=False)
        self.predictor = nn.Sequential(
            *[Block(width, heads) for _ in range(depth)], nn.LayerNorm(width), nn.Linear(width, self.teacher.dim)
        )

    def teacher_student(self) -> tuple[nn.Module, nn.Module] | None:
        return None if self.frozen else (self.teacher, self.encoder)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,), key = batch["views"], batch["key"]
        of_step = step_key(key, clock, 1, torch.device("cpu"))  # decides sizes, for which nothing waits
        context, targets = context_and_targets(key, of_step, 0, METHOD_SLOT, self.encoder.grid, self.blocks)
        seen = self.narrow(self.encoder.tokens(x, context))
        seen = seen + self.positions[context].to(seen.dtype)  # (B, K, width)
        asked = (self.hole + self.positions[targets]).to(seen.dtype)  # (B, count, P, width)
        both = torch.cat([seen[:, None].expand(-1, targets.shape[1], -1, -1), asked], 2).flatten(0, 1)
        predicted = self.predictor(both)[:, context.shape[1] :]
        with torch.no_grad():
            tokens = F.layer_norm(made := self.teacher.tokens(x), made.shape[-1:])
            at = targets.flatten(1)[..., None].expand(-1, -1, tokens.shape[2])
            target = tokens.gather(1, at).view_as(predicted)
        return {"loss": smooth_absolute_error(predicted, target, 1.0)}

    def after_step(self, clock: Clock) -> None:
        if not self.frozen:
            ema_update(self.teacher, self.encoder, cosine(clock.frac, self.momentum, 1.0))
