"""The store: every scan as an array that reads fast, and one table that says what each is. Opening it runs nothing.

A folder with `store.json` (what it is), `manifest.parquet` (one row per scan), `packs/` (2D images, many to a file) and
`volumes/` (3D, one .b2nd file each). `rejects.jsonl` lists what was left out and why; `cache/` may always be deleted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import blosc2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError, nearest
from medssl.progress import track
from medssl.store.intensity import unit
from medssl.store.splits import SPLITS

if TYPE_CHECKING:
    from medssl.store.canvas import Canvas

SCHEMA = 1
SAMPLE = 2000  # scans the mean and the standard deviation are taken from
DTYPES = ("uint8", "int16", "uint16", "float32")


def content_hash(array: np.ndarray) -> str:
    """BLAKE2b-128 of dtype, shape and little-endian bytes: equal for equal images and nothing else."""
    h = hashlib.blake2b(f"{array.dtype.name}{array.shape}".encode(), digest_size=16)
    h.update(np.ascontiguousarray(array).data)
    return h.hexdigest()


def fingerprint(table: pa.Table) -> str:
    """BLAKE2b-128 over every row's content, ids, split, window, facts and labels, but not over where its bytes lie."""
    kept = [c for c in table.column_names if c not in {"file", "offset", "length"}]
    h = hashlib.blake2b(json.dumps([SCHEMA, kept]).encode(), digest_size=16)
    for batch in table.select(kept).to_batches(4096):
        h.update(json.dumps(batch.to_pylist(), sort_keys=True).encode())
    return h.hexdigest()


class Store:
    """`store[i]` is scan i as stored, (C, H, W) or (C, D, H, W), in physical values. Any number of workers may read.

    Attributes:
        path: the folder.
        info: store.json: schema, dims, channels, modality, recipe, mean and std of unit-range train pixels, counts, ….
        table: the manifest.
    """

    def __init__(self, path: Path, info: dict[str, Any], table: pa.Table):
        self.path, self.info, self.table = path, info, table

    @classmethod
    def open(cls, path: "str | Path | Store") -> "Store":
        """Reads the two files that describe a store. Raises UserError when they are missing or of another version."""
        if isinstance(path, Store):
            return path
        path = Path(path).expanduser()
        if not (path / "store.json").is_file():
            what = "is not a store (it has no store.json)" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; make one with: medssl ingest source=FOLDER out={path}")
        try:
            info = json.loads((path / "store.json").read_text())
            schema = info["schema"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path / 'store.json'} is damaged; ingest the scans again") from e
        if schema != SCHEMA:
            raise UserError(
                f"{path} was made by another version (its schema is {schema}, this version reads {SCHEMA}); "
                "ingest the scans again"
            )
        try:
            table = pq.read_table(path / "manifest.parquet").combine_chunks()
        except FileNotFoundError as e:
            raise UserError(f"{path / 'manifest.parquet'} is missing; copy the store or ingest the scans again") from e
        except (OSError, pa.ArrowException) as e:
            raise UserError(f"{path / 'manifest.parquet'} is damaged; ingest the scans again") from e
        if table.num_rows != info["counts"]["scans"]:
            raise UserError(f"{path}: store.json and manifest.parquet do not belong together; ingest the scans again")
        return cls(path, info, table)

    def __reduce__(self) -> tuple[Callable[[Path], "Store"], tuple[Path]]:
        return Store.open, (self.path,)  # a worker opens the store itself

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} scans, {self.info['dims']}D, {self.info['channels']} channels)"

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        """Scan `row` in its own dtype. Raises UserError when its bytes are missing or damaged."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store with {len(self)} scans")
        file, offset, length, shape, dtype = (self.table[c][int(row)].as_py() for c in _ADDRESS)
        path = self.path / file
        try:
            with path.open("rb", buffering=0) as f:
                f.seek(offset)
                data = f.read(length) if length else f.read()
            return _unpack(data, length, shape, dtype) if length else _volume(data, shape, dtype)
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
        except OSError:
            raise
        except Exception as e:  # a decoder on damaged bytes raises whatever it likes
            raise UserError(f"{path} is damaged at scan {row}; copy the store or ingest the scans again") from e

    def batch(self, rows: Iterable[int]) -> list[np.ndarray]:
        """The scans of `rows`, in that order; their shapes may differ."""
        return [self[int(i)] for i in rows]

    def column(self, name: str) -> np.ndarray:
        """One manifest column, (N,): numbers as they are, words and lists as objects (None where unknown).

        Raises UserError when there is no such column.
        """
        if name not in self.table.column_names:
            raise UserError(f"{self.path} has no column {name!r}.{nearest(name, self.table.column_names)}")
        values = self.table[name]
        if pa.types.is_primitive(values.type):
            return values.to_numpy()
        out = np.empty(len(self), dtype=object)
        out[:] = [tuple(v) if isinstance(v, list) else v for v in values.to_pylist()]
        return out

    @property
    def labels(self) -> list[str]:
        """Names of the labels; the values of NAME are `column("label:NAME")`."""
        return [c.removeprefix("label:") for c in self.table.column_names if c.startswith("label:")]

    @property
    def fingerprint(self) -> str:
        """One word for the content: equal for equal scans, ids, splits and labels under the same key."""
        return str(self.info["fingerprint"])

    def rows(self, split: str | None = None) -> np.ndarray:
        """Row numbers, int64, of a split or of all. Raises UserError when there is no such split."""
        if split is None:
            return np.arange(len(self))
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}.{nearest(split, SPLITS)}")
        return np.flatnonzero(self._split == split)

    @cached_property
    def _split(self) -> np.ndarray:
        return self.column("split")

    def canvas(self, size: int | Sequence[int], spacing: float | None = None) -> "Canvas":
        """Every scan resampled once onto one grid: see `medssl.store.canvas.canvas`."""
        from medssl.store.canvas import canvas

        return canvas(self, size, spacing)

    def verify(self) -> None:
        """Reads every scan and compares it with its hash. Raises UserError that counts the damaged ones."""
        if fingerprint(self.table) != self.fingerprint:
            raise UserError(
                f"{self.path / 'manifest.parquet'} was changed after it was written; ingest the scans again"
            )
        damaged = [row for row in track(range(len(self)), "verify", unit="scan") if not self._intact(row)]
        if damaged:
            raise UserError(
                f"{len(damaged)} of {len(self)} scans in {self.path} are damaged "
                f"(rows {', '.join(map(str, damaged[:5]))}{', …' if len(damaged) > 5 else ''}); "
                "copy the store or ingest the scans again"
            )

    def _intact(self, row: int) -> bool:
        try:
            return content_hash(self[row]) == self.table["hash"][row].as_py()
        except UserError:
            return False


def statistics(store: Store) -> tuple[float, float]:
    """Mean and standard deviation of train pixels in unit range, every scan weighing the same.

    Taken from at most SAMPLE scans, the ones with the smallest content hash; from all splits when nobody trains.
    """
    rows = store.rows("train")
    rows = rows if len(rows) else store.rows()
    rows = rows[np.argsort(store.column("hash")[rows], kind="stable")][:SAMPLE]
    low, high = store.column("low"), store.column("high")
    moments = np.zeros(2)
    for row in track(rows, "statistics", unit="scan"):
        x = unit(store[row], low[row], high[row])
        moments += x.mean(dtype=np.float64), np.square(x).mean(dtype=np.float64)
    mean, square = moments / len(rows)
    std = float(np.sqrt(max(square - mean**2, 0.0)))
    return float(mean), std if std > 1e-6 else 1.0


_ADDRESS = ("file", "offset", "length", "shape", "dtype")


def _unpack(data: bytes, length: int, shape: list[int], dtype: str) -> np.ndarray:
    """One record of a pack. Raises ValueError or RuntimeError when its length or its bytes are not right."""
    out = np.empty(shape, dtype)
    if len(data) != length or blosc2.get_cbuffer_sizes(data)[:2] != (out.nbytes, length):
        raise ValueError("wrong length")
    blosc2.decompress2(data, dst=out, nthreads=1)
    return out


def _volume(data: bytes, shape: list[int], dtype: str) -> np.ndarray:
    """One .b2nd file. Read from its bytes, because blosc2.open may rebuild (and so run) expressions saved in a file."""
    array = blosc2.ndarray_from_cframe(data)
    array.schunk.dparams = blosc2.DParams(nthreads=1)
    if list(array.shape) != shape or array.dtype != dtype:
        raise ValueError("wrong shape")
    return array[...]
