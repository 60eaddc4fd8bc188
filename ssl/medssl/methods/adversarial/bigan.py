"""BiGAN: an encoder and a generator make pairs of scan and code that a discriminator cannot tell apart.

Donahue et al., 2017, https://arxiv.org/abs/1605.09782. With scans x, codes z from a uniform distribution, encoder E and
generator G, the discriminator D tells (x, E(x)) from (G(z), z); where it cannot, E inverts G. All are trained at once by

    loss = tell_apart(D(x, E(x)), D(G(z), z))     with x, E(x), G(z) constant
         + tell_apart(D(G(z), z), D(x, E(x)))     with D constant

The second line is not the negative of the first, whose gradient vanishes while D wins, but its answers swapped, as
Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661, section 3, advise for generators; the solution is the same.
"""

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from medssl.errors import UserError
from medssl.losses.adversarial import tell_apart
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import enlarging
from medssl.rng import uniform_field

COARSE = 8  # the generator starts at an eighth of the resolution, and the discriminator ends there


class BiGAN(Method):
    """Encoder (B, dim) and a linear map -> codes (B, latent); codes -> generator -> scans (B, C, *size).

    latent: size of the codes, uniform in [-1, 1]. width: channels of the coarsest maps of generator and discriminator. hidden:
    of the discriminator's layer over map and code. Only the encoder is kept.

    "loss" is that of a game and says little. "error" is the mean squared difference between x and G(E(x)).
    """

    def __init__(self, encoder: Any, latent: int, width: int, hidden: int):
        super().__init__()
        if latent < 1:
            raise UserError(f"method.latent must be at least 1, got {latent}")
        if width < COARSE:
            raise UserError(f"method.width must be at least {COARSE}, got {width}")
        self.encoder, self.latent = encoder, latent
        self.code = nn.Linear(encoder.dim, latent)
        self.generator = generator(latent, width, encoder.channels, encoder.size)
        self.discriminator = Discriminator(latent, width, hidden, encoder.channels, encoder.size)

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        code = self.code(self.encoder(x))
        z = 2 * uniform_field(batch["key"], 0, METHOD_SLOT, (self.latent,)).to(code.dtype) - 1
        made = self.generator(z)
        real, fake = self.discriminator(x, code.detach()), self.discriminator(made.detach(), z)
        constant = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        seen_real, seen_fake = (functional_call(self.discriminator, constant, pair) for pair in ((x, code), (made, z)))
        with torch.no_grad():
            error = (self.generator(code) - x).square().mean()
        told = tell_apart(real, fake)
        return {"loss": told + tell_apart(seen_fake, seen_real), "discriminator": told.detach(), "error": error}


def generator(latent: int, width: int, channels: int, size: tuple[int, ...]) -> nn.Sequential:
    """Return a network from codes (B, latent) to scans (B, channels, *size)."""
    at = tuple(max(1, n // COARSE) for n in size)
    return nn.Sequential(
        nn.Linear(latent, width * math.prod(at)), nn.Unflatten(1, (width, *at)), nn.ReLU(),
        *enlarging(at, size, width, channels),
    )  # fmt: skip


class Discriminator(nn.Module):
    """Pairs of scans (B, C, *size) and codes (B, latent) -> logits (B,) of "a real scan with its code".

    Three strided convolutions without batch normalisation, which would mix the scans of a batch, and two layers on map and
    code. All have spectral normalisation (Miyato et al., 2018, https://arxiv.org/abs/1802.05957), which the paper has not, so
    that the discriminator does not win at once on a small data set.
    """

    def __init__(self, latent: int, width: int, hidden: int, channels: int, size: tuple[int, ...]):
        super().__init__()
        conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
        at, layers = size, list[nn.Module]()
        for a, b in pairwise((channels, width // 4, width // 2, width)):
            layers += [spectral_norm(conv(a, b, 3, 2, 1)), nn.LeakyReLU(0.2)]
            at = tuple(-(-n // 2) for n in at)
        self.scan = nn.Sequential(*layers, nn.Flatten())
        first, last = nn.Linear(width * math.prod(at) + latent, hidden), nn.Linear(hidden, 1)
        self.pair = nn.Sequential(spectral_norm(first), nn.LeakyReLU(0.2), spectral_norm(last))

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return self.pair(torch.cat([self.scan(x), code], 1))[:, 0]
