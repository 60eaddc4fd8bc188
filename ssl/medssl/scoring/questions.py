"""What the score tables of runs have answered, so that only answers to the same question are compared."""

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

Topic = tuple[str, str, str, str]
"""Command, target, probe and label budget."""
Answer = tuple[Predictions, PredictedRow]
Answers = dict[str, Answer]
"""All that was asked, as JSON -> the predictions and their row."""


@dataclass(frozen=True)
class Wanted:
    """The rows of score tables to compare; None means all."""

    target: str | None = None
    probe: str | None = None
    label_budget: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if v and k != "metric")


def answers_of(run: Run, wanted: Wanted) -> dict[Topic, Answers]:
    """Return the predictions of a run's own rows that are wanted, by what they answer."""
    out: dict[Topic, Answers] = {}
    for predictions in predictions_of(run.path):
        about = predictions.about
        for row in predictions.rows:
            topic = (about["command"], about["target"], row.probe, row.label_budget)
            selected = zip((wanted.target, wanted.probe, wanted.label_budget), topic[1:], strict=True)
            if row.source != RUN or any(w not in (None, has) for w, has in selected):
                continue
            asked = json.dumps(about["asked"] | {"labelled scans": row.drawn}, sort_keys=True)
            found = out.setdefault(topic, {})
            # the same question may have been asked twice, with more or with fewer baselines
            if asked not in found or len(predictions.rows) > len(found[asked][0].rows):
                found[asked] = predictions, row
    return out


def describe_unlike(topic: Topic, by_run: Mapping[Run, Answers]) -> str:
    """Return what differs between the question that most runs were asked and the nearest of a run that was not."""
    often = Counter(asked for each in by_run.values() for asked in each)
    most = max(often, key=often.__getitem__)  # of equals, that of the first run
    run = next(run for run, each in by_run.items() if most in each)
    other = next(run for run, each in by_run.items() if most not in each)
    mine = json.loads(most)
    theirs = min(map(json.loads, sorted(by_run[other])), key=lambda asked: len(different_keys(mine, asked)))
    command, target, probe, budget = topic
    what = f"{command} of {target}, {probe}" + (f", label budget {budget}" if budget != ALL else "")
    return (
        f"{run.path} and {other.path} were not asked the same ({what}): {describe_differences(mine, theirs)}; score both again "
        "with the same options, or leave this out with target=, probe= or label_budget="
    )


def describe_question(asked: str, common: Sequence[str]) -> str:
    """Return the part of what was asked that differs between the questions in `common`."""
    mine = json.loads(asked)
    keys = dict.fromkeys(k for other in common for k in different_keys(mine, json.loads(other)))
    return ", ".join(f"{k} {in_words(mine.get(k))}" for k in keys)
