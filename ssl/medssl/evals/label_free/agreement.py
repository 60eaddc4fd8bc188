"""Rank correlations over runs between label-free measures and probe scores, and the choice of a reliable measure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from medssl.evals.metrics.metrics import Floats
from medssl.evals.stats.score import Score
from medssl.evals.stats.significance import holm
from medssl.rng import seed_from

# runs; simulated 95 % intervals cover .74 to .94 at 5, .86 to .97 at 6 and .94 to .99 from 8 on
FEWEST, FEW = 6, 8
RESAMPLES, PERMUTATIONS = 2000, 10_000
CHUNK = 1 << 22  # pairs of runs held at once: 32 MB
LEVEL = 0.95
ALPHA = 0.05
DRAWS, SHUFFLES = 0, 1  # random streams


@dataclass(frozen=True)
class Agreement:
    """Rank correlation of one measure with the scores of runs. `n` and `patients` of each Score count runs.

    Attributes:
        spearman, kendall: over all runs; Kendall's is tau-b.
        within: Kendall's tau-b over pairs of runs of the same method; None if there is one method. Between methods a
            measure may correlate because methods differ in everything.
        p: p value of Spearman's correlation by permutation of the runs, adjusted by Holm over all measures.
    """

    spearman: Score
    kendall: Score
    within: Score | None
    p: float

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        scores = {"spearman": self.spearman, "kendall": self.kendall, "within": self.within}
        return {k: None if s is None else s.as_dict() for k, s in scores.items()} | {"p": self.p}


def agreement(
    measured: Mapping[str, ArrayLike], score: ArrayLike, method: Sequence[str], *, seed: int = 0
) -> dict[str, Agreement]:
    """Return the agreement of each measure (R,) with the `score` (R,) of R runs of `method` (R,), by name.

    Intervals are percentile bootstraps over runs, within each method for `within`; all measures share the resamples and
    permutations. Measures with one value for all runs are omitted. Empty with fewer than 6 runs, or if all scores are
    equal. Raises ValueError for values that are not finite.
    """
    y = np.asarray(score, np.float64)
    R = len(y)
    columns = {name: np.asarray(values, np.float64) for name, values in measured.items()}
    for name, x in {**columns, "score": y}.items():
        if x.shape != (R,) or len(method) != R or not np.isfinite(x).all():
            raise ValueError(
                f"{name} needs one finite number per run, got {x.shape} for {R} runs of {len(method)} methods"
            )
    columns = {name: x for name, x in columns.items() if np.ptp(x) > 0}
    if R < FEWEST or np.ptp(y) == 0:
        return {}
    names, kind = np.unique(np.asarray(method, str), return_inverse=True)
    drawn = _generator(seed, DRAWS).integers(R, size=(RESAMPLES, R))
    inside = np.empty_like(drawn)
    for k in range(len(names)):
        own = np.flatnonzero(kind == k)
        inside[:, own] = own[drawn[:, own] * len(own) // R]
    shuffled = _generator(seed, SHUFFLES).permuted(np.tile(_ranks(y[None]), (PERMUTATIONS, 1)), axis=1)
    pairs = kind[:, None] == kind

    def tau_within(a: Floats, b: Floats) -> Floats:
        return kendall(a, b, pairs)

    raw, found = {}, {}
    for name, x in columns.items():
        rho = _interval(spearman, x, y, drawn, f"{R} runs")
        mine = _ranks(x[None])[0]
        as_extreme = np.abs(shuffled @ mine) >= abs(float(_ranks(y[None])[0] @ mine)) - 1e-9
        raw[name] = (1 + int(as_extreme.sum())) / (1 + PERMUTATIONS)
        several = len(names) > 1 and len(names) < R
        within = _interval(tau_within, x, y, inside, f"{R} runs within {len(names)} methods") if several else None
        found[name] = rho, _interval(kendall, x, y, drawn, f"{R} runs"), within
    adjusted = dict(zip(raw, holm(list(raw.values())).tolist(), strict=True))
    return {name: Agreement(*scores, adjusted[name]) for name, scores in found.items()}


def trusted(found: Mapping[str, Agreement], better: Mapping[str, int], runs: int) -> str:
    """Return a sentence about the measures that are shown to order these runs.

    better: by measure, +1 or -1 for the direction its paper calls better, 0 for none.
    """
    if not found:
        return (
            f"{runs} runs are too few to choose a measure: at least {FEWEST} with different scores are needed, "
            f"so no correlations are shown"
        )
    sure = [name for name, a in found.items() if a.p < ALPHA]
    if not sure:
        return (
            f"none of {len(found)} measures is shown to order these {runs} runs as their scores do (permutation of runs, "
            f"Holm over measures, {ALPHA:g}): do not choose by any of them here"
        )
    best = max(sure, key=lambda name: abs(found[name].spearman.value))
    a = found[best]
    way = "higher is better" if a.spearman.value > 0 else "lower is better"
    words = (
        f"trust {best} here: {way}, Spearman {a.spearman}, p {'< 0.001' if a.p < 0.001 else f'= {a.p:.3f}'} after Holm"
    )
    if better[best] and (a.spearman.value > 0) != (better[best] > 0):
        words += "; that is the opposite of what its paper says"
    if len(sure) > 1:
        words += f". Also shown to order these runs: {', '.join(n for n in sure if n != best)}"
    if a.within is not None and not (a.within.low > 0 or a.within.high < 0):
        words += f". Within methods {best} is not shown to order runs: Kendall {a.within}"
    return words


def _interval(f: Callable[[Floats, Floats], Floats], x: Floats, y: Floats, drawn: NDArray[np.int64], who: str) -> Score:
    R = len(x)
    value = float(f(x[None], y[None])[0])
    step = max(1, CHUNK // R**2)
    replicates = np.concatenate([f(x[d], y[d]) for d in np.split(drawn, range(step, len(drawn), step))])
    defined = replicates[~np.isnan(replicates)]
    how = f"{100 * LEVEL:g} % percentile bootstrap over {who}"
    if R < FEW:
        how += f"; {R} runs are few, so the true uncertainty is wider than shown"
    if np.isnan(value) or not len(defined):
        return Score(np.nan, np.nan, np.nan, R, R, how)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    if low == high:
        how += "; every resample agrees, so the true uncertainty is wider than shown"
    return Score(value, float(low), float(high), R, R, how)


def spearman(x: Floats, y: Floats) -> Floats:
    """Return Spearman's correlation of each row of x and y (B, R), with midranks for ties; nan if all are equal."""
    a, b = _ranks(x), _ranks(y)
    return _divide((a * b).sum(1), np.sqrt(np.square(a).sum(1) * np.square(b).sum(1)))


def kendall(x: Floats, y: Floats, among: NDArray[np.bool_] | None = None) -> Floats:
    """Return Kendall's tau-b of each row of x and y (B, R), over the pairs in `among` (R, R) if given; nan if undefined."""
    a, b = (np.sign(v[:, :, None] - v[:, None, :]) for v in (x, y))
    if among is not None:
        a, b = a * among, b * among
    return _divide((a * b).sum((1, 2)), np.sqrt(np.abs(a).sum((1, 2)) * np.abs(b).sum((1, 2))))


def _ranks(x: Floats) -> Floats:
    """Return the midranks of each row minus their mean."""
    return rankdata(x, axis=1) - (x.shape[1] + 1) / 2


def _divide(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _generator(seed: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed_from(seed, stream)))
