"""Run + stores of several hospitals -> what a model trained in one of them is worth in the others."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.stats.bootstrap import difference, score
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.stats.transfer_gap import ScoredSet, transfer_gap
from medssl.evals.task_types.task_types import task_type
from medssl.scoring import clinical, probes
from medssl.scoring.baselines import BASELINES, SUPERVISED, FeatureSources, select_baselines
from medssl.scoring.eval_splits import EvalSplits, load_splits
from medssl.scoring.score_table import ScoreTable, headline, save_table
from medssl.scoring.targets import Subset
from medssl.store.store import Store


def transfer(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    to: str | list[str],
    *,
    task: str = "auto",
    reader: str = "linear",
    k: int = 20,
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    baselines: Iterable[str] = BASELINES,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Train on one hospital, test on its held-out patients and on all patients of others; prints a table and returns it.

    One model for each kind of features: fitted, and its penalty chosen, on the first store alone. "lost" is the value at home
    minus the value there, its interval from two independent bootstraps over patients; "minus run" is paired, on the same
    patients. For the run's own row the subgroups of the other hospital follow (`scoring.clinical`): where a score lives off a
    fact, it falls within it.

    Args:
        run: a finished run folder.
        store: a labelled store, the hospital at home.
        target: a label that all stores have; several names are labels of which each is there or not.
        to: one or more labelled stores of other hospitals.
        task, positive, where, allow_overlap, seed, device: as for `medssl.probe`; test_where selects in the other stores.
        reader: linear or kNN (of k neighbours).
        baselines: which of BASELINES stand in the table.

    Raises UserError as `medssl.probe` does.
    """
    if reader not in probes.PROBES:
        raise UserError(f"reader is {reader!r}; it may be {' or '.join(probes.PROBES)}")
    asked: dict[str, Any] = {"task": task, "positive": positive, "where": where, "allow_overlap": allow_overlap}
    names, stores = select_baselines(baselines), [to] if isinstance(to, str) else list(to)
    sources, home = FeatureSources.of(run, store, target, device, **asked)
    others = [
        load_splits(sources.folder, sources.encoder, store, target, test_store=s, test_where=test_where, **asked)
        for s in stores
    ]
    questions = [home, *others]
    boards = [ScoreTable("transfer", q, sources.name, seed=seed, reader=reader) for q in questions]
    for name, how, ps in _read(sources, home, [q.test for q in questions], names, reader, k, seed):
        for board, p in zip(boards, ps, strict=True):
            board.add(name, how, p)
    tables = [_table(sources, home, q, boards[0], board, seed) for q, board in zip(others, boards[1:], strict=True)]
    for board in boards:
        board.predictions().write(sources.folder.path)
    return {"home": boards[0].about, "others": tables}


def _read(
    sources: FeatureSources, home: EvalSplits, tests: list[Subset], names: list[str], reader: str, k: int, seed: int
) -> list[tuple[str, str, list[np.ndarray]]]:
    """(features, reader, predictions for each of `tests`)."""
    found = []
    for name, source in sources.all(names):
        if reader == "linear":
            ps = probes.linear(source, home, tests, seed=seed, device=sources.device)["all"][0]
        else:
            ps = probes.nearest(source, home, tests, k)
        found.append((name, reader, ps))
    if SUPERVISED in names and home.target.task == "classification":
        found.append((SUPERVISED, "end to end", sources.supervised(home.train, home.target.width, tests)))
    return found


def _table(
    sources: FeatureSources, home: EvalSplits, away: EvalSplits, at_home: ScoreTable, there: ScoreTable, seed: int
) -> dict[str, Any]:
    """Scores, prints and remembers what one other hospital says."""
    metric = task_type(home.target.task).metrics[0]
    lines: list[dict[str, str | Score | None]] = []
    rows: list[dict[str, Any]] = []
    own = there.entries[0].p[0]
    for mine, theirs in zip(at_home.entries, there.entries, strict=True):
        a, b = mine.p[0], theirs.p[0]
        here = score(metric, home.test.y, a, home.test.patient, seed=seed)
        gone = score(metric, away.test.y, b, away.test.patient, seed=seed)
        lost = transfer_gap(
            metric,
            ScoredSet(home.test.y, a, home.test.patient),
            ScoredSet(away.test.y, b, away.test.patient),
            seed=seed,
        )
        minus = (
            None if theirs.features == "run" else difference(metric, away.test.y, b, own, away.test.patient, seed=seed)
        )
        shown = sources.name if mine.features == "run" else mine.features
        cells = {f"{metric.name} at home": here, f"{metric.name} there": gone, "lost": lost}
        lines.append({"features": shown, "reader": mine.reader, **cells, "there, minus run": minus})
        said = {metric.name: gone.as_dict(), f"{metric.name} at home": here.as_dict(), "lost": lost.as_dict()}
        rows.append(
            {"features": shown, "reader": mine.reader, "labels": "all", "draws": 1, "scores": said}
            | {"minus_run": minus.as_dict() if minus else None}
        )
    result = there.about | {"rows": rows}
    print(headline(result))
    columns = ["features", "reader", f"{metric.name} at home", f"{metric.name} there", "lost", "there, minus run"]
    print(text_table(lines, columns))
    result["subgroups"] = clinical.for_whom(away, own, seed)
    save_table(sources.folder.path / "scores.json", result)
    return result
