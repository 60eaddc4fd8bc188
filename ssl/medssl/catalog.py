"""Choices by name: configs/GROUP/NAME.yaml describes the choice NAME of GROUP, and its first line is what --help prints.

A yaml holds `_target_`, the import path of a class or function, and its options. There is no registry: a file is found
by its name, in the installed package or the checkout, never in a run folder. A method or an encoder of your own needs no
yaml: it is named by its import path, as in method=my_module.MyMethod or encoder=my_module.MyNet.
"""

import importlib
import importlib.util
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from medssl.errors import UsageError, UserError, nearest

GIVEN = ("encoder", "target_loss", "predict_loss", "unlearn_loss", "rows", "teacher")
"""Constructor arguments of a method that are not options."""
FORMAT = ("channels", "size")
"""Those of an encoder."""
FLOAT = re.compile(r"[-+]?(?:\d[\d_]*\.[\d_]*|\.[\d_]+|\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf)|\.(?:nan|NaN)")
"""Floats as OmegaConf reads them: PyYAML takes 1e-3 for a string."""


class Entry(NamedTuple):
    """The head of a yaml file.

    Attributes:
        about, more: its first two lines of comment. `more` is the example of a command, and when to choose a method.
        target: the import path in `_target_`.
        order: the number in `_order_`, 0 if there is none.
    """

    about: str
    more: str
    target: str
    order: int

    @property
    def folder(self) -> str:
        """The folder of the target's module: a command's group, a method's family."""
        return self.target.split(".")[2] if self.target.count(".") > 3 else self.target.split(".")[1]


@cache
def root() -> Path:
    """Return the folder of configs: in an installed package, or at the top of a checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "configs"
    return inside if inside.is_dir() else here.parents[2] / "configs"


def text(group: str, name: str) -> str:
    """Return the text of a yaml file."""
    return (root() / group / f"{name}.yaml").read_text("utf-8")


@cache
def entries(group: str) -> dict[str, Entry]:
    """Return {name: the head of its yaml} of a group, sorted by `_order_`, then by name. Nothing is imported."""
    found = {}
    for file in sorted((root() / group).glob("*.yaml")):
        lines = file.read_text("utf-8").splitlines()
        comments = [line.lstrip("# ").strip() for line in lines[:2] if line.startswith("#")]
        values = dict(line.split(": ", 1) for line in lines if line.startswith(("_target_: ", "_order_: ")))
        about, more = (*comments, "", "")[:2]
        found[file.stem] = Entry(about, more, values.get("_target_", ""), int(values.get("_order_", 0)))
    return dict(sorted(found.items(), key=lambda item: item[1].order))


def choices(group: str) -> dict[str, str]:
    """Return {name: one line about it} of a group, sorted by name."""
    return {name: entry.about for name, entry in sorted(entries(group).items())}


def load(group: str, name: str) -> dict[str, Any]:
    """Return the options of a choice with its `_target_`. Raises UsageError for an unknown name."""
    if is_own(group, name):
        return _own(group, name)
    if name not in choices(group):
        raise UsageError(f"there is no {group} {name!r}.{nearest(name, choices(group))}")
    return read_yaml(text(group, name))


def read_yaml(source: str) -> dict[str, Any]:
    """Parse YAML safely, with the floats of the command line (1e-3 is a number)."""
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    resolvers = {
        k: [r for r in v if r[0] != "tag:yaml.org,2002:float"] for k, v in Loader.yaml_implicit_resolvers.items()
    }
    Loader.yaml_implicit_resolvers = resolvers
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"^(?:{FLOAT.pattern})$"), list("-+0123456789."))
    return yaml.load(source, Loader)


def recipe(name: str) -> dict[str, Any]:
    """Return the settings in configs/recipe/NAME.yaml: keyword arguments of `medssl.pretrain`.

    Raises UsageError for an unknown name.
    """
    names = sorted(file.stem for file in (root() / "recipe").glob("*.yaml"))
    if name not in names:
        raise UsageError(f"there is no recipe {name!r}.{nearest(name, names)}")
    return read_yaml(text("recipe", name))


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
    """Return whether `name` is the import path of a user's own method, or encoder.

    Names of timm models have dots too; an encoder is of one's own if there is such a module.
    """
    parts = name.split(".")
    if group not in ("method", "encoder") or len(parts) < 2 or not all(p.isidentifier() for p in parts):
        return False
    if group == "method":
        return True
    look_in_working_folder()
    return parts[0] in sys.modules or importlib.util.find_spec(parts[0]) is not None


def look_in_working_folder() -> None:
    """Let modules of the working folder be imported, as Python does for a script."""
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))


def _own(group: str, path: str) -> dict[str, Any]:
    """Return the options of a user's own class: constructor arguments with defaults. Finds modules in the working folder."""
    look_in_working_folder()
    module, _, name = path.rpartition(".")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise UsageError(f"{group}={path} cannot be imported from {Path.cwd()}: {e}") from e
    kind, sign = ("medssl.methods.base.Method", "after_step") if group == "method" else ("torch.nn.Module", "forward")
    if not (isinstance(made, type) and hasattr(made, sign)):
        raise UsageError(f"{group}={path} is not a {kind}")
    parameters = inspect.signature(made).parameters
    given = GIVEN if group == "method" else FORMAT
    options = {k: p.default for k, p in parameters.items() if p.default is not p.empty and k not in given}
    if group == "encoder":
        if lacking := [k for k in FORMAT if k not in parameters]:
            raise UsageError(
                f"encoder={path} must take channels and size in its constructor; it lacks {' and '.join(lacking)}"
            )
        return {"_target_": path} | options
    return {"_target_": path, "_run_": dict(getattr(made, "run", {}))} | options


def takes(spec: dict[str, Any], argument: str) -> str:
    """Return "no", "maybe" (with a default) or "yes": whether the target of `spec` has an argument of that name."""
    found = inspect.signature(_target(spec)).parameters.get(argument)
    return "no" if found is None else "yes" if found.default is found.empty else "maybe"


def attribute(spec: dict[str, Any], name: str) -> Any:
    """Return an attribute of the class that `spec` names, None if it has none."""
    return getattr(_target(spec), name, None)


def _target(spec: dict[str, Any]) -> Any:
    module, _, name = spec["_target_"].rpartition(".")
    return getattr(importlib.import_module(module), name)


def build(spec: dict[str, Any], **extra: Any) -> Any:
    """Import `_target_` and call it with the other keys and `extra`. Raises UserError for options that do not work."""
    options = {k: v for k, v in spec.items() if k != "_target_"}
    make = _target(spec)
    try:
        return make(**options, **extra)
    except (TypeError, ValueError, AttributeError, RuntimeError, ZeroDivisionError) as e:
        given = ", ".join(f"{k}={v}" for k, v in options.items())
        raise UserError(f"cannot make {make.__name__} with {given}: {e}") from e
