"""Labels, facts or groups of training scans, for methods that learn from them."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from medssl import catalog
from medssl.errors import UserError
from medssl.losses.target_losses import TargetLoss
from medssl.methods.base import Method
from medssl.scoring.acquisition_metadata import fact_target
from medssl.scoring.targets import Target, resolve_target
from medssl.store.store import Store

GROUPS = ("patient", "study")
FACTS = ("predict", "unlearn")
"""Options that name a fact, for a constructor with the parameters `predict_loss` and `unlearn_loss`."""


@dataclass(frozen=True)
class PretrainTargets:
    """Labels or facts of training scans, if the method uses any.

    Attributes:
        rows: training rows of the store.
        target: the label columns, or None.
        given: extra arguments of the method's constructor: {"target_loss": …}, those of FACTS, or {}.
        facts: those that FACTS name, in their order; or empty.
    """

    store: Store
    rows: np.ndarray
    target: Target | None
    given: dict[str, Any]
    facts: tuple[Target, ...] = ()

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
        unknown: str | list[str] | None = None,
    ) -> "PretrainTargets":
        """Raise UserError if a target is given to a method that uses none, or missing for one that needs it.

        Also for facts that cannot be learnt from, as `fact_target` does, and for one that is named twice.
        """
        wants = catalog.takes(spec, "target_loss")
        if columns is None and catalog.takes(spec, "unlearn_loss") == "yes":
            names = [str(spec[option]) for option in FACTS]
            if names[0] == names[1]:
                raise UserError(f"method.predict and method.unlearn are both {names[0]}; name two facts")
            facts = tuple(fact_target(store, rows, name) for name in names)
            losses = {f"{option}_loss": _loss(store, rows, fact) for option, fact in zip(FACTS, facts, strict=True)}
            return cls(store, rows, None, losses, facts)
        if columns is None:
            if wants == "yes":
                raise UserError(f"{method} learns from labels; name the column with target=…, one of {store.labels}")
            return cls(store, rows, None, {"target_loss": None} if wants == "maybe" else {})
        if wants == "no":
            raise UserError(f"{method} does not learn from labels; leave out target")
        target = resolve_target(store, rows, columns, task, positive, unknown)
        return cls(store, rows, target, {"target_loss": _loss(store, rows, target)})

    def described(self) -> dict[str, Any] | None:
        """Return what determines the labels, for resolved.yaml: a run is not continued with other labels."""
        if self.facts:
            return {option: _describe(fact) for option, fact in zip(FACTS, self.facts, strict=True)}
        return None if self.target is None else _describe(self.target)

    def rows_of(self, method: Method) -> np.ndarray | None:
        """Return the targets that the method needs, by row of the store, or None.

        Unknown labels are -1 for integers and nan for floats, unknown facts nan.
        """
        if self.target is not None and method.target != "label":
            raise UserError(f"{type(method).__name__} with these options does not learn from labels; leave out target")
        if not method.target:
            return None
        if method.target == "facts" and self.facts:
            out = np.full((len(self.store), len(self.facts)), np.nan, np.float32)
            for i, fact in enumerate(self.facts):
                y, known = fact.read(self.store, self.rows)
                out[self.rows[known], i] = y[known]
            return out
        if method.target in GROUPS:
            return np.unique(self.store.column(method.target).astype(str), return_inverse=True)[1].astype(np.int64)
        if method.target != "label" or self.target is None:
            raise UserError(f"{type(method).__name__} needs {method.target!r}, and there is none; give target=…")
        y, known = self.target.read(self.store, self.rows)
        y[~known] = -1 if y.dtype.kind == "i" else np.nan
        out = np.zeros((len(self.store), *y.shape[1:]), y.dtype)
        out[self.rows] = y
        return out


def _loss(store: Store, rows: np.ndarray, target: Target) -> TargetLoss:
    y, known = target.read(store, rows)
    return target.kind.target_loss(y[known], target.width)


def _describe(t: Target) -> dict[str, Any]:
    described = {"columns": [*t.columns], "task": t.task, "names": [*t.names], "positive": [*t.positive]}
    return described | ({"unknown": [*t.unknown]} if t.unknown else {})
