"""Similarity learning from pairs: the cosine of two embeddings is their similarity, or tells whether they are alike.

    regression:      mean over pairs of (cos - y)^2, where y in [0, 1] is the pair's similarity
    classification:  mean over pairs of the logistic loss of scale cos + bias, with scale and bias learned, as in Zhai et
                     al., 2023, https://arxiv.org/abs/2303.15343, section 3.2

In a class, patient, study or scan y is 1 within and 0 between; of levels 0 … J it is 1 - |difference| / J, of numbers
1 - |difference| / (reach standard deviations), at least 0. The third kind of similarity learning, ranking, is `triplet`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import gather_rows
from medssl.losses.similarity import similarity_classification, similarity_regression
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of

LEARN = ("regression", "classification")


class Similarity(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. learn: regression or classification. scale, bias: of the latter, at the start.
    positives: what is alike: views of one scan, patient or study, or of scans with one label, which in regression may be a
    level or a number too. reach: standard deviations between numbers that have nothing in common.
    """

    views = 2

    def __init__(
        self,
        encoder: Any,
        hidden: int,
        out: int,
        learn: str,
        positives: str,
        reach: float,
        scale: float,
        bias: float,
        target_loss: Any = None,
    ):
        super().__init__()
        if learn not in LEARN:
            raise UserError(f"method.learn is {learn!r}.{nearest(learn, LEARN)}")
        if reach <= 0 or scale <= 0:
            raise UserError(f"method.reach and method.scale must be positive, got {reach} and {scale}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.positives, self.far = positives, 0.0  # how far apart labels are that have nothing in common; 0: classes
        if (
            learn == "regression"
            and positives == "label"
            and target_loss is not None
            and target_loss.name in ("ordinal", "regression")
        ):
            std = (
                float(target_loss.predict(torch.ones(1, 1)) - target_loss.predict(torch.zeros(1, 1)))
                if target_loss.name == "regression"
                else 0
            )
            self.target, self.far = "label", reach * std if target_loss.name == "regression" else target_loss.outputs
        else:
            self.target = target_of(positives, target_loss)
        if learn == "classification":
            self.scale, self.bias = nn.Parameter(torch.tensor(float(scale))), nn.Parameter(torch.tensor(float(bias)))
        self.learn = learn

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        alike, counted = self.pairs(batch)
        if self.learn == "regression":
            return {"loss": similarity_regression(z, alike, counted)}
        return {"loss": similarity_classification(z, alike, counted, self.scale, self.bias)}

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How alike the rows of all ranks are, (G, G), and of which pairs that is known: of an unlabelled scan its own."""
        views = len(batch["views"])
        group = gather_rows(groups_of(batch, "scan" if self.far else self.positives, views))
        same = group[:, None] == group
        if self.target != "label":
            return same.float(), torch.ones_like(same)
        label = gather_rows(batch["target"].repeat(views)).float()
        known = (label >= 0) if not batch["target"].is_floating_point() else ~label.isnan()
        if self.far:
            gap = (label[:, None] - label).abs().nan_to_num(0)
            same = torch.where(same, 1.0, (1 - gap / self.far).clamp(min=0))
        own = group[:, None] == group
        return same.float(), own | (known[:, None] & known)
