"""Selection of the penalty, for all linear models on frozen features.

Selection needs labels as well. For a model of all training scans it uses all validation scans. For a model of a subset, such
as a label budget, it uses at most as many validation scans as there are training scans: stratified whole patients, drawn by
the seed and the subset's patients (`label_subsets.subset_of_size`). Without validation scans it uses a fifth of the patients of
each stratum, at least one, of the training scans or the subset, and the model is then fitted again on all of them, so no label
outside the subset is used. `Probe.how` records the scans used.
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
HELD_OUT = 0.2  # share of each stratum's training patients held out when there is no validation set


@dataclass(frozen=True)
class Probe:
    """A model of one set of scans with its penalty selected.

    predictions: one per test set, as the task's metrics take them, float64. C: the inverse penalty. loss: validation loss at
    C. path: (C, loss) of every penalty, strongest first. how: a description in words. converged: whether the fit at C is the
    optimum within the accuracy asked for.
    """

    predictions: list[Floats]
    C: float
    loss: float
    path: list[tuple[float, float]]
    how: str
    converged: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the choice of the penalty as JSON values."""
        return {k: getattr(self, k) for k in ("C", "loss", "converged", "how")} | {"path": [list(p) for p in self.path]}


class Model(Protocol):
    """The fits on one set of scans, one per penalty."""

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Mask (P,) of the penalties whose fit has converged."""

    def predict(self, x: Floats, at: int) -> Floats:
        """Return predictions for x (N, D) with penalty number `at`."""


@dataclass(frozen=True)
class PenalisedModel:
    """A type of penalised model.

    Attributes:
        name, criterion: the model and its validation loss in words.
        task: the name of the task type, for strata.
        fit: sets of training rows and C (P,) or (sets, P) -> one Model per set.
        loss: (y, predictions, patient or None) -> validation loss.
    """

    name: str
    criterion: str
    task: str
    fit: Callable[[Sequence[Rows], Floats], Sequence[Model]]
    loss: Callable[[NDArray[Any], Floats, NDArray[np.str_] | None], float]


def fit_probes(
    model: PenalisedModel,
    train: tuple[Floats, NDArray[Any]],
    val: tuple[Floats, NDArray[Any]] | None,
    tests: Sequence[Floats],
    subsets: Sequence[ArrayLike] | None,
    patient: ArrayLike | None,
    val_patient: ArrayLike | None,
    penalties: Sequence[float],
    seed: int,
) -> list[Probe]:
    """Return one probe per subset (None: one of all scans). Ties go to the stronger penalty.

    Raises UserError if there are too few patients to hold any out, or no label of the validation scans is known.
    """
    x, y = train
    C = np.array(sorted(penalties), np.float64)
    sets = [np.arange(len(y))] if subsets is None else [np.asarray(rows, np.int64) for rows in subsets]
    who = None if patient is None else np.asarray(patient).astype(str)
    val_who = None if val_patient is None else np.asarray(val_patient).astype(str)
    if val is not None:
        fits = model.fit(sets, C)
        x_val, y_val = val
        validation = [np.arange(len(y_val))] * len(sets)
        if subsets is not None:
            if who is None or val_who is None:
                raise ValueError("subsets need the patients of training and of validation scans")
            keys = [_key(seed, who[rows]) for rows in sets]
            sizes = [len(rows) for rows in sets]
            validation = [
                label_subsets.subset_of_size(y_val, val_who, n, task=model.task, seed=key)
                for n, key in zip(sizes, keys, strict=True)
            ]
        where = "validation scans"
    else:
        if who is None:
            raise ValueError("without validation scans the patients of the training scans are needed")
        held = [hold_out(y[rows], who[rows], seed, model.task) for rows in sets]
        fits = model.fit([rows[~h] for rows, h in zip(sets, held, strict=True)], C)
        x_val, y_val, val_who = x, y, who
        validation = [rows[h] for rows, h in zip(sets, held, strict=True)]
        where = "scans of held-out training patients"
    losses = np.zeros((len(sets), len(C)))
    for s, (fit, rows) in enumerate(zip(fits, validation, strict=True)):
        theirs = None if val_who is None else val_who[rows]
        losses[s] = [model.loss(y_val[rows], fit.predict(x_val[rows], i), theirs) for i in range(len(C))]
        if np.isnan(losses[s]).any():
            raise UserError(
                f"cannot select the penalty of a linear model: no label of the {len(rows)} {where} is known"
            )
    best = losses.argmin(1)
    at = best
    if val is None:
        fits, at = model.fit(sets, C[best][:, None]), np.zeros_like(best)
    found = []
    for s, fit in enumerate(fits):
        b = best[s]
        how = model.name + ("" if subsets is None else f" on {len(sets[s])} scans")
        how += f", C = {C[b]:g} by {model.criterion} on {len(validation[s])} {where}"
        if len(C) > 1 and b in (0, len(C) - 1):
            how += ", at the end of the range tried"
        if not (converged := bool(fit.converged[at[s]])):
            how += ", not converged"
        path = list(zip(C.tolist(), losses[s].tolist(), strict=True))
        predictions = [fit.predict(t, at[s]) for t in tests]
        found.append(Probe(predictions, float(C[b]), float(losses[s, b]), path, how, converged))
    return found


def hold_out(y: NDArray[Any], patient: ArrayLike, seed: int, task: str = "classification") -> NDArray[np.bool_]:
    """Return a mask of scans: a fifth of the patients of each stratum, at least one if it has two, chosen by `seed`.

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
            "cannot select the penalty of a linear model: every class has one training patient; label more patients"
        )
    return held[at]


def _key(seed: int, patients: NDArray[np.str_]) -> int:
    """Return a seed that depends on the patients of a subset alone."""
    digest = hashlib.blake2b("\n".join(sorted(set(patients.tolist()))).encode(), digest_size=7).digest()
    return seed_from(seed, int.from_bytes(digest))
