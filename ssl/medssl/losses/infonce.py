"""InfoNCE between two views: views of one scan attract, views of different scans repel."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows, is_under_vmap, rank, world_size
from medssl.losses.tiles import LARGE, row_logsumexp


@full_precision
def nt_xent(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """Return NT-Xent, Chen et al., 2020, https://arxiv.org/abs/2002.05709, equation 1.

    It is the mean over all 2B views i, with partner j and cosine similarity s, of

        -log( exp(s_ij / temperature) / sum over k != i of exp(s_ik / temperature) )

    a_BD, b_BD: the two views of the same B scans of this rank; negatives come from all ranks. For constant features the
    loss is ln(2B - 1), with B counted over all ranks. A large matrix of similarities is never kept; see `losses.tiles`.
    """
    if _is_large(2 * len(a_BD), 2 * len(a_BD) * world_size()):
        return _tiled(a_BD, b_BD, temperature, with_partner=True)
    losses = [F.cross_entropy(logits, me) for logits, me in _logits(a_BD, b_BD, temperature)]
    return losses[0] / 2 + losses[1] / 2


@full_precision
def decoupled(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Tensor:
    """Return the decoupled contrastive loss, Yeh et al., 2022, https://arxiv.org/abs/2110.06848.

    It is `nt_xent` without the partner in the denominator: the mean over all 2B views i, with partner j, of

        -s_ij / temperature + log( sum over k other than i and j of exp(s_ik / temperature) )

    For constant features the loss is ln(2B - 2), with B, at least 2, counted over all ranks. It has no lower bound of 0.
    """
    if _is_large(2 * len(a_BD), 2 * len(a_BD) * world_size()):
        return _tiled(a_BD, b_BD, temperature, with_partner=False)
    loss = a_BD.new_zeros(())
    for logits, me in _logits(a_BD, b_BD, temperature):
        negatives = logits.scatter(1, me[:, None], float("-inf")).logsumexp(1)
        loss = loss + (negatives - logits.gather(1, me[:, None])[:, 0]).mean() / 2
    return loss


@full_precision
def query_key(query_BD: Tensor, key_BD: Tensor, temperature: float, queue_KD: Tensor) -> Tensor:
    """Return InfoNCE from queries to keys, He et al., 2020, https://arxiv.org/abs/1911.05722, equation 1.

    It is the mean over queries i, with key i of the same scan and cosine similarity s, of

        -log( exp(s_ii / temperature) / sum over keys k of exp(s_ik / temperature) )

    The keys are those of all ranks and, as more negatives, the K rows of a queue, which may be empty. For constant features
    the loss is ln(B + K), with B counted over all ranks.
    """
    keys, own = F.normalize(torch.cat([gather_rows(key_BD), queue_KD]), dim=1), _own_rows(query_BD)
    query_BD = F.normalize(query_BD, dim=1)
    if _is_large(len(query_BD), len(keys)):
        none = own.new_empty(len(own), 0)
        return (row_logsumexp(query_BD, keys, none, temperature) - (query_BD * keys[own]).sum(1) / temperature).mean()
    return F.cross_entropy(query_BD @ keys.T / temperature, own)


@full_precision
def query_own_key(
    query_ND: Tensor, key_ND: Tensor, temperature: float, negatives_KD: Tensor, counts_NK: Tensor
) -> Tensor:
    """Return InfoNCE of each query with its own key and negatives from a queue, as of MoCo and DenseCL.

    Wang et al., 2021, https://arxiv.org/abs/2011.09157, equations 1 and 2: the mean over queries i, with cosine similarity s, of

        -log( exp(s(query_i, key_i) / t) / (exp(s(query_i, key_i) / t) + sum over k of exp(s(query_i, negative_k) / t)) )

    counts_NK: bool, whether negative k counts for query i. For constant features the loss is the mean of ln(1 + negatives
    that count).
    """
    query_ND, key_ND, negatives_KD = (F.normalize(x, dim=1) for x in (query_ND, key_ND, negatives_KD))
    own = (query_ND * key_ND).sum(1, keepdim=True)
    others = (query_ND @ negatives_KD.T).masked_fill(~counts_NK, float("-inf"))
    logits = torch.cat([own, others], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def _is_large(rows: int, columns: int) -> bool:
    """Return whether a matrix of similarities is computed in tiles, which torch.vmap cannot."""
    return rows * columns >= LARGE and not is_under_vmap()


def _tiled(a_BD: Tensor, b_BD: Tensor, temperature: float, with_partner: bool) -> Tensor:
    """Return `nt_xent`, or `decoupled` without the partner in the denominator, without their matrices."""
    a_BD, b_BD = F.normalize(a_BD, dim=1), F.normalize(b_BD, dim=1)
    all_GD = torch.cat([gather_rows(a_BD), gather_rows(b_BD)])
    me = _own_rows(a_BD)
    mine = torch.cat([me, me + len(all_GD) // 2])
    partners = mine.roll(len(me))
    left_out = mine[:, None] if with_partner else torch.stack([mine, partners], 1)
    x_ND = torch.cat([a_BD, b_BD])
    return (row_logsumexp(x_ND, all_GD, left_out, temperature) - (x_ND * all_GD[partners]).sum(1) / temperature).mean()


def _logits(a_BD: Tensor, b_BD: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """For each view: yield the scaled similarities (B, 2G) to all views, itself at -inf, and the columns of the partners.

    G is B times the number of ranks.
    """
    a_BD, b_BD = F.normalize(a_BD, dim=1), F.normalize(b_BD, dim=1)
    a_GD, b_GD = gather_rows(a_BD), gather_rows(b_BD)
    me = _own_rows(a_BD)
    for mine, partners, others in ((a_BD, b_GD, a_GD), (b_BD, a_GD, b_GD)):
        logits = mine @ torch.cat([partners, others]).T / temperature
        yield logits.scatter(1, (me + len(a_GD))[:, None], float("-inf")), me


def _own_rows(x_BD: Tensor) -> Tensor:
    """Return the places (B,) int64 of this rank's rows among those of all ranks."""
    return torch.arange(len(x_BD), device=x_BD.device) + rank() * len(x_BD)
