"""Run + labelled store -> a table: do the scans nearest to a test scan show the same, in other patients?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.evals.probes.retrieval import retrieve as search
from medssl.scoring.baselines import FROZEN, FeatureSources, select_baselines
from medssl.scoring.score_table import ScoreTable
from medssl.store.store import Store

MEASURES = {"MAP@R": "map_at_r", "R-precision": "r_precision", "P@1": "p_at_1"}
GALLERIES = ("train", "test")


def retrieve(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    gallery: str = "train",
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    baselines: Iterable[str] = FROZEN,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the frozen encoder of a run as a search engine; prints a table, adds it to RUN/scores.json and returns it.

    Every test scan searches the `gallery` (the training scans, or the other test scans) by cosine similarity, never among its own
    patient's. See `medssl.evals.probes.retrieval` for the three measures; their means have intervals over the patients of
    the queries, the gallery being as it is. Scans are relevant when they are of one class, or share a finding.

    Raises UserError as `medssl.probe` does, and when no query has anything to be found.
    """
    if gallery not in GALLERIES:
        raise UserError(f"gallery is {gallery!r}; it may be {' or '.join(GALLERIES)}")
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.of(
        run, store, target, device, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    if not splits.target.kind.scored_by_class:
        raise UserError(f"{splits.target} is a number; scans are retrieved by a class or by findings")
    test, among = splits.test, splits.train if gallery == "train" else None
    found = {}
    for name, source in sources.all(names):
        x = source(test.store, test.rows)
        searched = None if among is None else (source(among.store, among.rows), among.y, among.patient)
        found[name] = search(x, test.y, test.patient, searched)
    answered = found["run"].rows  # a matter of labels and patients alone, and so the same for all
    if left := len(found["run"].lone):
        splits.flags.append(f"{left} test scans left out: nobody else in the gallery is of their kind")
    board = ScoreTable(
        "retrieve", splits, sources.name, test=test.take(answered), task="per_case", seed=seed, gallery=gallery
    )
    for measure, key in MEASURES.items():
        for name, result in found.items():
            board.add(name, measure, getattr(result, key))
    return board.finish(sources.folder.path)
