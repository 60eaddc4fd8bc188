"""Choices by name: configs/GROUP/NAME.yaml is the choice NAME of GROUP. Its first line says what it is.

A yaml holds `_target_`, the import path of a class or function, and its options. There is no registry: the file is the
name. Files come from the installed package or the checkout alone, never from a run folder.
"""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from medssl.errors import UsageError, UserError, nearest


@cache
def root() -> Path:
    """The folder of configs: inside an installed package, or at the top of the checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "configs"
    return inside if inside.is_dir() else here.parents[2] / "configs"


def choices(group: str) -> dict[str, str]:
    """{name: one line about it}, sorted by name."""
    files = sorted((root() / group).glob("*.yaml"))
    return {f.stem: f.open().readline().lstrip("# ").strip() for f in files}


def load(group: str, name: str) -> dict[str, Any]:
    """The options of a choice as a plain dict with its `_target_`."""
    import yaml

    if name not in choices(group):
        raise UsageError(f"there is no {group} {name!r}.{nearest(name, choices(group))}")
    return yaml.safe_load((root() / group / f"{name}.yaml").read_text())


def spec(group: str, choice: str, **options: Any) -> dict[str, Any]:
    """A choice by name with some options replaced. An unknown option is an error."""
    known = load(group, choice)
    for option in options:
        if option not in known:
            raise UsageError(
                f"{group} {choice!r} has no option {option!r}.{nearest(option, set(known) - {'_target_'})}"
            )
    return known | options


def build(spec: dict[str, Any], **extra: Any) -> Any:
    """Import `_target_` and call it with the other keys and `extra`. UserError when the options make no sense to it."""
    options = {k: v for k, v in spec.items() if k != "_target_"}
    module, _, name = spec["_target_"].rpartition(".")
    make = getattr(importlib.import_module(module), name)
    try:
        return make(**options, **extra)
    except (TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as e:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise UserError(f"cannot make {name} with {given}: {e}") from e
