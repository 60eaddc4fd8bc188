"""The folder of a pretraining run: its settings, environment, checkpoints and results."""

import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from medssl.errors import UserError
from medssl.files import check_writable, write_json, write_text
from medssl.progress import say
from medssl.runs.config import PretrainConfig

LIBRARIES = ("medssl", "torch", "timm", "lightning-fabric", "numpy", "scikit-learn", "faiss-cpu", "pydicom")


class Run:
    """Paths of a run folder, and the settings kept in it."""

    def __init__(self, path: Path):
        self.path = path.expanduser()
        self.checkpoints = self.path / "checkpoints"

    def start(self, given: dict[str, Any], config: PretrainConfig) -> None:
        """Write config.yaml (the options given), resolved.yaml (`config`) and env.json, or check that they are the same run.

        Raises UserError if the folder holds something else, or a run whose settings, but for `MAY_CHANGE`, differ.
        """
        resolved = self.path / "resolved.yaml"
        if resolved.exists():
            kept = self.config()
            if differs := kept.describe_changes(config):
                raise UserError(f"{self.path} holds a run with {differs}; choose another out=, or delete that folder")
            if kept.devices != config.devices:
                say(
                    f"the run began with devices={kept.devices} and goes on with {config.devices}: the scans, views and masks of "
                    "every step stay the same; dropout and rounding do not, so the weights are not those of an unchanged run"
                )
            return
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; choose another out=")
        if self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run; choose another out=")
        write_text(self.path / "config.yaml", yaml.safe_dump(_plain(given), sort_keys=False))
        write_text(resolved, yaml.safe_dump(_plain(config.as_dict()), sort_keys=False))
        write_json(self.path / "env.json", environment() | {"store": config.fingerprint})

    def config(self) -> PretrainConfig:
        """The settings of the run. Raises UserError if this is not a run folder."""
        file = self.path / "resolved.yaml"
        if not file.exists():
            raise UserError(f"{self.path} is not a run folder: it has no resolved.yaml; make one with medssl pretrain")
        try:
            return PretrainConfig.from_dict(yaml.safe_load(file.read_text("utf-8")))
        except (yaml.YAMLError, TypeError, KeyError, AttributeError) as e:
            raise UserError(
                f"{file} is damaged or was written by an earlier medssl; pretrain again into another folder"
            ) from e

    def finished(self) -> PretrainConfig:
        """`config()`; raises UserError if pretraining has not finished."""
        config = self.config()
        if not (self.path / "encoder.json").exists():
            raise UserError(
                f"the run in {self.path} is not finished; run its medssl pretrain command again to continue"
            )
        return config

    def check_writable(self) -> None:
        """Raise UserError if scores cannot be kept in the run: it may be another user's, or on a read-only disk."""
        for folder in filter(Path.exists, (self.path, self.path / "predictions")):
            try:
                check_writable(folder)
            except UserError as e:
                raise UserError(f"{e}; scores are kept in the run, so copy it to a folder of your own") from e


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, numpy numbers refused: what YAML can hold."""
    return json.loads(json.dumps(values))


def environment() -> dict[str, Any]:
    """Versions, hardware and, in a checkout, the commit."""
    return {
        "python": platform.python_version(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    here = Path(__file__).resolve().parents[3]
    if not (here / ".git").exists():
        return None
    out = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return out.stdout.strip() or None
