"""`medssl tune`: search for settings of pretraining, without test patients, and score the winner once on them."""

import json
from pathlib import Path
from typing import Any

from medssl.commands.analyse.compare import compare
from medssl.commands.score.probe import probe
from medssl.commands.train.pretrain import pretrain_watched
from medssl.errors import UserError
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import Cell, text_table
from medssl.files import locked, write_json, write_text
from medssl.progress import say
from medssl.results import Result
from medssl.runs.config import PretrainOptions
from medssl.scoring.baselines import Baseline
from medssl.scoring.eval_splits import SplitOptions
from medssl.store.store import Store
from medssl.tuning.measure import measure_of
from medssl.tuning.space import Space
from medssl.tuning.study import Budget, Search, Watch
from medssl.tuning.wandb_sweep import wandb_sweep

SHOWN = 5  # best trials in the table
BESIDE = (Baseline.PATCH_BANK, Baseline.RANDOM_INIT)  # rows beside the winner on the test


def tune(
    store: str | Path | Store,
    out: str | Path,
    search: dict[str, Any],
    *,
    target: str | list[str] | None = None,
    task: str = "auto",
    positive: str | list[str] | None = None,
    unknown: str | list[str] | None = None,
    where: str | None = None,
    measure: str | None = None,
    runs: str | list[str] | None = None,
    sampler: str = "tpe",
    pruner: str = "asha",
    trials: int = 20,
    seconds: float | None = None,
    seeds: int = 3,
    seed: int = 0,
    device: str = "auto",
) -> Result:
    """Search for settings of `medssl.pretrain`, then train the best anew with fresh seeds and score it once on test patients.

    Trials are compared on validation patients alone, by a linear probe of `target` or by a measure without labels. The study is
    OUT/study.db, its runs are in OUT/trials; the same call again continues it, exactly where a kill left the running trial, with
    a larger budget if one is given. OUT/sweep.yaml is the same search for `wandb sweep`. Once the winner is scored, OUT is
    closed: to go on after seeing the test would be a choice by test patients.

    Args:
        store: a folder made by `medssl.ingest`.
        out: the folder of the search.
        search: keys of pretrain. A single value is fixed for all trials; a list of values is tried; [low, high, log], linear or
            int is a range. Options are written as "encoder.widths"; recipe=NAME fixes those of a recipe.
        target, task, positive, unknown, where: as for `medssl.probe`; without a target there is no test score.
        measure: probe (the default with a target); the key of a measure in `medssl.evals.label_free.quality`, such as
            rankme_share or lidar; or trusted, the one that `medssl quality` trusts on `runs`.
        runs: runs with probe scores, on which a label-free measure is chosen.
        sampler: tpe, random, or grid (all combinations of lists).
        pruner: asha ends runs that are behind at the same evaluation; none.
        trials, seconds: the budget of all calls together.
        seeds: how often the winner is trained anew.
        seed: of the trials; the winner gets others.
        device: auto, cpu or cuda, for probes.

    Returns {"counts", "seconds", "measure", "best", "settings", "test"}.

    Raises UserError for a search that cannot work, or in which no trial finished.
    """
    scans, folder = Store.open(store, where), Path(out).expanduser()
    options = SplitOptions(task=task, positive=positive, unknown=unknown, seed=seed, device=device)
    space, budget = Space.of(search), Budget(trials, seconds)
    if seeds < 1:
        raise UserError(f"seeds={seeds} must be 1 or more")
    with locked(folder, "medssl tune"):
        closed = folder / "result.json"
        if closed.exists():
            return _closed(closed)
        by = measure_of(measure, scans, target, runs, options)
        fixed = {"store": scans.fingerprint, "search": search, "measure": by.name, "sampler": sampler, "pruner": pruner}
        study = Search(folder, space, by, sampler, pruner, seed, fixed | {"seed": seed})
        write_text(folder / "sweep.yaml", wandb_sweep(space, by, sampler, scans.path, where, folder / "sweep"))

        def train(chosen: dict[str, Any], run: Path, watch: Watch) -> Path:
            return pretrain_watched(scans, run, PretrainOptions(**chosen, seed=seed), watch)

        study.run(budget, train)
        ranked = study.ranked()
        result = _best(study, ranked, by.name, by.flags)
        again = [
            pretrain_watched(
                scans, folder / "winner" / f"seed-{s}", PretrainOptions(**space.options(ranked[0][0]), seed=s), None
            )
            for s in range(seed + 1, seed + 1 + seeds)
        ]
        if target is not None:
            say("the winner, trained anew, is scored on test patients")
            for run in again:
                probe(run, scans, target, task=task, positive=positive, unknown=unknown, seed=seed, device=device,
                      baselines=BESIDE)  # fmt: skip
            test = compare([str(run) for run in again], baselines=list(BESIDE), seed=seed)
            result += Result({"test": dict(test)}, f"test patients, {seeds} fresh seeds:\n{test}")
        write_json(closed, dict(result) | {"text": str(result)})
    return result


def _best(study: Search, ranked: list[tuple[dict[str, Any], Score]], name: str, flags: tuple[str, ...]) -> Result:
    """Return how many trials were tried and which were best."""
    counts, seconds = study.counts(), study.seconds()
    rows: list[dict[str, Cell]] = [
        {"settings": " ".join(f"{k}={v}" for k, v in chosen.items()), "validation": score}
        for chosen, score in ranked[:SHOWN]
    ]
    words = ", ".join(f"{n} {k}" for k, n in counts.items() if k != "tried" and n)
    head = f"best of {counts['tried']} trials ({words}) in {seconds:.0f} s, by {name}"
    lines = [*(f"! {flag}" for flag in flags), head, text_table(rows, ["settings", "validation"])]
    lines.append(
        "The best value was chosen for being the best, so it is too good; the winner is trained anew with other seeds."
    )
    best, score = ranked[0]
    data = {"counts": counts, "seconds": seconds, "measure": name, "flags": list(flags), "best": best}
    return Result(data | {"validation": score.as_dict(), "settings": study.space.options(best)}, "\n".join(lines))


def _closed(path: Path) -> Result:
    """Return the kept result of a search whose winner was scored."""
    try:
        kept = json.loads(path.read_text("utf-8"))
        return Result(
            {k: v for k, v in kept.items() if k != "text"}, f"{kept['text']}\n\nkept in {path}; the search is closed"
        )
    except (ValueError, KeyError, AttributeError) as e:
        raise UserError(f"{path} is damaged; choose another out=") from e
