"""An encoder with its preprocessing as one ONNX graph, and a comparison of the graph with the encoder on real scans."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.evals.embed import embed
from medssl.store.intensity_windows import to_unit_range
from medssl.store.resampled import common_dtype, intensity_windows, resampled_for_encoder
from medssl.store.store import Store

TOLERANCE = 1e-4  # largest difference of a feature, or of 1 / 10,000 of the largest feature
CHECKED = 16  # scans on which the graph is compared
NEEDS = "form=onnx needs onnx, onnxscript and onnxruntime: pip install 'medssl[onnx]'"


class FromStoredValues(nn.Module):
    """Encode scans as a store keeps them: resample to the encoder's grid, map the window to [0, 1], standardise, encode.

    The same as `medssl.store.resampled.resample_scans` and `medssl.evals.embed.standardised`, for one shape a batch, written
    so that the shape may be any. Weights are computed in float64 and applied in float32, as there: resampled integers are
    rounded, and values that lie between two of them must be rounded to the same one.

    Args:
        encoder: takes (B, C, *size) standardised float32.
        wanted: its input format.
        window: the values that map to 0 and 1, where they are the same for all scans; None makes them arguments.
        integers: the range of the integers to which resampled values are rounded; None for floating point.
    """

    def __init__(
        self,
        encoder: nn.Module,
        wanted: InputConfig,
        window: tuple[float, float] | None,
        integers: tuple[int, int] | None,
    ):
        super().__init__()
        self.encoder, self.wanted, self.window, self.integers = encoder, wanted, window, integers

    def forward(self, scan: Tensor, spacing: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
        """Return features (B, dim) float32.

        scan: (B, C, *spatial) float32 in stored units. spacing: (dims,) float64, mm per voxel of each axis; ones if unknown.
        low, high: (B,) float32, without a constant window.
        """
        grid, voxel = self.wanted.size, spacing
        if low is None or high is None:
            assert self.window is not None
            low, high = (torch.tensor([v], dtype=torch.float32) for v in self.window)
        low, high = (v.view(-1, *[1] * (scan.ndim - 1)) for v in (low, high))
        x = scan - low
        sides = [scan.shape[2 + k] * voxel[k] for k in range(len(grid))]  # mm
        if self.wanted.spacing is None:
            step = torch.stack([side / m for side, m in zip(sides, grid, strict=True)]).max()
        else:
            step = torch.tensor(self.wanted.spacing, dtype=torch.float64)
        for k, (side, m) in enumerate(zip(sides, grid, strict=True)):
            pad = torch.round((m - side / step) / 2)
            weights = _weights(scan.shape[2 + k], m, -pad * step / voxel[k], m * step / voxel[k]).float()
            x = (x.movedim(2 + k, -1) @ weights.mT).movedim(-1, 2 + k)
        x = x + low
        if self.integers is not None:
            x = torch.round(x).clamp(*self.integers)
        x = to_unit_range(x, low, high)
        return self.encoder((x - self.wanted.mean) / self.wanted.std)


def _weights(n_in: int, n_out: int, start: Tensor, extent: Tensor) -> Tensor:
    """Return the (n_out, n_in) float64 weights of `medssl.resample.axis_weights`, 0 for samples outside the scan."""
    step = extent / n_out
    at = torch.arange(n_in, dtype=torch.float64)[None] + 0.5
    centre = start + (torch.arange(n_out, dtype=torch.float64)[:, None] + 0.5) * step
    weights = (1 - (at - centre).abs() / step.clamp(min=1)).clamp(min=0)
    weights = weights * ((at > start) & (at < start + extent)).double()
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-8)
    return weights * ((centre >= 0) & (centre < n_in)).double()


def write_onnx(encoder: nn.Module, wanted: InputConfig, store: Store, path: Path) -> dict[str, Any]:
    """Write the graph of an encoder with its preprocessing; returns its inputs and how it compares with the encoder.

    Inputs are those of `FromStoredValues.forward`; `low` and `high` only if the windows of the store's training scans differ.
    `spacing` may be left out, for voxels of equal sides.

    Returns {"inputs": names, "window", "scans": compared, "difference": the largest of a feature, "largest": feature}.

    Raises UserError without the libraries, for histogram-equalised encoders, for networks that have no ONNX form, and if the
    features of the graph differ from the encoder's on scans of `store`.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as e:
        raise UserError(NEEDS) from e
    if wanted.equalise:
        raise UserError("form=onnx cannot equalise histograms inside the graph; export a run with equalise=false")
    rows = store.rows("train")
    window, integers = _constant_window(store, rows), _integers(store)
    graph = FromStoredValues(encoder.eval(), wanted, window, integers).eval()
    names = ["scan", "spacing"] + ([] if window else ["low", "high"])
    dims = len(wanted.size)
    given: list[Tensor] = [
        torch.zeros(2, wanted.channels, *(n + 3 for n in wanted.size)),
        torch.ones(dims, dtype=torch.float64),
    ]
    given += [] if window else [torch.zeros(2), torch.ones(2)]
    batch, sides = torch.export.Dim("batch"), [torch.export.Dim(f"side{k}") for k in range(dims)]
    shapes: list[Any] = [{0: batch, **{2 + k: side for k, side in enumerate(sides)}}, {}]
    shapes += [] if window else [{0: batch}, {0: batch}]
    try:
        with _silent():
            program = torch.onnx.export(
                graph, tuple(given), dynamo=True, dynamic_shapes=tuple(shapes), input_names=names, output_names=["features"]
            )  # fmt: skip
    except Exception as e:  # torch's exporter raises many types
        why = " ".join(str(e).split())[:120]
        raise UserError(
            f"{type(encoder).__name__} has no ONNX form ({type(e).__name__}: {why}); choose another form"
        ) from e
    assert program is not None
    model = program.model_proto
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(dims), "spacing"))
    onnx.save(model, path)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # no warning that "spacing" is an input with a default, which it should be
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return {"inputs": names, "window": window} | _compare(session, encoder, wanted, store, window is None)


def _compare(session: Any, encoder: nn.Module, wanted: InputConfig, store: Store, windows: bool) -> dict[str, Any]:
    """Return the largest difference of the graph's features from the encoder's; raises UserError if it is too large."""
    rows = store.rows("val") if len(store.rows("val")) else store.rows()
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, CHECKED).astype(int))]
    expected = embed(encoder, resampled_for_encoder(store, wanted), rows, quiet=True)
    low, high = intensity_windows(store, False)
    differences = []
    for at in _batches(store, rows):
        of = rows[at]
        feed = {"scan": np.stack([store[row] for row in of]).astype(np.float32)}
        if (spacing := store.column("spacing")[of[0]]) is not None:
            feed["spacing"] = np.array(spacing, np.float64)
        feed |= {"low": low[of], "high": high[of]} if windows else {}
        differences.append(np.abs(session.run(None, feed)[0] - expected[at]).max())
    largest, difference = float(np.abs(expected).max()), float(max(differences))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f"the ONNX graph gives other features than the encoder: they differ by {difference:.2g} on {len(rows)} scans, "
            f"with features up to {largest:.2g}; nothing was written"
        )
    return {"scans": len(rows), "difference": difference, "largest": largest}


def _batches(store: Store, rows: np.ndarray) -> Iterable[list[int]]:
    """Return the places in `rows` of scans of equal shape and spacing, together."""
    groups: dict[Any, list[int]] = {}
    shape, spacing = store.column("shape"), store.column("spacing")
    for i, row in enumerate(rows):
        groups.setdefault((shape[row], spacing[row]), []).append(i)
    return groups.values()


def _constant_window(store: Store, rows: np.ndarray) -> tuple[float, float] | None:
    low, high = (v[rows] for v in intensity_windows(store, False))
    if len(rows) and np.ptp(low) == 0 == np.ptp(high):
        return float(low[0]), float(high[0])
    return None


def _integers(store: Store) -> tuple[int, int] | None:
    """Return the range of the integers that resampled scans are rounded to."""
    dtype = common_dtype(store, False)
    return (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)) if dtype.kind in "iu" else None


@contextlib.contextmanager
def _silent() -> Any:
    """Drop what torch's exporter prints and logs."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
