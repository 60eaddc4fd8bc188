"""Features of scans, or of augmented views of them, from an encoder that is left unchanged."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.augmentations.loader import RawScans, apply_windows, make_views
from medssl.augmentations.recipes import Recipe
from medssl.progress import Progress
from medssl.store.resampled import ResampledScans


def standardised(resampled: ResampledScans, rows: NDArray[np.int64], device: torch.device | str = "cpu") -> Tensor:
    """Return scans standardised as in training but not augmented, (B, C, *size) float32 on `device`."""
    raw = {"image": resampled.array[rows], "low": resampled.low[rows], "high": resampled.high[rows]}
    return (
        apply_windows({k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in raw.items()})
        - resampled.mean
    ) / resampled.std


def views_of(
    resampled: ResampledScans,
    rows: NDArray[np.int64],
    recipe: Recipe,
    views: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Return `views` tensors (B, C, *size) float32 on `device`, the views of scans `rows` in epoch 0 of training with `seed`."""
    raw = RawScans(resampled).__getitems__([(int(row), 0) for row in rows])
    raw |= {k: raw[k].to(device) for k in ("image", "low", "high")}
    return make_views(raw, recipe, views, seed, resampled.mean, resampled.std)[0]


@contextmanager
def evaluating(module: nn.Module, device: torch.device | str = "cpu", as_training: bool = False) -> Iterator[nn.Module]:
    """Put `module` in evaluation mode on `device`, without gradients; restore all modes, buffers and the device afterwards.

    as_training: batch normalisation uses the statistics of each batch, as in training, in place of the running statistics,
    which lag behind by about fifty steps and at the start come from no data.
    """
    modes = [(m, m.training) for m in module.modules()]
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if as_training else []
    running = [(m, name, b.clone()) for m in norms for name, b in m.named_buffers()]
    home = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device(device))
    try:
        module.eval().to(device)
        for m in norms:
            m.train()
        with torch.inference_mode():
            yield module
    finally:
        for part, training in modes:
            part.training = training
        module.to(home)
        with torch.no_grad():
            for m, name, before in running:
                m.get_buffer(name).copy_(before)


def embed(
    encoder: nn.Module,
    resampled: ResampledScans,
    rows: NDArray[np.int64],
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> NDArray[np.float32]:
    """Return features (len(rows), dim) float32 of the scans `rows`, in that order.

    The encoder runs as in `evaluating`; no random number is drawn. `quiet` hides the progress bar. Raises ValueError when
    the encoder returns another shape.
    """
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        raise ValueError("no scans to embed")
    out: list[NDArray[np.float32]] = []
    with evaluating(encoder, device), Progress("embed", total=len(rows), unit="scan", quiet=quiet) as bar:
        for start in range(0, len(rows), batch):
            x = standardised(resampled, rows[start : start + batch], device)
            out.append(_features(encoder, x))
            bar.update(len(x))
    return np.concatenate(out)


def embed_views(
    encoder: nn.Module,
    resampled: ResampledScans,
    rows: NDArray[np.int64],
    recipe: Recipe,
    views: int,
    seed: int,
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    quiet: bool = False,
    as_training: bool = False,
) -> NDArray[np.float32]:
    """Return features (len(rows), views, dim) float32 of `views` views of each scan, a function of (seed, row, view).

    Otherwise as `embed`; for `as_training` see `evaluating`.
    """
    rows = np.asarray(rows, np.int64)
    out: list[NDArray[np.float32]] = []
    with evaluating(encoder, device, as_training), Progress("views", total=len(rows), unit="scan", quiet=quiet) as bar:
        for start in range(0, len(rows), batch):
            chunk = rows[start : start + batch]
            each = views_of(resampled, chunk, recipe, views, seed, device)
            out.append(np.stack([_features(encoder, x) for x in each], axis=1))
            bar.update(len(chunk))
    return np.concatenate(out)


def _features(encoder: nn.Module, x: Tensor) -> NDArray[np.float32]:
    z = encoder(x)
    if z.ndim != 2 or len(z) != len(x):
        raise ValueError(f"{type(encoder).__name__} returned {tuple(z.shape)} for {len(x)} scans, not ({len(x)}, dim)")
    return z.float().cpu().numpy()
