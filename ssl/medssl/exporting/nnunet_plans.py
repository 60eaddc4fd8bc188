"""Weights and plans from which nnU-Net trains a segmentation with its residual encoder U-Net.

nnU-Net loads its weights as a pickle, so checkpoint.pth is one, of tensors and names alone. medssl reads no such file.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import network
from medssl.encoders.resenc import SECOND_NAMES, ResEnc, architecture
from medssl.errors import UserError
from medssl.files import write_json
from medssl.rng import seed_from
from medssl.store.resampled import intensity_windows
from medssl.store.store import Store

PLANS = "medsslResEncPlans"
UNET = "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet"
TO_SHAPE = "resample_data_or_seg_to_shape"


def write_nnunet(encoder: Any, config: EncoderConfig, store: Store, seed: int, folder: Path) -> dict[str, Any]:
    """Write checkpoint.pth, with the pretrained encoder and a decoder at its initial weights, and medsslResEncPlans.json.

    The plans have the encoder's architecture, its size as the patch, the grid of pretraining as the spacing, and its
    intensities: nnU-Net's "CTNormalization" with numbers that give the same values, where all training scans have one window;
    else "ZScoreNormalization", which does not.

    Args:
        seed: of the decoder's weights.
        folder: written to.

    Returns {"configuration", "normalisation", "spacing", "exact": whether intensities are those of pretraining}.

    Raises UserError for an encoder that is not nnU-Net's.
    """
    if not isinstance(encoder, ResEnc):
        raise UserError(
            f"form=nnunet needs nnU-Net's residual encoder, and this one is {type(encoder).__name__}; "
            "pretrain with encoder=resenc"
        )
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    if len(encoder.options["features"]) < 2:
        raise UserError(
            f"an encoder of scans of {encoder.size} has one stage, and nnU-Net needs two; pretrain with a larger size"
        )
    dims = len(encoder.size)
    arguments = architecture(dims, **encoder.options)
    arguments["n_conv_per_stage_decoder"] = [1] * (len(encoder.options["features"]) - 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed_from(seed, 0))
        whole = ResidualEncoderUNet(encoder.channels, **arguments, num_classes=2, deep_supervision=True)
        whole.apply(whole.initialize)
    loaded = whole.encoder.load_state_dict(network(encoder).state_dict(), strict=False)
    # the library has two names for each layer of a block, and the decoder one more for the encoder: all lead to the same tensors
    second = {k for k in loaded.missing_keys if k.split(".")[-2] in SECOND_NAMES}
    assert not loaded.unexpected_keys
    assert second == {*loaded.missing_keys}
    torch.save(
        {"network_weights": {k: v.detach().cpu() for k, v in whole.state_dict().items()}}, folder / "checkpoint.pth"
    )
    rows = store.rows("train")
    windows = {(float(a), float(b)) for a, b in zip(*(v[rows] for v in intensity_windows(store, False)), strict=True)}
    exact = len(windows) == 1 and not config.equalise
    spacing = config.spacing or _median_step(store, rows, encoder.size)
    described = _plans(encoder, config, arguments, spacing, windows.pop() if exact else None, store, rows)
    write_json(folder / f"{PLANS}.json", described)
    ((name, plan),) = described["configurations"].items()
    scheme = plan["normalization_schemes"][0]
    return {"configuration": name, "normalisation": scheme, "spacing": spacing, "exact": exact}


def _plans(
    encoder: Any,
    config: EncoderConfig,
    arguments: dict[str, Any],
    spacing: float,
    window: tuple[float, float] | None,
    store: Store,
    rows: np.ndarray,
) -> dict[str, Any]:
    """Return the contents of a plans file of nnU-Net 2."""
    dims, channels = len(encoder.size), encoder.channels
    name = "3d_fullres" if dims == 3 else "2d"
    shapes = [s[1:] for s in store.column("shape")[rows]]
    voxels = [v or (1.0,) * dims for v in store.column("spacing")[rows]]
    extents = np.array([[n * mm for n, mm in zip(*pair, strict=True)] for pair in zip(shapes, voxels, strict=True)])
    scheme = "ZScoreNormalization" if window is None else "CTNormalization"
    low, high = window or (0.0, 1.0)
    intensities = {
        "mean": low + config.mean * (high - low), "std": config.std * (high - low), "median": low + config.mean * (high - low),
        "min": low, "max": high, "percentile_00_5": low, "percentile_99_5": high,
    }  # fmt: skip
    # of images nnU-Net has one slice in front
    front, unit = ([999.0], [1]) if dims == 2 else ([], [])
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    plan = {
        "data_identifier": f"{PLANS}_{name}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2 if dims == 3 else 12,
        "patch_size": list(encoder.size),
        "median_image_size_in_voxels": np.round(np.median(extents, 0) / spacing).tolist(),
        "spacing": [spacing] * dims,
        "normalization_schemes": [scheme] * channels,
        "use_mask_for_norm": [False] * channels,
        "resampling_fn_data": TO_SHAPE,
        "resampling_fn_seg": TO_SHAPE,
        "resampling_fn_probabilities": TO_SHAPE,
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": resampling | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": resampling | {"order": 1},
        "architecture": {
            "network_class_name": UNET,
            "arch_kwargs": {k: _import_path(v) if isinstance(v, type) else v for k, v in arguments.items()},
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": dims == 2,
    }
    return {
        "dataset_name": "DatasetNNN_NAME",
        "plans_name": PLANS,
        "original_median_spacing_after_transp": front + np.median(np.array(voxels, float), 0).tolist(),
        "original_median_shape_after_transp": unit + np.median(np.array(shapes), 0).astype(int).tolist(),
        "image_reader_writer": "SimpleITKIO" if dims == 3 else "NaturalImage2DIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {name: plan},
        "experiment_planner_used": "medssl",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(c): intensities for c in range(channels)},
    }


def _import_path(of: type[nn.Module]) -> str:
    return f"{of.__module__}.{of.__qualname__}"


def _median_step(store: Store, rows: np.ndarray, size: tuple[int, ...]) -> float:
    """Return the median over scans of the mm per voxel of a grid that a scan is fitted into."""
    shapes, voxels = store.column("shape")[rows], store.column("spacing")[rows]
    steps = [
        max(n * mm / m for n, mm, m in zip(s[1:], v or (1.0,) * len(size), size, strict=True))
        for s, v in zip(shapes, voxels, strict=True)
    ]
    return math.floor(float(np.median(steps)) * 1e4 + 0.5) / 1e4
