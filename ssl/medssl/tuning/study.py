"""A search as an Optuna study in a SQLite file: it goes on after a kill, within a budget, one trial at a time."""

import json
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.errors import Interrupted, UsageError, UserError, nearest
from medssl.evals.stats.score import Score
from medssl.files import digest, disk_errors
from medssl.progress import say
from medssl.tuning.measure import Measure
from medssl.tuning.space import Space

SAMPLERS, PRUNERS = ("tpe", "grid", "random"), ("asha", "none")
REDUCTION = 3  # one in three trials goes on at each rung; Li et al., 2020, https://arxiv.org/abs/1810.05934, has 4

Watch = Callable[[dict[str, Any]], None]
Train = Callable[[dict[str, Any], Path, Watch], Path]
"""(keyword arguments of pretrain, run folder, called with each evaluated row) -> the finished run folder."""


@dataclass(frozen=True)
class Budget:
    """The most trials of a study, and the most seconds that they may take, over all calls; None for no limit."""

    trials: int
    seconds: float | None

    def __post_init__(self) -> None:
        if self.trials < 1 or (self.seconds is not None and self.seconds <= 0):
            raise UserError(f"trials={self.trials} and seconds={self.seconds} must be positive")


class Search:
    """The study in `folder`/study.db, with its runs in `folder`/trials.

    Args:
        settings: JSON values that must be the same when the study goes on.
        sampler: tpe (Bergstra et al., 2011), random, or grid: every combination once, in order.
        pruner: asha, successive halving over the evaluations of a run, or none.

    Raises UserError without Optuna, for a damaged file, and for a study with other settings.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        measure: Measure,
        sampler: str,
        pruner: str,
        seed: int,
        settings: dict[str, Any],
    ):
        for key, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
            if value not in known:
                raise UsageError(f"{key} is {value!r}.{nearest(value, known)}")
        if pruner == "asha" and not measure.logged:
            raise UserError(
                "pruner=asha compares runs by kNN of the store's first label while they train, and target= is another; "
                "use pruner=none, or measure=NAME without labels"
            )
        optuna = _optuna()
        self.folder, self.space, self.measure, self.optuna = folder, space, measure, optuna
        grid = space.grid() if sampler == "grid" else []
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
        try:
            self.study = optuna.create_study(
                study_name="medssl",
                storage=f"sqlite:///{folder.absolute() / 'study.db'}",
                direction="maximize",
                load_if_exists=True,
                pruner=halving if pruner == "asha" else optuna.pruners.NopPruner(),
            )
            kept = self.study.user_attrs.get("settings")
        except Exception as e:  # SQLAlchemy's errors, by version
            raise UserError(f"{folder / 'study.db'} cannot be read ({type(e).__name__}); choose another out=") from e
        self._check(kept, settings)
        # a sampler begins its random numbers anew in each process
        make = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
        self.study.sampler = make(seed=(seed + 1_000_003 * len(self.study.trials)) % 2**32)
        for params in grid:
            self.study.enqueue_trial(params, skip_if_exists=True)
        self.most = len(grid) or math.inf

    def _check(self, kept: str | None, settings: dict[str, Any]) -> None:
        """Keep the settings of a new study; raise UserError if those of an old one differ."""
        if kept is None:
            self.study.set_user_attr("settings", json.dumps(settings))
            return
        before = json.loads(kept)
        for key, now in json.loads(json.dumps(settings)).items():
            if before.get(key) != now:
                was = before.get(key)
                raise UserError(
                    f"{self.folder} holds a search with {key}={was}, and now it is {now}; choose another out="
                )

    def run(self, budget: Budget, train: Train) -> None:
        """Run trials until the budget is spent; a trial that a kill left unfinished goes on first.

        A trial that fails on its settings is counted and does not stop the others. Raises what is no UserError, and
        `Interrupted`, with the trial left to go on.
        """
        trial_of, state = self.optuna.trial, self.optuna.trial.TrialState
        while True:
            left = self.study.get_trials(deepcopy=False, states=(state.RUNNING,))
            spent = self.seconds()
            done = sum(t.state.is_finished() for t in self.study.get_trials(deepcopy=False))
            if done >= min(budget.trials, self.most) or (budget.seconds is not None and spent >= budget.seconds):
                return
            trial = trial_of.Trial(self.study, left[0]._trial_id) if left else self.study.ask()
            until = math.inf if budget.seconds is None else time.monotonic() + budget.seconds - spent
            self._one(trial, train, until)
            if time.monotonic() >= until:
                return

    def _one(self, trial: Any, train: Train, until: float) -> None:
        """Run a trial and tell the study how it ended."""
        state, pruned = self.optuna.trial.TrialState, self.optuna.TrialPruned
        chosen = self.space.suggest(trial)
        say(f"trial {trial.number}: {', '.join(f'{k}={v}' for k, v in chosen.items())}")
        seen = set[int]()
        started = time.monotonic()

        def watch(row: dict[str, Any]) -> None:
            """Prune a run that is behind, or over the budget."""
            key = self.measure.logged
            if key and key in row and row["step"] not in seen:
                seen.add(row["step"])
                trial.report(self.measure.sign * float(row[key]), len(seen))
                if trial.should_prune():
                    raise pruned("behind other trials")
            if time.monotonic() > until:
                raise pruned("out of time")

        value, why = math.nan, ""
        before = float(trial.user_attrs.get("seconds", 0))
        try:
            run = train(self.space.options(chosen), self.folder / "trials" / digest(chosen), watch)
            found = self.measure.of_run(run)
            trial.set_user_attr("score", found.as_dict())
            value = self.measure.sign * found.value
            why = "" if math.isfinite(value) else f"{self.measure.name} is undefined"
        except pruned as e:
            why = f"pruned: {e}"
        except UserError as e:
            if isinstance(e, Interrupted):
                raise
            why = str(e)
        finally:
            trial.set_user_attr("seconds", before + time.monotonic() - started)
        if why:
            trial.set_user_attr("why", why)
            say(f"trial {trial.number}: {why}")
            self.study.tell(trial, state=state.PRUNED if why.startswith("pruned") else state.FAIL)
        else:
            say(f"trial {trial.number}: {self.measure.name} {found}")
            self.study.tell(trial, value)

    def seconds(self) -> float:
        """Return the seconds that all trials took so far."""
        return sum(float(t.user_attrs.get("seconds", 0)) for t in self.study.get_trials(deepcopy=False))

    def counts(self) -> dict[str, int]:
        """Return the number of trials, and of those that finished, were pruned and failed."""
        names = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
        found = Counter(names.get(t.state.name, "unfinished") for t in self.study.get_trials(deepcopy=False))
        of = {name: found[name] for name in names.values()}
        return {"tried": sum(of.values())} | of

    def ranked(self) -> list[tuple[dict[str, Any], Score]]:
        """Return the settings and scores of the finished trials, the best first; each combination once.

        Raises UserError if no trial finished, with the reason of the last.
        """
        state = self.optuna.trial.TrialState
        done = self.study.get_trials(deepcopy=False, states=(state.COMPLETE,))
        if not done:
            whys = [t.user_attrs["why"] for t in self.study.get_trials(deepcopy=False) if "why" in t.user_attrs]
            raise UserError(f"no trial finished in {self.folder}: {whys[-1] if whys else 'the budget is too small'}")
        best: dict[str, tuple[dict[str, Any], Score]] = {}
        for t in sorted(done, key=lambda t: -t.value):
            best.setdefault(digest(t.params), (dict(t.params), Score.from_dict(t.user_attrs["score"])))
        return list(best.values())


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as e:
        raise UserError("medssl tune needs Optuna: pip install 'medssl[tune]'") from e
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="optuna")
    return optuna
