"""Probes that pool several vectors by learned attention: the positions of a scan, and the scans of a patient."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from medssl.errors import UserError, nearest
from medssl.evals.probes.attention_pooling import attention_probes
from medssl.evals.probes.model_selection import Probe
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.features import FeatureSource
from medssl.scoring.probes import ALL, Subsets, linear
from medssl.scoring.targets import Subset, Target


def attentive(
    source: FeatureSource,
    splits: EvalSplits,
    tests: Sequence[Subset],
    *,
    subsets: Subsets,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[Probe]]:
    """Return attentive probes of vectors (N, T, D) from `source`, as `linear` does.

    Raises UserError for a task without a linear model.
    """
    _check_attention(splits.target, "attentive")
    train, val = splits.train, splits.val
    x, *others = (source(part.store, part.rows) for part in (train, *([val] if len(val) else []), *tests))
    validation = (others[0], val.y) if len(val) else None
    options: dict[str, Any] = {"patient": train.patient, "val_patient": val.patient if len(val) else None}
    return _by_budget(
        "attentive", splits, (x, train.y), validation, others[len(val) > 0 :], subsets, seed, device, options
    )


def multiple_instance(
    source: FeatureSource,
    splits: EvalSplits,
    tests: Sequence[Subset],
    *,
    subsets: Subsets,
    seed: int = 0,
    device: str = "cpu",
) -> dict[str, list[Probe]]:
    """Return multiple-instance probes, as `linear` does: a patient's scans get one prediction, from all of them.

    Raises UserError for a task without a linear model, if all training patients have one scan, and if scans of a patient
    have different labels.
    """
    _check_attention(splits.target, "mil")
    train, val = splits.train, splits.val
    parts = [Bags.of(source, part) for part in (train, *([val] if len(val) else []), *tests)]
    bags, others = parts[0], parts[1:]
    if bags.x.shape[1] == 1:
        raise UserError(
            "probes=mil pools the scans of a patient, and every training patient has one; use probes=[linear]"
        )
    validation = (others[0].x, others[0].y) if len(val) else None
    options: dict[str, Any] = {"patient": bags.patient, "val_patient": others[0].patient if len(val) else None}
    by_patient = {budget: [np.unique(bags.at[rows]) for rows in drawn] for budget, drawn in subsets.items()}
    asked = others[len(val) > 0 :]
    found = _by_budget(
        "mil", splits, (bags.x, bags.y), validation, [b.x for b in asked], by_patient, seed, device, options
    )

    def by_scan(probe: Probe) -> Probe:
        predictions = [p[b.at] for p, b in zip(probe.predictions, asked, strict=True)]
        return replace(probe, predictions=predictions)

    return {budget: [by_scan(probe) for probe in each] for budget, each in found.items()}


@dataclass(frozen=True)
class Bags:
    """The scans of each of P patients.

    x (P, M, D): the features of each patient's scans, nan where there are fewer than M. y (P, …). patient (P,): as
    `Subset.patient`. at (N,): the patient of each scan.
    """

    x: np.ndarray
    y: np.ndarray
    patient: np.ndarray
    at: np.ndarray

    @classmethod
    def of(cls, source: FeatureSource, part: Subset) -> "Bags":
        """Raise UserError for patients whose scans have different labels."""
        ids = part.column("patient")
        _, first, at, counts = np.unique(ids, return_index=True, return_inverse=True, return_counts=True)
        y = part.y[first]
        same = (part.y == y[at]) | (np.isnan(part.y) & np.isnan(y[at]) if part.y.dtype.kind == "f" else False)
        differ = len(np.unique(at[~same.reshape(len(at), -1).all(1)]))
        if differ:
            raise UserError(
                f"probes=mil predicts one label per patient, and {differ} of {len(first)} patients have scans with "
                "different ones; use probes=[linear]"
            )
        features = source(part.store, part.rows)
        x = np.full((len(first), counts.max(), features.shape[1]), np.nan, np.float32)
        order = np.argsort(at, kind="stable")
        place = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)
        x[at[order], place] = features[order]
        return cls(x, y, part.patient[first], at)


def _check_attention(target: Target, name: str) -> None:
    if not target.kind.linear_model:
        raise UserError(f"probes={name} does not fit task={target.task}; use probes=[linear]")


def _by_budget(
    pooling: str,
    splits: EvalSplits,
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray] | None,
    tests: list[np.ndarray],
    subsets: Subsets,
    seed: int,
    device: str,
    options: dict[str, Any],
) -> dict[str, list[Probe]]:
    """Fit an attention probe on every draw of every budget."""
    shared: dict[str, Any] = {"task": splits.target.task, "width": splits.target.width, "seed": seed, "device": device}
    return {
        budget: attention_probes(
            pooling, train, val, tests, subsets=None if budget == ALL else each, **shared, **options
        )
        for budget, each in subsets.items()
    }


READERS = {"linear": linear, "attentive": attentive, "mil": multiple_instance}
"""The probes of `medssl probe` by name: (source, splits, tests, subsets, seed, device) -> label budget -> draws."""


def select_readers(names: Iterable[str] | str) -> list[str]:
    """Return the requested members of READERS, each once. Raises UserError for an unknown one, or for none."""
    wanted = list(dict.fromkeys([names] if isinstance(names, str) else names))
    for name in wanted:
        if name not in READERS:
            raise UserError(f"probes has {name!r}.{nearest(name, READERS)}")
    if not wanted:
        raise UserError(f"probes is empty; give {', '.join(READERS)}, or some of them")
    return wanted
