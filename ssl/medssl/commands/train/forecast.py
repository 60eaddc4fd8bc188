"""`medssl forecast`: will pretraining pay on these scans? A short run against its rivals, on training patients set aside."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from medssl import catalog
from medssl.commands.score.probe import probe
from medssl.commands.train.pretrain import pretrain
from medssl.errors import UserError
from medssl.evals.stats.bootstrap import paired
from medssl.evals.stats.score import Difference
from medssl.evals.task_types.task_types import task_type
from medssl.progress import say
from medssl.results import Result
from medssl.runs.predictions import RUN, Predictions, predictions_of
from medssl.scoring.baselines import Baseline
from medssl.store.set_aside import without_test
from medssl.store.store import Store

RIVALS = (Baseline.RAW_PIXELS, Baseline.PATCH_BANK, Baseline.RANDOM_INIT, Baseline.SUPERVISED)
LIKELY, UNLIKELY = 0.9, 0.1


@dataclass(frozen=True)
class Answer:
    """One label budget: the best rival of the short run, and the run minus it."""

    budget: str
    rival: str
    metric: str
    gain: Difference

    @property
    def chance(self) -> float:
        """The probability that the short run is better than that rival on other patients, by the test of the difference."""
        half = self.gain.p / 2
        return 1 - half if self.gain.score.value > 0 else half

    def __str__(self) -> str:
        ahead = "likely" if self.chance > LIKELY else "unlikely" if self.chance < UNLIKELY else "cannot be told"
        return (
            f"{self.budget}: {ahead}; the short run minus the best rival ({self.rival}) has {self.metric} {self.gain.score}, "
            f"a chance of {self.chance:.0%} of being ahead on other patients"
        )


def forecast(
    store: str | Path | Store,
    target: str,
    out: str | Path,
    *,
    recipe: str = "chest_xray_28",
    share: float = 0.1,
    label_budgets: Iterable[str | int | float] = (20, 100, "all"),
    draws: int = 5,
    where: str | None = None,
    allow_overlap: bool = False,
    seed: int = 0,
) -> Result:
    """Train a part of a recipe on some of the training patients, and score it against its rivals on others of them.

    The test patients are neither trained on nor scored, so a decision that is taken here does not spoil the final score.
    Rivals are raw pixels, the k-means patch bank and the untrained encoder at every label budget, and the same encoder from
    scratch with all labels. The best of them on these patients is compared, which is to the run's disadvantage. A full run
    usually gains on a short one; by how much is not forecast.

    Args:
        store: a labelled store.
        target: the name of a label.
        out: a folder for the short run, which the same call again continues.
        recipe: a name in configs/recipe.
        share: of the recipe's steps that are trained.
        label_budgets, draws: as for `medssl.probe`.
        where: filter expression selecting scans.
        allow_overlap: judge even if patients set aside share images with those trained on.
        seed: of the split, the run and the draws.

    Returns one row per label budget, and the seconds a full run would take on this machine. Raises UserError for too few
    patients or a label that cannot be scored.
    """
    if not 0 < share <= 1:
        raise UserError(f"share must be above 0 and at most 1, got {share}")
    held = without_test(Store.open(store, where), seed)
    settings = catalog.recipe(recipe)
    full = int(settings["steps"])
    steps = max(1, round(share * full))
    run = Path(out)
    say(f"a run of {steps} of the {full} steps of recipe={recipe} on {len(held.rows('train'))} training scans")
    batch = min(int(settings["batch"]), len(held.rows("train")))
    pretrain(held, run, **settings | {"steps": steps, "batch": batch, "seed": seed})
    speed = json.loads((run / "timing.jsonl").read_text("utf-8").splitlines()[-1])["scans_per_s"]
    seconds = full * batch / speed
    probe(
        run,
        held,
        target,
        label_budgets=label_budgets,
        draws=draws,
        baselines=RIVALS,
        allow_overlap=allow_overlap,
        seed=seed,
    )
    answers = answers_of(max(predictions_of(run), key=lambda p: len(p.rows)))
    rows = [{"budget": a.budget, "rival": a.rival, "gain": a.gain.score.as_dict(), "chance": a.chance} for a in answers]
    tested = len(set(held.column("patient")[held.rows("test")]))
    text = "\n".join(
        [
            f"will pretraining by recipe={recipe} pay for {target}? Judged by {tested} training patients set aside:",
            *(f"  {answer}" for answer in answers),
            f"a full run of {full} steps takes about {_minutes(seconds)} on this machine: medssl pretrain recipe={recipe}, then "
            "medssl probe, which scores test patients",
        ]
    )
    return Result({"answers": rows, "full_run_seconds": seconds}, text)


def answers_of(kept: Predictions) -> list[Answer]:
    """Return the answer for every label budget that the run was scored with."""
    metric = task_type(kept.about["task"]).metrics[0]
    answers = []
    for own in (row for row in kept.rows if row.source == RUN):
        rivals = [row for row in kept.rows if row.source != RUN and row.label_budget == own.label_budget]
        gains = [
            (paired(metric, kept.y, own.p, row.p * (len(own.p) // len(row.p)), kept.patient, draws=len(own.p)), row)
            for row in rivals
        ]
        gain, rival = min(gains, key=lambda pair: pair[0].score.value)
        name = rival.source if rival.probe == own.probe else f"{rival.source}, {rival.probe}"
        answers.append(
            Answer(
                f"{own.label_budget} labels" if own.label_budget == "all" else own.label_budget, name, metric.name, gain
            )
        )
    return answers


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.0f} hours"
