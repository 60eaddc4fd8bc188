"""Variational autoencoder and beta-VAE: reconstruct the scan from a noisy code that is close to a standard normal.

Kingma & Welling, 2014, https://arxiv.org/abs/1312.6114, equation 10; Higgins et al., 2017, "beta-VAE", equation 4:

    loss = mean over scans of |x - decoder(z)|^2 / 2 + beta * KL(N(mean, variance) || N(0, 1)),   z = mean + std * noise

The likelihood is normal with variance 1 in units of the standardised scan. A learned variance would have the same effect as
beta: to weight one term against the other.
"""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.errors import UserError
from medssl.losses.energy import negative_elbo
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.rng import normal_field


class VAE(Method):
    """Encoder (B, C, *spatial) -> (B, dim) -> mean and log variance (B, latent) -> decoder -> (B, C * spatial).

    latent: size of the code. hidden: width of the decoder, two layers, discarded after training together with the linear
    layer to the code. beta: weight of the divergence.
    """

    def __init__(self, encoder: Any, latent: int, hidden: int, beta: float):
        super().__init__()
        if latent < 1:
            raise UserError(f"method.latent must be at least 1, got {latent}")
        if beta < 0:
            raise UserError(f"method.beta must not be negative, got {beta}")
        self.encoder, self.latent, self.beta = encoder, latent, beta
        self.code = nn.Linear(encoder.dim, 2 * latent)
        pixels = encoder.channels * torch.Size(encoder.size).numel()
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels))

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        mean, log_variance = self.code(self.encoder(x)).chunk(2, 1)
        noise = normal_field(batch["key"], 0, METHOD_SLOT, (self.latent,)).to(mean.dtype)
        rebuilt = self.decoder(mean + (log_variance / 2).exp() * noise)
        return {"loss": negative_elbo(rebuilt, x.flatten(1), mean, log_variance, self.beta)}
