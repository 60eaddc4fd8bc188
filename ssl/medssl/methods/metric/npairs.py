"""N-pairs: a softmax over the similarities with the partners of all groups in the batch, to identify one's own.

Sohn, 2016, "Improved deep metric learning with multi-class N-pair loss objective", equation 8 and section 3.2.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError, nearest
from medssl.losses.similarity import SIMILARITIES, n_pairs
from medssl.methods.base import Batch, Clock, Method
from medssl.methods.parts.heads import groups_of, mlp, target_of


class NPairs(Method):
    """Encoder (B, C, *spatial) -> (B, dim), projector (B, dim) -> (B, out), one pair of each group.

    hidden, out: widths of the projector. similarity: dot or cosine. norm_weight: weight of the mean squared length of
    embeddings, needed with dot. positives: which views attract: those of one scan, patient, study or label.
    """

    views = 2
    compares_scans = True

    def __init__(
        self, encoder: Any, hidden: int, out: int, similarity: str, norm_weight: float, positives: str,
        target_loss: Any = None
    ):  # fmt: skip
        super().__init__()
        if similarity not in SIMILARITIES:
            raise UserError(f"method.similarity is {similarity!r}.{nearest(similarity, SIMILARITIES)}")
        if norm_weight < 0:
            raise UserError(f"method.norm_weight must not be negative, got {norm_weight}")
        self.encoder, self.projector = encoder, mlp(encoder.dim, hidden, out)
        self.similarity, self.norm_weight = similarity, norm_weight
        self.positives, self.target = positives, target_of(positives, target_loss)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        z = self.projector(self.encoder(torch.cat(batch["views"])))
        group = groups_of(batch, self.positives)
        # scan after scan, the same order on any number of ranks
        by_scan = torch.arange(len(z), device=z.device).view(self.views, -1).T.flatten()
        return {"loss": n_pairs(z[by_scan], group[by_scan], self.similarity, self.norm_weight)}
