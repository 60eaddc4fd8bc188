"""The types of task, by the name that task= takes."""

from medssl.errors import UserError, nearest
from medssl.evals.task_types.base import TaskType
from medssl.evals.task_types.classification import Classification
from medssl.evals.task_types.multilabel import Multilabel
from medssl.evals.task_types.ordinal import Ordinal
from medssl.evals.task_types.per_case import PerCase
from medssl.evals.task_types.regression import Regression
from medssl.evals.task_types.survival import Survival

TASK_TYPES: dict[str, TaskType] = {
    t.name: t for t in (Classification(), Multilabel(), Ordinal(), Regression(), Survival(), PerCase())
}
RENAMED = {"classes": "classification", "labels": "multilabel", "value": "regression", "cases": "per_case"}


def task_type(name: str) -> TaskType:
    """Return the task type called `name`. Raises UserError for an unknown or renamed one."""
    if name in RENAMED:
        raise UserError(f"task={name} is now task={RENAMED[name]}")
    if name not in TASK_TYPES:
        raise UserError(f"task is {name!r}.{nearest(name, ['auto', *TASK_TYPES])}")
    return TASK_TYPES[name]
