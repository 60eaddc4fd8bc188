"""What a score would mean in use: an operating point, calibration, prevalences, and who it works less well for."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.stats.calibration import calibrate, reliability
from medssl.evals.stats.operating_point import operating_point
from medssl.evals.stats.score import Score
from medssl.evals.stats.subgroups import Subgroups, bands, by_subgroup
from medssl.evals.stats.text_table import text_table
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import Subset, values

AGES = (18, 40, 60, 75)  # years
GROUPS = ("sex", "age", "view", "scanner", "site")  # looked at wherever a store knows them


def in_use(
    splits: EvalSplits,
    p_val: np.ndarray,
    p_test: np.ndarray,
    specificity: float,
    prevalences: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    """Of two classes: prints and returns the operating point, PPV and NPV at `prevalences`, and calibration.

    Threshold and temperature are fitted on the validation patients. Where there are none, or no positive or no negative one, it
    says so instead.
    """
    val, test = splits.val, splits.test
    try:
        point = operating_point(
            (val.y, p_val[:, 1]), (test.y, p_test[:, 1]), test.patient, specificity, prevalences, seed=seed
        )
        cooled = calibrate((val.y, p_val), (test.y, p_test), test.patient, seed=seed)
    except UserError as e:
        print(f"\nno operating point: {e}")
        return {"operating": None, "calibration": None, "why": str(e)}
    print(f"\noperating point of {splits.target.names[1]!r}: {point.how}")
    print(text_table([{"of the test": name, "value": s} for name, s in point.scores.items()], ["of the test", "value"]))
    print(f"\ncalibration: {cooled.temperature.how}, T = {cooled.temperature.value:.3g}")
    lines: list[dict[str, str | Score | None]] = [
        {"of the test": name, "as it is": s, "after T": cooled.after[name], "change": cooled.change.get(name)}
        for name, s in cooled.before.items()
    ]
    print(text_table(lines, ["of the test", "as it is", "after T", "change"]))
    curve = reliability(test.y == 1, p_test[:, 1], test.patient, seed=seed)
    return {
        "operating": {"threshold": point.threshold, "how": point.how, "scores": _dicts(point.scores)},
        "calibration": {
            "temperature": cooled.temperature.value,
            "how": cooled.temperature.how,
            **{k: _dicts(getattr(cooled, k)) for k in ("before", "after", "change")},
            "curve": [
                {"low": b.low, "high": b.high, "predicted": b.predicted.as_dict(), "observed": b.observed.as_dict()}
                for b in curve
            ],
        },
    }


def for_whom(splits: EvalSplits, p_test: np.ndarray, seed: int, wanted: Iterable[str] = GROUPS) -> dict[str, Any]:
    """Prints and returns the first metric in every subgroup of the test that the store knows of."""
    out: dict[str, Any] = {}
    metric, test = splits.target.kind.metrics[0], splits.test
    for name in wanted:
        group = groups_of(test, name)
        if group is None or name in splits.target.columns or len({g for g in group if g}) < 2:
            continue
        found = by_subgroup(metric, test.y, p_test, test.patient, group, seed=seed)
        print(f"\n{metric.name} by {name}")
        print(subgroup_table(found, name, metric.name))
        out[name] = described(found)
    return out


def groups_of(part: Subset, name: str) -> np.ndarray | None:
    """(N,) words of a fact for each scan, None where unknown, ages in bands; None when the store does not know the fact."""
    try:
        raw = values(part.store, name)[part.rows]
    except UserError:
        return None
    if name == "age":
        return bands([np.nan if v is None else float(v) for v in raw], AGES, "years")
    return np.array([None if v is None else str(v) for v in raw], object)


def subgroup_table(found: Subgroups, name: str, metric: str) -> str:
    """A line per subgroup, and the gap."""
    lines: list[dict[str, str | Score | None]] = [
        {name: g.name, "has": f"{g.n} scans of {g.patients} patients", metric: g.score, "": g.why} for g in found.groups
    ]
    if found.gap is not None:
        lines.append({name: f"{found.largest} less {found.smallest}", metric: found.gap.score})
    columns = [name, "has", metric, *([""] if any(g.why for g in found.groups) else [])]
    return text_table(lines, columns) + (f"\n{found.why}" if found.why else "")


def described(found: Subgroups) -> dict[str, Any]:
    """For JSON."""
    groups = [
        {
            "name": g.name,
            "n": g.n,
            "patients": g.patients,
            "score": g.score.as_dict() if g.score else None,
            "why": g.why,
        }
        for g in found.groups
    ]
    gap = found.gap.as_dict() if found.gap else None
    return {"groups": groups, "largest": found.largest, "smallest": found.smallest, "gap": gap, "why": found.why}


def _dicts(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: s.as_dict() for name, s in scores.items()}
