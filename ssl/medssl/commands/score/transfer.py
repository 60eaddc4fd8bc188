"""`medssl transfer`: train a probe at one hospital, and score it there and at others."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medssl.commands.options import accepts
from medssl.errors import UserError
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.score import Score
from medssl.evals.stats.transfer_gap import ScoredSet, transfer_gap
from medssl.results import Result
from medssl.runs.predictions import PredictedRow
from medssl.scoring import probes
from medssl.scoring.baselines import DEFAULT_BASELINES, Baseline, FeatureSources, select_baselines
from medssl.scoring.clinical import subgroup_scores
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, load_splits
from medssl.scoring.score_table import compute_scores, keep
from medssl.store.store import Store


@accepts(SplitOptions, omit=("test_store",))
def transfer(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    to: str | list[str],
    *,
    probe: str = "linear",
    k: int = 20,
    baselines: Iterable[str] = DEFAULT_BASELINES,
    options: SplitOptions,
) -> Result:
    """Fit a probe at one hospital and score it on its held-out patients and on all patients of other hospitals.

    Returns one table per hospital and adds them to RUN/scores.json. "transfer gap" is the score at home minus the score
    away, with an interval from those of the two scores; "Δ vs run" is paired, on the same patients.
    Below each table are the scores of the run's own row in subgroups of the other hospital: within a confounder, a score
    that depends on it is lower.

    Args:
        run: a finished run folder.
        store: a labelled store, the hospital where probes are fitted.
        target: see `medssl.probe`; all stores must have this label.
        to: labelled stores of other hospitals.
        probe: linear or kNN.
        k: number of neighbours of kNN.
        baselines: the members of `medssl.scoring.baselines.BASELINES` to include.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`. test_where selects scans of `to`.

    Raises UserError as `medssl.probe` does.
    """
    if probe not in probes.PROBES:
        raise UserError(f"probe is {probe!r}; it may be {' or '.join(probes.PROBES)}")
    names, seed = select_baselines(baselines), options.seed
    sources, home = FeatureSources.load(run, store, target, replace(options, test_where=None))
    away = [
        load_splits(sources.run, sources.encoder, store, target, replace(options, test_store=other))
        for other in ([to] if isinstance(to, str) else to)
    ]
    splits = [home, *away]
    tests = [*(s.test for s in splits), *home.predicted[1:]]
    val = len(splits) if len(tests) > len(splits) else None  # the position of the validation scans
    labelled = probes.describe_draws(home, {probes.ALL: [np.arange(len(home.train))]}, seed)[probes.ALL]
    rows: list[list[PredictedRow]] = [[] for _ in splits]
    for name, source in sources.all(names):
        if probe == "linear":
            found = probes.linear(source, home, tests, seed=seed, device=sources.device)[probes.ALL]
            for i, each in enumerate(rows):
                each.append(probes.predicted_row(name, probe, found, labelled=labelled, test=i, val=val))
        else:
            near = probes.nearest(source, home, tests, k)
            for i, each in enumerate(rows):
                each.append(PredictedRow(name, probe, [near[i]], drawn=labelled, val=near[len(splits) :]))
    for trained, supervised in sources.supervised(names, home):
        p = [supervised(part.store, part.rows) for part in tests]
        for i, each in enumerate(rows):
            name = Baseline.SUPERVISED.value
            each.append(PredictedRow(name, trained, [p[i]], drawn=labelled, val=p[len(splits) :]))
    metric = home.target.kind.metrics[0]

    def at(tested: EvalSplits, row: PredictedRow) -> Score:
        return score(metric, tested.test.y, row.p[0], tested.test.patient, seed=seed)

    asked = {"k": k} if probe == "kNN" else {}
    at_home = compute_scores(
        "transfer", home, rows[0], sources.name, seed, scores=lambda row: {metric.name: at(home, row)}, probe=probe,
        asked=asked,
    )  # fmt: skip
    at_home.predictions.write(sources.path)
    scores_home = {row.key: (row, scored) for row, scored in zip(rows[0], at_home.rows, strict=True)}
    results = []
    for other, predicted in zip(away, rows[1:], strict=True):

        def columns(row: PredictedRow, other: EvalSplits = other) -> dict[str, Score]:
            same, scored = scores_home[row.key]
            sets = (ScoredSet(s.test.y, r.p[0], s.test.patient) for s, r in ((home, same), (other, row)))
            return {
                f"{metric.name} away": at(other, row),
                f"{metric.name} home": scored.scores[metric.name],
                "transfer gap": transfer_gap(metric, *sets, seed=seed),
            }

        scores = compute_scores(
            "transfer", other, predicted, sources.name, seed, scores=columns, probe=probe, asked=asked
        )
        below = partial(subgroup_scores, other, predicted[0].p[0], seed)
        results.append(keep(sources.path, scores, below))
    return Result({"home": at_home.about, "others": results}, "\n\n".join(map(str, results)))
