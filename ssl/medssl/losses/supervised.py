"""Losses of training on labels: scores (B, outputs) of a head against the target of each scan."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision


@full_precision
def cross_entropy(scores_BK: Tensor, target_B: Tensor) -> Tensor:
    """Return the mean over scans of -log softmax(scores)[target]; target: int64 classes."""
    return F.cross_entropy(scores_BK, target_B)


@full_precision
def weighted_cross_entropy(scores_BK: Tensor, target_B: Tensor, weight_B: Tensor) -> Tensor:
    """Return the mean over scans of -weight * log softmax(scores)[target]; target: int64 classes."""
    return (weight_B * F.cross_entropy(scores_BK, target_B, reduction="none")).mean()


@full_precision
def confident_cross_entropy(scores_BK: Tensor, guess_BK: Tensor, threshold: float) -> Tensor:
    """Return the loss of pseudo-labels, Sohn et al., 2020, https://arxiv.org/abs/2001.07685, equation 4.

    It is the mean over all scans of

        1[max softmax(guess) >= threshold] * -log softmax(scores)[argmax guess]

    No gradient flows to the guess.
    """
    confidence, label = guess_BK.detach().softmax(1).max(1)
    return (F.cross_entropy(scores_BK, label, reduction="none") * (confidence >= threshold)).mean()


@full_precision
def masked_binary_cross_entropy(scores_BL: Tensor, target_BL: Tensor, known_BL: Tensor) -> Tensor:
    """Return the binary cross-entropy of the known labels, with equal weight for each label; unknown ones get no gradient.

    target_BL: 1 or 0, ignored where `known_BL` (bool) is false: U-Ignore of Irvin et al., 2019,
    https://arxiv.org/abs/1901.07031, section 4. The loss is 0 if nothing is known.
    """
    each = F.binary_cross_entropy_with_logits(scores_BL, target_BL.to(scores_BL.dtype), reduction="none") * known_BL
    return (each.sum(0) / known_BL.sum(0).clamp(min=1)).sum() / known_BL.any(0).sum().clamp(min=1)


@full_precision
def continuation(scores_BJ: Tensor, level_B: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of levels 0 … J (int64) under `continuation_probabilities`.

    The conditional training of CORN (Shi, Cao & Raschka, 2021, https://arxiv.org/abs/2111.08851, section 3.2): the j-th
    output, "higher than j", is trained only on scans whose level is at least j.
    """
    j, level = torch.arange(scores_BJ.shape[1], device=scores_BJ.device), level_B[:, None]
    higher, stays = F.logsigmoid(scores_BJ) * (j < level), F.logsigmoid(-scores_BJ) * (j == level)
    return -(higher + stays).sum(1).mean()


def continuation_probabilities(scores_NJ: Tensor) -> Tensor:
    """Return the probabilities (N, J + 1) of the levels, from logits (N, J) of "higher than j, given at least j"."""
    reached = F.pad(torch.sigmoid(scores_NJ).cumprod(1), (1, 0), value=1.0)
    return reached * F.pad(torch.sigmoid(-scores_NJ), (0, 1), value=1.0)


@full_precision
def huber(prediction_B: Tensor, target_B: Tensor) -> Tensor:
    """Return the mean of d^2 / 2 where |d| < 1, else |d| - 1/2, with d = prediction - target (Huber, 1964)."""
    return F.smooth_l1_loss(prediction_B, target_B.to(prediction_B.dtype))


@full_precision
def cox(risk_B: Tensor, time_B: Tensor, event_B: Tensor) -> Tensor:
    """Return the negative log partial likelihood of the batch per event (Cox, 1972; ties as in Breslow, 1974).

        mean over events i of log(sum over j with time_j >= time_i of exp(risk_j)) - risk_i

    risk: log relative hazards. event: 1 if the event happened at `time`, 0 if the patient was last seen then (censored).
    The risk set is taken from the batch. Without events the loss is 0.
    """
    at_risk_BB = time_B[None, :] >= time_B[:, None]
    over = torch.logsumexp(risk_B[None, :].masked_fill(~at_risk_BB, -torch.inf), 1)
    return ((over - risk_B) * event_B).sum() / event_B.sum().clamp(min=1)
