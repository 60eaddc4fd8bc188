"""One number per case, such as its Dice; no labels are read."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.evals.metrics import metrics
from medssl.evals.task_types.base import Strata, TaskType
from medssl.evals.task_types.regression import Regression


class PerCase(TaskType):
    """y (N,) a number for stratified label subsets, such as the size of a mask; p (N,) one number per case."""

    name = "per_case"
    metrics = (metrics.MEAN,)

    def strata(self, y: NDArray[Any], at: NDArray[np.int64]) -> Strata:
        """Fifths of y, as for regression."""
        return Regression().strata(y, at)
