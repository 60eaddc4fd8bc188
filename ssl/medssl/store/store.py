"""The store: every scan as an array that reads fast, and one table that says what each is. Opening it runs nothing.

A folder with `store.json` (what it is), `manifest.parquet` (one row per scan), `packs/` (2D images, many to a file) and
`volumes/` (3D, one file each). `rejects.jsonl` lists what was left out and why, `ledger.sqlite` lets the next ingest
read only what is new, `released.json` names the scans a human has let in; `cache/` may always be deleted.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.errors import UserError, nearest
from medssl.progress import track
from medssl.store.chunks import read_crop, read_overview, unpack
from medssl.store.intensity import INTENSITIES, resolve_intensity
from medssl.store.query import select
from medssl.store.schema import MASK, content_hash
from medssl.store.splits import SPLITS

SCHEMA_VERSION = 3


def fingerprint(table: pa.Table) -> str:
    """BLAKE2b-128 over every row's content, ids, split, window, facts and labels, but not over where its bytes lie."""
    kept = [c for c in table.column_names if c not in {"file", "offset", "length"}]
    h = hashlib.blake2b(json.dumps([SCHEMA_VERSION, kept]).encode(), digest_size=16)
    for batch in table.select(kept).to_batches(4096):
        h.update(json.dumps(batch.to_pylist(), sort_keys=True).encode())
    return h.hexdigest()


def read_array(folder: Path, row: Mapping[str, Any]) -> np.ndarray:
    """The array of one row of a manifest. Raises UserError when its bytes are missing or damaged."""
    path = folder / row["file"]
    try:
        with path.open("rb", buffering=0) as f:
            f.seek(row["offset"])
            data = f.read(row["length"]) if row["length"] else f.read()
        return unpack(data, row["shape"], row["dtype"])
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e


class Store:
    """`store[i]` is scan i as stored, (C, H, W) or (C, D, H, W), in physical values. Any number of workers may read.

    Scans that a human should look at first (`held`) are left out unless asked for; `where` selects among the others.

    Attributes:
        path: the folder.
        info: store.json: schema, recipe, key_id, counts, duplicates, grouping, fingerprint (of the whole), created_by.
        table: the manifest's rows of the selection.
        where, held: the selection.
    """

    def __init__(
        self, path: Path, info: dict[str, Any], table: pa.Table, where: str | None = None, quarantined: bool = False
    ):
        self.path, self.info, self.where, self.quarantined = path, info, where, quarantined
        self.total = table.num_rows
        self._masks = table.filter(pc.equal(table["held"], MASK)).select(["scan", *_ADDRESS])  # whatever is selected
        if not quarantined:
            table = table.filter(pc.equal(table["held"], ""))
        if where is not None:
            table = table.take(select(table, where))
        self.table = table.combine_chunks()

    @classmethod
    def open(cls, path: "str | Path | Store", where: str | None = None, quarantined: bool = False) -> "Store":
        """Reads the two files that describe a store.

        Args:
            path: its folder. A Store is returned as it is, unless `where` or `held` ask for another selection of it.
            where: which scans, in the language of `medssl.store.query`.
            held: also those that nobody has released yet.

        Raises:
            UserError: when they are missing or of another version, or the selection is empty or cannot be understood.
        """
        if isinstance(path, Store):
            if where is None and not quarantined:
                return path
            path = path.path
        path = Path(path).expanduser()
        if not (path / "store.json").is_file():
            what = "is not a store (it has no store.json)" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; make one with: medssl ingest source=FOLDER out={path}")
        try:
            info = json.loads((path / "store.json").read_text())
            schema = info["schema"]
        except (ValueError, KeyError, TypeError) as e:
            raise UserError(f"{path / 'store.json'} is damaged; ingest the scans again") from e
        if schema != SCHEMA_VERSION:
            raise UserError(
                f"{path} was made by another version (its schema is {schema}, this version reads {SCHEMA_VERSION}); "
                "ingest the scans again"
            )
        try:
            table = pq.read_table(path / "manifest.parquet")
        except FileNotFoundError as e:
            raise UserError(f"{path / 'manifest.parquet'} is missing; copy the store or ingest the scans again") from e
        except (OSError, pa.ArrowException) as e:
            raise UserError(f"{path / 'manifest.parquet'} is damaged; ingest the scans again") from e
        if table.num_rows != info["counts"]["scans"]:
            raise UserError(f"{path}: store.json and manifest.parquet do not belong together; ingest the scans again")
        store = cls(path, info, table, where, quarantined)
        if not len(store) and table.num_rows and not quarantined:
            if where is not None:
                raise UserError(
                    f"where={where} selects none of the scans of {path}; look with: medssl inspect store={path}"
                )
            raise UserError(
                f"all {table.num_rows} scans of {path} are held back until somebody has looked at them: "
                f"medssl inspect store={path} quarantined=true sheet=sheet.png, then medssl release"
            )
        return store

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Any, ...]]:
        return Store.open, (self.path, self.where, self.quarantined)  # a worker opens the store itself

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} scans: {', '.join(self.kinds)})"

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        """Scan `row` in its own dtype. Raises UserError when its bytes are missing or damaged."""
        return read_array(self.path, self._row(row))

    def crop(self, row: int, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """The box of `size` voxels from `start` on (spatial axes), (C, *size): reads little more than it.

        Raises:
            UserError: when its bytes are missing or damaged.
            ValueError: when the box is not inside the scan.
        """
        at = self._row(row)
        shape = at["shape"]
        if any(a < 0 or n < 1 or a + n > m for a, n, m in zip(start, size, shape[1:], strict=True)):
            raise ValueError(f"a crop of {tuple(size)} from {tuple(start)} is not inside {tuple(shape[1:])}")
        return self._part(read_crop, at, start, size)

    def overview(self, row: int) -> np.ndarray:
        """One voxel per 8 along each axis, (C, ceil(D/8), ceil(H/8), ceil(W/8)), of a volume: where there is something."""
        return self._part(read_overview, self._row(row))

    def mask(self, row: int) -> np.ndarray | None:
        """The label map of scan `row` on its own grid, (1, *spatial) uint8; None where ingest found none.

        Raises UserError when its bytes are missing or damaged.
        """
        scan = self.table["mask"][self._checked(row)].as_py()
        if not scan:
            return None
        at = self._mask_rows[scan]
        return read_array(self.path, {name: self._masks[name][at].as_py() for name in _ADDRESS}).astype(np.uint8)

    @cached_property
    def _mask_rows(self) -> dict[str, int]:
        return {scan: i for i, scan in enumerate(self._masks["scan"].to_pylist())}

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store with {len(self)} scans")
        return int(row)

    def _row(self, row: int) -> dict[str, Any]:
        at = self._checked(row)
        return {name: self.table[name][at].as_py() for name in _ADDRESS}

    def _part(self, read: Callable[..., np.ndarray], at: dict[str, Any], *box: Sequence[int]) -> np.ndarray:
        path = self.path / at["file"]
        try:
            return read(path, at["offset"], at["length"], at["shape"], at["dtype"], *box)
        except FileNotFoundError as e:
            raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
        except ValueError as e:
            raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e

    def batch(self, rows: Iterable[int]) -> list[np.ndarray]:
        """The scans of `rows`, in that order; their shapes may differ."""
        return [self[int(i)] for i in rows]

    @cached_property
    def kinds(self) -> list[str]:
        """What the selection holds, the most frequent first: "812 CT in 3D, 1 channel"."""
        shapes, modality = self.table["shape"].to_pylist(), self.table["modality"].to_pylist()
        counts = Counter((m, len(s) - 1, s[0]) for s, m in zip(shapes, modality, strict=True))
        return [
            f"{n} {m or 'of unknown modality'} in {d}D, {c} channel{'s'[: c > 1]}"
            for (m, d, c), n in counts.most_common()
        ]

    def _one(self, what: str, values: Iterable[int]) -> int:
        found = sorted(set(values))
        if len(found) > 1:
            raise UserError(
                f"{self.path} holds scans of several kinds ({'; '.join(self.kinds)}); choose one, "
                f'for example where="{what} == {found[-1]}"'
            )
        return found[0]

    @cached_property
    def dims(self) -> int:
        """2 or 3. Raises UserError when the selection holds both."""
        return self._one("dims", (len(s) - 1 for s in self.table["shape"].to_pylist()))

    @cached_property
    def channels(self) -> int:
        """Raises UserError when the selection holds several numbers of them."""
        return self._one("channels", (s[0] for s in self.table["shape"].to_pylist()))

    @cached_property
    def modality(self) -> str:
        """The most frequent modality, "" when unknown."""
        return Counter(self.table["modality"].to_pylist()).most_common(1)[0][0]

    @property
    def intensity_description(self) -> str:
        """The intensity window in words."""
        return INTENSITIES[self.intensity]

    @property
    def intensity(self) -> str:
        """The intensity recipe of the most frequent modality."""
        return resolve_intensity(self.info["recipe"], self.modality)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        rows = self.rows("train")
        rows = rows if len(rows) else self.rows()
        mean, square = (float(self.column(c)[rows].mean()) for c in ("unit_mean", "unit_square"))
        std = float(np.sqrt(max(square - mean**2, 0.0)))
        return mean, std if std > 1e-6 else 1.0

    @property
    def mean(self) -> float:
        """Of train pixels in unit range, every scan weighing the same; of all scans when nobody trains."""
        return self._moments[0]

    @property
    def std(self) -> float:
        """Standard deviation of the same pixels."""
        return self._moments[1]

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

    @cached_property
    def fingerprint(self) -> str:
        """One word for the content: equal for equal scans, ids, splits and labels under the same key."""
        if len(self) == self.total:
            return str(self.info["fingerprint"])
        rows = "|".join([self.info["fingerprint"], *self.table["scan"].to_pylist()])
        return hashlib.blake2b(rows.encode(), digest_size=16).hexdigest()

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

    def verify(self) -> None:
        """Reads every scan and compares it with its hash. Raises UserError that counts the damaged ones."""
        if fingerprint(pq.read_table(self.path / "manifest.parquet")) != self.info["fingerprint"]:
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


_ADDRESS = ("file", "offset", "length", "shape", "dtype")
