"""What reads frozen features, behind one signature: kNN, and the linear probe, which of survival is a Cox model."""

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
Subsets = dict[str, list[np.ndarray] | None]  # budget of labels -> the positions of each draw in training; None is all


def budgets(
    splits: EvalSplits, labels: Iterable[str | int | float] | str, n: int, seed: int, balanced: bool = False
) -> Subsets:
    """Budgets of labelled training scans, each drawn `n` times: nested, whole patients, every class; "all" is not drawn."""
    if n < 1:
        raise UserError(f"draws must be at least 1, got {n}")
    train = splits.train
    wanted = dict.fromkeys(parse_budget(b) for b in ([labels] if isinstance(labels, str) else labels))
    if not wanted:
        raise UserError('labels names no budget; give "all", a share like "10 %" or a number of scans')
    out: Subsets = {}
    for budget in wanted:
        if str(budget) == "all":
            out["all"] = None
        else:
            seeds = range(seed, seed + n)
            drawn = draw_label_subsets(
                train.y, train.patient, [budget], seeds, task=splits.target.task, balanced=balanced
            )
            out[str(budget)] = [draw.rows for draw in drawn]
    return out


def linear(
    source: FeatureSource,
    splits: EvalSplits,
    tests: Sequence[Subset],
    *,
    subsets: Subsets | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[list[np.ndarray]]]:
    """Budget -> draw -> predictions for each of `tests`; penalties by validation patients, see `evals.probes.linear`."""
    train, val, target = splits.train, splits.val, splits.target
    subsets = {"all": None} if subsets is None else subsets
    x = source(train.store, train.rows)
    chooses = (source(val.store, val.rows), val.y) if len(val) else None
    xs = [source(t.store, t.rows) for t in tests]
    drawn = [rows for each in subsets.values() if each is not None for rows in each]

    options: dict[str, Any] = {"patient": train.patient, "seed": seed, "device": device}
    options["val_patient"] = val.patient if len(val) else None

    def fitted(which: list[np.ndarray] | None) -> list[list[np.ndarray]]:
        data = (x, train.y), chooses, xs
        if target.task == "survival":
            probes = cox_probes(*data, subsets=which, **options)
        else:
            probes = linear_probes(*data, task=target.task, classes=len(target.names) or None, subsets=which, **options)
        return [p.predictions for p in probes]

    found = iter(fitted(drawn) if drawn else [])
    return {budget: fitted(None) if each is None else [next(found) for _ in each] for budget, each in subsets.items()}


def nearest(source: FeatureSource, splits: EvalSplits, tests: Sequence[Subset], k: int = 20) -> list[np.ndarray]:
    """Votes of the k most similar training scans, never of the same patient; predictions for each of `tests`."""
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    train, target = splits.train, splits.target
    x = source(train.store, train.rows)
    k = min(k, len(x))
    out = []
    for test in tests:
        asked = (x, train.y, train.patient, source(test.store, test.rows), test.patient)
        out.append(knn_probe(*asked, target.width, k, task=target.task))
    return out
