"""The store: every scan as an array that is fast to read, and one table that describes the scans. Opening it runs no code.

A folder with `store.json` (version, intensity, counts), `manifest.parquet` (one row per scan), `packs/` (2D images, many per
file) and `volumes/` (3D, one per file). `rejects.jsonl` lists rejected files, with reasons; `ledger.sqlite` lets the next
ingest read new files only; `released.json` lists the scans released from quarantine; `cache/` can be deleted at any time.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.errors import UserError, nearest
from medssl.progress import track
from medssl.store.chunks import read_crop
from medssl.store.intensity_windows import INTENSITIES, modalities_of_values, resolve_intensity
from medssl.store.manifest_columns import MASK, SCHEMA_VERSION, content_hash, fingerprint
from medssl.store.query import select
from medssl.store.remote import is_url, mirror, remote_of
from medssl.store.scan_bytes import ADDRESS, file_errors, read_array
from medssl.store.splits import SPLITS


class Store:
    """`store[i]` is scan i as stored, (C, H, W) or (C, D, H, W), in physical values. Safe to read from many workers.

    Quarantined scans are excluded unless requested; `where` selects among the others.

    Attributes:
        path: the folder.
        info: store.json: schema, recipe, key_id, counts, duplicates, grouping, fingerprint (of all scans), created_by.
        table: the manifest rows of the selection.
        where, quarantined: the selection.
    """

    summary = ""  # printed by an ingest

    def __init__(
        self, path: Path, info: dict[str, Any], table: pa.Table, where: str | None = None, quarantined: bool = False
    ):
        self.path, self.info, self.where, self.quarantined = path, info, where, quarantined
        self.total = table.num_rows
        self._masks = table.filter(pc.equal(table["held"], MASK)).select(["scan", *ADDRESS])  # for any selection
        if not quarantined:
            table = table.filter(pc.equal(table["held"], ""))
        if where is not None:
            table = table.take(select(table, where))
        self.table = table.combine_chunks()

    @classmethod
    def open(cls, path: "str | Path | Store", where: str | None = None, quarantined: bool = False) -> "Store":
        """Open a store.

        Args:
            path: its folder, or the URL of one in shards, see `medssl.store.remote`. A Store is returned unchanged unless `where`
                or `quarantined` is given.
            where: filter expression selecting scans, see `medssl.store.query`.
            quarantined: include scans that have not been released from quarantine.

        Raises:
            UserError: if store.json or manifest.parquet is missing, damaged or of another version, or `where` is invalid or
                selects no scan.
        """
        if isinstance(path, Store):
            if where is None and not quarantined:
                return path
            path = path.path
        path = mirror(str(path)) if is_url(path) else Path(path).expanduser()
        if not (path / "store.json").is_file():
            what = "is not a store (it has no store.json)" if path.is_dir() else "does not exist"
            raise UserError(f"{path} {what}; make one with: medssl ingest source=FOLDER out={path}")
        try:
            info = json.loads((path / "store.json").read_text("utf-8"))
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
            raise UserError(f"{path}: store.json and manifest.parquet do not match; ingest the scans again")
        store = cls(path, info, table, where, quarantined)
        if not len(store) and table.num_rows and not quarantined:
            if where is not None:
                raise UserError(
                    f"where={where} selects no scan of {path}; see what it has: medssl inspect store={path}"
                )
            if set(table["held"].to_pylist()) == {MASK}:
                raise UserError(f"{path} has only masks; ingest the images together with them (see masks= there)")
            raise UserError(
                f"all {table.num_rows} scans of {path} are quarantined; look at them and release them: "
                f"medssl inspect store={path} quarantined=true sheet=sheet.png, then medssl release"
            )
        return store

    def __reduce__(self) -> tuple[Callable[..., "Store"], tuple[Any, ...]]:
        return Store.open, (self.path, self.where, self.quarantined)  # each worker opens the store itself

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} scans: {', '.join(self.kinds)})"

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, row: int) -> np.ndarray:
        """Return scan `row` in its own dtype. Raises UserError if its bytes are missing or damaged."""
        return read_array(self.path, self._address(row))

    def crop(self, row: int, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
        """Return the box of `size` voxels from `start` (spatial axes), (C, *size), reading little more than that.

        Raises:
            UserError: if its bytes are missing or damaged.
            ValueError: if the box is not inside the scan.
        """
        at = self._address(row)
        shape = at["shape"]
        if any(a < 0 or n < 1 or a + n > m for a, n, m in zip(start, size, shape[1:], strict=True)):
            raise ValueError(f"a crop of {tuple(size)} from {tuple(start)} is not inside {tuple(shape[1:])}")
        if remote_of(self.path) is not None:
            return self[row][(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))]
        path = self.path / at["file"]
        with file_errors(path):
            return read_crop(path, at["offset"], at["length"], shape, at["dtype"], start, size)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Fetch the bytes of scans that will be read, of a store in object storage; does nothing for a local store."""
        if (remote := remote_of(self.path)) is not None:
            at = (self._address(row) for row in rows)
            remote.prefetch((a["file"], a["offset"], a["length"]) for a in at)

    def mask(self, row: int) -> np.ndarray | None:
        """Return the label map of scan `row` on its own grid, (1, *spatial) uint8; None if it has none.

        Raises UserError if its bytes are missing or damaged.
        """
        scan = self.table["mask"][self._checked(row)].as_py()
        if not scan:
            return None
        at = self._mask_rows[scan]
        return read_array(self.path, {name: self._masks[name][at].as_py() for name in ADDRESS}).astype(np.uint8)

    @cached_property
    def _mask_rows(self) -> dict[str, int]:
        return {scan: i for i, scan in enumerate(self._masks["scan"].to_pylist())}

    def _checked(self, row: int) -> int:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a store with {len(self)} scans")
        return int(row)

    def _address(self, row: int) -> dict[str, Any]:
        at = self._checked(row)
        return {name: self.table[name][at].as_py() for name in ADDRESS}

    @cached_property
    def kinds(self) -> list[str]:
        """Return the kinds of scans and their counts, the most frequent first: "812 CT in 3D, 1 channel"."""
        shapes, modality = self.table["shape"].to_pylist(), self.table["modality"].to_pylist()
        counts = Counter((m, len(s) - 1, s[0]) for s, m in zip(shapes, modality, strict=True))
        return [
            f"{n} {m or 'of unknown modality'} in {d}D, {c} channel{'s'[: c > 1]}"
            for (m, d, c), n in counts.most_common()
        ]

    def _single(self, what: str, values: Iterable[int]) -> int:
        found = sorted(set(values))
        if len(found) > 1:
            raise UserError(
                f"{self.path} has scans of several kinds ({'; '.join(self.kinds)}); choose one, "
                f'for example where="{what} == {found[-1]}"'
            )
        return found[0]

    @cached_property
    def dims(self) -> int:
        """Spatial dimensions, 2 or 3. Raises UserError if the selection has both."""
        return self._single("dims", (len(s) - 1 for s in self.table["shape"].to_pylist()))

    @cached_property
    def channels(self) -> int:
        """Channels per scan. Raises UserError if they differ within the selection."""
        return self._single("channels", (s[0] for s in self.table["shape"].to_pylist()))

    @cached_property
    def modality(self) -> str:
        """The most frequent modality, "" if unknown."""
        return Counter(self.table["modality"].to_pylist()).most_common(1)[0][0]

    @property
    def intensity_description(self) -> str:
        """The intensity windowing in words."""
        return INTENSITIES[self.intensity]

    @property
    def intensity(self) -> str:
        """The intensity window of the most frequent modality, a name in `intensity_windows.INTENSITIES`."""
        return resolve_intensity(self.info["recipe"], Counter(self.value_modalities).most_common(1)[0][0])

    @cached_property
    def value_modalities(self) -> list[str]:
        """The modality of each scan, "" where it does not tell the units of the values: CT that is not in HU."""
        return modalities_of_values(self.table)

    @cached_property
    def _moments(self) -> tuple[float, float]:
        rows = self.rows("train")
        rows = rows if len(rows) else self.rows()
        mean, square = (float(self.column(c)[rows].mean()) for c in ("unit_mean", "unit_square"))
        std = float(np.sqrt(max(square - mean**2, 0.0)))
        return mean, std if std > 1e-6 else 1.0

    @property
    def mean(self) -> float:
        """Mean of training pixels in the unit range, each scan weighted equally; of all scans if none is for training."""
        return self._moments[0]

    @property
    def std(self) -> float:
        """Standard deviation of the same pixels; 1 if they are constant."""
        return self._moments[1]

    def column(self, name: str) -> np.ndarray:
        """Return one manifest column, (N,): numbers, or objects for text and lists (None if unknown).

        Raises UserError if there is no such column.
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
        """Names of the labels; `column("label:NAME")` gives their values."""
        return [c.removeprefix("label:") for c in self.table.column_names if c.startswith("label:")]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the selection: equal for equal scans, ids, splits and labels under the same key."""
        if len(self) == self.total:
            return str(self.info["fingerprint"])
        rows = "|".join([self.info["fingerprint"], *self.table["scan"].to_pylist()])
        return hashlib.blake2b(rows.encode(), digest_size=16).hexdigest()

    def rows(self, split: str | None = None) -> np.ndarray:
        """Return the row numbers, int64, of a split or of all scans. Raises UserError if there is no such split."""
        if split is None:
            return np.arange(len(self))
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}.{nearest(split, SPLITS)}")
        return np.flatnonzero(self._split == split)

    @cached_property
    def _split(self) -> np.ndarray:
        return self.column("split")

    def verify(self) -> None:
        """Compare every scan with its content hash. Raises UserError with the number of damaged scans."""
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
