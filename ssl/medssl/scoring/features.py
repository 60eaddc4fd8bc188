"""Features of scans: from an encoder, and from raw pixels."""

from collections.abc import Callable

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import nn

from medssl import catalog
from medssl.encoders.config import InputConfig
from medssl.errors import UserError, nearest
from medssl.evals.embed import embed
from medssl.rng import seed_from
from medssl.runs.config import PretrainConfig
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store

FeatureSource = Callable[[Store, np.ndarray], np.ndarray]
"""(store, rows) -> features (len(rows), dim) float32."""

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


def from_encoder(encoder: nn.Module, wanted: InputConfig, device: str) -> FeatureSource:
    """Return features of an encoder for scans of any store; `wanted` is the input format it was trained with."""

    def features(store: Store, rows: np.ndarray) -> np.ndarray:
        check_input(wanted, store)
        return embed(encoder, resampled_for_encoder(store, wanted), rows, device=device)

    return features


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
        return catalog.build(spec, channels=wanted.channels, size=wanted.size)


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
