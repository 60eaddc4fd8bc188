"""`medssl compare`: compare several runs on the same test patients."""

from collections.abc import Iterable
from pathlib import Path

from medssl.errors import UserError
from medssl.files import atomic, write_json
from medssl.reporting.critical_difference import critical_difference_diagram
from medssl.results import Result
from medssl.runs.runs_by_seed import find_runs, group_by_seed
from medssl.scoring.comparable_settings import RowFilter
from medssl.scoring.comparison import compare_pairs, find_comparisons, rank_models


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
    groups, extra = group_by_seed(find_runs(runs)), [baselines] if isinstance(baselines, str) else list(baselines)
    if len(groups) + len(extra) < 2:
        raise UserError(
            f"there is only one model, {groups[0].name} with {len(groups[0].runs)} seeds; give runs that differ in more than "
            'the seed, or a baseline in their tables: baselines="[k-means patch bank]"'
        )
    comparisons, flags = find_comparisons(groups, extra, RowFilter(target, probe, label_budget, metric))
    results = compare_pairs(comparisons, seed)
    result = Result(
        {"runs": {g.name: sorted(g.runs) for g in groups}}
        | {"flags": [*flags, *dict.fromkeys(flag for c in comparisons for flag in c.flags)]}
        | {"family": sum(len(r["pairs"]) for r in results), "comparisons": results},
        "\n\n".join([*(f"! {flag}" for flag in flags), *map(str, results)]),
    )
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
