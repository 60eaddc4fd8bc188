"""The interface of a type of task: how a target is read, scored, stratified, and predicted from frozen features."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Metric
from medssl.evals.metrics.weighted import Floats
from medssl.losses.target_losses import TargetLoss

Y = NDArray[Any]
Mask = NDArray[np.bool_]
Rows = Mask | slice
Names = tuple[str, ...]
Raw = NDArray[np.object_]  # values of a column, None where unknown


@dataclass(frozen=True)
class LinearTarget:
    """Labels of n scans for T linear models that share them: T = 1, or one for each finding of a multilabel target.

    Attributes:
        predict: scores (N, J) of a fitted model -> predictions as the task's metrics take them.
        target: (n, T, J).
        weight: (n, T, J), or (n, T) for more than two classes: see `probes.linear_losses`.
        start: (T, J) intercepts of the prior.
        between: (J - 1,) shares of scans at the inner levels, or None.
        known: (T,) numbers of scans with a known label.
        outputs: M, columns of weights a model has.
    """

    predict: Callable[[Floats], Floats]
    target: Tensor
    weight: Tensor
    start: Tensor
    between: Tensor | None
    known: NDArray[np.int64]
    outputs: int


@dataclass(frozen=True)
class Strata:
    """Strata of P patients.

    stratum (P,): each patient's. shows (P, C) bool: which of C cells a patient's scans contain; a subset should contain all of
    them. cells: their names, such as "class 1".
    """

    stratum: NDArray[np.int64]
    shows: Mask
    cells: list[str]


def by_rarest(shows: Mask, at: NDArray[np.int64], cells: Sequence[str], marks: int) -> Strata:
    """Put each patient into the stratum of the rarest mark of their scans (fewest patients, then lowest column).

    shows (N, C): which cells a scan contains; the first `marks` of them define the strata, and patients with none of these have
    a stratum of their own. at (N,): each scan's patient, from 0. Cells that no scan contains are dropped.
    """
    of_patient = np.zeros((int(at.max()) + 1, shows.shape[1]), np.bool_)
    np.logical_or.at(of_patient, at, shows)
    rare_first = np.argsort(of_patient[:, :marks].sum(0), kind="stable")
    none = np.ones((len(of_patient), 1), np.bool_)
    place = np.concatenate([of_patient[:, rare_first], none], axis=1).argmax(1)
    there = np.flatnonzero(of_patient.any(0))
    return Strata(np.append(rare_first, marks)[place], of_patient[:, there], [cells[i] for i in there.tolist()])


@dataclass(frozen=True)
class Votes:
    """The k nearest neighbours of M test scans among N training scans.

    rows (M, k): training rows, -1 where there is no neighbour. weights (M, k): 0 where there is none. patient_train (N,),
    patient_test (M,): str.
    """

    rows: NDArray[np.int64]
    weights: Floats
    patient_train: NDArray[np.str_]
    patient_test: NDArray[np.str_]

    def shares(self, y: Y, classes: int) -> Floats:
        """Return each class's share of the votes, (M, classes); equal shares where there is no neighbour."""
        p = np.zeros((len(self.rows), classes))
        for c in range(classes):
            p[:, c] = (self.weights * (y[self.rows] == c)).sum(1)
        total = p.sum(1, keepdims=True)
        return np.divide(p, total, out=np.full_like(p, 1 / classes), where=total > 0)

    def mean(self, y: Floats) -> Floats:
        """y (N, L) with nan for unknown -> (M, L): the weighted mean over neighbours with a known y.

        Where no neighbour's y is known, the mean over the training scans of all other patients; nan where there are none.
        """
        known, filled = ~np.isnan(y), np.nan_to_num(y)
        names, at = np.unique(self.patient_train, return_inverse=True)
        # the last row stands for patients without a training scan
        own = np.zeros((2, len(names) + 1, y.shape[1]))
        np.add.at(own[0], at, filled)
        np.add.at(own[1], at, known)
        place = {name: i for i, name in enumerate(names.tolist())}
        mine = [place.get(p, -1) for p in self.patient_test.tolist()]
        total, count = own.sum(1)[:, None] - own[:, mine]
        p = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
        for i in range(y.shape[1]):
            w = self.weights * known[self.rows, i]
            weight = w.sum(1)
            np.divide((w * filled[self.rows, i]).sum(1), weight, out=p[:, i], where=weight > 0)
        return p


class TaskType:
    """A type of task. `metrics.metrics` defines its y and p.

    Attributes:
        name: value of task=.
        metrics: computed for it; the first is the main one.
        columns: the numbers of target columns it takes, lowest and highest.
        numeric: its first column holds numbers, perhaps with a unit.
        ndim: number of dimensions of y.
        linear_model: the linear probe in words; empty if there is none.
        least_squares: the linear model is fitted, and its penalty selected, by squared error in place of cross-entropy.
        scored_by_class: AUROC is computed class by class, and scans with a class or finding in common are relevant to each other
            in retrieval.
        can_balance: label subsets may have equal shares of every class.
    """

    name: str
    metrics: tuple[Metric, ...]
    columns: tuple[int, float] = (1, 1)
    numeric = False
    ndim = 1
    linear_model = ""
    least_squares = False
    scored_by_class = False
    can_balance = False

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise UserError for a number of columns that the task does not take."""
        if not self.columns[0] <= len(columns) <= self.columns[1]:
            raise UserError(f"task={self.name} takes one target, got {len(columns)}: {', '.join(columns)}")

    def names(self, columns: Names, raw: list[Any], positive: Names) -> Names:
        """Return the names of the columns of a prediction, from the known training values `raw` of the first column.

        () for numbers. Raises UserError for values that the task cannot be scored on.
        """
        return ()

    def read(self, raw: Sequence[Raw], columns: Names, names: Names, positive: Names) -> tuple[Y, Mask]:
        """Return y (N, …) and a mask (N,) of the scans with a known target; y is undefined outside the mask.

        raw: the values of each column. names: as `names` returns them. Raises UserError.
        """
        raise UserError(f"task={self.name} has no target column")

    def check_splits(self, y_train: Y, y_test: Y, target: str, names: Names) -> list[str]:
        """Return warnings to be shown with the scores. Raises UserError if the metrics would be undefined."""
        return []

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        """Return the loss of a head trained on y (N, …), with `width` columns predicted."""
        raise UserError(f"nothing can be trained on task={self.name}")

    def strata(self, y: Y, at: NDArray[np.int64]) -> Strata:
        """Return the strata of the patients; at (N,) is each scan's patient, from 0."""
        raise ValueError(f"task {self.name!r} has no labels to draw")

    def linear_y(self, y: Y, which: str, classes: int | None) -> tuple[Y, int]:
        """Return y as `encode` and `validation_loss` take it, and the number of classes, findings or levels.

        which: "training" or "validation". Raises UserError for missing labels, ValueError for the wrong shape or values.
        """
        raise NotImplementedError

    def encode(self, y: Y, classes: int) -> LinearTarget:
        """Return y for the linear model. Raises UserError if there is only one class or value."""
        raise NotImplementedError

    def validation_loss(self, y: Y, p: Floats) -> float:
        """Return the loss that selects the penalty of the linear model."""
        raise NotImplementedError

    def head_target(self, y: Y, width: int) -> tuple[str, Y]:
        """Return the name of the task, and y in its form, whose linear model has the scores of the head of `target_loss`."""
        return self.name, y

    def head(self, weight: Floats, bias: Floats, y: Y) -> tuple[Floats, Floats]:
        """Return the weight (outputs, D) and bias (outputs,) with which `target_loss` predicts what a linear model does.

        weight (J, D), bias (J,): of the model of `head_target`, see `model_selection.Probe`. y: the labels it is fitted on.
        """
        return weight, bias

    def vote(self, votes: Votes, y: Y, classes: int | None) -> Floats:
        """Return the predictions of a kNN probe with training labels y."""
        raise UserError(f"a kNN probe does not fit task={self.name}; use medssl probe")

    def parts(self, y: Y) -> list[tuple[Rows, Y]]:
        """Return the categorical variables in y: rows of the scans with a known value, and their values."""
        return [(slice(None), y)]

    def mean_over_classes(self, f: Callable[..., Floats], y: Y, p: Floats, w: Floats, *more: Y) -> Floats:
        """Return the mean of `f` over classes, each against the rest, or over findings; see `metrics.weighted.one_vs_rest`."""
        raise NotImplementedError
