"""Does something in the pictures other than the disease predict the target by itself? A part of the audit.

Marks, text, borders, noise and the way of saving files are in no metadata. Each group of properties of the pictures, the ingest's
quality flags, and the pixels of the outer ring alone are given to a linear probe of the target. A group whose AUROC on test
scans lies above chance, with a 95 % interval that holds for all groups together (Bonferroni), is reported.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.explain.picture_properties import outer_ring, picture_properties
from medssl.evals.probes.linear import linear_probes
from medssl.evals.stats.bootstrap import score
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import Cell, text_table
from medssl.results import Result
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import Subset
from medssl.store.intensity_windows import to_unit_range
from medssl.store.resampled import resample_scans
from medssl.store.store import Store

OUTER_RING, FLAGS = "outer ring", "quality flags"
EDGE = 32  # pixels of the pictures whose outer ring is probed
LEVEL = 0.95
LIMIT = (
    "Only the properties listed here were tried: a mark inside the picture, or one that looks different in every scan, may be "
    "missed, and a disease that shows in the outer ring, in the size or in the sharpness is reported as well."
)
Groups = Mapping[str, np.ndarray]
"""Name -> numbers (N, K) of the scans of a split."""


def audit_pictures(splits: EvalSplits, seed: int, device: str) -> Result:
    """Return the AUROC of each group alone as a table, a sentence for each group above chance, and what was not tried."""
    target, main = splits.target, splits.target.kind.metrics[0]
    train, val, test = (groups_of(s) if len(s) else None for s in (splits.train, splits.val, splits.test))
    assert train is not None and test is not None  # noqa: PT018
    varying = [name for name, x in train.items() if (np.ptp(x, 0) > 0).any()]
    level = 1 - (1 - LEVEL) / max(1, len(varying))
    found: dict[str, Score] = {}
    left_out = {name: "the same in every training scan" for name in train if name not in varying}
    for name in varying:
        validation = None if val is None else (val[name], splits.val.y)
        options: dict[str, Any] = {"task": target.task, "classes": target.width, "seed": seed, "device": device}
        try:
            (probe,) = linear_probes(
                (train[name], splits.train.y), validation, [test[name]], patient=splits.train.patient, **options
            )
        except UserError as e:
            left_out[name] = str(e)
            continue
        found[name] = score(main, splits.test.y, probe.predictions[0], splits.test.patient, seed=seed, level=level)
    alarms = [name for name, s in found.items() if s.low > 0.5]
    lines = sentences(found, str(target), main.name)
    lines += [f"Not tried: {', '.join(f'{name} ({why})' for name, why in left_out.items())}."] if left_out else []
    rows: list[dict[str, Cell]] = [{"in the pictures": name, f"{main.name} alone": s} for name, s in found.items()]
    title = f"what in the pictures predicts {target} by itself; intervals hold for all {len(found)} lines together"
    table = f"{title}\n{text_table(rows, list(rows[0]))}\n\n" if rows else ""
    data = {
        "pictures": {name: s.as_dict() for name, s in found.items()},
        "picture_alarms": alarms,
        "picture_sentences": [*lines, LIMIT],
    }
    return Result(data, table + "\n".join([*lines, LIMIT]))


def sentences(found: Mapping[str, Score], target: str, metric: str) -> list[str]:
    """Return a sentence for each group that predicts the target, one for all others, and one for each without an interval."""
    unknown = [name for name, s in found.items() if np.isnan(s.low)]
    lines = [sentence(name, target, metric, s) for name, s in found.items() if s.low > 0.5]
    if not lines and (tried := [name for name in found if name not in unknown]):
        lines = [f"Nothing in the pictures that was tried predicts {target} by itself: {', '.join(tried)}."]
    for name in unknown:
        why = f"({metric} {found[name]}; {found[name].how})"
        lines.append(f"Whether the group {name} alone predicts {target} is neither shown nor excluded {why}.")
    return lines


def sentence(name: str, target: str, metric: str, found: Score) -> str:
    """Return what it means that a group of properties predicts the target by itself."""
    return (
        f"The {name} alone predicts {target} on test scans ({metric} {found}): a marker, text, border or scanner may give the "
        "label away; look at scans of both classes side by side."
    )


def groups_of(subset: Subset) -> dict[str, np.ndarray]:
    """Return the numbers (N, K) of every group for the scans of a split; a volume is judged by its middle slice."""
    store, rows = subset.store, subset.rows
    return properties_of(store, rows) | {FLAGS: _flags(store, rows), OUTER_RING: _ring(store, rows)}


def properties_of(store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the properties (N, K) of the pictures of the scans `rows`, group by group; see `picture_properties`."""
    low, high = store.column("low"), store.column("high")
    each: list[dict[str, list[float]]] = []
    for row in rows:
        scan = store[int(row)].astype(np.float32)
        picture = scan.mean(0) if store.dims == 2 else scan.mean(0)[scan.shape[1] // 2]
        each.append(picture_properties(to_unit_range(picture, low[row], high[row])))
    return {name: np.array([e[name] for e in each], np.float64) for name in each[0]}


def _flags(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return which of the store's quality flags each scan has (N, F); one column of zeros without any."""
    flags = [set(f) if f is not None else set() for f in store.column("flags")]
    names = sorted(set().union(*flags))
    return np.array([[float(name in flags[row]) for name in names] or [0.0] for row in rows], np.float64)


def _ring(store: Store, rows: np.ndarray) -> np.ndarray:
    """Return the pixels of the outer ring of every scan, resampled to EDGE (N, K)."""
    grid, ring = resample_scans(store, (EDGE,) * store.dims, None, False), outer_ring((EDGE, EDGE))
    out = []
    for row in rows:
        picture = to_unit_range(grid.array[row], grid.low[row], grid.high[row]).mean(0)
        out.append((picture if store.dims == 2 else picture[EDGE // 2])[ring])
    return np.array(out, np.float64)
