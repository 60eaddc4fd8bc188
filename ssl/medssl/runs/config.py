"""Settings of a pretraining run: the options a user may give, and the config that follows from them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any

import torch

from medssl import catalog
from medssl.encoders.adaptation import ADAPT
from medssl.errors import UserError, nearest
from medssl.store.store import Store
from medssl.train.log import SINKS
from medssl.train.optim import Optim
from medssl.train.options import TrainOptions
from medssl.train.ranks import STRATEGIES

RANGES = {  # smallest and largest value, both allowed
    "steps": (1, inf), "batch": (2, inf), "accumulate": (1, inf), "devices": (1, inf), "workers": (0, inf), "seed": (0, inf),
    "log_every": (1, inf), "save_every": (1, inf), "monitor_every": (0, inf), "warmup": (0, 0.99), "lr_end": (0, 1),
    "weight_decay": (0, inf), "momentum": (0, 0.9999), "spacing": (1e-3, inf), "lora_rank": (1, inf),
}  # fmt: skip
CHOICES = {
    "log": SINKS,
    "precision": ("32-true", "bf16-mixed"),
    "accelerator": ("auto", "cpu", "cuda"),
    "strategy": STRATEGIES,
    "on_collapse": ("warn", "stop", "rollback"),
    "adapt": ADAPT,
}
MAY_CHANGE = frozenset({"workers", "accelerator", "devices", "log", "save_every", "store", "on_collapse"})
"""Settings that may differ when a stopped run is continued."""
ORIGINS = ("init", "teacher")
"""Settings that describe weights of other runs."""


@dataclass(frozen=True)
class Choice:
    """A choice from `configs/GROUP/` with its options, without the import path: configs in a run folder never name code."""

    name: str
    options: Mapping[str, Any]

    @classmethod
    def of(cls, group: str, name: str, options: Mapping[str, Any] | None = None) -> "Choice":
        """The choice `name` of `group` with some of its options replaced; an encoder may be any timm model.

        Raises UserError for an unknown name or option.
        """
        given = dict(options or {})
        if group == "encoder" and name not in catalog.choices("encoder") and not catalog.is_own(group, name):
            spec = catalog.spec("encoder", "timm", **({"model": name} | given))
        else:
            spec = catalog.spec(group, name, **given)
            name = spec["model"] if (group, name) == ("encoder", "timm") else name
        return cls(name, {k: v for k, v in spec.items() if k not in ("_target_", "_run_")})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Choice":
        """Return the choice from `as_dict`."""
        return cls(values["name"], {k: v for k, v in values.items() if k != "name"})

    def as_dict(self) -> dict[str, Any]:
        """Return the name and the options in one dict, for YAML."""
        return {"name": self.name, **self.options}

    def spec(self, group: str) -> dict[str, Any]:
        """Return the arguments of `catalog.build`, with the import path from the catalog."""
        if group == "encoder" and catalog.is_own(group, self.name):
            return {
                "_target_": self.name,
                **self.options,
            }  # imports nothing: a run folder names code, and does not run it
        if group == "encoder" and self.name not in catalog.choices("encoder"):
            return catalog.spec("encoder", "timm", **({"model": self.name} | dict(self.options)))
        spec = catalog.spec(group, self.name, **self.options)
        spec.pop("_run_", None)
        return spec


@dataclass(frozen=True)
class PretrainOptions:
    """Options of `medssl.pretrain`. None means the default in the method's yaml, else the general default.

    Attributes:
        method, encoder, augment: names in configs/method, configs/encoder and configs/augment, with their `_options`. An
            encoder may be any timm model, a method the import path of your own `Method`. augment=None takes the recipe of
            the store's modality.
        init: weights that training starts from: a run's folder, its encoder.safetensors, or a local safetensors file of a timm
            model; see `medssl.encoders.initial_weights`. With a run and no `encoder`, the encoder is that run's.
        adapt: the part of the encoder that is trained, from weights at hand: all, norm, attention or lora, with matrices of
            rank `lora_rank`; see `medssl.encoders.adaptation`. The method's own heads are always trained.
        teacher: run folder of a frozen teacher, for methods that have one.
        where: filter expression selecting scans; see `medssl.store.query`.
        target, task, positive, unknown: label columns, kind of task, positive values and values that say nothing, for
            methods that learn from labels; see `medssl.probe`. Scans without a label take part unlabelled.
        size: edge in pixels of the square or cube that scans are resampled to; None: 64 in 2D, 32 in 3D, or less for
            smaller scans.
        spacing: mm per pixel of that grid; None fits each scan into it.
        equalise: histogram-equalise every scan, here and wherever the encoder is scored (`medssl.store.equalise`). This
            removes scanner-dependent contrast, and also the meaning of absolute values such as HU.
        steps, batch: updates of the weights, and scans per update over all devices.
        accumulate: forward passes per update.
        optimizer, lr, lr_end, warmup, weight_decay, momentum, clip: see `medssl.train.optim.Optim`.
        precision: 32-true or bf16-mixed. accelerator: auto, cpu or cuda. devices: processes. workers: loading processes.
        strategy: of several devices: ddp keeps all weights on each, fsdp a part; see `medssl.train.ranks`.
        log: jsonl, wandb (offline) or wandb-online.
        log_every, save_every: steps between rows of metrics.jsonl and between checkpoints.
        monitor_every: steps between evaluations on held-out scans (label-free measures, kNN, collapse checks); None: ten
            per run, 0: never.
        on_collapse: warn prints the collapse; stop ends the run; rollback ends it and exports the encoder of the last
            evaluation without a collapse. All three write RUN/alarm.json; see `medssl.replay`.
    """

    method: str = "simclr"
    encoder: str | None = None
    augment: str | None = None
    method_options: dict[str, Any] | None = None
    encoder_options: dict[str, Any] | None = None
    augment_options: dict[str, Any] | None = None
    init: str | Path | None = None
    adapt: str = "all"
    lora_rank: int = 8
    teacher: str | Path | None = None
    where: str | None = None
    target: str | list[str] | None = None
    task: str = "auto"
    positive: str | list[str] | None = None
    unknown: str | list[str] | None = None
    size: int | None = None
    spacing: float | None = None
    equalise: bool = False
    steps: int | None = None
    batch: int | None = None
    accumulate: int = 1
    seed: int = 0
    optimizer: str = "adamw"
    lr: float | None = None
    lr_end: float | None = None
    warmup: float = 0.05
    weight_decay: float = 1e-4
    momentum: float = 0.9
    clip: float = 10.0
    precision: str = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "ddp"
    workers: int = 0
    log: str = "jsonl"
    log_every: int = 10
    save_every: int = 100
    monitor_every: int | None = None
    on_collapse: str = "warn"

    def given(self) -> dict[str, Any]:
        """Return all options that have a value, for config.yaml."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True)
class PretrainConfig:
    """The settings of a run, as in RUN/resolved.yaml. Construction raises UserError for values that cannot work.

    Attributes:
        store, where, fingerprint: the training store, the filter, and the fingerprint of the filtered store.
        target: columns, task, names, positive and unknown values of the label learned, or None.
        init, teacher: the origin of the weights started from and of a frozen teacher, with digests, or None; see
            `medssl.encoders.initial_weights.Weights.described`.
        size: pixels along each spatial axis.
        others: see `PretrainOptions`.
    """

    store: str
    where: str | None
    target: dict[str, Any] | None
    fingerprint: str
    method: Choice
    encoder: Choice
    augment: Choice
    init: dict[str, Any] | None
    adapt: str
    lora_rank: int
    teacher: dict[str, Any] | None
    size: tuple[int, ...]
    spacing: float | None
    equalise: bool
    steps: int
    batch: int
    accumulate: int
    seed: int
    optimizer: str
    lr: float
    lr_end: float
    warmup: float
    weight_decay: float
    momentum: float
    clip: float
    precision: str
    log_every: int
    monitor_every: int
    on_collapse: str
    accelerator: str
    devices: int
    strategy: str
    workers: int
    log: str
    save_every: int

    def __post_init__(self) -> None:
        for key, (low, high) in RANGES.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                most = f" and at most {high:g}" if high < inf else ""
                raise UserError(f"{key} must be at least {low:g}{most}, got {value}")
        if self.size[0] < 4:
            raise UserError(f"size must be at least 4 pixels, got {self.size[0]}")
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise UserError(f"{key} is {getattr(self, key)!r}.{nearest(str(getattr(self, key)), known)}")
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            raise UserError("accelerator=cuda, but torch finds no GPU; use accelerator=cpu")
        if self.strategy == "fsdp" and self.devices == 1:
            raise UserError("strategy=fsdp divides the weights over devices, and devices is 1; give devices=2 or more")
        if self.strategy == "fsdp" and self.optimizer == "lars":
            raise UserError("optimizer=lars needs whole matrices, which strategy=fsdp divides; use adamw or sgd")
        _ = self.train_options  # checks the optimiser's settings

    @property
    def train_options(self) -> TrainOptions:
        """The settings of the training loop."""
        rates = self.lr, self.warmup, self.lr_end, self.weight_decay, self.momentum
        return TrainOptions(
            self.steps,
            self.batch,
            self.seed,
            Optim(self.optimizer, *rates, self.clip),
            self.accumulate,
            self.workers,
            self.log_every,
            self.save_every,
            self.monitor_every,
        )

    @property
    def name(self) -> str:
        """Method and encoder, the name of the run in tables."""
        return f"{self.method.name} {self.encoder.name}"

    def as_dict(self) -> dict[str, Any]:
        """JSON values, for resolved.yaml."""
        choices = {k: getattr(self, k).as_dict() for k in ("method", "encoder", "augment")}
        return asdict(self) | choices | {"size": list(self.size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PretrainConfig":
        """Return the config from `as_dict`. Raises KeyError or TypeError for missing or unknown keys."""
        names = {f.name for f in fields(cls)}
        if unknown := set(values) - names:
            raise KeyError(f"unknown keys {sorted(unknown)}")
        choices = {k: Choice.from_dict(values[k]) for k in ("method", "encoder", "augment")}
        return cls(**{k: values[k] for k in names} | choices | {"size": tuple(values["size"])})

    def describe_changes(self, other: "PretrainConfig") -> str:
        """The first setting in which `other` differs so that it would be another run, in words; "" if there is none."""
        mine, theirs = self.as_dict(), other.as_dict()
        for key in mine:
            if key not in MAY_CHANGE and mine[key] != theirs[key]:
                was, now = (
                    f"weights {d['weights']}" if key in ORIGINS and d else repr(d) for d in (mine[key], theirs[key])
                )
                return f"{key}={was}, and now {key}={now} is requested"
        return ""


def default_augment(scans: Store) -> str:
    """Return the augmentation recipe for the store's modality, or `neutral` if there is none (for example ultrasound)."""
    return scans.intensity if scans.intensity in catalog.choices("augment") else "neutral"
