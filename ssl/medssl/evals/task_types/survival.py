"""Survival: a time, and whether the event occurred then or the patient was censored."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.evals.metrics import metrics
from medssl.evals.task_types.base import Mask, Names, Raw, Strata, TaskType, Y, by_rarest
from medssl.evals.task_types.columns import known, numbers, presence
from medssl.losses import target_losses
from medssl.losses.target_losses import TargetLoss


class Survival(TaskType):
    """y (N, 2) time above 0, and event 1 or censored 0; p (N,) risks, higher for earlier events.

    Its probe on frozen features is a Cox model, see `probes.cox`.
    """

    name = "survival"
    metrics = (metrics.CONCORDANCE,)
    columns = (2, 2)
    numeric = True
    ndim = 2

    def check_columns(self, columns: Sequence[str]) -> None:
        if len(columns) != 2:
            raise UserError(f"survival takes two columns, the time and the event, got {', '.join(columns)}")

    def read(self, raw: Sequence[Raw], columns: Names, names: Names, positive: Names) -> tuple[Y, Mask]:
        time, event = numbers(raw[0], columns[0]), presence(raw[1], columns[1], positive)
        there = known(raw[0]) & known(raw[1])
        if (bad := there & ~(time > 0)).any():
            raise UserError(f"{bad.sum()} scans have {columns[0]} of 0 or less; survival needs times above 0")
        return np.stack([time, np.nan_to_num(event)], 1), there

    def check_splits(self, y_train: Y, y_test: Y, target: str, names: Names) -> list[str]:
        if not y_train[:, 1].any():
            raise UserError(f"no training patient has the event of {target!r}; nothing can be fitted")
        return []

    def target_loss(self, y: Y, width: int) -> TargetLoss:
        return target_losses.survival()

    def strata(self, y: Y, at: NDArray[np.int64]) -> Strata:
        kinds = np.unique(y[:, 1])
        return by_rarest(y[:, 1:] == kinds, at, [f"event {k:g}" for k in kinds], len(kinds))
