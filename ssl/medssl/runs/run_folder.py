"""The folder of a run: what was asked, what that meant, on what machine, and what came of it."""

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
from medssl.files import write_json, write_text

LIBRARIES = ("medssl", "torch", "timm", "lightning-fabric", "numpy", "scikit-learn", "faiss-cpu", "pydicom")


class Run:
    """Paths of a run folder, and the check that it is the same run."""

    def __init__(self, path: Path):
        self.path = path.expanduser()
        self.checkpoints = self.path / "checkpoints"

    def start(self, asked: dict[str, Any], resolved: dict[str, Any], free: set[str]) -> None:
        """Write config.yaml (as asked), resolved.yaml (what that meant) and env.json, or make sure it is the same run.

        Raises UserError when the folder holds something else, or a run whose settings (but for `free` ones) differ.
        """
        config = self.path / "resolved.yaml"
        if config.exists():
            before = self.resolved()
            now = json.loads(json.dumps(resolved))
            differs = [k for k in now | before if k not in free and before.get(k) != now.get(k)]
            if differs:
                k = differs[0]
                raise UserError(
                    f"{self.path} holds a run with {k}={before.get(k)!r}, and now {k}={now.get(k)!r} is asked for; "
                    "choose another out=, or delete that folder"
                )
            return
        if self.path.is_file():
            raise UserError(f"{self.path} is a file; choose another out=")
        if self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run; choose another out=")
        write_text(self.path / "config.yaml", yaml.safe_dump(json.loads(json.dumps(asked)), sort_keys=False))
        write_text(config, yaml.safe_dump(json.loads(json.dumps(resolved)), sort_keys=False))
        write_json(self.path / "env.json", environment() | {"store": resolved["fingerprint"]})

    def resolved(self) -> dict[str, Any]:
        """What the run was made with. UserError when this is no run folder."""
        config = self.path / "resolved.yaml"
        if not config.exists():
            raise UserError(f"{self.path} is not a run folder: it has no resolved.yaml; make one with medssl pretrain")
        try:
            resolved = yaml.safe_load(config.read_text())
            return {key: resolved[key] for key in ("store", "equalise")} | resolved
        except (yaml.YAMLError, TypeError, KeyError) as e:
            raise UserError(f"{config} is damaged or of another version; pretrain again into another folder") from e

    def finished(self) -> dict[str, Any]:
        """`resolved()`; UserError when pretraining has not come to its end."""
        resolved = self.resolved()
        if not (self.path / "encoder.json").exists():
            raise UserError(f"the run in {self.path} is not finished; run its medssl pretrain command again to go on")
        return resolved


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
