"""Energies of Boltzmann machines, whose differences are losses, and the variational bound.

Visible units v (N, V) and hidden units h (N, H), with weights W (H, V) and biases b (V,) and c (H,). A Bernoulli unit has
the energy -b v, a Gaussian unit of variance 1 the energy (v - b)^2 / 2.
"""

import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision


@full_precision
def free_energy(v_NV: Tensor, W_HV: Tensor, c_H: Tensor, b_V: Tensor, visible: str, hidden: str) -> Tensor:
    """Return the free energy (N,) F(v) = -log(sum over h of exp(-E(v, h))), with E(v, h) = E(v) + E(h) - h'Wv.

    Hinton, 2010, "A practical guide to training restricted Boltzmann machines", sections 13.2 and 16.1. With a = c + Wv

        Bernoulli hidden units in {0, 1}:  F(v) = E(v) - sum of log(1 + exp(a))
        Gaussian hidden units:             F(v) = E(v) - sum of (a^2 - c^2) / 2,  up to the constant of the integral

    and E(v) = -b'v or |v - b|^2 / 2. The formula holds for any two values of Bernoulli visible units.
    """
    a = F.linear(v_NV, W_HV, c_H)
    below = (v_NV - b_V).square().sum(1) / 2 if visible == "gaussian" else -(v_NV @ b_V)
    above = (a.square() - c_H.square()) / 2 if hidden == "gaussian" else F.softplus(a)
    return below - above.sum(1)


@full_precision
def contrastive_divergence(
    data_NV: Tensor, model_MV: Tensor, W_HV: Tensor, c_H: Tensor, b_V: Tensor, visible: str, hidden: str
) -> Tensor:
    """Return the mean free energy of the data minus that of samples of the model, which get no gradient.

    Hinton, 2002, https://doi.org/10.1162/089976602760128018. The gradient with respect to -W is <h v'> of the data minus
    <h v'> of the samples; the value itself does not measure the model's fit.
    """
    parameters = W_HV, c_H, b_V, visible, hidden
    return free_energy(data_NV, *parameters).mean() - free_energy(model_MV.detach(), *parameters).mean()


@full_precision
def deep_energy(v_NV: Tensor, b_V: Tensor, *above: Tensor, visible: str) -> Tensor:
    """Return (N,) E(v, h1, h2, …) = E(v) - sum over layers of h'(c + W h below): Salakhutdinov & Hinton, 2009, section 3.

    above: h1 (N, H), W1, c1, h2, W2, c2, … from the lowest layer up.
    """
    energy = (v_NV - b_V).square().sum(1) / 2 if visible == "gaussian" else -(v_NV @ b_V)
    below = v_NV
    for h, W, c in zip(above[::3], above[1::3], above[2::3], strict=True):
        energy = energy - (h * F.linear(below, W, c)).sum(1)
        below = h
    return energy


@full_precision
def bernoulli_error(logits_NV: Tensor, p_NV: Tensor) -> Tensor:
    """Return the cross-entropy, summed over pixels and averaged over scans; intensities p in [0, 1] act as probabilities."""
    return F.binary_cross_entropy_with_logits(logits_NV, p_NV, reduction="sum") / len(p_NV)


@full_precision
def gaussian_error(mean_NV: Tensor, x_NV: Tensor) -> Tensor:
    """Return the mean over scans of |x - mean|^2 / 2: -log of a normal density of variance 1, up to its constant."""
    return F.mse_loss(mean_NV, x_NV, reduction="sum") / (2 * len(x_NV))


@full_precision
def gaussian_kl(mean_ND: Tensor, log_variance_ND: Tensor) -> Tensor:
    """Return (N,) KL(N(mean, variance) || N(0, 1)), summed over dimensions: Kingma & Welling, 2014, appendix B."""
    return (mean_ND.square() + log_variance_ND.exp() - log_variance_ND - 1).sum(1) / 2


@full_precision
def negative_elbo(rebuilt_NV: Tensor, x_NV: Tensor, mean_ND: Tensor, log_variance_ND: Tensor, beta: float) -> Tensor:
    """Return gaussian_error + beta * mean gaussian_kl: Kingma & Welling, 2014, equation 10, with the beta of Higgins et al.,
    2017, equation 4.

    With beta = 1 and one sample it estimates an upper bound on -log p(x), up to the constant of the density.
    """
    return gaussian_error(rebuilt_NV, x_NV) + beta * gaussian_kl(mean_ND, log_variance_ND).mean()
