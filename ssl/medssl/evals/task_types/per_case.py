"""One number per case, such as its Dice; no labels are read."""

from medssl.evals.metrics import metrics
from medssl.evals.task_types.base import TaskType


class PerCase(TaskType):
    """y (N,) anything, not used; p (N,) one number per case."""

    name = "per_case"
    metrics = (metrics.MEAN,)
