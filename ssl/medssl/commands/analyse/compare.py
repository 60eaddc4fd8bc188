"""`medssl compare`: compare several runs on the same test patients."""

from collections.abc import Iterable
from pathlib import Path

from medssl.files import atomic, write_json
from medssl.reporting.critical_difference import critical_difference_diagram
from medssl.results import Result
from medssl.scoring.comparable_settings import RowFilter
from medssl.scoring.compared_runs import compare_runs
from medssl.scoring.comparison import rank_models


def compare(
    runs: str | list[str],
    *,
    target: str | None = None,
    probe: str | None = None,
    label_budget: str | None = None,
    metric: str | None = None,
    baselines: Iterable[str] = (),
    out: str | Path | None = None,
    seed: int = 0,
) -> Result:
    """Compare runs on the test patients that all of them were scored on.

    Runs that differ only in their seed are one model. Models are compared in pairs, without each patient in turn and with
    Student's t for patients, seeds and draws of labels; the p values of all pairs on all targets are one family (Holm, 1979).

    Args:
        runs: run folders, or folders of them, with predictions of medssl probe, knn, retrieve, finetune, segment, …
        target, probe, label_budget: select among the scores that all runs have; None takes all.
        metric: the name of a metric; None is the first of the task.
        baselines: rows of the runs' own tables to include, such as "k-means patch bank".
        out: a .json file for the result. A diagram of mean ranks is written next to it if there are enough targets.
        seed: seed of resamples of patients.

    A model whose pretraining or training overlaps with the test set is marked (!) wherever it stands.

    Raises UserError if there are fewer than two models, if no score is common to all, or if the runs were scored with
    different settings: on other scans, with other draws of labels or other options.
    """
    _, comparisons, result = compare_runs(runs, baselines, RowFilter(target, probe, label_budget, metric), seed)
    path = None if out is None else Path(out).expanduser()
    if len(comparisons) > 1 and len(comparisons[0].p) > 2:
        ranking, described = rank_models(comparisons)
        result += described
        if ranking is not None and path is not None:
            with atomic(path.with_suffix(".png")) as part:
                part.write_bytes(critical_difference_diagram(ranking))
            result += Result({}, f"diagram: {path.with_suffix('.png')}")
    if path is not None:
        write_json(path, result)
    return result
