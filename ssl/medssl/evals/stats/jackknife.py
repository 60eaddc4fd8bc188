"""Variances from leaving patients out in turn, Student's t for few patients and seeds, and intervals between 0 and 1.

The jackknife of one scan per patient is, for an AUROC, DeLong's variance (DeLong, DeLong & Clarke-Pearson, 1988,
https://doi.org/10.2307/2531595) and for a mean the usual one; leaving out all scans of a patient keeps it right for several.
It uses no random numbers. The degrees of freedom are not pooled: each group of patients that a metric compares, such as a
class, has its own (Welch, 1947; Satterthwaite, 1946). Each source of variance (patients, seeds, draws of labels) has its own
quantile of t, and the squares of their half-widths are added (Zou & Donner, 2008, https://doi.org/10.1002/sim.3095). So with
two seeds the seeds count with the quantile 12.7, however many patients there are.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import rankdata, t

from medssl.evals.metrics.metrics import Floats, Metric, Parts, Truth
from medssl.rng import seed_from

Case = tuple[Metric, Truth, Floats]  # a metric with checked y and p
CHUNK = 4_000_000  # weights held at once: 32 MB
LEAST_BLOCKS = 20  # of the patients of a stratum, where not each patient is left out alone
LEFT_OUT = 6  # random stream; those of `bootstrap` and `transfer_gap` are 1 to 5


@dataclass(frozen=True)
class Errors:
    """Variances of an estimate by source.

    Attributes:
        patients: variance due to the choice of patients, with `df` degrees of freedom.
        common: the part of `patients` that affects all seeds and draws alike, and so is not counted in `repeats` already.
        repeats: (variance, degrees of freedom) of the mean over seeds, and of the mean over draws of labels.
    """

    patients: float
    common: float
    df: float
    repeats: tuple[tuple[float, float], ...] = ()

    @property
    def se(self) -> float:
        """Standard error."""
        return math.sqrt(max(self.patients, self.common + sum(v for v, _ in self.repeats)))

    def half_width(self, level: float) -> float:
        """Return the half-width of the interval with coverage `level`, at least that of the patients alone."""
        tail = (1 - level) / 2
        alone = t.isf(tail, self.df) ** 2
        repeated = sum(v * t.isf(tail, df) ** 2 for v, df in self.repeats)
        return math.sqrt(max(alone * self.patients, alone * self.common + repeated))

    def widened(self, half: float, level: float) -> float:
        """Return `half`, a half-width over patients alone such as one side of percentiles, with seeds and draws added."""
        repeated = sum(v * t.isf((1 - level) / 2, df) ** 2 for v, df in self.repeats)
        return max(half, math.sqrt(half**2 * self.common / self.patients + repeated))

    def p(self, value: float) -> float:
        """Return the smallest alpha for which `value` +- half-width excludes 0: a two-sided p-value, without a floor."""
        if value == 0 or self.se == 0:
            return float(value == 0)
        if not self.repeats:
            return float(2 * t.sf(abs(value) / math.sqrt(self.patients), self.df))

        def excess(log_p: float) -> float:
            return self.half_width(1 - math.exp(log_p)) - abs(value)

        least = -30.0  # 1 - level is not resolved below
        return (
            math.exp(least if excess(least) < 0 else brentq(excess, least, -1e-12, xtol=1e-12))
            if excess(-1e-12) < 0
            else 1.0
        )


@dataclass(frozen=True)
class Strata:
    """Blocks of patients that are left out together, mostly of one patient each; each block is in one stratum, that of the
    smallest group of scans (such as the rarer class) to which its patients belong.

    Attributes:
        block: (patients,) the block of each patient. stratum: (B,) of each block.
        shrink: (B,) Bessel's correction, (k - 1) / k for k blocks in a block's stratum.
        sizes: for each stratum its effective number of blocks, lower if their numbers of scans differ: (sum of scans)^2 /
            sum of scans^2 (Kish).
    """

    block: NDArray[np.int64]
    stratum: NDArray[np.int64]
    shrink: Floats
    sizes: Floats

    @classmethod
    def of(cls, groups: Iterable[NDArray[np.bool_]], at: NDArray[np.int64], block: NDArray[np.int64]) -> "Strata":
        """Return the strata of a metric that compares the scans in masks `groups` (N,); at (N,) is each scan's patient."""
        scans, own = _rarest_group(groups, at)
        blocks = int(block.max()) + 1
        stratum = np.zeros(blocks, np.int64)
        stratum[block] = own
        k = np.bincount(stratum, minlength=len(scans))[stratum]
        inside = np.array([np.bincount(block, n, blocks) for n in scans]) * (stratum == np.arange(len(scans))[:, None])
        sizes = inside.sum(1) ** 2 / np.maximum((inside**2).sum(1), 1)
        return cls(block, stratum, np.maximum((k - 1) / k, 0.5), sizes)

    def errors(
        self, change: Floats, repeats: Sequence[tuple[float, float]] = (), shape: tuple[int, int] = (1, 1)
    ) -> Errors:
        """Return the errors of a mean over seeds by draws (S, D); change (S * D, B): values without each block minus all's."""
        u = self.shrink * change.mean(0) ** 2
        by_stratum = np.bincount(self.stratum, u, len(self.sizes))
        free = float((by_stratum**2 / np.maximum(self.sizes - 1, 0.5)).sum())
        df = float(u.sum()) ** 2 / free if free > 0 else max(float(self.sizes.min()) - 1, 0.5)
        return Errors(float(u.sum()), common_part(change, self.shrink, shape), df, tuple(repeats))

    def concentration(self, change: Floats, patients: NDArray[np.int64]) -> float:
        """Return how many blocks carry the part of the variance that is due to `patients`: 1 if it is due to one of them."""
        u = (self.shrink * change**2)[np.unique(self.block[patients])]
        return float(u.sum() ** 2 / (u**2).sum()) if (u > 0).any() else 0.0


def common_part(change: Floats, weight: Floats, shape: tuple[int, int]) -> float:
    """Return the part of the patients' variance of the mean of `change` (S * D, B) that all seeds and draws have in common.

    The rest, due to patients whose values differ between seeds or draws, is also in the variance between these, and would be
    counted twice. weight (B,): a variance is the sum of squares with these weights.
    """
    grid = change.reshape(*shape, -1)
    mean = grid.mean((0, 1))
    common = float(weight @ mean**2)
    for axis, count in enumerate(shape):
        if count > 1:
            apart = grid.mean(1 - axis) - mean
            common -= float((apart**2 @ weight).sum()) / (count - 1) / count
    return max(common, 0.0)


def blocks(groups: Iterable[NDArray[np.bool_]], at: NDArray[np.int64], most: int, seed: int) -> NDArray[np.int64]:
    """Return the block (patients,) of each patient: its own, or one of about `most` random ones if there are more patients.

    A block holds patients with the same rarest group among the masks `groups` (N,).
    """
    own = _rarest_group(groups, at)[1]
    if len(own) <= most:
        return np.arange(len(own))
    r = np.random.Generator(np.random.Philox(seed_from(seed, LEFT_OUT)))
    block, first = np.zeros(len(own), np.int64), 0
    for s in np.unique(own):
        members = np.flatnonzero(own == s)
        k = min(len(members), max(LEAST_BLOCKS, round(most * len(members) / len(own))))
        block[members] = first + r.permutation(len(members)) % k
        first += k
    return block


def leave_out(cases: Sequence[Case], at: NDArray[np.int64], block: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Return the values of all scans (cases,), and those without each block of patients (cases, B); nan where undefined."""
    count, step = int(block.max()) + 1, max(1, CHUNK // len(at))
    ids, of_scan = np.arange(count)[:, None], block[at]
    weights = ((of_scan != ids[i : i + step]).astype(np.float64) for i in range(0, count, step))
    return values(cases, [np.ones((1, len(at)))])[:, 0], values(cases, weights)


def _rarest_group(
    groups: Iterable[NDArray[np.bool_]], at: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the scans (G, patients) of each patient in each group, and each patient's group of fewest patients.

    Patients in no group, such as the censored, are one more group.
    """
    patients = int(at.max()) + 1
    scans = np.array([np.bincount(at[g], minlength=patients) for g in groups], np.int64).reshape(-1, patients)
    if not (scans > 0).any(0).all():
        scans = np.vstack([scans, np.where((scans > 0).any(0), 0, np.bincount(at))])
    count = (scans > 0).sum(1)
    return scans, np.where(scans > 0, count[:, None], patients + 1).argmin(0)


def values(cases: Sequence[Case], weights: Iterable[Floats]) -> Floats:
    """Return the values of all cases for all weightings, (cases, R)."""
    return np.concatenate([np.array([m.many(y, p, w) for m, y, p in cases]) for w in weights], axis=-1)


def repeats_of(found: Floats) -> tuple[tuple[float, float], ...]:
    """Return (variance of the mean, degrees of freedom) for the rows and the columns of found (S, D) where there are several."""
    S, D = found.shape
    each = ((S, found.mean(1)), (D, found.mean(0)))
    return tuple((float(mean.var(ddof=1)) / k, k - 1.0) for k, mean in each if k > 1)


def wilson(value: float, half: float) -> tuple[float, float]:
    """Return Wilson's score interval (1927) of a share for which the interval value +- half would be the symmetric one.

    The effective number of scans is that for which a share has this half-width: for clustered data as Korn & Graubard (1998)
    and Dean & Pagano (2015, https://doi.org/10.1093/jssam/smv024), with Wilson's interval.
    """
    over = half**2 / (value * (1 - value))  # z^2 / n
    middle, wide = (value + over / 2) / (1 + over), math.sqrt(half**2 + over**2 / 4) / (1 + over)
    return max(middle - wide, 0.0), min(middle + wide, 1.0)


def least_variance(value: float, parts: Parts, strata: Strata, change: Floats, at: NDArray[np.int64]) -> float:
    """Return a lower bound for the variance of a metric between 0 and 1.

    Where few patients carry all of the errors, the variance that they show is chance: an AUROC of .99 of 20 patients with 20
    scans each may rest on one patient. Each group of scans then counts as a share of at most n (1 + c) scans, n being the
    `effective_sample_size` and c the number of patients that carry its part of the variance. Where many do, the bound is low.
    change (B,): values without each block minus that of all.
    """
    each = [
        min(
            effective_sample_size(x[mask], at[mask]) * (1 + strata.concentration(change, at[mask]))
            for mask, x in groups
        )
        for groups in parts
    ]
    return value * (1 - value) * sum(1 / n for n in each) / len(parts) ** 2


def effective_sample_size(x: Floats, at: NDArray[np.int64]) -> float:
    """Return the number of independent scans that scans with numbers x (N,) of patients at (N,) are worth.

    N / (1 + (m - 1) r), with m scans a patient and their correlation r by analysis of variance of the normal scores of x. Of
    numbers with two values, which say little of it, a patient's scans count as one.
    """
    _, at, m = np.unique(at, return_inverse=True, return_counts=True)
    N, k = len(x), len(m)
    if k in (1, N) or len(np.unique(x)) < 3:
        return float(k)
    z = ndtri((rankdata(x) - 0.5) / N)
    mean = np.bincount(at, z) / m
    between = float((m * (mean - z.mean()) ** 2).sum()) / (k - 1)
    within = float(((z - mean[at]) ** 2).sum()) / (N - k)
    size = (N - (m**2).sum() / N) / (k - 1)
    r = min(max((between - within) / (between + (size - 1) * within), 0.0), 1.0)
    return float(N / (1 + ((m**2).sum() / N - 1) * r))


def exact_bound(counts: Sequence[int], level: float) -> float:
    """Return the lower end for a score of 1 that is the mean of terms with `counts` patients, all of whom are right.

    Clopper & Pearson's for a share, (alpha / 2)^(1 / n). For an AUROC too: the pairs of different patients are independent, so
    that of n pairs all are in order with a probability of at most AUROC^n. That all terms are 1 is at most as probable as
    that each is.
    """
    return float(np.mean([((1 - level) / 2) ** (1 / n) for n in counts]))
