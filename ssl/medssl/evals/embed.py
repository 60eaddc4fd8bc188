"""Scans -> features: the encoder as it will be used, without augmentation, without a trace left on the encoder."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medssl.progress import Progress
from medssl.store.canvas import Canvas
from medssl.views.stream import unit


def standardised(canvas: Canvas, rows: NDArray[np.int64], device: torch.device | str = "cpu") -> Tensor:
    """(B, C, *size) float32 on `device`, as in training but for the augmentation: unit range, minus mean, over std."""
    raw = {"image": canvas.array[rows], "low": canvas.low[rows], "high": canvas.high[rows]}
    return (
        unit({k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in raw.items()}) - canvas.mean
    ) / canvas.std


def embed(
    encoder: nn.Module,
    canvas: Canvas,
    rows: NDArray[np.int64],
    *,
    batch: int = 256,
    device: torch.device | str = "cpu",
    quiet: bool = False,
) -> NDArray[np.float32]:
    """Features (len(rows), dim) float32 of the scans `rows` of `canvas`, in that order.

    The encoder runs in evaluation mode on `device`; afterwards each module is back in its own mode and on its device.
    No random number is drawn here. `quiet` hides the progress. Raises ValueError when the encoder gives another shape.
    """
    rows = np.asarray(rows, np.int64)
    if not len(rows):
        raise ValueError("no scans to embed")
    modes = [(m, m.training) for m in encoder.modules()]
    home = next((t.device for t in (*encoder.parameters(), *encoder.buffers())), torch.device(device))
    out: list[NDArray[np.float32]] = []
    try:
        encoder.eval().to(device)
        with torch.inference_mode(), Progress("embed", total=len(rows), unit="scan", quiet=quiet) as bar:
            for start in range(0, len(rows), batch):
                x = standardised(canvas, rows[start : start + batch], device)
                z = encoder(x)
                if z.ndim != 2 or len(z) != len(x):
                    raise ValueError(
                        f"{type(encoder).__name__} gave {tuple(z.shape)} for {len(x)} scans, not ({len(x)}, dim)"
                    )
                out.append(z.float().cpu().numpy())
                bar.update(len(x))
    finally:
        for module, training in modes:
            module.training = training
        encoder.to(home)
    return np.concatenate(out)
