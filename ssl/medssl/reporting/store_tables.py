"""Tables about a store: counts, geometry, intensity, metadata and labels, without any identifier."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.readers.quality_flags import FLAGS
from medssl.readers.reject_codes import CODES
from medssl.store.manifest_columns import MASK
from medssl.store.query import query_name
from medssl.store.splits import SPLITS
from medssl.store.store import Store

Rows = list[dict[str, Any]]
Column = Callable[[str], NDArray[Any]]  # name -> values
SHOWN = 8  # values of a column that are counted individually
QUANTILES = {"smallest": 0, "5 %": 5, "50 %": 50, "95 %": 95, "largest": 100}
TILT = 0.1  # degrees between the slice step and the slice normal that count as tilt


def store_tables(shown: Store, every: Store) -> dict[str, Rows]:
    """Return title -> rows.

    Args:
        shown: the selected scans.
        every: the same with quarantined scans.
    """
    column = cache(shown.column)
    kinds = _kinds(column)
    names = shown.table.column_names
    flags = _counted((f for found in column("flags") for f in found or ()), len(shown), "flag")
    steps = column("fact:steps") if "fact:steps" in names else ()
    rejected = sorted(shown.info["counts"]["rejected"].items(), key=lambda item: -item[1])
    return {
        "scans": _scans(column, kinds),
        "splits": [_counts(column, column("split") == s, split=s) for s in SPLITS],
        "spacing, mm": _per_axis(column, kinds, "spacing"),
        "size, voxels": _per_axis(column, kinds, "shape"),
        "intensity": _intensity(column, kinds),
        "geometry": _geometry(column, "fact:gap" in names),
        "flags": [row | {"meaning": FLAGS.get(row["flag"], "")} for row in flags],
        "quarantined": _quarantined(every),
        "duplicates": _duplicates(column, shown.info["duplicates"].get("near", 0)),
        "grouping": [{"what": k, "value": v} for k, v in _flat(shown.info.get("grouping", {}))],
        "scanners": _counted((v or "not recorded" for v in column("scanner")), len(shown), "scanner"),
        "sites": _counted((v or "not recorded" for v in column("site")), len(shown), "site"),
        "pixel processing": _counted((s.strip() for v in steps if v for s in v.split(";")), len(shown), "step"),
        "left out": [
            {"code": code, "files": n} | dict(zip(("meaning", "remedy"), CODES.get(code, ("", "")), strict=True))
            for code, n in rejected
        ],
        "columns": _columns(shown),
    }


def _kinds(column: Column) -> dict[str, NDArray[np.bool_]]:
    """Return the kinds of scans, such as "CT 3D" or "US 2D, 3 channels" -> (N,) mask, the most frequent first."""
    out = np.empty(len(column("shape")), object)
    for i, (modality, shape) in enumerate(zip(column("modality"), column("shape"), strict=True)):
        channels = f", {shape[0]} channels" if shape[0] > 1 else ""
        out[i] = f"{modality or 'unknown'} {len(shape) - 1}D{channels}"
    return {kind: out == kind for kind in _by_frequency(out)}


def _by_frequency(values: Iterable[str]) -> list[str]:
    return [v for v, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]


def _scans(column: Column, kinds: Mapping[str, NDArray[np.bool_]]) -> Rows:
    dtype = column("dtype")
    rows = [_counts(column, here, kind=k) | {"types": ", ".join(sorted(set(dtype[here])))} for k, here in kinds.items()]
    return rows if len(rows) == 1 else [*rows, _counts(column, dtype != "", kind="all") | {"types": ""}]


def _counts(column: Column, mask: NDArray[np.bool_], **first: str) -> dict[str, Any]:
    plurals = {"patients": "patient", "studies": "study", "groups": "group"}
    counts = {plural: len(set(column(one)[mask])) for plural, one in plurals.items()}
    unknown = int((mask & ~column("patient_known")).sum())
    return {**first, "scans": int(mask.sum()), **counts, "patient unknown": unknown}


def _per_axis(column: Column, kinds: Mapping[str, NDArray[np.bool_]], name: str) -> Rows:
    """Return quantiles of the spacing, or of the shape, along each axis."""
    rows = []
    for kind, here in kinds.items():
        dims = len(column("shape")[here][0]) - 1
        values = [(np.nan,) * dims if v is None else v[-dims:] for v in column(name)[here]]
        for axis, v in zip("zyx"[3 - dims :], np.array(values, np.float64).T, strict=True):
            known = v[np.isfinite(v)]
            found = np.percentile(known, [*QUANTILES.values()]).tolist() if len(known) else [None] * len(QUANTILES)
            count = {"known": len(known)} if name == "spacing" else {}
            rows.append({"kind": kind, "axis": axis} | count | dict(zip(QUANTILES, found, strict=True)))
    return rows


def _intensity(column: Column, kinds: Mapping[str, NDArray[np.bool_]]) -> Rows:
    """Return the windows, and the mean and standard deviation in the unit range, with equal weight for every scan."""
    rows = []
    low, high, mean, square = (column(c) for c in ("low", "high", "unit_mean", "unit_square"))
    for kind, here in kinds.items():
        first, second = mean[here].mean(), square[here].mean()
        rows.append(
            {
                "kind": kind,
                "low, median": float(np.median(low[here])),
                "high, median": float(np.median(high[here])),
                "windows": len(set(zip(low[here], high[here], strict=True))),
                "mean": float(first),
                "standard deviation": float(np.sqrt(max(second - first**2, 0.0))),
            }
        )
    return rows


def _geometry(column: Column, gaps: bool) -> Rows:
    affine, spacing = column("affine"), column("spacing")
    placed = np.array([a is not None for a in affine], bool)
    measured = np.array([s is not None for s in spacing], bool)
    volume = np.array([len(s) == 4 for s in column("shape")], bool)
    counts = {
        "position in space known": placed,
        "voxel size known, position unknown": measured & ~placed,
        "neither known": ~measured & ~placed,
    }
    angles = tilts(np.array([affine[i] for i in np.flatnonzero(placed & volume)], np.float64).reshape(-1, 4, 4))
    if (tilted := angles > TILT).any():
        counts[f"slices sheared by more than {TILT} degrees (gantry tilt), at most {angles.max():.1f}"] = tilted
    if gaps:
        counts["part of a stack with missing slices"] = np.array([v is not None for v in column("fact:gap")])
    return [{"what": what, "scans": int(mask.sum())} for what, mask in counts.items()]


def tilts(affines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (N,) degrees between the slice step and the slice normal, from (N, 4, 4) affines of (d, h, w) indices."""
    step = affines[:, :3, 0]
    normal = np.cross(affines[:, :3, 1], affines[:, :3, 2])
    sine = np.linalg.norm(np.cross(step, normal), axis=1)
    return np.degrees(np.arctan2(sine, np.abs((step * normal).sum(1))))


def _quarantined(every: Store) -> Rows:
    held = every.column("held")
    rows = []
    for reason in _by_frequency(held[held != ""]):
        where, store = f"where='held == \"{reason}\"'", shlex.quote(f"store={every.path}")
        action = f"medssl inspect {store} quarantined=true {where} sheet=look.png"
        action += (
            "; never released, as a mask belongs to its image"
            if reason == MASK
            else f"; medssl release {store} {where}"
        )
        rows.append({"reason": reason, "scans": int((held == reason).sum()), "look at them, then release them": action})
    return rows


def _duplicates(column: Column, near: int) -> Rows:
    copies = Counter(zip(column("hash"), column("split"), strict=True))
    counts = {
        "scans with the pixels of another scan in the same split": sum(copies.values()) - len(copies),
        "images in more than one split": len(copies) - len({h for h, _ in copies}),
    }
    counts |= {"pairs of nearly identical images, in the whole store": near} if near else {}
    return [{"what": what, "count": n} for what, n in counts.items()]


def _counted(values: Iterable[str], total: int, name: str) -> Rows:
    counts = Counter(values).most_common()
    if rest := counts[2 * SHOWN :]:
        counts = [*counts[: 2 * SHOWN], (f"{len(rest)} others", sum(n for _, n in rest))]
    return [{name: value, "scans": n, "share": f"{n / total:.1%}"} for value, n in counts]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for k, v in value.items():
        yield from _flat(v, f"{prefix}{k} ") if isinstance(v, dict) else [(f"{prefix}{k}", v)]


def _columns(store: Store) -> Rows:
    """Return the labels, then the metadata fields, that can be used in where=."""
    rows = []
    for name in store.table.column_names:
        kind, colon, short = name.partition(":")
        if not colon or name == "fact:steps":
            continue
        values = store.column(name)
        if pa.types.is_floating(store.table.schema.field(name).type):
            known = values[np.isfinite(values)]
            about = f"{known.min():g} to {known.max():g}, median {np.median(known):g}" if len(known) else ""
        else:
            known = [v for v in values if v]
            top = Counter(known).most_common()
            about = ", ".join(f"{v} {n:,}" for v, n in top[:SHOWN])
            about += f" and {len(top) - SHOWN} others" if len(top) > SHOWN else ""
        rows.append({"kind": kind, "name": query_name(short), "known": len(known), "values": about})
    return sorted(rows, key=lambda row: (row["kind"] != "label", row["name"]))
