"""Self-distillation on distributions: the student predicts which of K prototypes the teacher chooses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows


@full_precision
def prototype_cross_entropy(
    student_BK: Tensor, target_BK: Tensor, temperature: float, weight_B: Tensor | None = None
) -> Tensor:
    """Return the loss of DINO, Caron et al., 2021, https://arxiv.org/abs/2104.14294, equation 2, for given targets.

    With q the softmax of student / temperature it is the mean over rows of -sum over k of target_k log q_k. No gradient
    flows to the target. weight_B: the weight of each row of a sum in place of the mean.
    """
    each = -(target_BK.detach() * torch.log_softmax(student_BK / temperature, dim=1)).sum(1)
    return each.mean() if weight_B is None else (each * weight_B).sum()


def across_views(student: Sequence[Tensor], target: Sequence[Tensor], temperature: float) -> Tensor:
    """Return the mean of `prototype_cross_entropy` over all pairs of a student's view and a target of another view.

    Caron et al., 2021, equation 3. student: (B, K) of each view. target: (B, K) of the first views alone, the global ones.
    """
    pairs = [(s, t) for i, s in enumerate(student) for j, t in enumerate(target) if i != j]
    return torch.stack([prototype_cross_entropy(s, t, temperature) for s, t in pairs]).sum() / len(pairs)


@full_precision
def entropy(p_BK: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Return the mean over rows of the entropy of distributions, or their sum with weights; it has no gradient."""
    each = torch.special.entr(p_BK.detach()).sum(1)
    return each.mean() if weight_B is None else (each * weight_B).sum()


@full_precision
def sinkhorn(scores_BK: Tensor, temperature: float, rounds: int) -> Tensor:
    """Return assignments (B, K) of rows to prototypes that use all prototypes equally; no gradient flows through them.

    Caron et al., 2020, https://arxiv.org/abs/2006.09882, equation 3, by `rounds` steps of Sinkhorn and Knopp's algorithm from
    exp(scores / temperature), as in their code: each step scales the columns to equal sums, then the rows to sums of 1, over
    the rows of all ranks, which may have different numbers of them. Computed on logarithms, so that no sum is 0.
    """
    log_q = scores_BK.detach() / temperature
    for _ in range(rounds):
        log_q = log_q - gather_rows(log_q.logsumexp(0, keepdim=True)).logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


@full_precision
def gram_distance(student_BND: Tensor, teacher_BND: Tensor) -> Tensor:
    """Return the mean squared difference of the cosines between the tokens of a scan; no gradient flows to the teacher.

    Siméoni et al., 2025, https://arxiv.org/abs/2508.10104, equation 2, divided by the number of pairs as in their code, which
    also sets negative cosines to 0: here they count, as in the paper.
    """
    student, teacher = ((z := F.normalize(x, dim=2)) @ z.mT for x in (student_BND, teacher_BND.detach()))
    return F.mse_loss(student, teacher)
