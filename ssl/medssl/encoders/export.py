"""The hand-over pair: encoder.safetensors (weights) and encoder.json (how to build it, what it expects and has seen).

Loading builds one of the classes named here and copies numbers into it: nothing in the pair is executed.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from medssl.encoders.cnn import CNN
from medssl.encoders.mlp import MLP
from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.patch_bank import PatchBank
from medssl.encoders.patch_pyramid import PatchPyramid
from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError, nearest
from medssl.files import atomic, write_json

FORMAT = 2
CLASSES: dict[str, type[nn.Module]] = {
    c.__name__: c for c in (CNN, MLP, PatchBank, PatchPyramid, ResNet3d, TimmEncoder, ViT)
}
KEYS = ("format", "name", "options", "channels", "size", "dim", "weights")


def save_encoder(folder: Path, encoder: Any, card: dict[str, Any]) -> None:
    """Writes the pair into `folder`, each file atomically, the weights first.

    Args:
        folder: is made if it is not there.
        encoder: of one of `CLASSES`. One around another library's network hands over that network's own state dict, so
            `timm.create_model(name, in_chans=…, num_classes=0, checkpoint_path=…)` loads it.
        card: what else encoder.json shall say: mean, std, modality, …; JSON values, none of them called as in `KEYS`.
    """
    assert type(encoder) in CLASSES.values(), type(encoder)
    assert not set(card) & set(KEYS), set(card) & set(KEYS)
    tensors = {k: v.detach().cpu().contiguous() for k, v in _carrier(encoder).state_dict().items()}
    with atomic(folder / "encoder.safetensors") as part:
        save_file(tensors, part)
        weights = _digest(part)
    name, size = type(encoder).__name__, list(encoder.size)
    fixed = (FORMAT, name, encoder.options, encoder.channels, size, encoder.dim, weights)
    write_json(folder / "encoder.json", dict(zip(KEYS, fixed, strict=True)) | card)


def load_encoder(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """(encoder in eval mode on the CPU, everything encoder.json says).

    Args:
        path: the folder of the pair, or either file.

    Raises UserError when a file is missing, damaged, of another format, names a class that is not in `CLASSES`, or does
    not fit the other.
    """
    folder = Path(path)
    folder = folder.parent if folder.suffix in (".json", ".safetensors") else folder
    card = _card(folder / "encoder.json")
    encoder = _build(card, folder / "encoder.json")
    tensors = _tensors(folder / "encoder.safetensors", card["weights"])
    try:
        _carrier(encoder).load_state_dict(tensors)
    except RuntimeError as e:
        why = str(e).split("\n")[1:2] or [str(e)]
        raise UserError(f"{folder}/encoder.safetensors does not fit encoder.json: {why[0]} Hand it over again") from e
    return encoder.eval(), card


def _carrier(encoder: nn.Module) -> nn.Module:
    """The module whose state dict is handed over: the wrapped network, where there is one."""
    net = getattr(encoder, "net", encoder)
    assert isinstance(net, nn.Module)
    return net


def _card(file: Path) -> dict[str, Any]:
    try:
        card = json.loads(file.read_text())
    except FileNotFoundError as e:
        raise UserError(f"{file} is missing; give a run's folder, or one with encoder.json and its weights") from e
    except (ValueError, OSError) as e:
        raise UserError(f"cannot read {file}: {e}") from e
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise UserError(f"{file} has format {found!r} and this medssl reads {FORMAT}; use the version that wrote it")
    missing = [k for k in KEYS if k not in card]
    if missing:
        raise UserError(f"{file} lacks {', '.join(missing)}; hand the encoder over again")
    return card


def _build(card: dict[str, Any], file: Path) -> Any:
    name = str(card["name"])
    if name not in CLASSES:
        raise UserError(f"{file}: unknown encoder {name!r}.{nearest(name, CLASSES)}")
    try:
        # the weights come from the pair, so none are fetched
        options = {k: False if k == "pretrained" else v for k, v in card["options"].items()}
        encoder: Any = CLASSES[name](card["channels"], tuple(card["size"]), **options)
    except (TypeError, ValueError, AttributeError) as e:
        raise UserError(f"{file}: {name} cannot be built from these options ({e}); hand the encoder over again") from e
    if "pretrained" in encoder.options:
        encoder.options = dict(card["options"])  # a second hand-over still says where the weights began
    if encoder.dim != card["dim"]:
        raise UserError(f"{file} says dim {card['dim']}, but this {name} has {encoder.dim}; hand it over again")
    return encoder


def _tensors(file: Path, digest: str) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"{file} is missing; encoder.json and encoder.safetensors belong together")
    if _digest(file) != digest:
        raise UserError(f"{file} is damaged or belongs to another encoder.json; copy both files again")
    try:
        return load_file(file)
    except SafetensorError as e:
        raise UserError(f"{file} is no safetensors file ({e}); copy it again") from e


def _digest(file: Path) -> str:
    """blake2b-128 of the file, in hex."""
    with file.open("rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
