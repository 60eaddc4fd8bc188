"""Run + labelled store -> a table: the votes of the most similar training scans, of the encoder and of rivals."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medssl.scoring import probes
from medssl.scoring.baselines import FROZEN, FeatureSources, select_baselines
from medssl.scoring.score_table import ScoreTable
from medssl.store.store import Store


def knn(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    task: str = "auto",
    k: int = 20,
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    baselines: Iterable[str] = FROZEN,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the frozen encoder of a run without fitting anything; prints a table, adds it to RUN/scores.json and returns it.

    Each test scan asks its `k` most similar training scans of other patients (cosine, weights exp(s / .07)). Everything else is
    as in `medssl.probe`. Raises UserError when pretraining has seen a test patient or test image, and for labels that cannot be
    scored.
    """
    names = select_baselines(baselines, FROZEN)
    sources, splits = FeatureSources.of(
        run, store, target, device, task=task, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    board = ScoreTable("knn", splits, sources.name, seed=seed, k=k)
    for name, source in sources.all(names):
        board.add(name, "kNN", probes.nearest(source, splits, [splits.test], k)[0])
    return board.finish(sources.folder.path)
