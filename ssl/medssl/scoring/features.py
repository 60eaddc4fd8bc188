"""Features of scans: from an encoder, and from raw pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, adaptive_avg_pool3d

from medssl.encoders.config import InputConfig
from medssl.encoders.own import build_encoder
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed
from medssl.rng import seed_from
from medssl.runs.config import PretrainConfig
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store

FeatureSource = Callable[[Store, np.ndarray], np.ndarray]
"""(store, rows) -> features (len(rows), dim) float32."""

POOLED, GRID, STAGES = ENCODER_FEATURES = ("pooled", "grid", "stages")
"""Features of an encoder: its output; its last map averaged in the cells of a grid; the means of the maps of all stages."""
CELLS = {2: 3, 3: 2}  # cells of the grid along each axis
RAW = {2: 32, 3: 16}  # edge of the grid of the raw-pixel baseline
COMPONENTS = 64
DEVICES = ("auto", "cpu", "cuda")


def resolve_device(device: str) -> str:
    """Return cpu or cuda; auto is cuda if torch finds a GPU. Raises UserError for a device that is not there."""
    if device not in DEVICES:
        raise UserError(f"device is {device!r}.{nearest(device, DEVICES)}")
    found = torch.cuda.is_available()
    if device == "cuda" and not found:
        raise UserError("device=cuda, but torch finds no GPU; use device=cpu")
    return "cuda" if found and device != "cpu" else "cpu"


@dataclass(frozen=True)
class SideBySide:
    """Several features of the same scans, used together: a linear probe gives each the same total variance."""

    sources: tuple[FeatureSource, ...]

    def blocks(self, store: Store, rows: np.ndarray) -> list[np.ndarray]:
        """Return the features (len(rows), dim) float32 of each source."""
        return [source(store, rows) for source in self.sources]

    def __call__(self, store: Store, rows: np.ndarray) -> np.ndarray:
        """Return all features in one array."""
        return np.concatenate(self.blocks(store, rows), axis=1)


class MapFeatures(nn.Module):
    """Return features (B, dim) from the maps of an encoder: GRID or STAGES.

    Raises UserError if the encoder has no maps.
    """

    def __init__(self, encoder: nn.Module, which: str):
        super().__init__()
        self.encoder, self.which = encoder, which
        if not hasattr(encoder, "stages"):
            raise UserError(f"{type(encoder).__name__} has no feature maps, so there are no features {which!r}")

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        stages: list[Tensor] = self.encoder.stages(x)  # type: ignore[operator]
        if self.which == STAGES:
            return torch.cat([m.flatten(2).mean(2) for m in stages], 1)
        last, dims = stages[-1], x.ndim - 2
        cells = [min(CELLS[dims], n) for n in last.shape[2:]]
        pool: Any = adaptive_avg_pool2d if dims == 2 else adaptive_avg_pool3d
        return pool(last, cells).flatten(1)


def from_encoder(encoder: nn.Module, wanted: InputConfig, device: str) -> FeatureSource:
    """Return features of an encoder for scans of any store; `wanted` is the input format it was trained with."""

    def features(store: Store, rows: np.ndarray) -> np.ndarray:
        check_input(wanted, store)
        return embed(encoder, resampled_for_encoder(store, wanted), rows, device=device)

    return features


class Positions(nn.Module):
    """The last feature map of an encoder, or its tokens, position after position: (B, C, *size) -> (B, T * dim)."""

    def __init__(self, encoder: Any):
        super().__init__()
        if not hasattr(encoder, "maps"):
            raise UserError(
                f"an attentive probe needs an encoder with feature maps, and {type(encoder).__name__} has none; "
                "use probes=[linear]"
            )
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T * dim)."""
        return self.encoder.maps(x).flatten(2).transpose(1, 2).flatten(1)


def from_maps(encoder: nn.Module, wanted: InputConfig, device: str) -> FeatureSource:
    """Return the vectors (len(rows), T, dim) float32 at the T positions of an encoder's last feature map; see `from_encoder`.

    Raises UserError for an encoder without feature maps.
    """
    flat = from_encoder(Positions(encoder), wanted, device)
    return lambda store, rows: flat(store, rows).reshape(len(rows), -1, encoder.dim)  # type: ignore[arg-type]


def check_input(wanted: InputConfig, store: Store) -> None:
    """Raise UserError if an encoder with this input cannot take the scans of `store`."""
    has, takes = (store.channels, store.dims), (wanted.channels, len(wanted.size))
    if has != takes:
        raise UserError(
            f"the encoder takes {takes[0]}-channel scans in {takes[1]}D, and {store.path} has {has[0]} in {has[1]}D"
        )


def initial_encoder(config: PretrainConfig, wanted: InputConfig) -> nn.Module:
    """Return the encoder of a run with its initial random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(config.seed, 0))
        spec = config.encoder.spec("encoder")
        if "pretrained" in spec:
            spec["pretrained"] = False
        return build_encoder(spec, wanted.channels, wanted.size)


def raw_pixels(equalise: bool) -> FeatureSource:
    """Return pixels in [0, 1] on a small grid as features."""

    def features(store: Store, rows: np.ndarray) -> np.ndarray:
        resampled = resample_scans(store, RAW[store.dims], None, equalise)
        shape = (-1,) + (1,) * (resampled.array.ndim - 1)
        low, high = resampled.low[rows].reshape(shape), resampled.high[rows].reshape(shape)
        return np.clip((resampled.array[rows] - low) / (high - low), 0, 1).reshape(len(rows), -1).astype(np.float32)

    return features


def pca(store: Store, equalise: bool) -> FeatureSource:
    """Return whitened principal components of the raw pixels, fitted on the training patients of `store`."""
    raw = raw_pixels(equalise)
    x = raw(store, store.rows("train"))
    model = PCA(min(COMPONENTS, len(x) - 1, x.shape[1]), whiten=True, svd_solver="covariance_eigh").fit(x)
    return lambda other, rows: model.transform(raw(other, rows)).astype(np.float32)
