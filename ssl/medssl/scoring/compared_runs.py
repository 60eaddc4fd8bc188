"""Run folders compared on the test patients that all of them were scored on: what `medssl compare` and a report share."""

from collections.abc import Iterable

from medssl.errors import UserError
from medssl.results import Result
from medssl.runs.runs_by_seed import RunsBySeed, find_runs, group_by_seed
from medssl.scoring.comparable_settings import RowFilter
from medssl.scoring.comparison import Comparison, compare_pairs, find_comparisons


def compare_runs(
    runs: str | Iterable[str], baselines: str | Iterable[str], row_filter: RowFilter, seed: int
) -> tuple[list[RunsBySeed], list[Comparison], Result]:
    """Return the models, their comparisons, and the result of all pairs: scores, paired differences, p values as one family.

    Raises UserError as `find_comparisons` does, and if there is only one model.
    """
    groups, extra = group_by_seed(find_runs(runs)), [baselines] if isinstance(baselines, str) else list(baselines)
    if len(groups) + len(extra) < 2:
        raise UserError(
            f"there is only one model, {groups[0].name} with {len(groups[0].runs)} seeds; give runs that differ in more than "
            'the seed, or a baseline in their tables: baselines="[k-means patch bank]"'
        )
    comparisons, flags = find_comparisons(groups, extra, row_filter)
    results = compare_pairs(comparisons, seed)
    found = Result(
        {"runs": {g.name: sorted(g.runs) for g in groups}}
        | {"flags": [*flags, *dict.fromkeys(flag for c in comparisons for flag in c.flags)]}
        | {"family": sum(len(r["pairs"]) for r in results), "comparisons": results},
        "\n\n".join([*(f"! {flag}" for flag in flags), *map(str, results)]),
    )
    return groups, comparisons, found
