"""Weights at hand as the start of training: of a run, or of a local safetensors file from timm.

A safetensors file holds numbers alone. Pickled files (.pth, .pt, .bin) are refused, and nothing is downloaded.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import digest_of, load_encoder, network, read_tensors
from medssl.errors import UserError

PICKLED = (".pth", ".pt", ".bin", ".ckpt", ".pkl", ".tar")
POSITIONS = "pos_embed"
COUNTER = "num_batches_tracked"  # of batch normalisation; unused, and often missing


@dataclass(frozen=True)
class Weights:
    """Tensors from a file.

    Attributes:
        file: the safetensors file. digest: its BLAKE2b-128 digest, in hex.
        tensors: by their names in the file.
        encoder: for weights of a run, their encoder (in eval mode, on the CPU) and its config; None for other files.
    """

    file: Path
    digest: str
    tensors: dict[str, Tensor]
    encoder: tuple[Any, EncoderConfig] | None = None

    @classmethod
    def read(cls, path: str | Path) -> "Weights":
        """Read a run folder, its encoder.safetensors, or another safetensors file.

        Raises UserError for files that are missing, damaged or pickled, and for an encoder whose training scans are not
        listed, since the leak check could not find them: fine-tuned, or without pretrained_on.parquet beside it.
        """
        given = Path(path).expanduser()
        file = given / "encoder.safetensors" if given.is_dir() else given
        if file.suffix.lower() in PICKLED:
            raise UserError(
                f"{file} is a pickled file, which may hold code; convert it with safetensors.torch.save_file"
            )
        if not file.is_file():
            what = "is not a finished run: it has no encoder.safetensors" if given.is_dir() else "does not exist"
            raise UserError(f"{given} {what}; give a run's folder or a safetensors file")
        if not given.is_dir() and (file.name != "encoder.safetensors" or not (file.parent / "encoder.json").exists()):
            return cls(file, digest_of(file), read_tensors(file))
        encoder, config = load_encoder(file.parent)
        if config.fine_tuned is not None:
            raise UserError(
                f"{file} was fine-tuned on labels, of scans that it does not list; start from its run instead"
            )
        if not (file.parent / "pretrained_on.parquet").exists():
            raise UserError(f"{file.parent} has no pretrained_on.parquet, the list of its patients; copy the whole run")
        return cls(file, config.weights, network(encoder).state_dict(), (encoder, config))

    @property
    def run(self) -> Path | None:
        """The run folder, or None."""
        return None if self.encoder is None else self.file.parent

    def described(self) -> dict[str, Any]:
        """Return the JSON values by which encoder.json and resolved.yaml state the origin of the weights.

        For a run its method, encoder, key, store and step, and the weights it started from in turn; else the file's name.
        """
        about: dict[str, Any] = {"weights": self.digest}
        if self.encoder is None:
            return about | {"file": self.file.name}
        config = self.encoder[1]
        about |= {k: getattr(config, k) for k in ("method", "encoder", "key_id", "store", "step")}
        return about | {k: v for k in ("init", "teacher") if (v := getattr(config, k)) is not None}

    def load_into(self, encoder: nn.Module, name: str) -> list[str]:
        """Copy the tensors into an encoder of the same architecture; returns what had to be changed, in words.

        Changed are the first layer for another number of channels (the sum of the weights over input channels for one, equal
        parts of them from one) and a timm transformer's position embedding for another grid, by bicubic interpolation. The
        classifier of a timm file is left out.

        name: the encoder's, for messages. Raises UserError, and leaves the encoder unchanged, if it does not fit: with the
        first key that does not match, and how many do.
        """
        net = network(encoder)
        own, given, changed = net.state_dict(), dict(self.tensors), list[str]()
        if not any(True for _ in net.parameters()):
            raise UserError(
                f"encoder={name} has no weights trained by gradient; leave out init=, or choose another encoder"
            )
        for key in [k for k in given if k not in own and k.startswith(_classifier(net))]:
            del given[key]
        for key in own.keys() & given.keys():
            if given[key].shape != own[key].shape and (fitted := _fit(encoder, key, given[key], own[key])) is not None:
                given[key], words = fitted
                changed.append(f"{key}: {words}")
        for key in own.keys() - given.keys():
            if key.endswith(COUNTER):
                given[key] = own[key]
        wrong = [k for k in own if k not in given or given[k].shape != own[k].shape]
        matching = len(own.keys() & self.tensors.keys() - set(wrong))
        if wrong := wrong + sorted(given.keys() - own.keys()):
            here, there = (str(tuple(t[wrong[0]].shape)) if wrong[0] in t else "missing" for t in (own, given))
            raise UserError(
                f"{self.file} does not fit encoder={name}: {wrong[0]} is {here} in the encoder and {there} in the file; "
                f"{matching} of {len({*own, *given})} tensors match. Choose the encoder and options of that file"
            )
        bad = [k for k in own if given[k].is_floating_point() and not bool(torch.isfinite(given[k]).all())]
        if bad:
            raise UserError(f"{self.file}: {bad[0]} has values that are not finite; take other weights")
        net.load_state_dict(given)
        return sorted(changed)


def _classifier(net: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a timm model's classifier, which the encoder is built without."""
    names = getattr(net, "default_cfg", {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def _first_layers(encoder: nn.Module) -> tuple[str, ...]:
    """Return the names of the weights that are applied to the channels of a scan."""
    net = network(encoder)
    first = getattr(net, "default_cfg", {}).get("first_conv")
    if first:
        return tuple(f"{name}.weight" for name in ((first,) if isinstance(first, str) else first))
    return (next(name for name, p in net.named_parameters() if p.ndim > 1),)


def _fit(encoder: nn.Module, key: str, given: Tensor, own: Tensor) -> tuple[Tensor, str] | None:
    """Return a tensor of the shape of `own` and what was changed, or None where there is no standard way."""
    if key in _first_layers(encoder):
        return _fit_channels(encoder, given.float(), own)
    net: Any = network(encoder)
    if key == POSITIONS and given.ndim == 3 and hasattr(net, "patch_embed") and given.shape[2] == own.shape[2]:
        prefix = own.shape[1] - net.patch_embed.num_patches
        side = round(max(0, given.shape[1] - prefix) ** 0.5)
        if prefix in (0, net.num_prefix_tokens) and side and side**2 + prefix == given.shape[1]:
            grid = list(net.patch_embed.grid_size)
            fitted = resample_abs_pos_embed(given.float(), grid, [side, side], num_prefix_tokens=prefix)
            return fitted, f"{side}x{side} positions interpolated to {grid[0]}x{grid[1]}"
    return None


def _fit_channels(encoder: nn.Module, given: Tensor, own: Tensor) -> tuple[Tensor, str] | None:
    """Sum (out, C, *k) over input channels, or divide (out, 1, *k) among them; a Linear has (out, C * inputs)."""
    channels = int(encoder.channels)  # type: ignore[arg-type]
    each = own.numel() // len(own) // channels  # weights per output and channel
    rest, odd = divmod(given.numel() // len(given), each)
    if odd or len(given) != len(own) or rest == channels or (given.ndim > 2 and given.shape[2:] != own.shape[2:]):
        return None
    by_channel = given.reshape(len(given), rest, each)
    if channels == 1:
        return by_channel.sum(1).reshape(own.shape), f"summed over {rest} input channels"
    if rest == 1:
        shared = by_channel.expand(-1, channels, -1) / channels
        return shared.reshape(own.shape), f"one input channel shared among {channels}"
    return None
