"""The kept predictions of runs by the settings they were computed under, so that only those with equal settings are compared."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medssl.runs.predictions import (
    RUN,
    PredictedRow,
    Predictions,
    describe_differences,
    different_keys,
    in_words,
    predictions_of,
)
from medssl.runs.run_folder import Run
from medssl.scoring.probes import ALL

RowKey = tuple[str, str, str, str]
"""Command, target, probe and label budget."""
KeptPrediction = tuple[Predictions, PredictedRow]
BySettings = dict[str, KeptPrediction]
"""All settings, as JSON -> the predictions and their row."""


@dataclass(frozen=True)
class RowFilter:
    """The rows of score tables to compare; None means all."""

    target: str | None = None
    probe: str | None = None
    label_budget: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if v and k != "metric")


def kept_predictions(run: Run, row_filter: RowFilter) -> dict[RowKey, BySettings]:
    """Return the predictions of a run's own rows that `row_filter` selects, by row and settings."""
    out: dict[RowKey, BySettings] = {}
    for predictions in predictions_of(run.path):
        about = predictions.about
        for row in predictions.rows:
            key = (about["command"], about["target"], row.probe, row.label_budget)
            selected = zip((row_filter.target, row_filter.probe, row_filter.label_budget), key[1:], strict=True)
            if row.source != RUN or any(w not in (None, has) for w, has in selected):
                continue
            settings = json.dumps(about["asked"] | {"labelled scans": row.drawn}, sort_keys=True)
            found = out.setdefault(key, {})
            # the same settings may have been scored twice, with more or with fewer baselines
            if settings not in found or len(predictions.rows) > len(found[settings][0].rows):
                found[settings] = predictions, row
    return out


def describe_different_settings(key: RowKey, by_run: Mapping[Run, BySettings]) -> str:
    """Return what differs between the settings of most runs and the most similar settings of a run without them."""
    counts = Counter(settings for each in by_run.values() for settings in each)
    most = max(counts, key=counts.__getitem__)  # of equals, that of the first run
    run = next(run for run, each in by_run.items() if most in each)
    other = next(run for run, each in by_run.items() if most not in each)
    mine = json.loads(most)
    theirs = min(map(json.loads, sorted(by_run[other])), key=lambda settings: len(different_keys(mine, settings)))
    command, target, probe, budget = key
    what = f"{command} of {target}, {probe}" + (f", label budget {budget}" if budget != ALL else "")
    return (
        f"{run.path} and {other.path} were scored with different settings ({what}): {describe_differences(mine, theirs)}; "
        "score both again with the same options, or leave this out with target=, probe= or label_budget="
    )


def describe_settings(settings: str, common: Sequence[str]) -> str:
    """Return the settings in which `settings` differs from the others in `common`."""
    mine = json.loads(settings)
    keys = dict.fromkeys(k for other in common for k in different_keys(mine, json.loads(other)))
    return ", ".join(f"{k} {in_words(mine.get(k))}" for k in keys)
