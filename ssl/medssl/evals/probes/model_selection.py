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
PATIENCE = 2  # penalties in a row worse than the best one, after which weaker ones are not tried
ACCURACY = 1e-3  # relative accuracy of the losses that penalties are compared by
HELD_OUT = 0.2  # share of each stratum's training patients held out when there is no validation set


@dataclass(frozen=True)
class Probe:
    """A model of one set of scans with its penalty selected.

    predictions: one per test set, as the task's metrics take them, float64. C: the inverse penalty. loss: validation loss at
    C. path: (C, loss) of the penalties tried, strongest first. how: a description in words. converged: whether the fit at C is
    the optimum within the accuracy asked for. weight_bias: see `Model.linear`.
    """

    predictions: list[Floats]
    C: float
    loss: float
    path: list[tuple[float, float]]
    how: str
    converged: bool
    weight_bias: tuple[Floats, Floats] | None

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

    def linear(self, at: int) -> tuple[Floats, Floats] | None:
        """Return weight (J, D) and bias (J,) of the scores x @ weight.T + bias of predictions, None if they are not linear."""


class Path(Protocol):
    """The models of several sets of scans, for one penalty after another."""

    def coarse(self, at: Sequence[int], C: float) -> Sequence[Model]:
        """Return models of the sets at positions `at`, accurate enough to compare penalties; called with rising C."""

    def exact(self, at: Sequence[int], C: Sequence[float]) -> Sequence[Model]:
        """Return models of the sets at positions `at`, each with its own C."""


@dataclass(frozen=True)
class PenalisedModel:
    """A type of penalised model.

    Attributes:
        name, criterion: the model and its validation loss in words.
        task: the name of the task type, for strata.
        path: sets of training rows -> their `Path`.
        loss: (y, predictions, patient or None) -> validation loss.
        unit: what a row is, in words.
    """

    name: str
    criterion: str
    task: str
    path: Callable[[Sequence[Rows]], Path]
    loss: Callable[[NDArray[Any], Floats, NDArray[np.str_] | None], float]
    unit: str = "scans"


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
    fitted = sets
    if val is not None:
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
        where = f"validation {model.unit}"
    else:
        if who is None:
            raise ValueError("without validation scans the patients of the training scans are needed")
        held = [hold_out(y[rows], who[rows], seed, model.task) for rows in sets]
        fitted = [rows[~h] for rows, h in zip(sets, held, strict=True)]
        x_val, y_val, val_who = x, y, who
        validation = [rows[h] for rows, h in zip(sets, held, strict=True)]
        where = (
            f"{model.unit} of held-out training patients"
            if model.unit == "scans"
            else f"held-out training {model.unit}"
        )

    def loss(s: int, fit: Model, at: int) -> float:
        rows = validation[s]
        value = model.loss(y_val[rows], fit.predict(x_val[rows], at), None if val_who is None else val_who[rows])
        if np.isnan(value):
            raise UserError(
                f"cannot select the penalty of a linear model: no label of the {len(rows)} {where} is known"
            )
        return value

    path = model.path(fitted)
    losses = _losses(path, loss, len(sets), C)
    best = np.nanargmin(losses, 1)
    fits = (path if fitted is sets else model.path(sets)).exact(range(len(sets)), C[best].tolist())
    found = []
    for s, fit in enumerate(fits):
        b = best[s]
        how = model.name + ("" if subsets is None else f" on {len(sets[s])} {model.unit}")
        how += f", C = {C[b]:g} by {model.criterion} on {len(validation[s])} {where}"
        if len(C) > 1 and b in (0, len(C) - 1):
            how += ", at the end of the range tried"
        if not (converged := bool(fit.converged[0])):
            how += ", not converged"
        tried = [(float(c), float(v)) for c, v in zip(C, losses[s], strict=True) if not np.isnan(v)]
        predictions = [fit.predict(t, 0) for t in tests]
        value = losses[s, b] if val is None else loss(s, fit, 0)
        found.append(Probe(predictions, float(C[b]), float(value), tried, how, converged, fit.linear(0)))
    return found


def _losses(path: Path, loss: Callable[[int, Model, int], float], sets: int, C: Floats) -> Floats:
    """Return the validation losses (sets, P), nan for penalties that were not tried.

    A set is done after PATIENCE penalties in a row that are worse than its best one by more than the accuracy of the fits.
    """
    losses, worse = np.full((sets, len(C)), np.nan), np.zeros(sets, np.int64)
    for i, c in enumerate(C):
        live = [s for s in range(sets) if worse[s] < PATIENCE]
        if not live:
            break
        for s, fit in zip(live, path.coarse(live, float(c)), strict=True):
            before = np.nanmin(losses[s]) if i else np.inf
            losses[s, i] = loss(s, fit, 0)
            worse[s] = worse[s] + 1 if losses[s, i] > before + ACCURACY * abs(before) else 0
    return losses


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
