"""Contrastive losses over corresponding parts of scans: slabs at one position, and places of one feature map.

Chaitanya et al., 2020, https://arxiv.org/abs/2006.10511.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows, rank


@full_precision
def partition_contrast(rows_BPVD: Tensor, temperature: float, across: bool) -> Tensor:
    """Return the global loss: slabs at one position attract, slabs at other positions, of any scan, repel.

    rows_BPVD: features of B scans, P positions and V views. It is the mean over rows i and their positives j, with cosine
    similarity s and N_i all rows at other positions, of

        -log( exp(s_ij / t) / (exp(s_ij / t) + sum over k in N_i of exp(s_ik / t)) )

    Positives are the other rows at that position: of the same scan, or, with `across`, of every scan (their G^D; without, G^D-,
    where the same position in other scans neither attracts nor repels). For constant features the loss is
    ln(1 + (P - 1) V B), with B counted over all ranks.
    """
    P, V, D = rows_BPVD.shape[1:]
    unit = F.normalize(rows_BPVD, dim=3)
    mine, every = unit.reshape(-1, D), gather_rows(unit).reshape(-1, D)
    index = torch.arange(len(every), device=unit.device)
    scan, place = index // (P * V), index // V % P
    here = index[: len(mine)] + rank() * len(mine)
    logits = mine @ every.T / temperature
    same_place = place[here][:, None] == place
    positive = same_place & (here[:, None] != index) & (across | (scan[here][:, None] == scan))
    negatives = logits.masked_fill(same_place, -torch.inf).logsumexp(1, keepdim=True)
    each = torch.logaddexp(logits, negatives) - logits
    return torch.where(positive, each, 0.0).sum() / positive.sum()


@full_precision
def place_contrast(a_BLD: Tensor, b_BLD: Tensor, temperature: float) -> Tensor:
    """Return the local loss: a place of one map attracts the same place of the other, and repels its other places.

    a_BLD, b_BLD: features of L places of two versions of each scan. It is the mean over scans, places i and both orders, with
    cosine similarity s, of -log( exp(s(a_i, b_i) / t) / sum over places k of exp(s(a_i, b_k) / t) ). For constant features the
    loss is ln(L).
    """
    logits = F.normalize(a_BLD, dim=2) @ F.normalize(b_BLD, dim=2).transpose(1, 2) / temperature
    own = torch.arange(logits.shape[1], device=logits.device).expand(len(logits), -1)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.transpose(1, 2), own)) / 2
