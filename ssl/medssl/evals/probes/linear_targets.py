"""Checks of the features and labels that linear models are fitted to."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medssl.errors import UserError
from medssl.evals.metrics.weighted import Floats
from medssl.evals.task_types.base import TaskType


def checked(
    xy: tuple[ArrayLike, ArrayLike], which: str, task: TaskType, classes: int | None
) -> tuple[Floats, NDArray[Any], int]:
    """Return features (N, D) and labels as numbers, and the number of classes, findings or levels.

    Raises UserError for features that are not finite and for labels that are missing, ValueError for the wrong shape.
    """
    x, y = finite(xy[0], which), np.asarray(xy[1])
    if not task.linear_model:
        raise ValueError(f"there is no linear probe for {task.name}")
    if y.shape[:1] != x.shape[:1] or y.ndim != task.ndim:
        raise ValueError(f"needs labels of every {which} scan for {task.name}, got {y.shape} for {x.shape}")
    if y.dtype == object or not np.issubdtype(y.dtype, np.integer):
        y = y.astype(np.float64)
    return x, *task.linear_y(y, which, classes)


def finite(x: ArrayLike, which: str) -> Floats:
    """Return features as float64 (N, D). Raises UserError unless they are finite."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(
            f"the {which} features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?"
        )
    return x
