"""Writes a store in one pass, beside its place, and moves it there when it is whole."""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.scans.alias import Alias
from medssl.scans.scan import Scan, Unreadable
from medssl.store.intensity import RECIPES, check, resolve, window
from medssl.store.splits import SPLITS, assign
from medssl.store.store import DTYPES, SCHEMA, Store, content_hash, fingerprint, statistics

PACK = 64 << 20  # bytes of compressed images in one file
CHUNK, BLOCK = (64, 128, 128), (16, 32, 32)  # of a volume: a crop touches few chunks, a block fits the L1 cache
CODEC = {
    "codec": blosc2.Codec.LZ4,
    "clevel": 5,
    "filters": [blosc2.Filter.BITSHUFFLE],
    "filters_meta": [0],
    "nthreads": 1,  # the same bytes on every machine
}

Row = dict[str, Any]  # of the manifest
Join = Callable[[list[Row], list[str]], list[Row]]
Group = tuple[int, int]  # (spatial dimensions, channels): one store holds one
COLUMNS = {
    **dict.fromkeys(("scan", "patient", "study", "series"), pa.string()),
    "patient_known": pa.bool_(),
    **dict.fromkeys(("site", "scanner", "modality", "split"), pa.string()),
    "shape": pa.list_(pa.int32()),
    "spacing": pa.list_(pa.float32()),
    "affine": pa.list_(pa.float64()),
    "dtype": pa.string(),
    "file": pa.string(),
    "offset": pa.int64(),
    "length": pa.int64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "hash": pa.string(),
}


class StoreWriter:
    """`with StoreWriter(out, alias) as writer: writer.add(scan, path); writer.finish()`.

    Until `finish` returns nothing exists at `out` (or what was there before stays); leaving the block in any other way
    removes what was written.

    Args:
        out: the store's folder.
        alias: the project's pseudonyms; also decides the splits.
        recipe: the intensity window, a name in `intensity.RECIPES`.
        overwrite: replace a store at `out`.
    """

    def __init__(self, out: str | Path, alias: Alias, recipe: str = "auto", overwrite: bool = False):
        self.out, self.alias, self.recipe = Path(out).absolute(), alias, check(recipe)
        check_out(self.out, overwrite)
        self.part = self.out.with_name(f".{self.out.name}.{os.getpid()}.part")
        self.rows: list[Row] = []
        self.groups: list[Group] = []
        self.paths: list[str] = []  # relative to the source: never written, only joined with a table
        self.rejects: list[dict[str, str]] = []
        self.packs: dict[int, bytearray] = {}  # by channel count: images not yet in a file
        self.packed: Counter[int] = Counter()  # by channel count: files written

    def __enter__(self) -> "StoreWriter":
        with disk_errors(self.out):
            shutil.rmtree(self.part, ignore_errors=True)
            for left in self.out.parent.glob(f".{self.out.name}.*.part"):
                print(f"left over by a killed ingest, delete it unless one is running: {left}", file=sys.stderr)
            for folder in ("packs", "volumes"):
                (self.part / folder).mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def reject(self, relative_path: str, why: Unreadable) -> None:
        """Notes a file that is left out, under a pseudonym of its path."""
        self.rejects.append({"file": self.alias.alias("path", relative_path), "code": why.code, "reason": str(why)})

    def add(self, scan: Scan, relative_path: str) -> int:
        """Writes one scan and returns its row, as of now: rows of the rarer kind of scan are dropped at the end.

        Raises:
            Unreadable: when the array cannot be stored (EMPTY, NOT_FINITE).
            UserError: when the disk is full.
        """
        array = np.ascontiguousarray(scan.array, scan.array.dtype.newbyteorder("="))
        assert array.dtype.name in DTYPES, array.dtype
        assert array.ndim in {3, 4}, array.shape
        if array.size == 0:
            raise Unreadable("EMPTY", "it has no pixels")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise Unreadable("NOT_FINITE", "it has values that are not finite")
        low, high = window(scan, self.recipe)
        with disk_errors(self.out):
            file, offset, length = self._write_image(array) if array.ndim == 3 else self._write_volume(array)
        self.groups.append((array.ndim - 1, array.shape[0]))
        self.paths.append(relative_path)
        self.rows.append(
            {name: getattr(scan, name) for name in ("scan", "patient", "study", "series", "patient_known")}
            | {name: getattr(scan, name) for name in ("site", "scanner", "modality", "split")}
            | {
                "shape": array.shape,
                "spacing": scan.spacing,
                "affine": None if scan.affine is None else np.asarray(scan.affine, np.float64).ravel(),
                "dtype": array.dtype.name,
                "file": file,
                "offset": offset,
                "length": length,
                "low": low,
                "high": high,
                "hash": content_hash(array),
            }
            | {f"fact:{k}": v for k, v in scan.facts.items()}
            | {f"label:{k}": v for k, v in scan.labels.items()}
        )
        return len(self.rows) - 1

    def _write_image(self, array: np.ndarray) -> tuple[str, int, int]:
        channels = array.shape[0]
        pack = self.packs.setdefault(channels, bytearray())
        if len(pack) >= PACK:
            self._close_pack(channels)
            pack = self.packs[channels]
        record = blosc2.compress2(array, typesize=array.itemsize, **CODEC)
        pack += record
        return self._pack_name(channels), len(pack) - len(record), len(record)

    def _pack_name(self, channels: int) -> str:
        return f"packs/{channels}-channel-{self.packed[channels]:05d}.pack"

    def _close_pack(self, channels: int) -> None:
        _write(self.part / self._pack_name(channels), self.packs[channels])
        self.packs[channels] = bytearray()
        self.packed[channels] += 1

    def _write_volume(self, array: np.ndarray) -> tuple[str, int, int]:
        name = f"volumes/{len(self.rows):07d}.b2nd"
        chunks = (1, *map(min, CHUNK, array.shape[1:]))
        blocks = (1, *map(min, BLOCK, array.shape[1:]))
        packed = blosc2.asarray(
            array, chunks=chunks, blocks=blocks, cparams={"typesize": array.itemsize, **CODEC}, contiguous=True
        )
        _write(self.part / name, packed.to_cframe())
        return name, 0, 0

    def finish(self, join: Join | None = None) -> Store:
        """Settles splits and statistics, writes the manifest, moves the store to `out` and opens it.

        Args:
            join: given the rows and their paths, returns the rows with labels and whatever else a table says.

        Raises:
            UserError: when no scan is left, when a patient is in two given splits, or when the disk is full.
        """
        with disk_errors(self.out):
            for channels in self.packs:
                self._close_pack(channels)
            rows, paths = self._drop_rarer_kinds()
            table = self._table(join(rows, paths) if join else rows)
            info = self._info(table)
            draft = Store(self.part, info, table)
            info["mean"], info["std"] = statistics(draft)
            info["fingerprint"] = fingerprint(table)
            pq.write_table(table, self.part / "manifest.parquet", compression="zstd")
            _write(self.part / "rejects.jsonl", "".join(json.dumps(r) + "\n" for r in self.rejects).encode())
            _write(self.part / "store.json", (json.dumps(info, indent=1) + "\n").encode())
            _move(self.part, self.out)
        return Store.open(self.out)

    def _drop_rarer_kinds(self) -> tuple[list[Row], list[str]]:
        """One store, one dimensionality and one channel count: the most frequent; of equals, that with more voxels."""
        if not self.rows:
            raise UserError(f"none of the files can be used: {self._reasons()}; nothing was written to {self.out}")
        counts, voxels = Counter(self.groups), Counter[Group]()
        for row, group in zip(self.rows, self.groups, strict=True):
            voxels[group] += int(np.prod(row["shape"], dtype=np.int64))
        best = max(counts, key=lambda g: (counts[g], voxels[g]))
        rows, paths = [], []
        for row, group, path in zip(self.rows, self.groups, self.paths, strict=True):
            if group == best:
                rows.append(row)
                paths.append(path)
                continue
            (self.part / row["file"]).unlink(missing_ok=True)  # a pack holds one kind only
            if group[0] != best[0]:
                why = Unreadable("MIXED_DIMENSIONS", f"it is {group[0]}D, most of the others are {best[0]}D")
            else:
                why = Unreadable("MIXED_CHANNELS", f"it has {group[1]} channels, most of the others have {best[1]}")
            self.reject(path, why)
        return rows, paths

    def _reasons(self) -> str:
        counts = Counter((r["code"], r["reason"]) for r in self.rejects).most_common(3)
        return "; ".join(f"{n} × {code} ({reason})" for (code, reason), n in counts) or "there are none"

    def _table(self, rows: list[Row]) -> pa.Table:
        splits = assign([r["patient"] for r in rows], self.alias, [r["split"] for r in rows])
        rows = [row | {"split": split} for row, split in zip(rows, splits, strict=True)]
        extra = sorted({name for row in rows for name in row} - set(COLUMNS))
        columns = {name: pa.array([r[name] for r in rows], kind) for name, kind in COLUMNS.items()}
        for name in extra:
            values = [r.get(name) for r in rows]
            if name.startswith("fact:") and all(v is None or isinstance(v, int | float) for v in values):
                columns[name] = pa.array(values, pa.float64())
            else:
                columns[name] = pa.array([None if v is None else str(v) for v in values], pa.string())
        return pa.table(columns)

    def _info(self, table: pa.Table) -> dict[str, Any]:
        column = {c: table[c].to_pylist() for c in ("patient", "split", "hash", "modality")}
        modality = Counter(column["modality"]).most_common(1)[0][0]
        by_split = Counter(column["split"])
        people = Counter(split for _, split in set(zip(column["patient"], column["split"], strict=True)))
        copies = Counter(zip(column["hash"], column["split"], strict=True))
        return {
            "schema": SCHEMA,
            "dims": len(table["shape"][0]) - 1,
            "channels": table["shape"][0].as_py()[0],
            "modality": modality,
            "recipe": self.recipe,
            "intensity": RECIPES[resolve(self.recipe, modality)],
            "mean": 0.0,
            "std": 1.0,
            "counts": {
                "scans": table.num_rows,
                "patients": len(set(column["patient"])),
                "scans_by_split": {s: by_split[s] for s in SPLITS},
                "patients_by_split": {s: people[s] for s in SPLITS},
                "rejected": dict(sorted(Counter(r["code"] for r in self.rejects).items())),
            },
            # scans beyond the first with the same pixels in a split, and distinct images that are in several splits
            "duplicates": {
                "within": sum(n - 1 for n in copies.values()),
                "between": sum(n > 1 for n in Counter(h for h, _ in copies).values()),
            },
            "fingerprint": "",
            "key_id": self.alias.key_id,
            "created_by": created_by(),
        }


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError when `out` must not be written: it exists, and is not a store we were told to replace."""
    if not out.exists():
        return
    if not overwrite:
        raise UserError(f"{out} exists already; choose another out=, or replace it with overwrite=true")
    if not (out / "store.json").is_file():
        raise UserError(f"{out} is not a store, so it is not overwritten; choose another out=")


def created_by() -> str:
    """The program and its version, for the record."""
    try:
        return f"medssl {version('medssl')}"
    except PackageNotFoundError:
        return "medssl (from source)"


def _write(path: Path, data: bytes | bytearray) -> None:
    """To the disk, not only to its cache: a full disk must show before the store is moved to its place."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _move(part: Path, out: Path) -> None:
    """Renames `part` to `out`; an old store there steps aside first, and comes back if that fails."""
    if not out.exists():
        part.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
