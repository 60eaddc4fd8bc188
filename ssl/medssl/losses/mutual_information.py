"""Lower bounds on mutual information: pure functions of the scores that a critic gives to pairs.

Every bound takes scores (B, G) or (B, G, L) of x_i, the B rows of this rank, with y_jl, the L places of the G = B * ranks rows of
all ranks. Pairs with j = i are drawn from p(x, y), the others from p(x) p(y): in one process and with one place, the diagonal
and the rest of a square. Written for one place, with s the scores and N = G,

    InfoNCE           log N + mean_i [s_ii - log sum_j exp s_ij]
    NWJ               1 + mean_i s_ii - mean_{i != j} exp s_ij
    Donsker-Varadhan  mean_i s_ii - log mean_{i != j} exp s_ij
    Jensen-Shannon    2 log 2 - mean_i softplus(-s_ii) - mean_{i != j} softplus(s_ij)

All are largest at s = log p(x, y) / (p(x) p(y)), to which InfoNCE lets any function of x be added and Donsker-Varadhan
any constant, and all are 0 at s = 0. Poole et al., 2019, https://arxiv.org/abs/1905.06922, compare them: InfoNCE has
little variance but cannot pass log N; the variance of NWJ and Donsker-Varadhan grows exponentially with the information
(Song & Ermon, 2020, https://arxiv.org/abs/1910.06222).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.distributed import full_precision, gather_rows, rank


@full_precision
def separable_scores(a_BD: Tensor, b_BLD: Tensor) -> Tensor:
    """Scores (B, G, L) of the separable critic a . b / sqrt(D), with the places b of the scans of all ranks.

    Bachman et al., 2019, https://arxiv.org/abs/1906.00910, divide by sqrt(D) in their code: scores of any width are alike.
    """
    b_GLD = gather_rows(b_BLD)
    return (a_BD @ b_GLD.flatten(0, 1).T / math.sqrt(a_BD.shape[1])).view(len(a_BD), *b_GLD.shape[:2])


@full_precision
def infonce(scores: Tensor) -> Tensor:
    """InfoNCE, van den Oord et al., 2018, https://arxiv.org/abs/1807.03748, equation 4 and section 2.3.

    Of several places, each is told from those of all other rows, not from its own row's: N = 1 + (G - 1) L, the most it can be is
    log N. Its negative is one direction of NT-Xent without negatives from the same view, up to log N.
    """
    joint, product = _split(scores)
    rest = product.logsumexp(1, keepdim=True)
    return (joint - torch.logaddexp(joint, rest)).mean() + math.log(1 + product.shape[1])


@full_precision
def nwj(scores: Tensor) -> Tensor:
    """Nguyen, Wainwright & Jordan, 2010, https://arxiv.org/abs/0809.0853; the f-GAN bound of the KL divergence.

    Poole et al. write E f - E exp(f) / e; here f = 1 + s, so that the best s is that of the other bounds.
    """
    joint, product = _split(scores)
    return 1 + joint.mean() - product.exp().mean()


@full_precision
def donsker_varadhan(scores: Tensor) -> Tensor:
    """The bound of MINE, Belghazi et al., 2018, https://arxiv.org/abs/1801.04062; the log is of the mean over all ranks.

    The gradient is that of this sample: MINE's moving average, which removes its bias, is left out.
    """
    joint, product = _split(scores)
    return joint.mean() - _log_mean_exp(product)


@full_precision
def smile(scores: Tensor, clip: float) -> Tensor:
    """SMILE, Song & Ermon, 2020: Donsker-Varadhan with the scores of the product within [-clip, clip].

    An estimate and no bound: clipping takes variance away and adds bias.
    """
    joint, product = _split(scores)
    return joint.mean() - _log_mean_exp(product.clamp(-clip, clip))


@full_precision
def jensen_shannon(scores: Tensor) -> Tensor:
    """A bound on 2 JSD(p(x, y), p(x) p(y)), at most 2 log 2: Hjelm et al., 2019, https://arxiv.org/abs/1808.06670, equation 4.

    Not a bound on the mutual information, but largest at the same scores. It is logistic regression, so it never explodes.
    """
    joint, product = _split(scores)
    return 2 * math.log(2) - F.softplus(-joint).mean() - F.softplus(product).mean()


@full_precision
def cpc_loss(prediction_BND: Tensor, code_BPD: Tensor, at_N: Tensor) -> Tensor:
    """The loss of CPC, van den Oord et al., 2018, equation 4: which of all codes is the one that was predicted?

    The mean over scans i and predictions n, with z the P codes of every scan of every rank, of

        -log( exp(prediction_in . z_i,at(n)) / sum over all scans j and places p of exp(prediction_in . z_jp) )

    at_N: int64, the place of each prediction's target. Constant codes give log(P * scans of all ranks).
    """
    B, P, _ = code_BPD.shape
    codes = gather_rows(code_BPD).flatten(0, 1)
    first = (torch.arange(B, device=at_N.device) + rank() * B) * P  # where my scans' codes begin
    return F.cross_entropy(prediction_BND.flatten(0, 1) @ codes.T, (first[:, None] + at_N).flatten())


def _split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """(B, L) scores of the joint, and (B, (G - 1) L) of the product of marginals."""
    B, G = scores.shape[:2]
    if G < 2:
        raise UserError("mutual information needs two scans or more to tell apart; raise batch")
    row = torch.arange(B, device=scores.device)
    own = row + rank() * B
    others = torch.arange(G, device=scores.device) != own[:, None]
    return scores[row, own].reshape(B, -1), scores[others].reshape(B, -1)


def _log_mean_exp(product: Tensor) -> Tensor:
    """log of the mean of exp over everything, of all ranks."""
    rows = gather_rows(product.logsumexp(1))
    return rows.logsumexp(0) - math.log(len(rows) * product.shape[1])
