"""Run + a store with times and events -> a table: how well a Cox model on frozen features orders patients by risk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medssl.scoring import probes
from medssl.scoring.baselines import FROZEN, FeatureSources, select_baselines
from medssl.scoring.score_table import ScoreTable
from medssl.store.store import Store


def survive(
    run: str | Path,
    store: str | Path | Store,
    time: str,
    event: str,
    *,
    positive: Iterable[str] | None = None,
    where: str | None = None,
    test_where: str | None = None,
    test_store: str | Path | Store | None = None,
    baselines: Iterable[str] = FROZEN,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the frozen encoder of a run by Harrell's concordance; prints a table, adds it to RUN/scores.json and returns it.

    A ridge Cox model (`medssl.evals.probes.cox`) is fitted on the training patients and its penalty chosen on the
    validation patients.

    Args:
        run: a finished run folder.
        store: a store with both labels.
        time: the label with the time until the event, or until nothing more is known of the patient; above 0.
        event: the label that says whether the event came; `positive` are the values that mean so.
        where, test_where, test_store, baselines, allow_overlap, seed, device: as for `medssl.probe`.

    Raises UserError as `medssl.probe` does, and when the event came to nobody.
    """
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.of(
        run, store, [time, event], device, task="survival", positive=positive, where=where, test_where=test_where,
        test_store=test_store, allow_overlap=allow_overlap,
    )  # fmt: skip
    board = ScoreTable("survive", splits, sources.name, seed=seed)
    for name, source in sources.all(names):
        found = probes.linear(source, splits, [splits.test], seed=seed, device=sources.device)
        board.add(name, "Cox", found["all"][0][0])
    return board.finish(sources.folder.path)
