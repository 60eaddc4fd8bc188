"""Label budgets: subsets of the training scans whose labels may be used.

All subsets of one seed are beginnings of one queue of patients, so smaller subsets are contained in larger ones. All scans of
a patient are drawn together. The queue depends on the seed, the patients' pseudonyms and their labels, not on the order of
the scans.

Each patient is in one stratum (`TaskType.strata`): that of their rarest class, level or finding, the fifth that contains their
mean number, or whether they had the event. Within a stratum patients are ordered by a keyed hash; strata alternate by Webster's
method of apportionment: next is the patient with the lowest (scans drawn from the stratum so far + half of their own) / share
of the stratum. The head of the queue consists of the first patients who together show every class (level, event, both values
of each finding), rare ones first, so a subset that contains the head contains all classes. With several findings the balance
is approximate, as only the rarest finding of a patient is stratified.
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
from medssl.evals.task_types.base import Strata, TaskType
from medssl.evals.task_types.task_types import task_type
from medssl.rng import Key, words

STREAM = 0x4472  # random stream within one seed


@dataclass(frozen=True)
class Budget:
    """How many scans may be labelled: a number, or a share in (0, 1] of all."""

    scans: int | None = None
    share: float | None = None

    def of(self, total: int) -> int:
        """Return the number of scans out of `total`; a share is rounded and at least 1."""
        return self.scans if self.scans is not None else max(1, round(Fraction(str(self.share)) * total))

    def __str__(self) -> str:
        if self.share == 1:
            return "all"
        return f"{self.scans} scans" if self.scans is not None else f"{100 * (self.share or 0):g} %"


@dataclass(frozen=True)
class Draw:
    """The scans `rows` (n,), increasing, drawn with `seed` for `budget`; at most as many as it allows."""

    budget: Budget
    seed: int
    rows: NDArray[np.int64]


def parse_budget(given: str | int | float) -> Budget:
    """Parse a budget: 50 and "50" are scans; 0.1, "0.1" and "10 %" shares; "all" is everything. Raises UserError for others."""
    text = str(given).strip().lower().removesuffix("scans").strip()
    what = f'{given!r} is not a label budget; give a number of scans (50), a share (0.1 or "10 %") or all'
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
    """Draw a subset for every budget and seed, budgets in the outer loop.

    Args:
        y: labels as in `metrics`, one row per labelled scan.
        patient: (N,).
        balanced: all classes or levels have equal shares.

    A subset ends before the patient who would exceed its budget. Raises UserError if a subset cannot contain every class, or
    a balanced one runs out of a class.
    """
    budgets = list(budgets)
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    if balanced and not task_type(task).can_balance:
        raise UserError(f"balanced draws need classes, and the task is {task}; leave balanced out")
    found = {seed: patients.draws(budgets, seed, balanced) for seed in seeds}
    return [Draw(b, seed, rows[i]) for i, b in enumerate(budgets) for seed, rows in found.items()]


def subset_of_size(y: ArrayLike, patient: ArrayLike, scans: int, *, task: str, seed: int) -> NDArray[np.int64]:
    """Return the rows of one subset of up to `scans` scans and at least one patient; it need not contain every class."""
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    queue = patients.queue(seed, False)[0]
    take = max(1, int(np.searchsorted(np.cumsum(patients.scans[queue]), scans, side="right")))
    return patients.rows(queue[:take])


def patient_strata(
    task: str, y: ArrayLike, patient: ArrayLike
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    """Return the patients' names (P,), their strata (P,), and each scan's patient (N,)."""
    patients = _Patients.of(task_type(task), np.asarray(y), np.asarray(patient))
    return patients.names, patients.strata.stratum, patients.at


def keyed_order(names: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the positions of distinct `names` in the order of their keyed hashes, which does not depend on other names."""
    digest = b"".join(hashlib.blake2b(n.encode(), digest_size=8).digest() for n in names)
    halves = torch.from_numpy(np.frombuffer(digest, np.uint32).astype(np.int64).reshape(-1, 2))
    high, low = words(Key(seed, halves[:, 0], halves[:, 1]), STREAM, 0, 2).numpy().T
    return np.lexsort((np.array(names), low, high))


@dataclass(frozen=True)
class _Patients:
    """P patients: names, sorted; at (N,), each scan's patient; scans (P,), their numbers of scans; strata."""

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
                raise UserError(f"the budget is {scans} labelled scans, and there are {len(self.at)}; lower it")
            take = int(np.searchsorted(filled, scans, side="right"))
            if take < max(head, 1):
                what = (
                    f"contain all of {', '.join(self.strata.cells)}" if head > 1 else "contain all scans of one patient"
                )
                least = filled[max(head, 1) - 1]
                raise UserError(
                    f"{scans} labelled scans cannot {what}; the smallest subset of seed {seed} that does has {least}"
                )
            if balanced and take > kept:
                raise UserError(
                    f"a balanced draw of {scans} scans runs out of a class after {filled[kept - 1]}; "
                    "draw fewer, or leave balanced out"
                )
            found.append(self.rows(queue[:take]))
        return found

    def queue(self, seed: int, balanced: bool) -> tuple[NDArray[np.int64], int, int]:
        """Return all patients in order, the length of the head, and how many come before the shares cannot be kept."""
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
        """Return the priority of a stratum; an empty one counts as if it had one more patient with one scan."""
        return (drawn + (self.scans[waiting[-1]] if waiting else 1) / 2) / share

    def _head(self, ordered: NDArray[np.int64]) -> list[int]:
        """Return the first patients with a cell that none before them has, rare cells first."""
        covered, head = np.zeros(self.strata.shows.shape[1], np.bool_), []
        for cell in np.argsort(self.strata.shows.sum(0), kind="stable"):
            if not covered[cell]:
                head.append(int(ordered[self.strata.shows[ordered, cell]][0]))
                covered |= self.strata.shows[head[-1]]
        return head
