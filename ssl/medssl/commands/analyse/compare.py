"""Several runs -> which is better, as far as their predictions for the same test patients can tell."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.metrics.metrics import Metric
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.score import Difference
from medssl.evals.stats.significance import holm, ranking
from medssl.evals.stats.text_table import text_table
from medssl.evals.stats.variance_components import SOURCES, Components, components, required_sample_size
from medssl.evals.task_types.task_types import task_type
from medssl.files import atomic, write_json
from medssl.reporting.critical_difference import critical_difference_diagram
from medssl.runs.predictions import Predictions, of_run, same_scans
from medssl.runs.runs_by_seed import RunsBySeed, find_runs, group_by_seed

ALPHA = 0.05


@dataclass
class Contest:
    """One question, reader and budget that all arms have an answer to.

    Attributes:
        first: whose truth and patients are used.
        p: arm -> for each seed the predictions of each draw of the labels.
        seeds: the encoder seeds, the same for all arms.
    """

    first: Predictions
    reader: str
    labels: str
    metric: Metric
    p: dict[str, list[list[np.ndarray]]]
    seeds: list[int]

    @property
    def draws(self) -> int:
        """Of the labels, the same for all arms."""
        return len(next(iter(self.p.values()))[0])

    def flat(self, arm: str) -> list[np.ndarray]:
        """All draws of the first seed, then of the second."""
        return [p for draws in self.p[arm] for p in draws]

    @property
    def title(self) -> str:
        """What it is about, in words."""
        about = self.first.about
        budget = "" if self.labels == "all" else f", labels {self.labels}"
        return f"{about['target']} on {about['test']}, {about['command']}, {self.reader}{budget}, {self.metric.name}"


def compare(
    runs: str | list[str],
    *,
    target: str | None = None,
    reader: str | None = None,
    labels: str | None = None,
    metric: str | None = None,
    baselines: Iterable[str] = (),
    out: str | Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare runs on the test patients that all of them were scored on; prints what may be said, and returns it.

    Runs that differ in nothing but their seed are one arm. Arms are compared in pairs by a paired bootstrap over patients, seeds
    and draws of the labels, and the p values of all pairs and questions are one family (Holm, 1979).

    Args:
        runs: run folders, or folders of them, each with predictions of medssl probe, knn, retrieve, finetune, segment, …
        target, reader, labels: choose among the questions that all runs have answered; None takes all.
        metric: by its name; None is the first of the task.
        baselines: rows of the runs' own tables that take part, such as "k-means patch bank".
        out: a .json file for the result.
        seed: of the bootstrap.

    Raises UserError when there is nothing to compare: fewer than two arms, no common question, other test patients.
    """
    arms = group_by_seed(find_runs(runs))
    extra = [baselines] if isinstance(baselines, str) else list(baselines)
    if len(arms) + len(extra) < 2:
        raise UserError(
            f"there is one arm only, {arms[0].name} with {len(arms[0].runs)} seeds; give runs that differ in more than the seed, "
            'or a rival of their tables: baselines=["k-means patch bank"]'
        )
    contests = _contests(arms, extra, target, reader, labels, metric)
    found = [(c, a, b, _paired(c, a, b, seed)) for c in contests for a, b in combinations(c.p, 2)]
    adjusted = holm([d.p for *_, d in found])
    result: dict[str, Any] = {
        "arms": {arm.name: sorted(arm.runs) for arm in arms},
        "family": len(found),
        "contests": [],
    }
    for contest in contests:
        pairs = [(a, b, d, float(q)) for (c, a, b, d), q in zip(found, adjusted, strict=True) if c is contest]
        result["contests"].append(_said(contest, pairs, len(found), seed))
    path = None if out is None else Path(out).expanduser()
    if len(contests) > 1 and len(contests[0].p) > 2:
        result["ranking"] = _ranked(contests, path)
    if path is not None:
        write_json(path, result)
    return result


def _ranked(contests: Sequence[Contest], out: Path | None) -> dict[str, Any] | None:
    """Mean ranks of three or more arms over the questions, as far as there are enough; a diagram beside `out`."""
    scores = {
        name: [
            c.metric.sign * score_seeds(c.metric, c.first.y, c.flat(name), c.first.patient, draws=c.draws).value
            for c in contests
        ]
        for name in contests[0].p
    }
    try:
        found = ranking(scores)
    except UserError as e:
        print(f"\nno ranking over {len(contests)} questions: {e}")
        return None
    print(f"\nranks over {found.tasks} questions (Friedman p = {found.friedman:.3g}), best first")
    for name, rank in zip(found.names, found.ranks, strict=True):
        print(f"  {rank:.2f}  {name}")
    for clique in found.cliques:
        print(f"  cannot be told apart: {', '.join(clique)}")
    if out is not None:
        with atomic(out.with_suffix(".png")) as part:
            part.write_bytes(critical_difference_diagram(found))
        print(f"diagram: {out.with_suffix('.png')}")
    pairs = [{"better": a, "worse": b, "p_holm": p} for (a, b), p in found.p.items()]
    return {k: getattr(found, k) for k in ("names", "ranks", "tasks", "friedman", "critical", "cliques")} | {
        "pairs": pairs
    }


def _contests(
    arms: Sequence[RunsBySeed],
    extra: Sequence[str],
    target: str | None,
    reader: str | None,
    labels: str | None,
    metric: str | None,
) -> list[Contest]:
    """The questions that every run of every arm has answered."""
    seeds = sorted(set.intersection(*(set(arm.runs) for arm in arms)))
    if not seeds:
        given = "; ".join(f"{arm.name}: {sorted(arm.runs)}" for arm in arms)
        raise UserError(f"the arms have no seed in common ({given}); comparisons are paired by seed")
    for arm in arms:
        if left := sorted(set(arm.runs) - set(seeds)):
            print(f"! seeds {left} of {arm.name} are left out: not every arm has them")
    answers = {(arm.name, s): {p.question: p for p in of_run(arm.runs[s].path)} for arm in arms for s in seeds}
    common = set.intersection(*(set(a) for a in answers.values()))
    out = []
    for splits in sorted(common):
        each = {who: a[splits] for who, a in answers.items()}
        first = each[arms[0].name, seeds[0]]
        if target is not None and first.about["target"] != target:
            continue
        if differs := same_scans(list(each.values())):
            raise UserError(f"the runs were not tested on the same patients: {differs}; score them anew on one store")
        everywhere = [{e.name for e in p.entries} for p in each.values()]
        for _, how, budget in sorted(n for n in set.intersection(*everywhere) if n[0] == "run"):
            if reader not in (None, how) or labels not in (None, budget):
                continue
            p = {arm.name: [_of(each[arm.name, s], first, "run", how, budget) for s in seeds] for arm in arms}
            p |= {name: [_of(each[arms[0].name, s], first, name, how, budget) for s in seeds] for name in extra}
            out.append(Contest(first, how, budget, _metric(first, metric), p, seeds))
    if not out:
        have = sorted(
            {f"{p.about['target']} ({e.reader})" for a in answers.values() for p in a.values() for e in p.entries}
        )
        wanted = ", ".join(f"{k}={v}" for k, v in (("target", target), ("reader", reader), ("labels", labels)) if v)
        raise UserError(
            f"no question {f'with {wanted} ' if wanted else ''}was put to all of these runs; score each of them on the same "
            f"store, for example with medssl probe. There is: {', '.join(have) or 'nothing yet'}"
        )
    return out


def _of(answer: Predictions, first: Predictions, features: str, reader: str, labels: str) -> list[np.ndarray]:
    """The draws of one row, in the order of the scans of `first`."""
    entry = next((e for e in answer.entries if e.name == (features, reader, labels)), None)
    if entry is None:
        has = sorted({e.features for e in answer.entries if (e.reader, e.labels) == (reader, labels)} - {"run"})
        raise UserError(
            f"the tables of the runs have no row {features!r} with reader {reader}.{nearest(features, has)}"
        )
    at = {scan: i for i, scan in enumerate(answer.scan.tolist())}
    order = np.array([at[scan] for scan in first.scan.tolist()])
    return [p[order] for p in entry.p]


def _metric(answer: Predictions, name: str | None) -> Metric:
    known = {m.name: m for m in task_type(answer.about["task"]).metrics}
    name = name or next(iter(known))
    if name not in known:
        raise UserError(f"there is no metric {name!r} of {answer.about['task']}.{nearest(name, known)}")
    return known[name]


def _paired(contest: Contest, a: str, b: str, seed: int) -> Difference:
    first = contest.first
    flat, draws = contest.flat, contest.draws
    return paired(contest.metric, first.y, flat(a), flat(b), first.patient, draws=draws, seed=seed)


def _said(contest: Contest, pairs: list[tuple[str, str, Difference, float]], family: int, seed: int) -> dict[str, Any]:
    """Prints one contest and returns it for the file."""
    first, metric, p = contest.first, contest.metric, contest.p
    draws = contest.draws
    scores = {
        name: score_seeds(metric, first.y, contest.flat(name), first.patient, draws=draws, seed=seed) for name in p
    }
    print(f"\n{contest.title}")
    print(text_table([{"arm": name, metric.name: s} for name, s in scores.items()], ["arm", metric.name]))
    said = []
    for a, b, difference, adjusted in pairs:
        parts = components(metric, first.y, p[a], first.patient, against=p[b], seed=seed)
        words = sentence(a, b, difference, adjusted, metric, parts)
        print(f"  {a} minus {b}: {difference.score}, p = {adjusted:.3g} after Holm over {family}")
        print(f"    {words}")
        print(f"    components of this difference: {_parts(parts)}")
        said.append(
            {"a": a, "b": b, "difference": difference.as_dict(), "p_holm": adjusted, "says": words}
            | {"components": {k: getattr(parts, k).as_dict() for k in SOURCES}}
        )
    return {
        "question": first.about,
        "reader": contest.reader,
        "labels": contest.labels,
        "metric": metric.name,
        "seeds": contest.seeds,
        "scores": {name: s.as_dict() for name, s in scores.items()},
        "pairs": said,
    }


def _parts(parts: Components) -> str:
    """Standard deviations by source; of what one seed or one draw cannot tell, the reason."""
    scores = {k: getattr(parts, k) for k in SOURCES if k != "residual" or not math.isnan(parts.residual.value)}
    return ", ".join(f"{k} {s.how if math.isnan(s.value) else s}" for k, s in scores.items())


def sentence(a: str, b: str, found: Difference, p: float, metric: Metric, parts: Components) -> str:
    """What may be said of a pair: "A is better than B" only where the adjusted p value is below 5 %."""
    if p < ALPHA:
        better, worse = (a, b) if found.score.value * metric.sign > 0 else (b, a)
        alone = " One seed each: this is about these two encoders, not about their methods." if parts.S == 1 else ""
        return f"{better} is better than {worse} by {abs(found.score.value):.3f} ({metric.name}).{alone}"
    return f"{a} and {b} cannot be told apart with {required_sample_size(found.score.value, parts)}."
