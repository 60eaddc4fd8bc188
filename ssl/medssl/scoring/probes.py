"""Probes of frozen features: linear (a Cox model for survival) and kNN; and the label budgets they are fitted on."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.probes.cox import cox_probes
from medssl.evals.probes.knn import knn_probe
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.label_subsets import draw_label_subsets, parse_budget
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource
from medssl.scoring.targets import Subset

PROBES = ("linear", "kNN")
ALL = "all"  # the budget of all labels
Subsets = dict[str, list[np.ndarray]]
"""Label budget -> positions of the training scans of each draw."""


def draw_subsets(
    splits: EvalSplits, budgets: Iterable[str | int | float] | str, draws: int, seed: int, balanced: bool = False
) -> Subsets:
    """Draw every budget of labelled training scans `draws` times; ALL has one draw.

    Draws of one seed are nested, keep patients whole and contain every class.
    """
    if draws < 1:
        raise UserError(f"draws must be at least 1, got {draws}")
    train = splits.train
    wanted = dict.fromkeys(parse_budget(b) for b in ([budgets] if isinstance(budgets, str) else budgets))
    if not wanted:
        raise UserError('label_budgets is empty; give "all", a share like "10 %" or a number of scans')
    options: dict[str, Any] = {"task": splits.target.task, "balanced": balanced}
    out: Subsets = {}
    for budget in wanted:
        if str(budget) == ALL:
            out[ALL] = [np.arange(len(train))]
        else:
            drawn = draw_label_subsets(train.y, train.patient, [budget], range(seed, seed + draws), **options)
            out[str(budget)] = [draw.rows for draw in drawn]
    return out


def count_scans(subsets: Subsets) -> dict[str, list[int]]:
    """Return the number of labelled scans in each draw of each budget."""
    return {budget: [len(rows) for rows in drawn] for budget, drawn in subsets.items()}


def linear(
    source: FeatureSource,
    splits: EvalSplits,
    tests: Sequence[Subset],
    *,
    subsets: Subsets | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[list[np.ndarray]]]:
    """Return predictions of linear probes, budget -> draw -> each of `tests`; validation patients choose the penalty."""
    train, val, target = splits.train, splits.val, splits.target
    x = source(train.store, train.rows)
    validation = (source(val.store, val.rows), val.y) if len(val) else None
    xs = [source(t.store, t.rows) for t in tests]
    options: dict[str, Any] = {"patient": train.patient, "seed": seed, "device": device}
    options["val_patient"] = val.patient if len(val) else None

    def fitted(drawn: list[np.ndarray] | None) -> list[list[np.ndarray]]:
        if target.kind.linear_model:
            classes = len(target.names) or None
            found = linear_probes(
                (x, train.y), validation, xs, task=target.task, classes=classes, subsets=drawn, **options
            )
        else:
            found = cox_probes((x, train.y), validation, xs, subsets=drawn, **options)
        return [p.predictions for p in found]

    subsets = {ALL: []} if subsets is None else subsets
    drawn = [rows for budget, each in subsets.items() if budget != ALL for rows in each]
    found = iter(fitted(drawn) if drawn else [])
    return {budget: fitted(None) if budget == ALL else [next(found) for _ in each] for budget, each in subsets.items()}


def nearest(source: FeatureSource, splits: EvalSplits, tests: Sequence[Subset], k: int = 20) -> list[np.ndarray]:
    """Return predictions for each of `tests` by the k most similar training scans of other patients."""
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    train, target = splits.train, splits.target
    x = source(train.store, train.rows)
    return [
        knn_probe(
            x,
            train.y,
            train.patient,
            source(t.store, t.rows),
            t.patient,
            target.width,
            min(k, len(x)),
            task=target.task,
        )
        for t in tests
    ]
