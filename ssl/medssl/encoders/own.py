"""A user's own network as an encoder: an nn.Module named by its import path, encoder=my_module.MyNet.

Its constructor takes channels and size (pixels along each spatial axis), and options with defaults; it maps (B, channels, *size)
to (B, dim). `dim` is measured where the network does not state it. A run folder holds its name and its weights, never its
code, and opening a run never imports code: import the module yourself before, or name it in $MEDSSL_IMPORT.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medssl import catalog
from medssl.errors import UserError


def import_named(modules: str) -> None:
    """Import modules of the working folder, separated by commas, as a user asked in $MEDSSL_IMPORT.

    Raises UserError for one that cannot be imported.
    """
    catalog.look_in_working_folder()
    for name in filter(None, map(str.strip, modules.split(","))):
        try:
            import_module(name)
        except ImportError as e:
            raise UserError(f"MEDSSL_IMPORT={modules}: {name} cannot be imported from {Path.cwd()}: {e}") from e


def own_class(path: str) -> type[nn.Module]:
    """Return the class at an import path whose module has been imported already.

    A file may name any class that happens to be imported, so that one without `channels` and `size` is not made. Raises
    UserError if its module has not been imported, or it is no such nn.Module.
    """
    module, _, name = path.rpartition(".")
    if module not in sys.modules:
        raise UserError(
            f"the encoder is {path}, code of your own that a run folder may not import; "
            f"write `import {module}` before, or on the command line MEDSSL_IMPORT={module}"
        )
    found: Any = getattr(sys.modules[module], name, None)
    known = isinstance(found, type) and issubclass(found, nn.Module)
    if not known or not set(catalog.FORMAT) <= set(signature(found).parameters):
        raise UserError(
            f"unknown encoder {path!r}: it is no torch.nn.Module that takes channels and size; correct the name"
        )
    return found


def build_own(path: str, channels: int, size: Sequence[int], options: dict[str, Any]) -> nn.Module:
    """Return the network with `channels`, `size`, `options` and `dim` as attributes.

    Raises UserError if it cannot be made, or does not map (1, channels, *size) to (1, dim).
    """
    target = {"_target_": path}
    own_class(path)
    made: Any = catalog.build(target | options, channels=channels, size=tuple(size))
    made.channels, made.size, made.options, made.own_name = channels, tuple(size), dict(options), path
    training = made.training
    try:
        with torch.random.fork_rng(), torch.inference_mode():
            shape = tuple(made.eval()(torch.zeros(2, channels, *size)).shape)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as e:
        raise UserError(f"{path} cannot take scans of {channels} channels and size {tuple(size)}: {e}") from e
    finally:
        made.train(training)
    if len(shape) != 2 or shape[0] != 2:
        raise UserError(f"{path} returns {shape} for 2 scans; an encoder returns (scans, dim)")
    if getattr(made, "dim", shape[1]) != shape[1]:
        raise UserError(f"{path} says dim={made.dim} and returns {shape[1]} numbers for each scan; correct it")
    made.dim = shape[1]
    return made


def build_encoder(spec: dict[str, Any], channels: int, size: Sequence[int]) -> Any:
    """Return the encoder of a catalog entry or of a user's own class, with random weights unless the entry says otherwise."""
    if catalog.is_own("encoder", spec["_target_"]) and not spec["_target_"].startswith("medssl."):
        options = {k: v for k, v in spec.items() if not k.startswith("_")}
        return build_own(spec["_target_"], channels, size, options)
    return catalog.build(spec, channels=channels, size=tuple(size))
