"""What linear models are fitted to: the labels of one set of scans as tensors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medssl.evals.metrics.weighted import Floats


@dataclass(frozen=True)
class LinearTarget:
    """Labels of n scans for T models that share them: T = 1, or one for each finding of a multilabel target.

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
