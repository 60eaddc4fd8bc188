"""`medssl retrieve`: score a frozen encoder as a search engine for scans with the same label."""

from collections.abc import Iterable
from pathlib import Path

from medssl.commands.options import accepts
from medssl.errors import UserError
from medssl.evals.probes.retrieval import retrieve as search
from medssl.results import Result
from medssl.runs.predictions import RUN, PredictedRow
from medssl.scoring.baselines import DEFAULT_FROZEN, FROZEN, FeatureSources, select_baselines
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.score_table import compute_scores, keep
from medssl.store.store import Store

MEASURES = {"MAP@R": "map_at_r", "R-precision": "r_precision", "P@1": "p_at_1"}
GALLERIES = ("train", "test")


@accepts(SplitOptions, omit=("task",))
def retrieve(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    gallery: str = "train",
    baselines: Iterable[str] = DEFAULT_FROZEN,
    options: SplitOptions,
) -> Result:
    """Score the frozen encoder of a run by retrieval; adds the table to RUN/scores.json and returns it.

    Every test scan is a query by cosine similarity, never compared with scans of the same patient. Scans are relevant if
    they have the same class, or a finding in common. The intervals of the three mean measures
    (`medssl.evals.probes.retrieval`) are over the patients of the queries, for a fixed gallery.

    Args:
        run, store, target, baselines: see `medssl.probe`.
        gallery: train, the training scans; or test, the other test scans.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError as `medssl.probe` does, and if no query has a relevant scan.
    """
    if gallery not in GALLERIES:
        raise UserError(f"gallery is {gallery!r}; it may be {' or '.join(GALLERIES)}")
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.load(run, store, target, options)
    if not splits.target.kind.scored_by_class:
        raise UserError(f"{splits.target} is a number; scans are retrieved by a class or by findings")
    test, train = splits.test, splits.train
    found = {}
    for name, source in sources.all(names):
        searched = (source(train.store, train.rows), train.y, train.patient) if gallery == "train" else None
        patient = test.patient if searched is None else test.patient_beside(train)
        found[name] = search(source(test.store, test.rows), test.y, patient, searched)
    answered, alone = found[RUN].rows, found[RUN].lone  # these depend on labels and patients only
    if len(alone):
        splits.flags.append(f"{len(alone)} test scans left out: the gallery has no relevant scan of another patient")
    rows = [
        PredictedRow(name, measure, [getattr(result, key)])
        for measure, key in MEASURES.items()
        for name, result in found.items()
    ]
    scores = compute_scores(
        "retrieve", splits, rows, sources.name, options.seed, test=test.take(answered), task="per_case", gallery=gallery,
        asked={"gallery": gallery},
    )  # fmt: skip
    return keep(sources.path, scores)
