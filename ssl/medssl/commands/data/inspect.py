"""What is in a store, in words and numbers: on the terminal, as a dict, and as a sheet of pictures."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic, write_text
from medssl.readers.quality_flags import FLAGS
from medssl.readers.reject_codes import CODES
from medssl.reporting.contact_sheet import contact_sheet, evenly_spaced
from medssl.reporting.privacy import privacy_page
from medssl.reporting.text_table import aligned
from medssl.store.query import query_name
from medssl.store.splits import SPLITS
from medssl.store.store import Store

Rows = list[dict[str, Any]]
Column = Callable[[str], NDArray[Any]]  # of a store, by name
SHOWN = 8  # values of a column that are counted one by one
PERCENTILES = (0, 5, 50, 95, 100)
TILT = 0.1  # degrees between the slice step and the slices' normal that count as tilt


def inspect(
    store: str | Path,
    *,
    where: str | None = None,
    quarantined: bool = False,
    sheet: str | Path | None = None,
    privacy: str | Path | None = None,
) -> dict[str, Rows]:
    """Prints what a store holds, topic by topic, without any id; returns {topic: lines as dicts}.

    Args:
        store: the store.
        where: only the scans that satisfy it; see medssl.store.query.
        quarantined: also the scans that a human must look at before they train.
        sheet: a PNG file with pictures of at most 200 of the scans at even spacing. Captions are row numbers of
            Store.open(store, where=where, held=quarantined). Pictures of patients: keep the file where the scans may lie.
        privacy: an HTML file for an ethics board, about the whole store.

    Raises:
        UserError: `where` is wrong or selects nothing, or a file cannot be written.
    """
    every = Store.open(store, where=where, quarantined=True)
    if not (quarantined and len(every)) and not (every.column("held") == "").any():
        more = f"{len(every):,} are held: look at them with quarantined=true" if len(every) else "choose another where="
        raise UserError(f"no scan of {every.path} is selected; {more}")
    shown = every if quarantined else Store.open(store, where=where)
    topics = dict(_topics(shown, every))
    print(
        f"{every.path}: {len(shown):,} scans shown, {len(every) - len(shown):,} held back and not shown. "
        f"{every.info['fingerprint']}"
    )
    for name, rows in topics.items():
        print(f"\n{name}")
        print("\n".join(aligned(list(rows[0]), [list(row.values()) for row in rows])) if rows else "  none")
    if sheet:
        path = Path(sheet).expanduser()
        picture = contact_sheet(shown, evenly_spaced(len(shown)))
        with atomic(path) as part:
            picture.save(part, "PNG")
        print(f"\nsheet    {path}")
    if privacy:
        path = Path(privacy).expanduser()
        write_text(path, privacy_page(Store.open(store, quarantined=True)))
        print(f"\nprivacy  {path}")
    return topics


def _topics(shown: Store, every: Store) -> Iterator[tuple[str, Rows]]:
    column = cache(shown.column)
    kind = kinds(column)
    yield "scans", _scans(column, kind)
    yield "splits", [_people(column, column("split") == s, split=s) for s in SPLITS]
    yield (
        "spacing, mm",
        [
            {"kind": name, "axis": axis, "known": int(np.isfinite(v).sum())} | _percentiles(v)
            for name, axis, v in _by_axis(column, kind, "spacing", 0)
        ],
    )
    yield (
        "size, voxels",
        [{"kind": name, "axis": axis} | _percentiles(v) for name, axis, v in _by_axis(column, kind, "shape", 1)],
    )
    yield "intensity", _intensity(column, kind)
    yield "geometry", _geometry(column, shown.table.column_names)
    flags = _counted((f for found in column("flags") for f in found or ()), len(shown), "flag")
    yield "flags", [row | {"meaning": FLAGS.get(row["flag"], "")} for row in flags]
    yield "held back", _held(every)
    yield "duplicates", _duplicates(column, shown.info["duplicates"].get("near", 0))
    yield "grouping", [{"what": k, "value": v} for k, v in _flat(shown.info.get("grouping", {}))]
    yield "scanners", _counted((v or "not recorded" for v in column("scanner")), len(shown), "scanner")
    yield "sites", _counted((v or "not recorded" for v in column("site")), len(shown), "site")
    steps = (s.strip() for steps in _optional(shown, "fact:steps") if steps for s in steps.split(";"))
    yield "done to the pixels", _counted(steps, len(shown), "step")
    yield (
        "left out",
        [
            {"code": code, "files": n} | dict(zip(("meaning", "remedy"), CODES.get(code, ("", "")), strict=True))
            for code, n in sorted(shown.info["counts"]["rejected"].items(), key=lambda item: -item[1])
        ],
    )
    yield "columns", _columns(shown)


def kinds(column: Column) -> NDArray[Any]:
    """(N,) words such as "CT 3D" or "US 2D, 3 channels"."""
    names = {}
    out = np.empty(len(column("shape")), object)
    for i, (modality, shape) in enumerate(zip(column("modality"), column("shape"), strict=True)):
        key = (modality, len(shape), shape[0])
        if key not in names:
            names[key] = f"{modality or 'unknown'} {len(shape) - 1}D" + (
                f", {shape[0]} channels" if shape[0] > 1 else ""
            )
        out[i] = names[key]
    return out


def _scans(column: Column, kind: NDArray[Any]) -> Rows:
    dtype = column("dtype")
    rows = [
        _people(column, kind == k, kind=k) | {"types": ", ".join(sorted(set(dtype[kind == k])))} for k in _names(kind)
    ]
    if len(rows) > 1:
        rows.append(_people(column, np.ones(len(kind), bool), kind="all") | {"types": ""})
    return rows


def _people(column: Column, mask: NDArray[Any], **first: str) -> dict[str, Any]:
    counts: dict[str, Any] = {"scans": int(mask.sum())}
    for plural, one in (("patients", "patient"), ("studies", "study"), ("groups", "group")):
        counts[plural] = len(set(column(one)[mask]))
    return {**first, **counts, "patient unknown": int((mask & ~column("patient_known")).sum())}


def _names(values: NDArray[Any]) -> list[str]:
    """Distinct values, the most frequent first."""
    return [v for v, _ in sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))]


def _by_axis(
    column: Column, kind: NDArray[Any], name: str, skip: int
) -> Iterator[tuple[str, str, NDArray[np.float64]]]:
    """(kind, axis, values) with NaN where a value is missing."""
    values, shape = column(name), column("shape")
    for k in _names(kind):
        rows = np.flatnonzero(kind == k)
        dims = len(shape[rows[0]]) - 1
        for axis in range(dims):
            found = [np.nan if values[i] is None else values[i][skip + axis] for i in rows]
            yield k, "zyx"[3 - dims + axis], np.array(found, np.float64)


def _percentiles(values: NDArray[np.float64]) -> dict[str, float | None]:
    known = values[np.isfinite(values)]
    names = ("smallest", *(f"{p} %" for p in PERCENTILES[1:-1]), "largest")
    found = np.percentile(known, PERCENTILES).tolist() if len(known) else [None] * len(PERCENTILES)
    return dict(zip(names, found, strict=True))


def _intensity(column: Column, kind: NDArray[Any]) -> Rows:
    """Windows to the unit range, and what the pixels are there: every scan weighs the same."""
    rows = []
    low, high, mean, square = (column(c) for c in ("low", "high", "unit_mean", "unit_square"))
    for name in _names(kind):
        here = kind == name
        first, second = mean[here].mean(), square[here].mean()
        rows.append(
            {
                "kind": name,
                "low, median": float(np.median(low[here])),
                "high, median": float(np.median(high[here])),
                "windows": len(set(zip(low[here], high[here], strict=True))),
                "mean": float(first),
                "standard deviation": float(np.sqrt(max(second - first**2, 0.0))),
            }
        )
    return rows


def _geometry(column: Column, names: Sequence[str]) -> Rows:
    affine, spacing = column("affine"), column("spacing")
    placed = np.array([a is not None for a in affine], bool)
    measured = np.array([s is not None for s in spacing], bool)
    deep = np.array([len(s) == 4 for s in column("shape")], bool)
    rows = [
        {"what": "placed in space", "scans": int(placed.sum())},
        {"what": "voxel size known, place unknown", "scans": int((measured & ~placed).sum())},
        {"what": "neither known", "scans": int((~measured & ~placed).sum())},
    ]
    matrices = np.array([affine[i] for i in np.flatnonzero(placed & deep)], np.float64).reshape(-1, 4, 4)
    angles = tilts(matrices)
    if (tilted := angles > TILT).any():
        what = f"slices sheared by more than {TILT} degrees (gantry tilt), at most {angles.max():.1f}"
        rows.append({"what": what, "scans": int(tilted.sum())})
    if "fact:gap" in names:
        gaps = sum(v is not None for v in column("fact:gap"))
        rows.append({"what": "part of a stack with missing slices", "scans": gaps})
    return rows


def tilts(affines: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 4, 4) affines of (d, h, w) indices -> (N,) degrees between the slice step and the normal of the slices."""
    step = affines[:, :3, 0]
    normal = np.cross(affines[:, :3, 1], affines[:, :3, 2])
    sine = np.linalg.norm(np.cross(step, normal), axis=1)
    return np.degrees(np.arctan2(sine, np.abs((step * normal).sum(1))))


def _held(every: Store) -> Rows:
    held = every.column("held")
    rows = []
    for reason in _names(held[held != ""]):
        where = f"where='held == \"{reason}\"'"
        look = f"medssl inspect store={every.path} quarantined=true {where} sheet=look.png"
        rows.append(
            {
                "reason": reason,
                "scans": int((held == reason).sum()),
                "look at them, then release them": f"{look}; medssl release store={every.path} {where}",
            }
        )
    return rows


def _duplicates(column: Column, near: int) -> Rows:
    copies = Counter(zip(column("hash"), column("split"), strict=True))
    rows = [
        {
            "what": "scans whose pixels are there already, in the same split",
            "count": sum(copies.values()) - len(copies),
        },
        {"what": "images in more than one split", "count": len(copies) - len({h for h, _ in copies})},
    ]
    if near:
        rows.append({"what": "pairs that are nearly the same, in the whole store", "count": near})
    return rows


def _counted(values: Iterable[str], of: int, what: str) -> Rows:
    counts = Counter(values).most_common()
    rows = [{what: value, "scans": n, "share": f"{n / of:.1%}"} for value, n in counts[: 2 * SHOWN]]
    if rest := counts[2 * SHOWN :]:
        n = sum(n for _, n in rest)
        rows.append({what: f"{len(rest)} others", "scans": n, "share": f"{n / of:.1%}"})
    return rows


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for k, v in value.items():
        if isinstance(v, dict):
            yield from _flat(v, f"{prefix}{k} ")
        else:
            yield prefix + str(k), v


def _optional(store: Store, column: str) -> NDArray[Any]:
    return store.column(column) if column in store.table.column_names else np.empty(0, object)


def _columns(store: Store) -> Rows:
    """Facts and labels, then what else can stand in where=."""
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
