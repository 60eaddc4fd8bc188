"""Intervals of scores and of paired differences on one set of patients; `bootstrap` says which is used where."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medssl.evals.metrics.metrics import Floats
from medssl.evals.stats.jackknife import (
    Case,
    Errors,
    Strata,
    blocks,
    common_part,
    exact_bound,
    least_variance,
    leave_out,
    repeats_of,
    wilson,
)
from medssl.evals.stats.resampling import FEW, expanded, groups_of, rarest, replicates
from medssl.evals.stats.score import Difference, Score

Cases = Sequence[Case]
"""One metric of the predictions of all draws of the first seed, then of the second."""
EQUAL = 1e-12  # what differs by less is equal but for rounding
NO_SPREAD = "no interval, because the value stays the same when patients are left out, so its uncertainty is unknown"
UNSTABLE = "undefined on too many resamples"


class LeaveOut(NamedTuple):
    """Values of a set of cases: of all scans (S * D,), and without each block of patients (S * D, B)."""

    full: Floats
    without: Floats


@dataclass(frozen=True)
class Sample:
    """The patients of N scans, and how to compute intervals over them.

    Attributes:
        at: (N,) positions of the patients, from 0.
        n: resamples, and the most blocks of patients left out in turn. seed: of both. level: coverage of the intervals.
        draws: of labels for each seed, D; a set of cases holds S * D.
    """

    at: NDArray[np.int64]
    n: int
    seed: int
    level: float
    draws: int = 1

    @property
    def patients(self) -> int:
        """The number of patients."""
        return int(self.at.max()) + 1

    def scores(self, sets: Sequence[Cases]) -> list[Score]:
        """Return the mean score of each set, all on the same resamples and without the same patients in turn."""
        smooth = [c[0][0].bias is not None or all(m.parts(y, p) for m, y, p in c) for c in sets]
        left = iter(self._left_out([c for c, yes in zip(sets, smooth, strict=True) if yes]))
        flat = [case for c, yes in zip(sets, smooth, strict=True) if not yes for case in c]
        drawn = iter(replicates(flat, self.at, self.n, self.seed) if flat else np.empty((0, 0)))
        return [
            self._jackknifed(c, next(left)) if yes else self._resampled(c, np.array([next(drawn) for _ in c]))
            for c, yes in zip(sets, smooth, strict=True)
        ]

    def differences(self, pairs: Sequence[tuple[Cases, Cases]]) -> list[Difference]:
        """Return the mean difference of each pair of sets, without the same patients in turn."""
        left = iter(self._left_out([cases for pair in pairs for cases in pair]))
        return [self._paired(a, b, next(left), next(left)) for a, b in pairs]

    def _left_out(self, sets: Sequence[Cases]) -> list[LeaveOut]:
        if not sets:
            return []
        flat = [case for cases in sets for case in cases]
        full, without = leave_out(flat, self.at, self._block(flat[0]))
        ends = np.cumsum([len(c) for c in sets])[:-1]
        return [LeaveOut(*each) for each in zip(np.split(full, ends), np.split(without, ends), strict=True)]

    def _block(self, case: Case) -> NDArray[np.int64]:
        """Return each patient's block; the same for all metrics of one truth."""
        metric, y, _ = case
        return blocks(metric.check.groups(y), self.at, self.n, self.seed)

    def _jackknifed(self, cases: Cases, left: LeaveOut) -> Score:
        metric, y, p = cases[0]
        value = float(left.full.mean())
        how = self._how("Wilson interval by a jackknife" if metric.bias is None else "jackknife interval", len(cases))
        change = left.without - left.full[:, None]
        if why := self._why_not(cases[0], value, change):
            return self._none(value, why, how)
        strata = Strata.of(groups_of(cases[0]), self.at, self._block(cases[0]))
        errors = strata.errors(change, repeats_of(self._grid(left.full)), self._shape(len(cases)))
        how += metric.check.left_out(y) + self._few(cases[0])
        if metric.bias is not None:
            bias = float(np.mean([metric.bias(y, p, self.at) for _, y, p in cases]))
            half = errors.half_width(self.level)
            if errors.se <= EQUAL:
                return self._none(value, NO_SPREAD, how)
            how += f", which allows for a bias of up to {bias:.3f} upwards"
            return self._score(value, max(0.0, value - bias - half), value + half, how)
        parts, limit = metric.parts(y, p), round(value)
        if abs(value - limit) > EQUAL:
            least = least_variance(value, parts, strata, change.mean(0), self.at)
            lift = max(least - errors.patients, 0.0)
            errors = replace(errors, patients=errors.patients + lift, common=errors.common + lift)
            return self._score(value, *wilson(value, errors.half_width(self.level)), how)
        if not metric.exact:
            return self._none(value, NO_SPREAD, how)
        counts = [min(len(np.unique(self.at[mask])) for mask, _ in groups) for groups in parts]
        end = exact_bound(counts, self.level)
        how = f"exact {100 * self.level:g} % bound from {self._named(min(counts), cases[0])}, all of whom agree"
        return self._score(value, *((end, 1.0) if limit else (0.0, 1 - end)), how)

    def _resampled(self, cases: Cases, drawn: Floats) -> Score:
        metric, y, _ = cases[0]
        each = np.array([metric(y, q) for _, _, q in cases])
        value, found = float(each.mean()), drawn.mean(0)
        defined = ~np.isnan(found)
        how = self._how("percentile bootstrap", len(cases)) + f", {self.n} resamples"
        if not defined.all():
            how += f", {(~defined).sum()} of them left out because {metric.check.missing}"
        how += metric.check.left_out(y)
        if why := self._why_not(cases[0], value, found[defined]):
            return self._none(value, why, how)
        few = rarest(cases[0], self.at)
        how += self._few(cases[0], ", so the true uncertainty is wider than shown")
        wide = expanded(self.level, few)
        if (~defined).mean() > (1 - wide) / 2:  # an end of the interval is among them
            return self._none(value if metric.robust else np.nan, UNSTABLE, how)
        ends = np.quantile(found[defined], [(1 - wide) / 2, (1 + wide) / 2])
        if ends[1] - ends[0] <= EQUAL:
            return self._none(value, NO_SPREAD, how)
        # resamples of a biased metric may all lie on one side of the value
        below, above = np.maximum([value - ends[0], ends[1] - value], 0)
        repeats = repeats_of(self._grid(each))
        if repeats:
            change = drawn[:, defined] - drawn[:, defined].mean(1, keepdims=True)
            weight = np.full(change.shape[1], 1 / change.shape[1])
            common = common_part(change, weight, self._shape(len(cases)))
            alone = Errors(float(weight @ change.mean(0) ** 2), common, np.inf, repeats)
            below, above = (alone.widened(half, self.level) for half in (below, above))
        return self._score(value, value - below, value + above, how)

    def _paired(self, a: Cases, b: Cases, left_a: LeaveOut, left_b: LeaveOut) -> Difference:
        metric, y, _ = a[0]
        apart = left_a.full - left_b.full
        value, change = float(apart.mean()), left_a.without - left_b.without - apart[:, None]
        how = self._how("paired jackknife", len(a)) + ", Student's t"
        if why := self._why_not(a[0], value, change):
            return Difference(self._none(value, why, how), np.nan, np.nan)
        groups = groups_of(a[0])
        groups += [g for g in groups_of(b[0]) if not any(np.array_equal(g, have) for have in groups)]
        strata = Strata.of(groups, self.at, self._block(a[0]))
        errors = strata.errors(change, repeats_of(self._grid(apart)), self._shape(len(a)))
        how += metric.check.left_out(y) + self._few(a[0])
        bounded = all(m.parts(y, p) for m, y, p in (*a, *b))
        if errors.se > EQUAL or abs(value) <= EQUAL:
            half = errors.half_width(self.level)
            low, high = np.clip([value - half, value + half], *((-1, 1) if bounded else (-np.inf, np.inf)))
            return Difference(self._score(value, low, high, how), errors.p(value), errors.se)
        if not bounded:
            return Difference(self._none(value, NO_SPREAD, how), np.nan, np.nan)
        # all patients show this difference, so a share of them does, and the others differ by 1 the other way at worst
        k = min(rarest(case, self.at) for case in (a[0], b[0]))
        share, size = exact_bound([k], self.level), abs(value)
        low, high = sorted(np.sign(value) * (share * size + np.array([share - 1, 1 - share])))
        how = f"exact {100 * self.level:g} % bound from {self._named(k, a[0])}, all of whom agree"
        return Difference(self._score(value, low, high, how), min(1.0, 2 * (1 + size) ** -float(k)), 0.0)

    def _shape(self, cells: int) -> tuple[int, int]:
        """Return the numbers of seeds and of draws."""
        if self.draws < 1 or cells % self.draws:
            raise ValueError(f"{cells} predictions cannot be divided into seeds of {self.draws} draws each")
        return cells // self.draws, self.draws

    def _grid(self, values: Floats) -> Floats:
        return values.reshape(self._shape(len(values)))

    def _how(self, words: str, cells: int) -> str:
        many = [
            f"{k} {what}" for k, what in zip(self._shape(cells), ("seeds", "draws of labels"), strict=True) if k > 1
        ]
        over = f"{', '.join(many)} and {self.patients}" if many else f"{self.patients}"
        blocks = f", in {self.n} blocks" if self.patients > self.n and "jackknife" in words else ""
        return f"{100 * self.level:g} % {words} over {over} patients{blocks}"

    def _few(self, case: Case, more: str = "") -> str:
        few = rarest(case, self.at)
        return f"; only {self._named(few, case)}{more}" if few < FEW else ""

    def _named(self, few: int, case: Case) -> str:
        """Return the patients of the rarest group in words."""
        return f"{few} patients {case[0].check.rare if few < self.patients else ''}".rstrip()

    def _why_not(self, case: Case, value: float, change: Floats) -> str:
        """Return why there is no interval, or ""; change: values of subsets of the patients."""
        metric, few = case[0], rarest(case, self.at)
        if np.isnan(value):
            return f"undefined, because {metric.check.missing}"
        if few < 2:
            return f"no interval from {self._named(few, case)}"
        if not change.size or np.isnan(change).any():
            return f"no interval, because without some patients {metric.check.missing}"
        return ""

    def _none(self, value: float, why: str, how: str) -> Score:
        return self._score(value, np.nan, np.nan, f"{why}: {how}")

    def _score(self, value: float, low: float, high: float, how: str) -> Score:
        """Return the score; rounding does not put the value outside its interval."""
        if not np.isnan(low):
            low, high = min(low, value), max(high, value)
        return Score(value, float(low), float(high), len(self.at), self.patients, how)
