"""The search space of `medssl tune`: keys of pretrain that are fixed, chosen from a list, or drawn from a range."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any

from medssl import catalog
from medssl.errors import UsageError, UserError, nearest
from medssl.runs.config import PretrainOptions

GROUPS = ("method", "encoder", "augment")
SCALES = ("linear", "log", "int")
OWN = ("seed", "where", "devices", "on_collapse", "log")
"""Keys of pretrain that a search sets itself, or that would make its trials incomparable."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole ones if `integer`, evenly on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool
    integer: bool

    def suggest(self, trial: Any, key: str) -> Any:
        """Return Optuna's value for a trial."""
        if self.integer:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def for_wandb(self) -> dict[str, Any]:
        """Return the same for a sweep of Weights & Biases."""
        kind = {(0, 0): "uniform", (0, 1): "log_uniform_values", (1, 0): "int_uniform", (1, 1): "q_log_uniform_values"}
        low, high = (int(self.low), int(self.high)) if self.integer else (self.low, self.high)
        return {"distribution": kind[self.integer, self.log], "min": low, "max": high}


@dataclass(frozen=True)
class Values:
    """A list to choose from. Lists among the values are kept as JSON, since Optuna takes single values only."""

    values: tuple[Any, ...]

    def suggest(self, trial: Any, key: str) -> Any:
        """Return Optuna's value for a trial."""
        return trial.suggest_categorical(key, [*self.values])

    def for_wandb(self) -> dict[str, Any]:
        """Return the same for a sweep of Weights & Biases."""
        return {"values": [*self.values]}


@dataclass(frozen=True)
class Space:
    """`fixed` settings of all trials, and the `searched` ones by key."""

    fixed: dict[str, Any]
    searched: dict[str, Range | Values]

    @classmethod
    def of(cls, search: Mapping[str, Any]) -> "Space":
        """Read a search: a single value is fixed, [low, high, log], linear or int is a range, any other list is a choice.

        A range of whole numbers on a logarithmic scale is [16, 256, log]. recipe: NAME fixes the recipe's settings that are
        not given. Raises UsageError for unknown keys, and UserError for ranges that are none.
        """
        if not isinstance(search, Mapping) or not search:
            raise UsageError(
                'search= is missing; for example search="{lr: [1e-4, 1e-2, log], encoder: [cnn, resnet18]}"'
            )
        given = {str(k): v for k, v in search.items()}
        if "recipe" in given:
            given = _dotted(catalog.recipe(str(given.pop("recipe")))) | given
        known = [f.name for f in fields(PretrainOptions) if not f.name.endswith("_options") and f.name not in OWN]
        fixed, searched = dict[str, Any](), dict[str, Range | Values]()
        for key, value in given.items():
            group, dot, option = key.partition(".")
            if not (key in known or (dot and option and group in GROUPS)):
                own = f"; tune sets {key} itself" if key in OWN else nearest(key, [*known, "recipe"])
                raise UsageError(f"search has no key {key!r}{own if own.startswith(';') else f'.{own}'}")
            if isinstance(value, list | tuple) and not _is_plain_list(key, value):
                searched[key] = _dimension(key, list(value))
            else:
                fixed[key] = list(value) if isinstance(value, tuple) else value
        if not searched:
            raise UsageError("search= has no key with several values; nothing to search, use medssl pretrain")
        return cls(fixed, searched)

    def suggest(self, trial: Any) -> dict[str, Any]:
        """Return the searched settings of a trial, as Optuna keeps them."""
        return {key: of.suggest(trial, key) for key, of in self.searched.items()}

    def options(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of pretrain for the settings that a trial chose."""
        out: dict[str, Any] = {}
        for key, value in (self.fixed | dict(chosen)).items():
            if isinstance(value, str) and value.startswith("["):
                value = json.loads(value)
            group, dot, option = key.partition(".")
            if dot:
                out.setdefault(f"{group}_options", {})[option] = value
            else:
                out[key] = value
        return out

    def grid(self) -> list[dict[str, Any]]:
        """Return every combination. Raises UserError if a key has a range."""
        if ranges := [key for key, of in self.searched.items() if isinstance(of, Range)]:
            raise UserError(
                f"sampler=grid needs lists of values, and {ranges[0]} is a range; give a list, or sampler=tpe"
            )
        lists = [of.values for of in self.searched.values() if isinstance(of, Values)]
        return [dict(zip(self.searched, combination, strict=True)) for combination in product(*lists)]

    @property
    def size(self) -> int | None:
        """The number of combinations; None with a range."""
        lists = [len(of.values) for of in self.searched.values() if isinstance(of, Values)]
        return prod(lists) if len(lists) == len(self.searched) else None


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's settings with method_options={"a": 1} as {"method.a": 1}."""
    out = {k: v for k, v in settings.items() if not k.endswith("_options")}
    for group in GROUPS:
        out |= {f"{group}.{k}": v for k, v in (settings.get(f"{group}_options") or {}).items()}
    return out


def _is_plain_list(key: str, value: list[Any] | tuple[Any, ...]) -> bool:
    """Return whether a list is one value: target columns, and options that are lists of numbers, as in encoder.widths."""
    return key in ("target", "positive", "unknown") or (
        "." in key
        and len(value) > 0
        and all(isinstance(v, int) for v in value)
        and key.endswith(("widths", "blocks", "features"))
    )


def _dimension(key: str, value: list[Any]) -> Range | Values:
    if len(value) == 3 and value[2] in SCALES:
        low, high, scale = value
        numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
        if not numbers or not low < high or (scale == "log" and low <= 0):
            raise UserError(f"search: {key} {value} is no range; write [low, high, {scale}] with low below high")
        whole = all(isinstance(v, int) for v in (low, high)) and scale != "linear"
        if scale == "int" and not whole:
            raise UserError(f"search: {key} {value} must go from a whole number to a whole number")
        return Range(low, high, scale == "log", whole)
    values = tuple(json.dumps(v) if isinstance(v, list | tuple) else v for v in value)
    if len(set(values)) < 2 or len(set(values)) < len(values):
        raise UserError(
            f"search: {key} {value} needs two or more different values; a single value is written without []"
        )
    return Values(values)
