"""A convolutional encoder that sees only some cells of a scan, as a sparse convolution would: hidden places stay empty.

Tian et al., 2023, https://arxiv.org/abs/2301.03580 (SparK). A dense convolution of a scan with holes lets the holes close from
stage to stage, and lets their zeros into the statistics of norms. Here every convolution and pooling gets zeros at hidden
places, and every norm gets the visible places alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

SPATIAL = (_ConvNd, _AvgPoolNd, _MaxPoolNd)


def at_size(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    """Return cells (B, C, *grid) at every place of a map (B, C, *size): place i of n belongs to cell floor(i * cells / n)."""
    for a, n in enumerate(size, start=2):
        cells = cells.index_select(a, torch.arange(n, device=cells.device) * cells.shape[a] // n)
    return cells


def mean_of_cells(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Return the mean (B, 1, *grid) of x (B, C, *size) over the channels and places of each cell."""
    x = x.mean(1, keepdim=True)
    for a, cells in enumerate(grid):
        n = x.shape[2 + a]
        cell = torch.arange(n, device=x.device) * cells // n
        member = (cell == torch.arange(cells, device=x.device)[:, None]).to(x.dtype)
        x = (x.movedim(2 + a, -1) @ (member / member.sum(1, keepdim=True)).T).movedim(-1, 2 + a)
    return x


def visible_stages(encoder: Any, x: Tensor, visible: Tensor) -> list[Tensor]:
    """Return the encoder's stages (B, width, *s) for x (B, C, *size), with zeros at hidden places.

    visible: (B, 1, *grid) bool, on the grid of the encoder's last stage.
    """
    with _visible_only(encoder, visible):
        stages = encoder.stages(x)
    return [_keep(m, visible) for m in stages]


@contextmanager
def _visible_only(encoder: nn.Module, visible: Tensor) -> Iterator[None]:
    """Let the layers of the encoder see visible places only."""
    kinds = ((SPATIAL, _of_kept), (_BatchNorm, _norm_of_all), ((nn.GroupNorm, _InstanceNorm), _norm_of_each))
    changed = []
    try:
        for m in encoder.modules():
            for kind, instead in kinds:
                if isinstance(m, kind):  # an attribute of the instance hides the method of its class
                    vars(m)["forward"] = partial(instead, m.forward, visible)
                    changed.append(m)
                    break
        yield
    finally:
        for m in changed:
            del vars(m)["forward"]


def _keep(x: Tensor, visible: Tensor) -> Tensor:
    if any(n < cells for n, cells in zip(x.shape[2:], visible.shape[2:], strict=True)):
        return x  # pooled over places, as in squeeze and excitation
    return x.masked_fill(~at_size(visible, tuple(x.shape[2:])), 0)


def _of_kept(layer: Callable[[Tensor], Tensor], visible: Tensor, x: Tensor) -> Tensor:
    return layer(_keep(x, visible))


def _norm_of_all(norm: Callable[[Tensor], Tensor], visible: Tensor, x: Tensor) -> Tensor:
    """Normalise the visible places of all scans together: batch normalisation."""
    mask = at_size(visible, tuple(x.shape[2:]))[:, 0]
    rows = x.movedim(1, -1)[mask].T.contiguous()  # (C, places); torch's gradients are wrong for other memory orders
    done = norm(rows.view(1, *rows.shape, *[1] * (x.ndim - 3)))
    filled = done.new_zeros(*mask.shape, x.shape[1])
    filled[mask] = done.flatten(2)[0].T
    return filled.movedim(-1, 1)


def _norm_of_each(norm: Callable[[Tensor], Tensor], visible: Tensor, x: Tensor) -> Tensor:
    """Normalise the visible places of each scan by themselves: group and instance normalisation."""
    pairs = zip(x.split(1), visible.split(1), strict=True)
    return torch.cat([_norm_of_all(norm, seen, scan) for scan, seen in pairs])
