"""Probes of frozen features: linear (a Cox model for survival) and kNN; and the label budgets they are fitted on."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.probes.cox import cox_probes
from medssl.evals.probes.knn import knn_probe, unit
from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.model_selection import Probe
from medssl.evals.stats.label_subsets import draw_label_subsets, parse_budget
from medssl.files import digest
from medssl.runs.predictions import PredictedRow
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource, SideBySide
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


def describe_draws(splits: EvalSplits, subsets: Subsets, seed: int, trained: int | None = None) -> dict[str, str]:
    """Return, for each budget, its labelled scans in words with a digest: equal only if all draws are.

    seed: the seed of the draws. trained: how often networks are trained on ALL, each time with another seed; None for
    probes.
    """
    scan = splits.train.column("scan")
    out = {}
    for budget, drawn in subsets.items():
        n = trained if trained and budget == ALL else len(drawn)
        sizes = sorted({len(rows) for rows in drawn})
        text = f"{n} draws of " * (n > 1) + " to ".join(str(k) for k in sorted({sizes[0], sizes[-1]})) + " scans"
        if budget != ALL or trained or not len(splits.val):  # without validation scans, the seed holds some out
            text += f" with seed {seed}"
        out[budget] = f"{text} [{digest([sorted(scan[rows].tolist()) for rows in drawn], 3)}]"
    return out


def predicted_row(
    source: str,
    name: str,
    drawn: Sequence[Probe],
    budget: str = ALL,
    labelled: str = "",
    test: int = 0,
    val: int | None = None,
) -> PredictedRow:
    """Return the row of a linear probe from its fits on each draw of labels.

    labelled: see `PredictedRow.drawn`. test, val: the positions of the test and validation scans among the predictions.
    """
    validation = [] if val is None else [probe.predictions[val] for probe in drawn]
    fits = [probe.as_dict() for probe in drawn]
    return PredictedRow(source, name, [probe.predictions[test] for probe in drawn], budget, labelled, validation, fits)


def linear(
    source: FeatureSource,
    splits: EvalSplits,
    tests: Sequence[Subset],
    *,
    subsets: Subsets | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[Probe]]:
    """Return linear probes with predictions for `tests`, budget -> draw; validation patients choose the penalty."""
    train, val, target = splits.train, splits.val, splits.target
    blocks = source.blocks(train.store, train.rows) if isinstance(source, SideBySide) else []
    x = np.concatenate(blocks, axis=1) if blocks else source(train.store, train.rows)
    validation = (source(val.store, val.rows), val.y) if len(val) else None
    xs = [source(t.store, t.rows) for t in tests]
    options: dict[str, Any] = {"patient": train.patient, "seed": seed, "device": device}
    if blocks:
        options["blocks"] = [part.shape[1] for part in blocks]
    options["val_patient"] = val.patient if len(val) else None

    def fitted(drawn: list[np.ndarray] | None) -> list[Probe]:
        if not target.kind.linear_model:
            return cox_probes((x, train.y), validation, xs, subsets=drawn, **options)
        classes = len(target.names) or None
        return linear_probes((x, train.y), validation, xs, task=target.task, classes=classes, subsets=drawn, **options)

    subsets = {ALL: []} if subsets is None else subsets
    drawn = [rows for budget, each in subsets.items() if budget != ALL for rows in each]
    found = iter(fitted(drawn) if drawn else [])
    return {budget: fitted(None) if budget == ALL else [next(found) for _ in each] for budget, each in subsets.items()}


def nearest(source: FeatureSource, splits: EvalSplits, tests: Sequence[Subset], k: int = 20) -> list[np.ndarray]:
    """Return predictions for each of `tests` by the k most similar training scans of other patients."""
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    train, target = splits.train, splits.target

    def of(subset: Subset) -> np.ndarray:
        """Return the features; those side by side at length 1 each, so that a similarity is the mean of theirs."""
        if isinstance(source, SideBySide):
            return np.concatenate([unit(part) for part in source.blocks(subset.store, subset.rows)], axis=1)
        return source(subset.store, subset.rows)

    x = of(train)
    return [
        knn_probe(
            x,
            train.y,
            train.patient,
            of(t),
            t.patient_beside(train),
            target.width,
            min(k, len(x)),
            task=target.task,
        )
        for t in tests
    ]
