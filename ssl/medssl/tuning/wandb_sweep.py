"""The same search as a sweep of Weights & Biases, whose agents run `medssl pretrain`."""

from pathlib import Path
from typing import Any

import yaml

from medssl.tuning.measure import Measure
from medssl.tuning.space import Space

METHODS = {"tpe": "bayes", "grid": "grid", "random": "random"}


def wandb_sweep(space: Space, measure: Measure, sampler: str, store: Path, where: str | None, out: Path) -> str:
    """Return the YAML for `wandb sweep`: keys of pretrain as parameters, and what its agents start.

    Agents log to wandb-online. The metric is the one that pretrain logs while it trains; test patients take no part.
    """
    given: dict[str, Any] = {"store": str(store)} | ({"where": where} if where else {}) | space.fixed
    words = [f"{k}={_word(v)}" for k, v in given.items()]
    script = f'exec medssl pretrain {" ".join(map(_quoted, words))} log=wandb-online out={_quoted(str(out))}/$WANDB_RUN_ID "$@"'
    sweep: dict[str, Any] = {
        "method": METHODS[sampler],
        "metric": {"name": measure.logged or "knn_auroc", "goal": "maximize" if measure.sign > 0 else "minimize"},
        "parameters": {key: of.for_wandb() for key, of in space.searched.items()},
        "command": ["bash", "-c", script, "medssl", "${args_no_hyphens}"],
    }
    head = f"# wandb sweep {out.parent / 'sweep.yaml'}, then wandb agent with the line that it prints\n"
    return head + yaml.safe_dump(sweep, sort_keys=False, width=1000)


def _word(value: Any) -> str:
    """Return a value as the command line reads it."""
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"
