"""What the trials of a search are compared by: a probe of validation patients, or a measure without labels."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from medssl.errors import UsageError, UserError, nearest
from medssl.evals.label_free.agreement import ALPHA
from medssl.evals.label_free.quality import MEASURES
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.score import Score
from medssl.pretraining.held_out_subset import ENOUGH
from medssl.runs.runs_by_seed import find_runs
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import EvalSplits, SplitOptions
from medssl.scoring.label_free import FILE, rank_measures, read_measures
from medssl.scoring.probes import ALL, linear
from medssl.scoring.targets import Subset, resolve_target
from medssl.store.store import Store

PROBE, TRUSTED = "probe", "trusted"
BY_KEY = {m.key: (name, m.better) for name, m in MEASURES.items()}


class Measure(Protocol):
    """What a trial is worth.

    Attributes:
        name: in words.
        logged: the key of metrics.jsonl that tells, while a trial is training, whether it is worth going on; "" for none.
        sign: -1 if lower values are better.
        flags: warnings that stand above the result.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see above
    @property
    def logged(self) -> str: ...  # noqa: D102
    @property
    def sign(self) -> int: ...  # noqa: D102
    @property
    def flags(self) -> tuple[str, ...]: ...  # noqa: D102

    def of_run(self, run: Path) -> Score:
        """Return the score of a finished run; its value is nan if it is undefined."""


@dataclass(frozen=True)
class LabelFree:
    """A measure of `medssl.evals.label_free.quality`, at the last evaluation of a run."""

    name: str
    logged: str
    sign: int
    flags: tuple[str, ...] = ()

    def of_run(self, run: Path) -> Score:
        """Return the last logged value, which has no interval."""
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
        found = [row[self.logged] for row in rows if self.logged in row]
        return Score(
            float(found[-1]) if found else math.nan, math.nan, math.nan, 0, 0, "the last evaluation of the run"
        )


class ValidationProbe:
    """A linear probe, fitted on training patients and scored on validation patients by the task's first metric.

    Its penalty is chosen within the training patients. No test scan is read.
    """

    flags = ()

    def __init__(self, store: Store, target: str | list[str], options: SplitOptions):
        rows = store.rows("train")
        resolved = resolve_target(store, rows, target, options.task, options.positive, options.unknown)
        train, val = (Subset.of(resolved, store, of) for of in (rows, store.rows("val")))
        if val.patients < ENOUGH:
            raise UserError(
                f"{store.path} has {val.patients} validation patients with the label {resolved}, and a search needs {ENOUGH}; "
                "ingest more patients, or use measure=NAME without labels"
            )
        nothing = Subset.of(resolved, store, np.zeros(0, np.int64))
        self.splits = EvalSplits(resolved, train, nothing, val, "validation patients")
        self.store, self.options, self.metric = store, options, resolved.kind.metrics[0]
        self.name = f"{self.metric.name} of a linear probe of {resolved}, {len(val)} validation scans of {val.patients} patients"
        self.sign = self.metric.sign
        first = store.labels[0] if store.labels else None
        self.logged = "knn_auroc" if target == first and resolved.has_classes else ""

    def of_run(self, run: Path) -> Score:
        """Return the metric with its interval over validation patients."""
        sources = FeatureSources(run, self.store, self.options.device)
        source, val = sources.of_run(), self.splits.test
        (fitted,) = linear(source, self.splits, [val], seed=self.options.seed, device=sources.device)[ALL]
        return score(self.metric, val.y, fitted.predictions[0], val.patient, seed=self.options.seed)


def measure_of(
    name: str | None, store: Store, target: str | list[str] | None, runs: Any, options: SplitOptions
) -> Measure:
    """Return the measure that `measure=`, `target=` and `runs=` ask for.

    Raises UsageError for an unknown one, and UserError if no measure can be trusted on `runs` or labels are missing.
    """
    name = name or (TRUSTED if runs else PROBE)
    if name == PROBE:
        if target is None:
            raise UserError(
                "give target=LABEL for a probe of validation patients, or measure=NAME for one without labels"
            )
        return ValidationProbe(store, target, options)
    if name == TRUSTED:
        return _trusted(runs, store, target, options.seed)
    if name not in BY_KEY:
        raise UsageError(f"measure is {name!r}.{nearest(name, [PROBE, TRUSTED, *BY_KEY])}")
    words, better = BY_KEY[name]
    if not better:
        raise UserError(f"of {words} neither more nor less is better; choose another measure")
    return LabelFree(f"{words}, without labels", name, better)


def _trusted(runs: Any, store: Store, target: str | list[str] | None, seed: int) -> LabelFree:
    """Return the measure that `medssl quality runs=…` trusts: the one that orders these runs as their probe scores do."""
    if runs is None:
        raise UserError("measure=trusted needs runs=FOLDER, runs with probe scores on which a measure is chosen")
    folders = find_runs(runs)
    found: list[Mapping[str, Any] | None] = [read_measures(run) for run in folders]
    if missing := [run.path for run, of in zip(folders, found, strict=True) if of is None]:
        raise UserError(f"{missing[0]} has no {FILE}; measure the runs first: medssl quality runs=… store=…")
    ranked = rank_measures(folders, [dict(of) for of in found if of], target if isinstance(target, str) else None, seed)
    sure = {k: a["spearman"]["value"] for k, a in ranked["agreement"].items() if a["p"] < ALPHA}
    if not sure:
        raise UserError(f"no measure can be trusted: {ranked['trust']}")
    best = max(sure, key=lambda k: abs(sure[k]))
    same = any(run.config().fingerprint == store.fingerprint for run in folders)
    flags = ("the measure was chosen by runs= with scores of this store's test patients",) if same else ()
    name = f"{best}, without labels, trusted on {len(folders)} runs"
    return LabelFree(name, MEASURES[best].key, 1 if sure[best] > 0 else -1, flags)
