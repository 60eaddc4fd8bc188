"""The exported pair of an encoder: encoder.safetensors (weights) and encoder.json (an `EncoderConfig`).

A method that pretrains a decoder too adds decoder.safetensors, which encoder.json describes. Loading builds one of the
classes in `CLASSES`, a user's own class that is imported already (`encoders.own`), or a `UNetDecoder`, and copies numbers into
it; nothing in the files is executed.
"""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medssl.encoders.cnn import CNN
from medssl.encoders.config import EncoderConfig
from medssl.encoders.mlp import MLP
from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.own import build_own
from medssl.encoders.patch_bank import PatchBank
from medssl.encoders.patch_pyramid import PatchPyramid
from medssl.encoders.resenc import ResEnc
from medssl.encoders.small_resnet import SmallResNet
from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.unet_decoder import UNetDecoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError, nearest
from medssl.files import atomic, write_json

FORMAT = 2
CLASSES: dict[str, type[nn.Module]] = {
    c.__name__: c for c in (CNN, MLP, PatchBank, PatchPyramid, ResEnc, ResNet3d, SmallResNet, TimmEncoder, ViT)
}
REQUIRED = ("name", "options", "channels", "size", "dim", "weights")
ENCODER, DECODER = "encoder.safetensors", "decoder.safetensors"
DECODER_HEAD = "head."  # the decoder's last layer, for the classes of its training, is not kept


def save_encoder(folder: Path, encoder: Any, config: EncoderConfig, decoder: UNetDecoder | None = None) -> None:
    """Write the pair into `folder`, and the decoder's weights if there is one: each file atomically, the weights first.

    Args:
        folder: created if it does not exist.
        encoder: an instance of one of `CLASSES`. A wrapper around another library's network saves that network's own
            state dict, so `timm.create_model(name, in_chans=…, num_classes=0, checkpoint_path=…)` loads it.
        config: input and provenance; name, options, channels, size, dim and weights are taken from `encoder`.
        decoder: a decoder for this encoder's stages; its last layer is not kept.
    """
    own = getattr(encoder, "own_name", "")
    assert own or type(encoder) in CLASSES.values(), type(encoder)
    described_decoder = None
    if decoder is not None:
        kept = {k: v for k, v in decoder.state_dict().items() if not k.startswith(DECODER_HEAD)}
        with atomic(folder / DECODER) as part:
            save_file({k: v.detach().cpu().contiguous() for k, v in kept.items()}, part)
            described_decoder = decoder.options | {"weights": digest_of(part)}
    tensors = {k: v.detach().cpu().contiguous() for k, v in network(encoder).state_dict().items()}
    with atomic(folder / ENCODER) as part:
        save_file(tensors, part)
        weights = digest_of(part)
    described = replace(
        config,
        name=own or type(encoder).__name__,
        options=encoder.options,
        channels=encoder.channels,
        size=tuple(encoder.size),
        dim=encoder.dim,
        weights=weights,
        decoder=described_decoder,
    )
    write_json(folder / "encoder.json", {"format": FORMAT} | described.as_dict())


def load_encoder(path: str | Path) -> tuple[Any, EncoderConfig]:
    """Return the encoder, in eval mode on the CPU, and its config.

    Args:
        path: the folder of the pair, or either file.

    Raises UserError if a file is missing or damaged, has another format, names a class that is not in `CLASSES`, or does
    not fit the other file.
    """
    folder = Path(path)
    folder = folder.parent if folder.suffix in (".json", ".safetensors") else folder
    config = _config(folder / "encoder.json")
    encoder = _build(config, folder / "encoder.json")
    tensors = _tensors(folder / ENCODER, config.weights)
    try:
        network(encoder).load_state_dict(tensors)
    except RuntimeError as e:
        why = str(e).split("\n")[1:2] or [str(e)]
        raise UserError(f"{folder / ENCODER} does not fit encoder.json: {why[0]} Export it again") from e
    return encoder.eval(), config


def load_decoder(folder: Path, config: EncoderConfig, classes: int) -> UNetDecoder:
    """Return the decoder beside an encoder, on the CPU, with a new last layer for `classes`.

    config: the contents of the folder's encoder.json. Raises UserError if it describes no decoder, and if
    decoder.safetensors is missing, damaged or does not fit it.
    """
    if config.decoder is None:
        raise UserError(f"{folder} has no decoder; pretrain with a method that trains one, such as volume_fusion")
    described = dict(config.decoder)
    tensors = _tensors(folder / DECODER, described.pop("weights", ""))
    try:
        decoder = UNetDecoder(**described, classes=classes)
        head = {k: v for k, v in decoder.state_dict().items() if k.startswith(DECODER_HEAD)}
        decoder.load_state_dict(tensors | head)
    except (TypeError, ValueError, IndexError, RuntimeError) as e:
        raise UserError(f"{folder / DECODER} does not fit encoder.json; pretrain again or copy all files again") from e
    return decoder


def network(encoder: nn.Module) -> nn.Module:
    """Return the module whose state dict is saved: the wrapped network, where there is one."""
    net = encoder if getattr(encoder, "own_name", "") else getattr(encoder, "net", encoder)
    assert isinstance(net, nn.Module)
    return net


def _config(file: Path) -> EncoderConfig:
    try:
        found = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as e:
        raise UserError(f"{file} is missing; give a run folder, or a folder with encoder.json and its weights") from e
    except (ValueError, OSError) as e:
        raise UserError(f"cannot read {file}: {e}") from e
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        has = found.get("format") if isinstance(found, dict) else None
        raise UserError(f"{file} has format {has!r}, and this medssl reads {FORMAT}; use the version that wrote it")
    if missing := [k for k in REQUIRED if k not in found]:
        raise UserError(f"{file} lacks {', '.join(missing)}; export the encoder again")
    if not isinstance(found["size"], list):
        raise UserError(f"{file}: size must be a list of pixels, got {found['size']!r}; export the encoder again")
    if not isinstance(found.get("decoder") or {}, dict):
        raise UserError(f"{file}: decoder must describe a decoder, got {found['decoder']!r}; export the encoder again")
    known = {f.name for f in fields(EncoderConfig)}
    return EncoderConfig(**{k: v for k, v in found.items() if k in known} | {"size": tuple(found["size"])})


def _build(config: EncoderConfig, file: Path) -> Any:
    if config.name not in CLASSES and "." in config.name:
        return build_own(config.name, config.channels, config.size, config.options or {})
    if config.name not in CLASSES:
        raise UserError(f"{file}: unknown encoder {config.name!r}.{nearest(config.name, CLASSES)}")
    given = config.options or {}
    try:
        # weights come from the pair, so none are downloaded
        options = {k: False if k == "pretrained" else v for k, v in given.items()}
        encoder: Any = CLASSES[config.name](config.channels, config.size, **options)
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{file}: {config.name} cannot be built from these options ({e}); export it again") from e
    if "pretrained" in encoder.options:
        encoder.options = dict(given)  # a second export still states the initial weights
    if encoder.dim != config.dim:
        raise UserError(f"{file} says dim {config.dim}, but this {config.name} has {encoder.dim}; export it again")
    return encoder


def _tensors(file: Path, digest: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing; encoder.json and {file.name} belong together")
    if digest_of(file) != digest:
        raise UserError(f"{file} is damaged or belongs to another encoder.json; copy both files again")
    return read_tensors(file)


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, which holds no code. Raises UserError for a file of another kind."""
    try:
        return load_file(file)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} is not a safetensors file ({e}); copy it again") from e


def digest_of(file: Path) -> str:
    """Return the BLAKE2b-128 digest of a file, in hex."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
