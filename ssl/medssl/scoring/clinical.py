"""The clinical meaning of a score: operating point, calibration, net benefit, and scores of subgroups of patients."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.stats.calibration import calibrate, reliability
from medssl.evals.stats.operating_point import decision_curve, operating_point
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import Subgroups, bands, by_subgroup
from medssl.evals.stats.text_table import Cell, text_table
from medssl.results import Result
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import values
from medssl.store.store import Store

AGES = (18, 40, 60, 75)  # years
GROUPS = ("sex", "age", "view", "scanner", "site")
"""Subgroups that are scored wherever a store has them."""
THRESHOLDS = (0.02, 0.05, *(k / 10 for k in range(1, 10)))  # threshold probabilities of the decision curve


def clinical_use(
    splits: EvalSplits,
    p_val: np.ndarray,
    p_test: np.ndarray,
    specificity: float,
    prevalences: Sequence[float],
    seed: int,
) -> Result:
    """Return operating point, PPV and NPV at `prevalences`, calibration and decision curve, for a target with two classes.

    Threshold and temperature are fitted on validation patients; `prevalence` is
    the share of positives in the test set. If that is not possible, the result has the reason.
    """
    val, test = splits.val, splits.test
    try:
        if not len(val):
            raise UserError("no validation scan has the label, and the threshold is chosen on those")
        point = operating_point(
            (val.y, p_val[:, 1]), (test.y, p_test[:, 1]), test.patient, specificity, prevalences, seed=seed
        )
        calibrated = calibrate((val.y, p_val), (test.y, p_test), test.patient, seed=seed)
    except UserError as e:
        return Result({"operating_point": None, "calibration": None, "why": str(e)}, f"no operating point: {e}")
    curve = reliability(test.y == 1, p_test[:, 1], test.patient, seed=seed)
    decisions = decision_curve(test.y, calibrated.p, test.patient, THRESHOLDS, seed=seed)
    temperature = calibrated.temperature
    columns = {
        "uncalibrated": calibrated.before,
        "temperature-scaled": calibrated.after,
        "difference": calibrated.change,
    }
    point_table = text_table([{"on the test set": name, "value": s} for name, s in point.scores.items()],
                        ["on the test set", "value"])  # fmt: skip
    lines: list[dict[str, Cell]] = [
        {"on the test set": name} | {column: found.get(name) for column, found in columns.items()}
        for name in calibrated.before
    ]
    return Result(
        {
            "prevalence": float((np.asarray(test.y) == 1).mean()),
            "operating_point": {"threshold": point.threshold, "how": point.how, "scores": _dicts(point.scores)},
            "calibration": {
                "temperature": temperature.value,
                "how": temperature.how,
                **{column.replace("-", "_"): _dicts(found) for column, found in columns.items()},
                "curve": [
                    {"low": b.low, "high": b.high, "predicted": b.predicted.as_dict(), "observed": b.observed.as_dict()}
                    for b in curve
                ],
            },
            "decision_curve": {
                "how": f"Probabilities are temperature-scaled; {decisions[0].model.how}",
                "curve": [
                    {"threshold": d.threshold, "model": d.model.as_dict(), "treat_all": d.treat_all.as_dict()}
                    | {"difference": d.gain.as_dict()}
                    for d in decisions
                ],
            },
        },
        f"operating point for {splits.target.names[1]!r}: {point.how}\n{point_table}\n\n"
        f"calibration: {temperature.how}, T = {temperature.value:.3g}\n{text_table(lines, ['on the test set', *columns])}",
    )


def subgroup_scores(splits: EvalSplits, p_test: np.ndarray, seed: int, wanted: Iterable[str] = GROUPS) -> Result:
    """Return the main metric in every subgroup of the test set, for the metadata that the store has."""
    metric, test, target = splits.target.kind.metrics[0], splits.test, splits.target
    found: dict[str, Subgroups] = {}
    for name in wanted:
        group = groups_of(test.store, test.rows, name)
        if group is not None and name not in target.columns and len({g for g in group if g}) >= 2:
            found[name] = by_subgroup(metric, test.y, p_test, test.patient, group, seed=seed)
    tables = [f"{metric.name} by {name}\n{_table(groups, name, metric.name)}" for name, groups in found.items()]
    return Result({"subgroups": {name: _described(groups) for name, groups in found.items()}}, "\n\n".join(tables))


def groups_of(store: Store, rows: np.ndarray, name: str) -> np.ndarray | None:
    """Return each scan's group by a metadata field, (N,), None where unknown; ages in bands. None if there is no such field."""
    try:
        raw = values(store, name)[rows]
    except UserError:
        return None
    if name == "age":
        return bands([np.nan if v is None else float(v) for v in raw], AGES, "years")
    return np.array([None if v is None else str(v) for v in raw], object)


def _table(found: Subgroups, name: str, metric: str) -> str:
    """Return a line per subgroup, then the gap."""
    lines: list[dict[str, Cell]] = [
        {name: g.name, "size": f"{g.n} scans of {g.patients} patients", metric: g.score, "": g.why}
        for g in found.groups
    ]
    if found.gap is not None:
        lines.append({name: f"{found.largest} minus {found.smallest}", metric: found.gap.score})
    columns = [name, "size", metric, *([""] if any(g.why for g in found.groups) else [])]
    return text_table(lines, columns) + (f"\n{found.why}" if found.why else "")


def _described(found: Subgroups) -> dict[str, Any]:
    """Return the groups as JSON values."""
    groups = [vars(g) | {"score": g.score.as_dict() if g.score else None} for g in found.groups]
    gap = found.gap.as_dict() if found.gap else None
    return {"groups": groups, "largest": found.largest, "smallest": found.smallest, "gap": gap, "why": found.why}


def _dicts(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: s.as_dict() for name, s in scores.items()}
