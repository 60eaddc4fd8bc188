"""What a method that learns from labels or groups is told of each scan during pretraining."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from medssl import catalog
from medssl.errors import UserError
from medssl.methods.base import Method
from medssl.scoring.targets import Target, resolve_target
from medssl.store.store import Store

GROUPS = ("patient", "study")


@dataclass(frozen=True)
class PretrainTargets:
    """Labels of training scans, where a method wants them. given: what its constructor takes, {"target_loss": …} or nothing."""

    store: Store
    rows: np.ndarray
    target: Target | None
    given: dict[str, Any]

    @classmethod
    def of(
        cls,
        store: Store,
        rows: np.ndarray,
        method: str,
        spec: dict[str, Any],
        columns: str | list[str] | None,
        task: str,
        positive: str | list[str] | None,
    ) -> "PretrainTargets":
        """Raises UserError when labels are asked for that a method does not take, or the other way round."""
        wants = catalog.takes(spec, "target_loss")
        if columns is None:
            if wants == "yes":
                raise UserError(f"{method} learns from labels; name the column with target=…, one of {store.labels}")
            return cls(store, rows, None, {"target_loss": None} if wants == "maybe" else {})
        if wants == "no":
            raise UserError(f"{method} learns from no labels; leave target out")
        target = resolve_target(store, rows, columns, task, positive)
        y, known = target.read(store, rows)
        return cls(store, rows, target, {"target_loss": target.kind.target_loss(y[known], target.width)})

    def described(self) -> dict[str, Any] | None:
        """For resolved.yaml: what decides the labels, so that a run does not go on with others."""
        if self.target is None:
            return None
        t = self.target
        return {"columns": [*t.columns], "task": t.task, "names": [*t.names], "positive": [*t.positive]}

    def rows_of(self, method: Method) -> np.ndarray | None:
        """What `method.target` asks for, by row of the store; scans whose label is unknown get -1, or nan in numbers."""
        if self.target is not None and method.target != "label":
            raise UserError(f"{type(method).__name__} with these options learns from no labels; leave target out")
        if not method.target:
            return None
        if method.target in GROUPS:
            return np.unique(self.store.column(method.target).astype(str), return_inverse=True)[1].astype(np.int64)
        if method.target != "label" or self.target is None:
            raise UserError(f"{type(method).__name__} asks for {method.target!r}, and there is none; see target=…")
        y, known = self.target.read(self.store, self.rows)
        y[~known] = -1 if y.dtype.kind == "i" else np.nan
        out = np.zeros((len(self.store), *y.shape[1:]), y.dtype)
        out[self.rows] = y
        return out
