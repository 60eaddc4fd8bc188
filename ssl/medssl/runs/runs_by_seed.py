"""Runs grouped by settings: runs of one group differ only in their seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.runs.config import MAY_CHANGE
from medssl.runs.run_folder import Run

NAMED = ("method.name", "encoder.name")
"""Settings that every group is named by."""


@dataclass
class RunsBySeed:
    """The runs of one group by seed. The name has the method, the encoder, and settings that differ between groups."""

    name: str
    runs: dict[int, Run]


def find_runs(runs: str | Path | Iterable[str | Path]) -> list[Run]:
    """Return the finished runs in run folders, and in folders of run folders; each once, in order of path.

    Raises UserError for a folder without runs.
    """
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    found: dict[Path, Run] = {}
    for folder in (Path(g).expanduser() for g in given):
        alone = (folder / "resolved.yaml").exists()
        inside = [folder] if alone else sorted(p.parent for p in folder.glob("**/resolved.yaml"))
        if not inside:
            raise UserError(f"{folder} has no run; give run folders, or a folder of them, made by medssl pretrain")
        for path in inside:
            run = Run(path)
            run.finished()
            found.setdefault(path.resolve(), run)
    return list(found.values())


def group_by_seed(runs: Sequence[Run]) -> list[RunsBySeed]:
    """Return the groups in the order of their first run.

    Raises UserError for two runs with the same settings and seed.
    """
    settings = [_flat({k: v for k, v in run.config().as_dict().items() if k not in MAY_CHANGE}) for run in runs]
    seeds = [int(s.pop("seed")) for s in settings]
    groups: dict[str, RunsBySeed] = {}
    for name, seed, run in zip(_names(settings), seeds, runs, strict=True):
        group = groups.setdefault(name, RunsBySeed(name, {}))
        if seed in group.runs:
            raise UserError(f"{group.runs[seed].path} and {run.path} have the same settings and seed; leave one out")
        group.runs[seed] = run
    return list(groups.values())


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return method and encoder of each run, and the settings in which it differs from others with the same two."""
    short = [" ".join(str(s[k]) for k in NAMED) for s in settings]
    out = []
    for name, mine in zip(short, settings, strict=True):
        peers = [s for n, s in zip(short, settings, strict=True) if n == name]
        differs = [k for k in mine if any(s.get(k) != mine[k] for s in peers)]
        out.append(" ".join([name, *(f"{k.removeprefix('method.')}={mine[k]}" for k in differs)]))
    return out


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for k, v in value.items():
        out |= _flat(v, f"{prefix}{k}.") if isinstance(v, dict) else {f"{prefix}{k}": v}
    return out
