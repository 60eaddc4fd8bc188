"""The interface of a type of task: how a target is read, scored, stratified, and predicted from frozen features."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Metric
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.columns import Raw
from medssl.evals.task_types.linear_target import LinearTarget
from medssl.evals.task_types.strata import Strata
from medssl.evals.task_types.votes import Votes
from medssl.losses.target_losses import TargetLoss

Rows = NDArray[np.bool_] | slice


class TaskType:
    """A type of task. `metrics.metrics` defines its y and p.

    Attributes:
        name: value of task=.
        metrics: computed for it; the first is the main one.
        linear_model: the linear probe in words; empty where there is none.
        least_squares: the linear model is fitted, and its penalty chosen, by squared error in place of cross-entropy.
        ndim: of y.
        columns: how many target columns it takes, lowest and highest.
        scored_by_class: AUROC is computed class by class, and scans of one class (or with a common finding) are relevant to
            each other in retrieval.
        can_balance: label subsets may have equal shares of every class.
    """

    name: str
    metrics: tuple[Metric, ...]
    linear_model = ""
    least_squares = False
    ndim = 1
    columns: tuple[int, float] = (1, 1)
    scored_by_class = False
    can_balance = False

    # targets

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise UserError for a number of columns that the task does not take."""
        if not self.columns[0] <= len(columns) <= self.columns[1]:
            raise UserError(f"task={self.name} takes one target, got {len(columns)}: {', '.join(columns)}")

    def names(self, columns: tuple[str, ...], raw: list[Any], positive: tuple[str, ...]) -> tuple[str, ...]:
        """Return the names of the columns of a prediction, from the known training values `raw` of the first column.

        () for numbers. Raises UserError for values that the task cannot be scored on.
        """
        return ()

    def read(
        self, raw: Sequence[Raw], columns: tuple[str, ...], names: tuple[str, ...], positive: tuple[str, ...]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values of each column, (N,) with None for unknown -> y (N, …) and a mask (N,) of the scans with a known target.

        y is undefined outside the mask. names: as `names` returns them. Raises UserError.
        """
        raise UserError(f"task={self.name} has no target column")

    def check_splits(self, y_train: NDArray[Any], y_test: NDArray[Any], target: str, names: Sequence[str]) -> list[str]:
        """Return warnings to be shown with the scores. Raises UserError when the metrics would be undefined."""
        return []

    def target_loss(self, y: NDArray[Any], width: int) -> TargetLoss:
        """Return the loss of a head trained on y (N, …), with `width` columns predicted."""
        raise UserError(f"nothing can be trained on task={self.name}")

    # label subsets

    def strata(self, y: NDArray[Any], at: NDArray[np.int64]) -> Strata:
        """Strata of the patients; at (N,) is each scan's patient, from 0."""
        raise ValueError(f"task {self.name!r} has no labels to draw")

    # linear probes

    def linear_y(self, y: NDArray[Any], which: str, classes: int | None) -> tuple[NDArray[Any], int]:
        """Return y (N, …) as the other methods take it, and the number of classes, findings or levels.

        which: "training" or "validation". Raises UserError for missing labels, ValueError for the wrong shape or values.
        """
        raise NotImplementedError

    def encode(self, y: NDArray[Any], classes: int) -> LinearTarget:
        """Return y for the linear model. Raises UserError when there is only one class or value."""
        raise NotImplementedError

    def validation_loss(self, y: NDArray[Any], p: Floats) -> float:
        """Return the loss that chooses the penalty."""
        raise NotImplementedError

    # kNN

    def vote(self, votes: Votes, y: NDArray[Any], classes: int | None) -> Floats:
        """Return the predictions of a kNN probe with training labels y."""
        raise UserError(f"a kNN probe does not fit task={self.name}; use medssl probe")

    # explanations

    def parts(self, y: NDArray[Any]) -> list[tuple[Rows, NDArray[Any]]]:
        """Return the categorical variables in y: rows of the scans with a known value, and their values."""
        return [(slice(None), y)]

    def mean_over_classes(
        self, f: Callable[..., Floats], y: NDArray[Any], p: Floats, w: Floats, *more: NDArray[np.int64]
    ) -> Floats:
        """Return the mean of `f` over classes, each against the rest, or over findings; see `metrics.weighted.one_vs_rest`."""
        raise NotImplementedError
