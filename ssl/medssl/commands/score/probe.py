"""Run + labelled store -> a table: a linear model on the frozen encoder, and on rivals, with intervals."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medssl.scoring import clinical, probes
from medssl.scoring.baselines import BASELINES, SUPERVISED, FeatureSources, select_baselines
from medssl.scoring.score_table import ScoreTable
from medssl.store.store import Store


def probe(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    task: str = "auto",
    labels: Iterable[str | int | float] = ("all",),
    draws: int = 5,
    balanced: bool = False,
    specificity: float = 0.9,
    prevalences: Iterable[float] = (0.01, 0.1),
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    baselines: Iterable[str] = BASELINES,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the frozen encoder of a run with a linear model; prints a table, adds it to RUN/scores.json and returns it.

    The model is fitted on the store's training patients, its penalty is chosen on its validation patients, and the scores are
    of its test patients. Intervals are 95 % bootstrap intervals over patients, and over draws where labels are drawn; "minus
    run" is the paired difference of the first metric to the run's row. Below the table stands what the run's own row means in
    use (`scoring.clinical`): sensitivity at a specificity, PPV and NPV at other prevalences, calibration, and subgroups.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: the name of a label or fact; several names are labels of which each is there or not.
        task: auto, classification, multilabel, ordinal or regression; see `medssl.evals.task_types`.
        labels: budgets of labelled training scans, "all", "10 %" or 50: each is drawn `draws` times, the smaller ones within the
            larger, and as few validation scans choose the penalty. `supervised` is trained on all. balanced: draw as many
            scans of each class.
        specificity: at which the threshold of two classes is chosen, on validation patients.
        prevalences: shares of positives for which PPV and NPV are said.
        where, test_where: which scans of the two stores; see `medssl.store.query`.
        positive: values that count as positive, all others being negative (case is ignored).
        test_store: another store, of another hospital say: all its labelled scans become the test.
        baselines: which of BASELINES stand in the table.
        allow_overlap: score although the encoder has seen test patients or images; every number is then marked.
        device: auto, cpu or cuda.

    Raises UserError when pretraining has seen a test patient or test image, and for labels that cannot be scored.
    """
    names = select_baselines(baselines)
    sources, splits = FeatureSources.of(
        run, store, target, device, task=task, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    board = ScoreTable("probe", splits, sources.name, seed=seed)
    subsets = probes.budgets(splits, labels, draws, seed, balanced)
    parts = [splits.test, *([splits.val] if len(splits.val) else [])]
    own: list[np.ndarray] = []
    for name, source in sources.all(names):
        found = probes.linear(source, splits, parts, subsets=subsets, seed=seed, device=sources.device)
        for budget, each in found.items():
            board.add(name, "linear", [p[0] for p in each], budget)
        own = own or found.get("all", [[]])[0]
    if SUPERVISED in names and splits.target.task == "classification" and "all" in subsets:
        board.add(SUPERVISED, "end to end", sources.supervised(splits.train, splits.target.width, [splits.test])[0])
    result = board.score()
    if own:
        if splits.target.task == "classification" and splits.target.width == 2:
            result |= clinical.in_use(
                splits, own[1] if len(own) > 1 else own[0][:0], own[0], specificity, list(prevalences), seed
            )
        result["subgroups"] = clinical.for_whom(splits, own[0], seed)
    board.keep(sources.folder.path, result)
    return result
