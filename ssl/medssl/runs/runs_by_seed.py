"""Runs that differ in their seed alone are one arm of a comparison; what else differs between them is its name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.runs.config import MAY_CHANGE
from medssl.runs.run_folder import Run

NAMED = ("method.name", "encoder.name")  # what an arm is called by, before anything else


@dataclass
class RunsBySeed:
    """A name, and a run per seed."""

    name: str
    runs: dict[int, Run]


def find_runs(runs: str | Path | Iterable[str | Path]) -> list[Run]:
    """The finished runs that are meant: run folders, and folders of run folders; sorted by path, each once.

    Raises UserError for a folder that holds none.
    """
    given = [runs] if isinstance(runs, str | Path) else list(runs)
    found: dict[Path, Run] = {}
    for folder in (Path(g).expanduser() for g in given):
        inside = (
            [folder]
            if (folder / "resolved.yaml").exists()
            else sorted(p.parent for p in folder.glob("**/resolved.yaml"))
        )
        if not inside:
            raise UserError(f"{folder} holds no run; give run folders, or a folder of them, made by medssl pretrain")
        for path in inside:
            run = Run(path)
            run.finished()
            found.setdefault(path.resolve(), run)
    return list(found.values())


def group_by_seed(runs: Sequence[Run]) -> list[RunsBySeed]:
    """Runs by what they differ in, in the order of their first run.

    Raises UserError when two runs are the same up to nothing, so that one of them would count twice.
    """
    settings = [_flat({k: v for k, v in run.config().as_dict().items() if k not in MAY_CHANGE}) for run in runs]
    seeds = [int(s.pop("seed")) for s in settings]
    names = _names(settings)
    arms: dict[str, RunsBySeed] = {}
    for name, seed, run in zip(names, seeds, runs, strict=True):
        arm = arms.setdefault(name, RunsBySeed(name, {}))
        if seed in arm.runs:
            raise UserError(
                f"{arm.runs[seed].path} and {run.path} are runs of the same settings and seed; leave one out"
            )
        arm.runs[seed] = run
    return list(arms.values())


def _names(settings: Sequence[dict[str, Any]]) -> list[str]:
    """For each run its method and encoder, and what else it differs in from those of the same name."""
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
