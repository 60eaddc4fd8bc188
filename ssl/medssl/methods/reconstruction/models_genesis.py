"""Models Genesis: reconstruct a scan from a copy deformed in up to four ways.

Zhou et al., 2019, https://arxiv.org/abs/1908.06912, section 2: a nonlinear map of intensities, local shuffling of pixels, and
painting over either boxes or all but a box, each with its own probability; the loss is the squared error. Three details
differ from the paper: shuffling windows tile the scan instead of lying anywhere, painted pixels hold noise between the scan's
lowest and highest value, and the decoder has no skip connections, since only the encoder is kept.
"""

from typing import Any

import torch
from torch import Tensor

from medssl.errors import UserError
from medssl.losses.regression import squared_error
from medssl.methods.base import METHOD_SLOT, Batch, Clock, Method
from medssl.methods.parts.decoder import ConvDecoder
from medssl.methods.parts.patches import random_boxes
from medssl.rng import Key, uniform, uniform_field

CHOICE_SLOT, CURVE_SLOT, SHUFFLE_SLOT, NOISE_SLOT, BOX_SLOT = (METHOD_SLOT + i for i in (0, 1, 2, 3, 10))
BOXES = 5


class ModelsGenesis(Method):
    """An encoder and a decoder on deformed scans.

    nonlinear, shuffle, paint: probabilities of the deformations. inner: probability of painting boxes rather than all
    but a box. window: edge of the shuffling windows, in pixels. width: of the decoder.
    """

    def __init__(
        self, encoder: Any, nonlinear: float, shuffle: float, paint: float, inner: float, window: int, width: int
    ):
        super().__init__()
        chances = {"nonlinear": nonlinear, "shuffle": shuffle, "paint": paint, "inner": inner}
        if wrong := [k for k, p in chances.items() if not 0 <= p <= 1]:
            raise UserError(f"method.{wrong[0]} is a probability between 0 and 1, got {chances[wrong[0]]}")
        if window < 2:
            raise UserError(f"method.window must be 2 pixels or more, got {window}")
        self.encoder, self.decoder = encoder, ConvDecoder(encoder, width)
        self.chances, self.window = tuple(chances.values()), window

    def forward(self, batch: Batch, clock: Clock) -> dict[str, Tensor]:
        (x,) = batch["views"]
        return {"loss": squared_error(self.decoder(self.encoder, self.deformed(x, batch["key"])), x)}

    def deformed(self, x: Tensor, key: Key) -> Tensor:
        """Deform scans (B, C, *S), each with the random numbers of its own key."""
        size = tuple(x.shape[2:])
        chances = torch.tensor(self.chances).to(x.device, non_blocking=True)
        nonlinear, shuffle, paint, inner = (uniform(key, 0, CHOICE_SLOT, 4) < chances).T
        low, high = (end.view(-1, *[1] * (x.ndim - 1)) for end in x.flatten(1).aminmax(dim=1))

        def choose(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
            return torch.where(mask.view(-1, *[1] * (x.ndim - 1)), yes, no)

        out = choose(nonlinear, curved((x - low) / (high - low).clamp(min=1e-6), key) * (high - low) + low, x)
        out = choose(shuffle, shuffled(out, key, self.window), out)
        holes = torch.stack([random_boxes(key, BOX_SLOT + i, size, 1 / 6, 1 / 3) for i in range(BOXES)]).any(0)
        around = ~random_boxes(key, BOX_SLOT + BOXES, size, 1 / 2, 3 / 4)
        hidden = choose(inner, holes[:, None], around[:, None]) & paint.view(-1, *[1] * (x.ndim - 1))
        noise = uniform_field(key, 0, NOISE_SLOT, tuple(x.shape[1:])).to(x.dtype)
        return torch.where(hidden, low + noise * (high - low), out)


def curved(x: Tensor, key: Key, points: int = 256) -> Tensor:
    """Map x in [0, 1] one-to-one along a random cubic Bezier curve from (0, 0) to (1, 1), for half of the scans upside down."""
    u = uniform(key, 0, CURVE_SLOT, 5).to(x.dtype)
    ends = torch.zeros_like(u[:, :1]), torch.ones_like(u[:, :1])
    t = torch.linspace(0, 1, points, dtype=x.dtype, device=x.device)
    basis = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    with torch.autocast(x.device.type, enabled=False):  # a curve of rounded points is no longer monotone
        across, up = (torch.cat([ends[0], u[:, i : i + 2], ends[1]], 1) @ basis for i in (0, 2))
    flat = x.flatten(1).contiguous()
    right = torch.searchsorted(across.contiguous(), flat).clamp(1, points - 1)
    x0, x1, y0, y1 = (c.gather(1, at) for c in (across, up) for at in (right - 1, right))
    y = y0 + (y1 - y0) * ((flat - x0) / (x1 - x0).clamp(min=1e-9)).clamp(0, 1)
    return torch.where(u[:, 4:] < 0.5, y, 1 - y).view_as(x)


def shuffled(x: Tensor, key: Key, window: int) -> Tensor:
    """Shuffle the pixels of scans (B, C, *S) inside each window of edge `window`; windows tile the scan from its corner."""
    size = tuple(x.shape[2:])
    draws = uniform_field(key, 0, SHUFFLE_SLOT, (1, *size)).to(x.device)
    source = _windows(draws, window, 2.0).argsort(dim=-1, stable=True)  # padding, above all draws, comes last
    if any(n % window for n in size):  # the r-th pixel inside the scan takes the r-th source
        home = _windows(torch.zeros(1, 1, *size, device=x.device), window, 2.0).argsort(dim=-1, stable=True)
        source = torch.empty_like(source).scatter_(-1, home.expand_as(source), source)
    moved = _windows(x, window, 0.0).gather(-1, source.expand(-1, x.shape[1], -1, -1))
    # windows back in place: (B, C, *cells, *window) -> (B, C, cells x window per axis), without the padding
    cells, n = [-(-edge // window) for edge in size], len(size)
    moved = moved.view(*x.shape[:2], *cells, *[window] * n)
    order = [0, 1] + [axis for a in range(n) for axis in (2 + a, 2 + n + a)]
    whole = moved.permute(order).reshape(*x.shape[:2], *[c * window for c in cells])
    for axis, edge in enumerate(size):
        whole = whole.narrow(2 + axis, 0, edge)
    return whole


def _windows(x: Tensor, window: int, fill: float) -> Tensor:
    """Cut x (B, C, *S), padded at the far ends, into windows: (B, C, windows, pixels of a window)."""
    size = x.shape[2:]
    far = [end for edge in reversed(size) for end in (0, -edge % window)]
    x = torch.nn.functional.pad(x, far, value=fill)
    n = len(size)
    for axis in range(n):
        x = x.unflatten(2 + 2 * axis, (-1, window))
    order = [0, 1] + [2 + 2 * a for a in range(n)] + [3 + 2 * a for a in range(n)]
    return x.permute(order).flatten(2 + n).flatten(2, 1 + n)
