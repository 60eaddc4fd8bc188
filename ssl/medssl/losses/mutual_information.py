"""Lower bounds on mutual information, as pure functions of a critic's scores.

All bounds take scores (B, G) or (B, G, L) of pairs (x_i, y_jl): x_i are the B rows of this rank, y_jl the L places of the
G = B * ranks rows of all ranks. Pairs with j = i are samples of p(x, y), all others of p(x) p(y); in one process and with
one place these are the diagonal and the rest of a square. For one place, with s the scores and N = G,

    InfoNCE           log N + mean_i [s_ii - log sum_j exp s_ij]
    Donsker-Varadhan  mean_i s_ii - log mean_{i != j} exp s_ij
    Jensen-Shannon    2 log 2 - mean_i softplus(-s_ii) - mean_{i != j} softplus(s_ij)

All are 0 at s = 0 and largest at s = log p(x, y) / (p(x) p(y)), up to a function of x for InfoNCE and up to a constant for
Donsker-Varadhan. Poole et al., 2019, https://arxiv.org/abs/1905.06922, compare them: InfoNCE has little variance but cannot
exceed log N; the variance of Donsker-Varadhan grows exponentially with the information (Song & Ermon, 2020,
https://arxiv.org/abs/1910.06222).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import full_precision, gather_rows, rank


@full_precision
def separable_scores(a_BD: Tensor, b_BLD: Tensor) -> Tensor:
    """Return scores (B, G, L) of the separable critic a . b / sqrt(D), with the places b of the scans of all ranks.

    Bachman et al., 2019, https://arxiv.org/abs/1906.00910, divide by sqrt(D) in their code, so that the scale of the scores
    does not depend on the width.
    """
    b_GLD = gather_rows(b_BLD)
    return (a_BD @ b_GLD.flatten(0, 1).T / math.sqrt(a_BD.shape[1])).view(len(a_BD), *b_GLD.shape[:2])


@full_precision
def infonce(scores: Tensor) -> Tensor:
    """Return InfoNCE, van den Oord et al., 2018, https://arxiv.org/abs/1807.03748, equation 4 and section 2.3.

    With several places, each is contrasted with those of all other rows, not with those of its own: N = 1 + (G - 1) L, and
    the maximum is log N. Up to log N, the negative is one direction of NT-Xent without negatives from the same view.
    """
    joint, product = _split(scores)
    rest = product.logsumexp(1, keepdim=True)
    return (joint - torch.logaddexp(joint, rest)).mean() + math.log(1 + product.shape[1])


@full_precision
def donsker_varadhan(scores: Tensor) -> Tensor:
    """Return the bound of MINE, Belghazi et al., 2018, https://arxiv.org/abs/1801.04062, with the mean over all ranks.

    The gradient is that of this sample, without the moving average by which MINE removes its bias.
    """
    joint, product = _split(scores)
    return joint.mean() - _log_mean_exp(product)


@full_precision
def jensen_shannon(scores: Tensor) -> Tensor:
    """Return a bound on 2 JSD(p(x, y), p(x) p(y)): Hjelm et al., 2019, https://arxiv.org/abs/1808.06670, equation 4.

    It is at most 2 log 2. It does not bound the mutual information, but is largest at the same scores. As a logistic
    regression, it does not diverge.
    """
    joint, product = _split(scores)
    return 2 * math.log(2) - F.softplus(-joint).mean() - F.softplus(product).mean()


@full_precision
def cpc_loss(prediction_BND: Tensor, code_BPD: Tensor, at_N: Tensor) -> Tensor:
    """Return the loss of CPC, van den Oord et al., 2018, equation 4: identify the predicted code among all codes.

    It is the mean over scans i and predictions n, with z the P codes of each scan of all ranks, of

        -log( exp(prediction_in . z_i,at(n)) / sum over all scans j and places p of exp(prediction_in . z_jp) )

    at_N: int64, the place of each prediction's target. For constant codes the loss is log(P * scans of all ranks).
    """
    B, P, _ = code_BPD.shape
    codes = gather_rows(code_BPD).flatten(0, 1)
    first = (torch.arange(B, device=at_N.device) + rank() * B) * P  # index of the first code of each scan
    return F.cross_entropy(prediction_BND.flatten(0, 1) @ codes.T, (first[:, None] + at_N).flatten())


def _split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores (B, L) of the joint and (B, (G - 1) L) of the product of marginals."""
    B, G = scores.shape[:2]
    if G < 2:
        raise UserError("mutual information needs two scans or more in a batch; raise batch")
    row = torch.arange(B, device=scores.device)
    own = row + rank() * B
    others = torch.arange(G, device=scores.device) != own[:, None]
    return scores[row, own].reshape(B, -1), scores[others].reshape(B, -1)


def _log_mean_exp(product: Tensor) -> Tensor:
    """Return the log of the mean of exp over all elements of all ranks."""
    rows = gather_rows(product.logsumexp(1))
    return rows.logsumexp(0) - math.log(len(rows) * product.shape[1])
