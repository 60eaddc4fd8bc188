"""Comparisons of runs by their kept predictions for the same test patients."""

import math
from collections.abc import Sequence
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
from medssl.runs.predictions import RUN, Predictions, describe_mismatch, predictions_of
from medssl.runs.runs_by_seed import RunsBySeed
from medssl.scoring.probes import ALL

ALPHA = 0.05


@dataclass(frozen=True)
class Wanted:
    """The rows of score tables to compare; None means all."""

    target: str | None = None
    probe: str | None = None
    label_budget: str | None = None
    metric: str | None = None

    def __str__(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in vars(self).items() if v and k != "metric")


@dataclass(frozen=True)
class Comparison:
    """Predictions of all models for one target, by one probe with one label budget.

    Attributes:
        first: predictions whose targets and patients are used.
        p: model -> encoder seed -> draw of labels -> predictions. A model is a method's runs, or a baseline.
        seeds: the encoder seeds, the same for all models.
    """

    first: Predictions
    probe: str
    label_budget: str
    metric: Metric
    p: dict[str, list[list[np.ndarray]]]
    seeds: list[int]

    @property
    def title(self) -> str:
        """Target, test set, command, probe, label budget and metric."""
        about = self.first.about
        budget = "" if self.label_budget == ALL else f", label budget {self.label_budget}"
        return f"{about['target']} on {about['test']}, {about['command']}, {self.probe}{budget}, {self.metric.name}"

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
        lines = [self.title, text_table([{"model": m, name: s} for m, s in scores.items()], ["model", name])]
        found = []
        for a, b, difference, p in pairs:
            parts = components(self.metric, self.first.y, self.p[a], self.first.patient, against=self.p[b], seed=seed)
            words = sentence(a, b, difference, p, self.metric, parts)
            lines += [
                f"  {a} minus {b}: {difference.score}, p = {p:.3g} after Holm's correction for {family} comparisons",
                f"    {words}",
                f"    components of variance of this difference: {_components(parts)}",
            ]
            found.append(
                {"a": a, "b": b, "difference": difference.as_dict(), "p_holm": p, "sentence": words}
                | {"components": {k: getattr(parts, k).as_dict() for k in SOURCES}}
            )
        described: dict[str, Any] = {k: getattr(self, k) for k in ("probe", "label_budget", "seeds")}
        described |= {"about": self.first.about, "metric": name, "pairs": found}
        described["scores"] = {m: s.as_dict() for m, s in scores.items()}
        return Result(described, "\n".join(lines))


def find_comparisons(
    groups: Sequence[RunsBySeed], baselines: Sequence[str], wanted: Wanted
) -> tuple[list[Comparison], list[str]]:
    """Return the comparisons that every run has predictions for, and warnings about excluded seeds.

    Raises UserError if there are none, if no seed is common to all groups, or if the test scans differ.
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
    kept = {(g.name, s): {p.question: p for p in predictions_of(g.runs[s].path)} for g in groups for s in seeds}
    out = []
    for question in sorted(set.intersection(*(set(k) for k in kept.values()))):
        each = {who: found[question] for who, found in kept.items()}
        first = each[groups[0].name, seeds[0]]
        if wanted.target not in (None, first.about["target"]):
            continue
        if differs := describe_mismatch(list(each.values())):
            raise UserError(f"the runs were not tested on the same patients: {differs}; score them again on one store")
        common = set.intersection(*({row.key for row in p.rows} for p in each.values()))
        for _, probe, budget in sorted(key for key in common if key[0] == RUN):
            if wanted.probe not in (None, probe) or wanted.label_budget not in (None, budget):
                continue
            p = {g.name: [_in_order(each[g.name, s], first, (RUN, probe, budget)) for s in seeds] for g in groups}
            p |= {
                name: [_in_order(each[groups[0].name, s], first, (name, probe, budget)) for s in seeds]
                for name in baselines
            }
            out.append(Comparison(first, probe, budget, _metric(first, wanted.metric), p, seeds))
    if not out:
        have = sorted({f"{p.about['target']} ({r.probe})" for k in kept.values() for p in k.values() for r in p.rows})
        raise UserError(
            f"not all of these runs have a score {f'with {wanted} ' if str(wanted) else ''}on the same test set; score each "
            f"of them on the same store, for example with medssl probe. There is: {', '.join(have) or 'nothing yet'}"
        )
    return out, flags


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
    scores = {m: [c.metric.sign * c.score(m).value for c in comparisons] for m in comparisons[0].p}
    try:
        found = ranking(scores)
    except UserError as e:
        return None, Result({"ranking": None}, f"no ranking over {len(comparisons)} comparisons: {e}")
    lines = [f"mean ranks over {found.tasks} comparisons (Friedman p = {found.friedman:.3g}), best first"]
    lines += [f"  {rank:.2f}  {name}" for name, rank in zip(found.names, found.ranks, strict=True)]
    lines += [f"  cannot be told apart: {', '.join(clique)}" for clique in found.cliques]
    described: dict[str, Any] = {
        k: getattr(found, k) for k in ("names", "ranks", "tasks", "friedman", "critical", "cliques")
    }
    described["pairs"] = [{"better": a, "worse": b, "p_holm": p} for (a, b), p in found.p.items()]
    return found, Result({"ranking": described}, "\n".join(lines))


def sentence(a: str, b: str, found: Difference, p: float, metric: Metric, parts: Components) -> str:
    """Return the conclusion about a pair: "A is better than B" only if the adjusted p value is below ALPHA."""
    if p < ALPHA:
        better, worse = (a, b) if found.score.value * metric.sign > 0 else (b, a)
        alone = (
            " With one seed each, this is about these two encoders, not about their methods." if parts.S == 1 else ""
        )
        return f"{better} is better than {worse} by {abs(found.score.value):.3f} ({metric.name}).{alone}"
    return f"{a} and {b} cannot be told apart with {required_sample_size(found.score.value, parts)}."


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
