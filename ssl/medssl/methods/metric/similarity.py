"""Similarity learning on pairs: the cosine of two embeddings predicts how similar they are, or whether they are similar.

    regression:      mean over pairs of (cos - y)^2, where y in [0, 1] is the pair's similarity
    classification:  mean over pairs of the logistic loss of scale cos + bias, with scale and bias learned, as in Zhai et
                     al., 2023, https://arxiv.org/abs/2303.15343, section 3.2

For classes, patients, studies and scans, y is 1 within and 0 between them; for levels 0 … J it is 1 - |difference| / J, for
numbers max(0, 1 - |difference| / (reach standard deviations)). `triplet` is the third kind of similarity learning, ranking.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError, nearest
from medssl.losses.distributed import gather_rows
from medssl.losses.similarity import similarity_classification, similarity_regression
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of

LEARN = ("regression", "classification")


class Similarity(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out) on the unit sphere, all pairs of 2B views.

    hidden, out: widths of the projector. learn: regression or classification. scale, bias: their start, in classification.
    positives: which views are similar: those of one scan, patient, study or label; in regression a label may be a level or
    a number too. reach: standard deviations between numbers of similarity 0.
    """

    views = 2
    shards = False

    def __init__(
        self, encoder: Any, hidden: int, out: int, learn: str, positives: str, reach: float, scale: float, bias: float,
        target_loss: TargetLoss | None = None
    ):  # fmt: skip
        super().__init__()
        if learn not in LEARN:
            raise UserError(f"method.learn is {learn!r}.{nearest(learn, LEARN)}")
        if reach <= 0 or scale <= 0:
            raise UserError(f"method.reach and method.scale must be positive, got {reach} and {scale}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.learn, self.positives = learn, positives
        self.far = 0.0  # the difference between labels of similarity 0; 0 for classes
        if learn == "regression" and positives == "label" and target_loss is not None:
            if target_loss.name == "ordinal":
                self.far = target_loss.outputs
            elif target_loss.name == "regression":
                zero, one = target_loss.predict(torch.tensor([[0.0], [1.0]]))
                self.far = reach * float(one - zero)  # one - zero: a standard deviation
        self.target = "label" if self.far else target_of(positives, target_loss)
        if learn == "classification":
            self.scale, self.bias = nn.Parameter(torch.tensor(float(scale))), nn.Parameter(torch.tensor(float(bias)))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        alike, counted = self.pairs(batch)
        if self.learn == "regression":
            return {"loss": similarity_regression(z, alike, counted)}
        return {"loss": similarity_classification(z, alike, counted, self.scale, self.bias)}

    def pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the similarity of all pairs of rows of all ranks (G, G), and where it is known (bool).

        An unlabelled scan is comparable with its own views only.
        """
        group = gather_rows(groups_of(batch, "scan" if self.far else self.positives))
        own = group[:, None] == group
        if self.target != "label":
            return own.float(), torch.ones_like(own)
        label = gather_rows(batch["target"].repeat(len(batch["views"]))).float()
        known = ~label.isnan() if batch["target"].is_floating_point() else label >= 0
        same = own.float()
        if self.far:
            gap = (label[:, None] - label).abs().nan_to_num(0)
            same = torch.where(own, 1.0, (1 - gap / self.far).clamp(min=0))
        return same, own | (known[:, None] & known)
