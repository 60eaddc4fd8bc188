"""Fitting with every penalty and choosing one: what all linear models on frozen features have in common.

Choosing takes labels as well. A model of all training scans is chosen for on all validation scans. A model of a subset, of a
label budget say, is chosen for on no more validation scans than it has training scans: whole patients, stratified, drawn by
the seed and the subset's own patients (`label_subsets.like`). Without validation scans a fifth of each stratum's patients of the
training scans or the subset, at least one, chooses, and the winner is fitted again on all of them: then no label outside was
seen. `Probe.how` says which it was, and the numbers.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Floats
from medssl.evals.stats import label_subsets
from medssl.rng import seed_from

Rows = NDArray[np.int64]
PENALTIES = tuple(10.0**e for e in range(-6, 2))  # C of scikit-learn, strongest penalty first
HELD_OUT = 0.2  # share of each stratum's training patients that choose the penalty when there is no validation set


@dataclass(frozen=True)
class Probe:
    """A model of one set of scans, its penalty chosen.

    predictions: one per test set, as the metrics of the task take them, float64. C: the inverse penalty. loss: on the scans
    that chose, at C. path: (C, loss) of every penalty, strongest first. how: a sentence for the reader.
    """

    predictions: list[Floats]
    C: float
    loss: float
    path: list[tuple[float, float]]
    how: str


class Model(Protocol):
    """The fits of one set of scans, one per penalty."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """(P,)."""

    def predict(self, x: Floats, at: int) -> Floats:
        """Predictions for x (N, D) of penalty number `at`."""


@dataclass(frozen=True)
class PenalisedModel:
    """A kind of model: words for it and for its loss, the task its scans are stratified by, how to fit, and the loss.

    fit: sets of training rows and C (P,) or (sets, P) -> one Model per set. loss: (y, predictions, patient or None) of some
    scans -> the number to be small.
    """

    name: str
    by: str
    task: str
    fit: Callable[[Sequence[Rows], Floats], Sequence[Model]]
    loss: Callable[[NDArray[Any], Floats, NDArray[np.str_] | None], float]


def probes(
    kind: PenalisedModel,
    train: tuple[Floats, NDArray[Any]],
    val: tuple[Floats, NDArray[Any]] | None,
    tests: Sequence[Floats],
    subsets: Sequence[ArrayLike] | None,
    patient: ArrayLike | None,
    val_patient: ArrayLike | None,
    penalties: Sequence[float],
    seed: int,
) -> list[Probe]:
    """One probe per subset (None: one of all scans), as said above. Ties go to the stronger penalty.

    Raises UserError when there are too few patients to hold any out, and when those that choose know no label.
    """
    x, y = train
    C = np.array(sorted(penalties), np.float64)
    sets = [np.arange(len(y))] if subsets is None else [np.asarray(rows, np.int64) for rows in subsets]
    who = None if patient is None else np.asarray(patient).astype(str)
    whose = None if val_patient is None else np.asarray(val_patient).astype(str)
    if val is not None:
        fits = kind.fit(sets, C)
        x_val, y_val = val
        judges = [np.arange(len(y_val))] * len(sets)
        if subsets is not None:
            if who is None or whose is None:
                raise ValueError("subsets need the patients of training and of validation scans")
            keys = [_key(seed, who[rows]) for rows in sets]
            sizes = [len(rows) for rows in sets]
            judges = [
                label_subsets.subset_of_size(y_val, whose, n, task=kind.task, seed=key)
                for n, key in zip(sizes, keys, strict=True)
            ]
        where = "validation scans"
    else:
        if who is None:
            raise ValueError("without validation scans the patients of the training scans are needed")
        held = [hold_out(y[rows], who[rows], seed, kind.task) for rows in sets]
        fits = kind.fit([rows[~h] for rows, h in zip(sets, held, strict=True)], C)
        x_val, y_val, whose = x, y, who
        judges = [rows[h] for rows, h in zip(sets, held, strict=True)]
        where = "scans of held-out training patients"
    losses = np.zeros((len(sets), len(C)))
    for s, (fit, rows) in enumerate(zip(fits, judges, strict=True)):
        theirs = None if whose is None else whose[rows]
        losses[s] = [kind.loss(y_val[rows], fit.predict(x_val[rows], i), theirs) for i in range(len(C))]
        if np.isnan(losses[s]).any():
            raise UserError(
                f"cannot choose the penalty of a linear model: no label of the {len(rows)} {where} is known"
            )
    best = losses.argmin(1)
    at = best
    if val is None:
        fits, at = kind.fit(sets, C[best][:, None]), np.zeros_like(best)
    found = []
    for s, fit in enumerate(fits):
        b = best[s]
        how = kind.name + ("" if subsets is None else f" on {len(sets[s])} scans")
        how += f", C = {C[b]:g} by {kind.by} on {len(judges[s])} {where}"
        if len(C) > 1 and b in (0, len(C) - 1):
            how += ", at the end of the range tried"
        if not fit.converged[at[s]]:
            how += ", not converged"
        path = list(zip(C.tolist(), losses[s].tolist(), strict=True))
        predictions = [fit.predict(t, at[s]) for t in tests]
        found.append(Probe(predictions, float(C[b]), float(losses[s, b]), path, how))
    return found


def hold_out(y: NDArray[Any], patient: ArrayLike, seed: int, task: str = "classification") -> NDArray[np.bool_]:
    """A mask of scans: a fifth of the patients of each stratum (`draws`), at least one where it has two, chosen by `seed`.

    Depends on the set of patients, not on their order.
    """
    names, stratum, at = label_subsets.patient_strata(task, y, patient)
    queue = label_subsets.keyed_order(names, seed)
    held = np.zeros(len(names), np.bool_)
    for k in np.unique(stratum):
        members = queue[stratum[queue] == k]
        if len(members) > 1:
            held[members[: max(1, round(HELD_OUT * len(members)))]] = True
    if not held.any():
        raise UserError(
            "cannot choose the penalty of a linear model: every class has one training patient; label more patients"
        )
    return held[at]


def _key(seed: int, patients: NDArray[np.str_]) -> int:
    """A seed of the patients' own, whatever other subsets there are."""
    digest = hashlib.blake2b("\n".join(sorted(set(patients.tolist()))).encode(), digest_size=7).digest()
    return seed_from(seed, int.from_bytes(digest))
