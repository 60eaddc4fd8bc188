"""A store laid out anew in a few large tar files, for disks and networks that dislike many small ones.

Each member is the bytes of one scan, as they were; a row of the manifest says in which file they begin, and how many they
are. So everything that reads a store reads this one. It is final: nothing can be ingested into it.
"""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.progress import track
from medssl.store.chunks import unpack
from medssl.store.store import Store

Address = tuple[str, int, int]  # file, offset, length
ADDRESS = ("file", "offset", "length")


def shard(store: Store, out: Path, size: int) -> Store:
    """Writes the whole of `store`, held scans too, to `out` in shards of about `size` bytes, in the manifest's order.

    Nothing is at `out` until all of it is. Every scan is decoded once on the way: damage is not passed on.

    Raises:
        UserError: `out` exists, bytes of the store are missing or damaged, or the disk is full.
    """
    store, out = Store.open(store.path, quarantined=True), out.expanduser().absolute()
    if out.exists():
        raise UserError(f"{out} exists already; choose another out=")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with disk_errors(out):
            (part / "shards").mkdir(parents=True)
        table = _moved(store, _Shards(part, size))
        with disk_errors(out):
            pq.write_table(table, part / "manifest.parquet", compression="zstd")
            for name in ("rejects.jsonl", "released.json"):
                if (store.path / name).exists():
                    shutil.copyfile(store.path / name, part / name)
            (part / "store.json").write_text(json.dumps(store.info, indent=1) + "\n")
            for path in part.iterdir():
                if path.is_file():
                    _sync(path)
            part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Store.open(out, quarantined=True)


class _Shards:
    """Tar files that are filled one after the other; `put` gives the address of what it has written."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size, self.number = folder, size, -1
        self.tar: tarfile.TarFile | None = None

    def put(self, name: str, data: bytes) -> Address:
        if self.tar is None or self.tar.offset + len(data) > self.size:
            self.close()
            self.number += 1
            self.tar = tarfile.open(self._path(), "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        member = tarfile.TarInfo(name)  # no time, no owner: the same bytes whoever writes them
        member.size = len(data)
        begin = self.tar.offset + tarfile.BLOCKSIZE  # behind the member's header
        self.tar.addfile(member, io.BytesIO(data))
        return self._path().relative_to(self.folder).as_posix(), begin, len(data)

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()
            self.tar = None
            _sync(self._path())

    def _path(self) -> Path:
        return self.folder / "shards" / f"{self.number:05d}.tar"


def _moved(store: Store, shards: _Shards) -> pa.Table:
    """The manifest with the new addresses, and the shards written."""
    new: dict[Address, Address] = {}  # scans with the same pixels share their bytes
    rows = zip(*(store.table[c].to_pylist() for c in (*ADDRESS, "shape", "dtype", "scan")), strict=True)
    addresses = []
    for file, offset, length, shape, dtype, scan in track(rows, "shard", len(store), unit="scan"):
        old = file, offset, length
        if old not in new:
            data = _bytes(store.path / file, offset, length, shape, dtype)
            with disk_errors(shards.folder):
                new[old] = shards.put(f"{scan}.scan", data)
        addresses.append(new[old])
    with disk_errors(shards.folder):
        shards.close()
    table = store.table
    for name, values in zip(ADDRESS, zip(*addresses, strict=True), strict=True):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    return table


def _bytes(path: Path, offset: int, length: int, shape: list[int], dtype: str) -> bytes:
    try:
        with path.open("rb") as f:
            f.seek(offset)
            data = f.read(length) if length else f.read()
        unpack(data, shape, dtype)
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e
    return data


def _sync(path: Path) -> None:
    """To the disk, not only to its cache: a full disk must show before the store is moved to its place."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
