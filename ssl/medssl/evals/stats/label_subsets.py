"""Label budgets: which training scans would have been labelled, had there been labels for a few only.

A draw is the beginning of one queue of patients, so a smaller draw of a seed lies within every larger one. Patients come
whole. The queue is a function of the seed, the patients' pseudonyms and their labels: the order of the scans has no say.

Each patient queues in one stratum: the rarest class, level or finding that he has (few patients, then low index), the fifth
of the values that his mean lies in, or whether he had the event. Within a stratum patients are ordered by a keyed hash; the
strata take turns by Webster's method of apportionment: next is the patient with the lowest (scans drawn of the stratum so far
+ half of his own) / share of the stratum. The head of the queue is made of the first patients that together show every class
(level, event, both answers of each finding), rare ones first, so a draw that holds the head holds all. With several findings
this is best effort: only the rarest finding of a patient is stratified.
"""

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.task_types.base import TaskType
from medssl.evals.task_types.strata import Strata
from medssl.evals.task_types.task_types import task_type
from medssl.rng import Key, words

STREAM = 0x4472  # of random numbers, among those of one seed


@dataclass(frozen=True)
class Budget:
    """How many scans may be labelled: a number of scans, or a share in (0, 1] of those there are."""

    scans: int | None = None
    share: float | None = None

    def of(self, total: int) -> int:
        """Scans of `total`: of a share the nearest number, at least 1."""
        return self.scans if self.scans is not None else max(1, round(Fraction(str(self.share)) * total))

    def __str__(self) -> str:
        if self.share == 1:
            return "all"
        return f"{self.scans} scans" if self.scans is not None else f"{100 * (self.share or 0):g} %"


@dataclass(frozen=True)
class Draw:
    """The scans `rows` (n,), rising, that `seed` draws for `budget`; at most as many as it allows."""

    budget: Budget
    seed: int
    rows: NDArray[np.int64]


def parse_budget(given: str | int | float) -> Budget:
    """50 or "50" are scans; 0.1, "0.1" and "10 %" a share; "all" is everything. Raises UserError for what is neither."""
    text = str(given).strip().lower().removesuffix("scans").strip()
    what = f'{given!r} is no label budget; give a number of scans (50), a share (0.1 or "10 %") or all'
    if text == "all":
        return Budget(share=1.0)
    try:
        if isinstance(given, bool):
            raise ValueError
        if text.endswith("%"):
            share = float(Fraction(text.removesuffix("%").strip()) / 100)
        elif text.lstrip("+-").isdigit():
            if int(text) < 1:
                raise ValueError
            return Budget(scans=int(text))
        else:
            share = float(text)
        if not 0 < share <= 1:
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise UserError(what) from None
    return Budget(share=share)


def draw_label_subsets(
    y: ArrayLike,
    patient: ArrayLike,
    budgets: Iterable[Budget],
    seeds: Iterable[int],
    *,
    task: str = "classification",
    balanced: bool = False,
) -> list[Draw]:
    """Every budget by every seed, budgets slower; y as in `metrics`, one row a labelled scan, patient (N,).

    balanced: strata have equal shares, not their own; of classes and levels only. A draw ends before the patient that would
    exceed its budget. Raises UserError when a draw cannot hold every class, or a balanced one runs out of a class.
    """
    budgets = list(budgets)
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    if balanced and not task_type(task).can_balance:
        raise UserError(f"balanced draws need classes, and the task is {task}; draw without balanced")
    found = {seed: patients.draws(budgets, seed, balanced) for seed in seeds}
    return [Draw(b, seed, rows[i]) for i, b in enumerate(budgets) for seed, rows in found.items()]


def subset_of_size(y: ArrayLike, patient: ArrayLike, scans: int, *, task: str, seed: int) -> NDArray[np.int64]:
    """Rows of one draw of up to `scans` scans, of one patient at least, whether or not it holds every class."""
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    queue = patients.queue(seed, False)[0]
    take = max(1, int(np.searchsorted(np.cumsum(patients.scans[queue]), scans, side="right")))
    return patients.rows(queue[:take])


def patient_strata(
    task: str, y: ArrayLike, patient: ArrayLike
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Patients' names (P,), the stratum of each (P,), and which patient each scan is of (N,)."""
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    return patients.names, patients.strata.stratum, patients.at


def keyed_order(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Places of `names` (distinct) in the order of their keyed hashes: who else is there does not change who comes first."""
    digest = b"".join(hashlib.blake2b(n.encode(), digest_size=8).digest() for n in names)
    halves = torch.from_numpy(np.frombuffer(digest, np.uint32).astype(np.int64).reshape(-1, 2))
    high, low = words(Key(seed, halves[:, 0], halves[:, 1]), STREAM, 0, 2).numpy().T
    return np.lexsort((np.array(names), low, high))


@dataclass(frozen=True)
class _Patients:
    """P patients: names, sorted; at (N,) each scan's; scans (P,) how many each has; strata."""

    names: list[str]
    at: NDArray[np.int64]
    scans: NDArray[np.int64]
    strata: Strata

    @classmethod
    def of(cls, task: TaskType, y: NDArray, patient: NDArray) -> "_Patients":
        if patient.shape != y.shape[:1] or not len(y):
            raise ValueError(f"needs one patient per labelled scan, got {patient.shape} for {y.shape}")
        names, at = np.unique(patient.astype(str), return_inverse=True)
        return cls(names.tolist(), at, np.bincount(at), task.strata(y, at))

    def rows(self, patients: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.flatnonzero(np.isin(self.at, patients))

    def draws(self, budgets: Sequence[Budget], seed: int, balanced: bool) -> list[NDArray[np.int64]]:
        queue, head, kept = self.queue(seed, balanced)
        filled = np.cumsum(self.scans[queue])
        found = []
        for budget in budgets:
            scans = budget.of(len(self.at))
            if scans > len(self.at):
                raise UserError(f"a budget of {scans} labelled scans, and there are {len(self.at)}; lower it")
            take = int(np.searchsorted(filled, scans, side="right"))
            if take < max(head, 1):
                what = f"show all of {', '.join(self.strata.cells)}" if head > 1 else "hold one patient whole"
                least = filled[max(head, 1) - 1]
                raise UserError(
                    f"{scans} labelled scans cannot {what}; the smallest draw of seed {seed} that can has {least}"
                )
            if balanced and take > kept:
                raise UserError(
                    f"a balanced draw of {scans} scans runs out of a class after {filled[kept - 1]}; "
                    "draw fewer, or not balanced"
                )
            found.append(self.rows(queue[:take]))
        return found

    def queue(self, seed: int, balanced: bool) -> tuple[NDArray[np.int64], int, int]:
        """All patients in their order, how many of them make the head, and how many come before shares can't be kept."""
        ordered = keyed_order(self.names, seed)
        head = self._head(ordered)
        total = np.bincount(self.strata.stratum, self.scans)
        share = (total > 0) / (total > 0).sum() if balanced else total / total.sum()
        drawn = np.bincount(self.strata.stratum[head], self.scans[head], len(total))
        rest = ordered[~np.isin(ordered, head)]
        waiting = [rest[self.strata.stratum[rest] == k][::-1].tolist() for k in range(len(total))]
        turns = [(self._turn(w, drawn[k], share[k]), k) for k, w in enumerate(waiting) if share[k]]
        heapq.heapify(turns)
        queue, kept = list(head), len(ordered)
        while len(queue) < len(ordered):
            _, k = heapq.heappop(turns)
            if waiting[k]:
                queue.append(waiting[k].pop())
                drawn[k] += self.scans[queue[-1]]
                heapq.heappush(turns, (self._turn(waiting[k], drawn[k], share[k]), k))
            else:
                kept = min(kept, len(queue))
        return np.array(queue, np.int64), len(head), kept

    def _turn(self, waiting: list[int], drawn: float, share: float) -> float:
        """When a stratum is next; one that has run out, as if one more patient with one scan stood there."""
        return (drawn + (self.scans[waiting[-1]] if waiting else 1) / 2) / share

    def _head(self, ordered: NDArray[np.int64]) -> list[int]:
        """The first patients that show what none before them did, rare first."""
        covered, head = np.zeros(self.strata.shows.shape[1], np.bool_), []
        for cell in np.argsort(self.strata.shows.sum(0), kind="stable"):
            if not covered[cell]:
                head.append(int(ordered[self.strata.shows[ordered, cell]][0]))
                covered |= self.strata.shows[head[-1]]
        return head
