"""Choices by name: configs/GROUP/NAME.yaml is the choice NAME of GROUP. Its first line says what it is.

A yaml holds `_target_`, the import path of a class or function, and its options. There is no registry: the file is the
name. Files come from the installed package or the checkout alone, never from a run folder. A method of the user's own
needs no yaml: it is named by its import path, as in method=my_module.MyMethod, and by the user alone.
"""

import importlib
import inspect
import sys
from functools import cache
from pathlib import Path
from typing import Any

from medssl.errors import UsageError, UserError, nearest

GIVEN = ("encoder", "target_loss")  # arguments of a method that are no options


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

    if is_own(group, name):
        return _own(name)
    if name not in choices(group):
        raise UsageError(f"there is no {group} {name!r}.{nearest(name, choices(group))}")
    return yaml.safe_load((root() / group / f"{name}.yaml").read_text())


def spec(group: str, choice: str, **options: Any) -> dict[str, Any]:
    """Return a choice by name with some options replaced; options of an augmentation op are given as {op: {option: value}}.

    Raises UsageError for an unknown option.
    """
    found = load(group, choice)
    for option, value in options.items():
        _check_known(f"{group} {choice!r}", option, found)
        if isinstance(value, dict) and isinstance(found[option], dict):
            for key in value:
                _check_known(f"{option} of {group} {choice!r}", key, found[option])
            value = found[option] | value
        found[option] = value
    return found


def _check_known(of: str, option: str, known: dict[str, Any]) -> None:
    known = {k: v for k, v in known.items() if not k.startswith("_")}
    if option not in known:
        raise UsageError(f"{of} has no option {option!r}.{nearest(option, known)}")


def is_own(group: str, name: str) -> bool:
    """Whether `name` is the import path of a method of the user's own."""
    parts = name.split(".")
    return group == "method" and len(parts) > 1 and all(p.isidentifier() for p in parts)


def _own(path: str) -> dict[str, Any]:
    """Its options are the arguments of its constructor that have defaults; modules in the working directory are found."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    module, _, name = path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UsageError(f"method={path} cannot be imported from {Path.cwd()}: {e}") from e
    if not (isinstance(made, type) and hasattr(made, "after_step")):
        raise UsageError(f"method={path} is no medssl.methods.base.Method")
    options = {
        k: p.default
        for k, p in inspect.signature(made).parameters.items()
        if p.default is not p.empty and k not in GIVEN
    }
    return {"_target_": path, "_run_": dict(getattr(made, "run", {}))} | options


def takes(spec: dict[str, Any], argument: str) -> str:
    """ "no", "maybe" or "yes": whether what `spec` makes has an argument of that name, with or without a default."""
    found = inspect.signature(_made(spec)).parameters.get(argument)
    return "no" if found is None else "yes" if found.default is found.empty else "maybe"


def _made(spec: dict[str, Any]) -> Any:
    module, _, name = spec["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def build(spec: dict[str, Any], **extra: Any) -> Any:
    """Import `_target_` and call it with the other keys and `extra`. UserError when the options make no sense to it."""
    options = {k: v for k, v in spec.items() if k != "_target_"}
    make = _made(spec)
    try:
        return make(**options, **extra)
    except (TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as e:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise UserError(f"cannot make {make.__name__} with {given}: {e}") from e
