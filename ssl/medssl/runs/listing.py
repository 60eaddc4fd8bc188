"""The runs below a folder at a glance: how far each is, how long it took, what it scored, and how to continue it."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from medssl import catalog
from medssl.errors import UserError
from medssl.runs.alarms import FILE as ALARM
from medssl.runs.predictions import RUN
from medssl.runs.run_folder import Run


def list_runs(folder: str | Path = ".") -> list[dict[str, Any]]:
    """Return what there is to know of each run in a folder or below it, in order of path.

    Keys: run (path below the folder), name, seed, status, step, steps, seconds (of training), collapsed, target, metric, score
    ({value, low, high}) or None, resume (the command that continues an unfinished run, "" otherwise), problem.
    Raises UserError if there is none.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give the folder that holds your runs")
    found = sorted(file.parent for file in folder.glob("**/resolved.yaml"))
    if not found:
        raise UserError(f"{folder} holds no run; make one with: medssl pretrain store=STORE out={folder / 'RUN'}")
    return [_describe(path, folder) for path in found]


def _describe(path: Path, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": str(path.relative_to(folder)) if path != folder else path.resolve().name}
    row |= {"name": "", "seed": None, "step": 0, "steps": None, "seconds": 0.0, "collapsed": False, "target": ""}
    row |= {"metric": "", "score": None, "resume": "", "problem": "", "status": "damaged"}
    try:
        config = Run(path).config()
        row |= {"name": config.name, "seed": config.seed, "steps": config.steps, **_progress(path / "timing.jsonl")}
        row["collapsed"] = (path / ALARM).exists()
        if (path / "encoder.json").exists():
            row |= {"status": "finished", **_score(path / "scores.json")}
        else:
            row |= {"status": "not finished", "resume": resume_command(path)}
    except (UserError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as e:
        row["problem"] = str(e) if isinstance(e, UserError) else "a file in it is damaged"
    return row


def _progress(file: Path) -> dict[str, Any]:
    """Return the last step logged, and the seconds of all sessions: each counts from its own start."""
    step, total, last = 0, 0.0, 0.0
    for line in file.read_text("utf-8").splitlines() if file.exists() else ():
        row = json.loads(line)
        total += last if row["seconds"] < last else 0.0
        step, last = row["step"], row["seconds"]
    return {"step": step, "seconds": total + last}


def _score(file: Path) -> dict[str, Any]:
    """Return the first metric of the run's own row in the table written last."""
    tables = json.loads(file.read_text("utf-8"))["tables"] if file.exists() else []
    for table in reversed(tables):
        for row in table["rows"]:
            if row["source"] == RUN and row["scores"]:
                metric = next(iter(row["scores"]))
                return {"target": table["target"], "metric": metric, "score": row["scores"][metric]}
    return {}


def resume_command(path: Path) -> str:
    """Return the command line that continues a run, from its config.yaml."""
    given = yaml.safe_load((path / "config.yaml").read_text("utf-8"))
    words = ["medssl", "pretrain", *(f"{k}={v}" for k, v in _words(given))]
    return " ".join(map(shlex.quote, words))


def _words(given: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield keys and values as the command line takes them, but for defaults; options of a method are method.KEY."""
    defaults = catalog.load("command", "pretrain")
    groups = [(k.removesuffix("_options"), v) for k, v in given.items() if k.endswith("_options")]
    for key, value in given.items():
        if not key.endswith("_options") and (key not in defaults or value != defaults[key]):
            yield key, _text(value)
    for group, options in groups:
        yield from _flat(group, options or {})


def _flat(prefix: str, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", _text(value)


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_text, value))}]" if isinstance(value, list) else str(value)
