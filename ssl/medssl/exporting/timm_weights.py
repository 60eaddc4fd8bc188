"""The weights of an encoder from timm as a folder that `timm.create_model("local-dir:FOLDER")` loads."""

import shutil
from pathlib import Path
from typing import Any

import timm
import torch

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import ENCODER, network
from medssl.encoders.timm2d import TimmEncoder
from medssl.errors import UserError
from medssl.files import write_json

LINE = 'timm.create_model("local-dir:{folder}", pretrained=True)'


def write_timm(encoder: Any, config: EncoderConfig, run: Path, folder: Path) -> str:
    """Copy the weights of a run to model.safetensors and describe them in config.json, as timm does; returns the line that loads.

    The model is built from `folder` once, and its weights compared. Raises UserError for an encoder that is not timm's.
    """
    if not isinstance(encoder, TimmEncoder):
        raise UserError(
            f"form=timm needs an encoder of timm, and this one is {type(encoder).__name__}; pretrain with encoder=resnet18 "
            "on images, or with the name of a timm model"
        )
    model = str(encoder.options["model"])
    sized = {"img_size": list(encoder.size)} if hasattr(encoder.net, "patch_embed") else {}
    shutil.copyfile(run / ENCODER, folder / "model.safetensors")
    about = {
        "input_size": [encoder.channels, *encoder.size],
        "fixed_input_size": bool(sized),
        "mean": [config.mean] * encoder.channels,
        "std": [config.std] * encoder.channels,
        "num_classes": 0,
    }
    values = {"architecture": model, "num_classes": 0, "num_features": encoder.dim}
    write_json(
        folder / "config.json", values | {"pretrained_cfg": about, "model_args": {"in_chans": encoder.channels} | sized}
    )
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    own = network(encoder).state_dict()
    assert loaded.keys() == own.keys()
    assert all(torch.equal(loaded[k], own[k].cpu()) for k in own)
    return LINE
