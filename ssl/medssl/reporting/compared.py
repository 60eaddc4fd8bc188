"""A report on several runs beside each other: the same patients, paired differences, and how each was trained."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medssl.files import write_text
from medssl.reporting.conclusions import has_interval, number
from medssl.reporting.glossary import explain
from medssl.reporting.messages import Messages, messages
from medssl.reporting.render import read_json, render
from medssl.reporting.report import how_trained
from medssl.reporting.score_table import Interval, forest
from medssl.runs.runs_by_seed import RunsBySeed
from medssl.scoring.comparison import ALPHA, Comparison

SMALLEST = 0.001  # p values below are shown as such


def write_comparison(
    groups: Sequence[RunsBySeed],
    comparisons: Sequence[Comparison],
    found: Mapping[str, Any],
    *,
    out: Path | None = None,
    language: str = "en",
) -> Path:
    """Write a page about what `medssl compare` found, atomically, and return its path.

    Args:
        groups: the models, each with its runs by seed.
        comparisons, found: from `compare_runs`.
        out: the file to write; None is comparison.html in the first run.
        language: en or ko.
    """
    t = messages(language)
    blocks = [
        _block(c, result, found["family"], t) for c, result in zip(comparisons, found["comparisons"], strict=True)
    ]
    first = comparisons[0].first
    runs = [(f"{group.name}, seed {seed}", run.path) for group in groups for seed, run in group.runs.items()]
    page = render(
        "compared.html.j2",
        t=t,
        models=[group.name for group in groups],
        flags=list(dict.fromkeys(t.sentence(flag) for flag in found["flags"])),
        blocks=blocks,
        target=first.about["target"],
        scans=len(first.scan),
        patients=len(set(first.patient.tolist())),
        test=t.phrase(first.about["test"]),
        single=len(comparisons[0].seeds) == 1,
        trained=[
            {"name": name, "encoder": read_json(path / "encoder.json")} | how_trained(path, t) for name, path in runs
        ],
    )
    path = out or next(iter(groups[0].runs.values())).path / "comparison.html"
    write_text(path, explain(page, t.glossary()))
    return path


def _block(comparison: Comparison, result: Mapping[str, Any], family: int, t: Messages) -> dict[str, Any]:
    """Return the title, the score of every model, and a sentence for each pair."""
    name = t.phrase(comparison.metric.name)
    scores = {comparison.shown[model]: score for model, score in result["scores"].items()}
    intervals = [
        Interval(t.phrase(model), score["value"], score["low"], score["high"])
        for model, score in scores.items()
        if has_interval(score)
    ]
    about = comparison.first.about
    words = {"target": about["target"], "test": t.phrase(about["test"]), "command": about["command"]}
    words |= {"probe": t.phrase(comparison.probe), "budget": t.phrase(comparison.label_budget), "metric": name}
    return {
        "title": t("compare_title", **words) + (f", {comparison.note}" if comparison.note else ""),
        "sentences": [_pair(pair, comparison, family, t) for pair in result["pairs"]],
        "rows": [[t.phrase(model), score] for model, score in scores.items()],
        "metric": name,
        **forest(intervals),
    }


def _pair(pair: Mapping[str, Any], comparison: Comparison, family: int, t: Messages) -> str:
    """Return the paired difference in a sentence: better only if the p value after Holm's correction is below ALPHA."""
    a, b = (t.phrase(comparison.shown[pair[k]]) for k in ("a", "b"))
    difference, p = pair["difference"], pair["p_holm"]
    if not has_interval(difference):
        return t("compare_unknown", a=a, b=b)
    p_words = "nan" if p is None else f"< {SMALLEST}" if p < SMALLEST else f"= {p:.3f}"
    said = {"metric": t.phrase(comparison.metric.name), "p": p_words, "family": family}
    if p is None or p >= ALPHA:
        return t("compare_same", a=a, b=b, difference=" ".join(number(difference, signed=True)), **said)
    ahead = difference["value"] * comparison.metric.sign > 0
    better, worse = (a, b) if ahead else (b, a)
    low, high = sorted(abs(difference[k]) for k in ("low", "high"))
    gain = f"{abs(difference['value']):.3f} [{low:.3f}, {high:.3f}]"
    return t("compare_better", better=better, worse=worse, gain=gain, **said)
