"""iBOT and DINOv2: DINO on whole scans, and on patches that the student does not see.

iBOT: Zhou et al., 2022, https://arxiv.org/abs/2111.07832, equations 2 and 3. DINOv2: Oquab et al., 2023,
https://arxiv.org/abs/2304.07193, section 4, adds KoLeo, Sinkhorn's algorithm and a head of its own for patches; DINOv3: Siméoni
et al., 2025, https://arxiv.org/abs/2508.10104, section 4, Gram anchoring. The mean of the tokens stands for their class token.
Their masks are blocks, here patches are hidden at random.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.koleo import koleo
from medssl.losses.self_distillation import across_views, entropy, gram_distance, prototype_cross_entropy
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.prototypes import Prototypes, TeacherTargets, Temperatures, projector
from medssl.methods.parts.small_views import encode_views, small_views
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.methods.parts.token_masks import checked_shares, equal_scans, hide_some
from medssl.schedule import cosine


class IBOT(Method):
    """Tokens (B, N, dim) of two global views, some hidden from the student -> a head for scans and one for patches.

    hidden, out, prototypes: widths of each head and number of its outputs. shared: whether patches have the head of scans
    (iBOT). patches, koleo, gram: weights beside DINO's loss. chance, ratio: probability that a view has hidden patches, and the
    smallest and largest share of them. gram_start: share of the run after which the student's tokens keep the cosines that the
    teacher's had then. The others: see `DINO`.
    """

    views = 2
    teacher: Any  # the moving averages of encoder, head and patch_head
    gram_teacher: Any  # an encoder, or None without Gram anchoring

    def __init__(
        self, encoder: Any, hidden: int, out: int, prototypes: int, shared: bool, patches: float, chance: float,
        ratio: tuple[float, float], koleo: float, gram: float, gram_start: float, student_temperature: float,
        teacher_start: float, teacher_temperature: float, warmup: float, momentum: float, centring: str,
        centre_momentum: float, small: dict[str, Any],
    ):  # fmt: skip
        super().__init__()
        if not hasattr(encoder, "tokens"):
            raise UserError(f"{type(encoder).__name__} has no tokens of patches; use encoder=vit")
        self.patch_count = math.prod(encoder.grid)
        for name, value in {"momentum": momentum, "chance": chance, "gram_start": gram_start}.items():
            if not 0 <= value <= 1:
                raise UserError(f"method.{name} must lie between 0 and 1, got {value}")
        for name, value in {"patches": patches, "koleo": koleo, "gram": gram}.items():
            if value < 0:
                raise UserError(f"method.{name} is a weight of 0 or more, got {value}")
        self.temperatures = Temperatures(student_temperature, teacher_start, teacher_temperature, warmup).check()
        self.encoder, self.momentum, self.small_views = encoder, momentum, small_views(encoder, **small)
        self.chance, self.ratio = chance, checked_shares(ratio, self.patch_count)
        self.weights, self.gram_start = (patches, koleo, gram), gram_start
        self.projector = projector(encoder.dim, hidden, out)
        self.head = nn.Sequential(self.projector, Prototypes(out, prototypes))
        own = self.head if shared else nn.Sequential(projector(encoder.dim, hidden, out), Prototypes(out, prototypes))
        self.patch_head, self.hole = own, nn.Parameter(torch.zeros(encoder.dim))
        self.teacher = make_teacher(nn.ModuleList([self.encoder, self.head, self.patch_head]))
        self.gram_teacher = make_teacher(self.encoder) if gram else None
        self.targets = TeacherTargets(prototypes, centring, centre_momentum)
        self.patch_targets = TeacherTargets(prototypes, centring, centre_momentum)

    @property
    def fewest_scans(self) -> int:
        return max(super().fewest_scans, 2 if self.weights[1] or self.targets.centring == "sinkhorn" else 1)

    def teacher_student(self) -> tuple[nn.Module, nn.Module]:
        return self.teacher, nn.ModuleList([self.encoder, self.head, self.patch_head])

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        views, whole = batch["views"], torch.cat(batch["views"][: self.views])
        mask = (METHOD_SLOT, self.patch_count, self.chance, self.ratio)
        hidden = torch.cat([hide_some(batch["key"], view, *mask) for view in range(self.views)])
        tokens = self.encoder.tokens(whole, hidden_BN=hidden, hole=self.hole)
        features = tokens.mean(1)
        small = [encode_views(self.encoder, views[self.views :])] if len(views) > self.views else []
        student, predicted = self.head(torch.cat([features, *small])), self.patch_head(tokens[hidden])
        with torch.no_grad():
            seen = self.teacher[0].tokens(whole)
            sharp = self.temperatures.of_teacher(clock)
            target = self.targets(self.teacher[1](seen.mean(1)), sharp)
            patch_target = self.patch_targets(self.teacher[2](seen[hidden]), sharp)
        share = equal_scans(hidden)
        loss = across_views(student.chunk(len(views)), target.chunk(self.views), self.temperatures.student)
        patches = prototype_cross_entropy(predicted, patch_target, self.temperatures.student, share)
        of_patches, of_koleo, of_gram = self.weights
        loss = loss + of_patches * patches
        error = loss.detach() - entropy(target) - of_patches * entropy(patch_target, share)
        out = {"patches": patches.detach(), "error": error}
        if of_koleo:  # apart for each view, since the two of a scan shall be near
            loss = loss + of_koleo * sum(koleo(view) for view in features.chunk(self.views))
        if self.gram_teacher is not None and clock.frac >= self.gram_start:
            with torch.no_grad():
                anchor = self.gram_teacher.tokens(whole)
            loss = loss + of_gram * gram_distance(tokens, anchor)
        if not of_koleo:  # the loss of constant features
            out["chance"] = math.log(student.shape[1]) * (1 + of_patches * hidden.any(1).float().mean())
        return {"loss": loss, **out}

    def after_step(self, clock: Clock) -> None:
        ema_update(*self.teacher_student(), cosine(clock.frac, self.momentum, 1.0))
        if self.gram_teacher is not None and clock.frac < self.gram_start:
            ema_update(self.gram_teacher, self.teacher[0], 0.0)
        self.targets.advance()
        self.patch_targets.advance()
