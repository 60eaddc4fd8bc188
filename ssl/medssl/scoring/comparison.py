"""Comparisons of runs by their kept predictions for the same test patients."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.score import Difference, Score
from medssl.evals.stats.significance import Ranking, holm, ranking
from medssl.evals.stats.text_table import text_table
from medssl.evals.stats.variance_components import SOURCES, Components, components, required_sample_size
from medssl.evals.task_types.task_types import task_type
from medssl.results import Result
from medssl.runs.predictions import RUN, Predictions, describe_mismatch
from medssl.runs.runs_by_seed import RunsBySeed
from medssl.scoring.comparable_settings import (
    KeptPrediction,
    RowFilter,
    describe_different_settings,
    describe_settings,
    kept_predictions,
)
from medssl.scoring.eval_splits import marked
from medssl.scoring.probes import ALL

ALPHA = 0.05
SEVERAL = 3  # models from which on the best one is said to be selected


@dataclass(frozen=True)
class Comparison:
    """Predictions of all models for one target, by one probe with one label budget.

    Attributes:
        first: predictions whose targets and patients are used.
        note: the settings that differ between comparisons with the same command, target, probe and budget.
        shown: model -> its name in tables, marked where its test set overlaps with what it was trained on.
        flags: warnings of the score tables.
        p: model -> encoder seed -> draw of labels -> predictions. A model is a method's runs, or a baseline.
        seeds: the encoder seeds, the same for all models.
    """

    first: Predictions
    probe: str
    label_budget: str
    metric: Metric
    note: str
    shown: dict[str, str]
    flags: list[str]
    p: dict[str, list[list[np.ndarray]]]
    seeds: list[int]

    @property
    def title(self) -> str:
        """Target, test set, command, probe, label budget and metric."""
        about = self.first.about
        budget = "" if self.label_budget == ALL else f", label budget {self.label_budget}"
        title = f"{about['target']} on {about['test']}, {about['command']}, {self.probe}{budget}, {self.metric.name}"
        return ", ".join(filter(None, (title, self.note)))

    @property
    def _draws(self) -> int:
        return len(next(iter(self.p.values()))[0])

    def _flat(self, model: str) -> list[np.ndarray]:
        """Return all draws of the first seed, then of the second."""
        return [p for draws in self.p[model] for p in draws]

    def score(self, model: str, seed: int = 0) -> Score:
        """Return the mean over seeds and draws."""
        first = self.first
        return score_seeds(self.metric, first.y, self._flat(model), first.patient, draws=self._draws, seed=seed)

    def difference(self, a: str, b: str, seed: int) -> Difference:
        """Return the paired difference a - b."""
        pair = self._flat(a), self._flat(b)
        return paired(self.metric, self.first.y, *pair, self.first.patient, draws=self._draws, seed=seed)

    def result(self, pairs: Sequence[tuple[str, str, Difference, float]], family: int, seed: int) -> Result:
        """Describe the scores of all models, and each pair with its Holm-adjusted p value."""
        name, scores = self.metric.name, {model: self.score(model, seed) for model in self.p}
        lines = [self.title, *(f"! {flag}" for flag in self.flags)]
        lines += [text_table([{"model": self.shown[m], name: s} for m, s in scores.items()], ["model", name])]
        found = []
        for a, b, difference, p in pairs:
            parts = components(self.metric, self.first.y, self.p[a], self.first.patient, against=self.p[b], seed=seed)
            names = self.shown[a], self.shown[b]
            words = sentence(*names, difference, p, self.metric, parts)
            lines += [
                f"  {' minus '.join(names)}: {difference.score}, p = {p:.3g} after Holm's correction for {family} comparisons",
                f"    {words}",
                f"    components of variance of this difference: {_components(parts)}",
            ]
            found.append(
                {"a": a, "b": b, "difference": difference.as_dict(), "p_holm": p, "sentence": words}
                | {"components": {k: getattr(parts, k).as_dict() for k in SOURCES}}
            )
        described: dict[str, Any] = {k: getattr(self, k) for k in ("probe", "label_budget", "seeds", "flags")}
        described |= {"about": self.first.about, "metric": name, "pairs": found}
        described["scores"] = {m: s.as_dict() for m, s in scores.items()}
        described["selection"] = selection({self.shown[m]: s for m, s in scores.items()}, self.metric)
        lines += [described["selection"]] if described["selection"] else []
        return Result(described, "\n".join(lines))


def find_comparisons(
    groups: Sequence[RunsBySeed], baselines: Sequence[str], row_filter: RowFilter
) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons that every run has predictions for, and warnings about excluded seeds.

    Raises UserError if there are none, if no seed is common to all groups, and if the runs were scored with different
    settings: on other scans, with other draws of labels or other options.
    """
    seeds = sorted(set.intersection(*(set(group.runs) for group in groups)))
    if not seeds:
        given = "; ".join(f"{group.name}: {sorted(group.runs)}" for group in groups)
        raise UserError(f"the models have no seed in common ({given}); comparisons are paired by seed")
    flags = [
        f"seeds {left} of {group.name} are left out: not every model has them"
        for group in groups
        if (left := sorted(set(group.runs) - set(seeds)))
    ]
    runs = {(g.name, s): g.runs[s] for g in groups for s in seeds}
    found_by_run = {who: kept_predictions(run, row_filter) for who, run in runs.items()}
    out: list[Comparison] = []
    for key in sorted(set.intersection(*(set(found) for found in found_by_run.values()))):
        by_run = {who: found[key] for who, found in found_by_run.items()}
        common = sorted(set.intersection(*(set(each) for each in by_run.values())))
        if not common:
            raise UserError(describe_different_settings(key, {runs[who]: each for who, each in by_run.items()}))
        for settings in common:
            each = {who: found[settings] for who, found in by_run.items()}
            out.append(
                _comparison(groups, seeds, baselines, each, row_filter.metric, describe_settings(settings, common))
            )
    if not out:
        have = sorted({f"{t[1]} ({t[2]})" for run in runs.values() for t in kept_predictions(run, RowFilter())})
        raise UserError(
            f"not all of these runs have a score {f'with {row_filter} ' if str(row_filter) else ''}on the same test set; score "
            f"each of them on the same store, for example with medssl probe. There is: {', '.join(have) or 'nothing yet'}"
        )
    return out, flags


def _comparison(
    groups: Sequence[RunsBySeed],
    seeds: list[int],
    baselines: Sequence[str],
    each: Mapping[tuple[str, int], KeptPrediction],
    metric: str | None,
    note: str,
) -> Comparison:
    """Return the comparison of all models under the same settings; each: (model, seed) -> its predictions."""
    home = groups[0].name
    first, row = each[home, seeds[0]]
    if differs := describe_mismatch([predictions for predictions, _ in each.values()]):
        raise UserError(f"the runs were not tested on the same patients: {differs}; score them again on one store")
    sources = {g.name: (g.name, RUN) for g in groups} | {name: (home, name) for name in baselines}
    p = {
        model: [_in_order(each[group, s][0], first, (source, row.probe, row.label_budget)) for s in seeds]
        for model, (group, source) in sources.items()
    }
    overlap = {g.name: {k for s in seeds for k in each[g.name, s][0].about["overlap"]} for g in groups}
    shown = {model: marked(model, source, sorted(overlap[group])) for model, (group, source) in sources.items()}
    by_flag: dict[str, list[str]] = {}
    for group in groups:
        for flag in dict.fromkeys(f for s in seeds for f in each[group.name, s][0].about["flags"]):
            by_flag.setdefault(flag, []).append(group.name)
    flags = [flag if len(who) == len(groups) else f"{', '.join(who)}: {flag}" for flag, who in by_flag.items()]
    return Comparison(first, row.probe, row.label_budget, _metric(first, metric), note, shown, flags, p, seeds)


def compare_pairs(comparisons: Sequence[Comparison], seed: int) -> list[Result]:
    """Compare all pairs of models in all comparisons; their p values are one family (Holm, 1979)."""
    found = [(c, a, b, c.difference(a, b, seed)) for c in comparisons for a, b in combinations(c.p, 2)]
    adjusted = holm([difference.p for *_, difference in found])
    return [
        c.result(
            [(a, b, d, float(q)) for (of, a, b, d), q in zip(found, adjusted, strict=True) if of is c], len(found), seed
        )
        for c in comparisons
    ]


def rank_models(comparisons: Sequence[Comparison]) -> tuple[Ranking | None, Result]:
    """Return mean ranks of three or more models over the comparisons, None if there are too few."""
    scores = {
        max(c.shown[m] for c in comparisons): [c.metric.sign * c.score(m).value for c in comparisons]
        for m in comparisons[0].p
    }
    try:
        found = ranking(scores)
    except UserError as e:
        return None, Result({"ranking": None}, f"no ranking over {len(comparisons)} comparisons: {e}")
    lines = [f"mean ranks over {found.tasks} comparisons (Friedman p = {found.friedman:.3g}), best first"]
    lines += [f"  {rank:.2f}  {name}" for name, rank in zip(found.names, found.ranks, strict=True)]
    lines += [f"  cannot be told apart: {', '.join(clique)}" for clique in found.cliques]
    selected = describe_selected(found.names[0], "mean rank", f"these {len(found.names)} models")
    described: dict[str, Any] = {
        k: getattr(found, k) for k in ("names", "ranks", "tasks", "friedman", "critical", "cliques")
    }
    described["pairs"] = [{"better": a, "worse": b, "p_holm": p} for (a, b), p in found.p.items()]
    described["selection"] = selected
    return found, Result({"ranking": described}, "\n".join([*lines, selected]))


def sentence(a: str, b: str, found: Difference, p: float, metric: Metric, parts: Components) -> str:
    """Return the conclusion about a pair: "A is better than B" only if the adjusted p value is below ALPHA."""
    if p < ALPHA:
        better, worse = (a, b) if found.score.value * metric.sign > 0 else (b, a)
        alone = (
            " With one seed each, this is about these two encoders, not about their methods." if parts.S == 1 else ""
        )
        return f"{better} is better than {worse} by {abs(found.score.value):.3f} ({metric.name}).{alone}"
    return f"{a} and {b} cannot be told apart with {required_sample_size(found.score.value, parts)}."


def selection(scores: dict[str, Score], metric: Metric) -> str | None:
    """Return a sentence on the best of three or more models, whose score is the largest of several; None for fewer."""
    known = {model: metric.sign * score.value for model, score in scores.items() if not math.isnan(score.value)}
    if len(known) < SEVERAL:
        return None
    return describe_selected(max(known, key=known.__getitem__), metric.name, f"these {len(known)} models")


def describe_selected(best: str, measure: str, among: str) -> str:
    """Return a sentence that says what it means that `best` has the best `measure` among several."""
    return (
        f"{best} has the best {measure} of {among} on these patients. The best of several is partly the luckiest, so its "
        f"{measure} looks better than it is; report it on patients that did not choose it."
    )


def _in_order(predictions: Predictions, first: Predictions, key: tuple[str, str, str]) -> list[np.ndarray]:
    """Return the draws of one row, in the order of the scans of `first`."""
    row = next((r for r in predictions.rows if r.key == key), None)
    if row is None:
        has = sorted({r.source for r in predictions.rows if r.key[1:] == key[1:]} - {RUN})
        raise UserError(f"the score tables have no row {key[0]!r} with probe {key[1]}.{nearest(key[0], has)}")
    at = {scan: i for i, scan in enumerate(predictions.scan.tolist())}
    order = np.array([at[scan] for scan in first.scan.tolist()])
    return [p[order] for p in row.p]


def _metric(predictions: Predictions, name: str | None) -> Metric:
    known = {m.name: m for m in task_type(predictions.about["task"]).metrics}
    name = name or next(iter(known))
    if name not in known:
        raise UserError(f"there is no metric {name!r} for {predictions.about['task']}.{nearest(name, known)}")
    return known[name]


def _components(parts: Components) -> str:
    """Return standard deviations by source; the reason where one seed or draw is not enough."""
    scores = {k: getattr(parts, k) for k in SOURCES if k != "residual" or not math.isnan(parts.residual.value)}
    return ", ".join(f"{k} {s.how if math.isnan(s.value) else s}" for k, s in scores.items())
