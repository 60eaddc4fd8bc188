"""Export a store as a few large tar files, for disks and networks that are slow with many small files.

Each tar member is the unchanged bytes of one scan; the manifest gives their file, offset and length. Everything that reads a
store reads a sharded one. Nothing can be ingested into it.
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
from medssl.files import disk_errors, follow_links, is_empty_folder
from medssl.progress import track
from medssl.store.chunks import unpack
from medssl.store.scan_bytes import ADDRESS, file_errors, read_bytes
from medssl.store.store import Store

Address = tuple[str, int, int]  # file, offset, length


def shard(store: Store, out: Path, size: int) -> Store:
    """Write all of `store`, quarantined scans too, to `out` in shards of about `size` bytes, in the order of the manifest.

    `out` appears only when it is complete. Every scan is decoded on the way, so that damage is found and not copied.

    Raises:
        UserError: if `out` exists and is no empty folder, bytes of the store are missing or damaged, or the disk is full.
    """
    store, out = Store.open(store.path, quarantined=True), follow_links(out.expanduser())
    if out.exists() and not is_empty_folder(out):
        raise UserError(f"{out} exists already; choose another out=")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        with disk_errors(out):
            (part / "shards").mkdir(parents=True)
        table = _write_shards(store, _Shards(part, size))
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
    """Tar files filled one after the other; `put` writes one member and returns its address."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size, self.number = folder, size, -1
        self.tar: tarfile.TarFile | None = None

    def put(self, name: str, data: bytes) -> Address:
        if self.tar is None or self.tar.offset + len(data) > self.size:
            self.close()
            self.number += 1
            self.tar = tarfile.open(self._path(), "x", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        member = tarfile.TarInfo(name)  # no time or owner: the same bytes for every user
        member.size = len(data)
        begin = self.tar.offset + tarfile.BLOCKSIZE  # after the member's header
        self.tar.addfile(member, io.BytesIO(data))
        return self._path().relative_to(self.folder).as_posix(), begin, len(data)

    def close(self) -> None:
        if self.tar is not None:
            self.tar.close()
            self.tar = None
            _sync(self._path())

    def _path(self) -> Path:
        return self.folder / "shards" / f"{self.number:05d}.tar"


def _write_shards(store: Store, shards: _Shards) -> pa.Table:
    """Write the shards; return the manifest with the new addresses."""
    new: dict[Address, Address] = {}  # equal scans share their bytes
    rows = zip(*(store.table[c].to_pylist() for c in (*ADDRESS, "scan")), strict=True)
    addresses = []
    for file, offset, length, shape, dtype, scan in track(rows, "shard", len(store), unit="scan"):
        old = file, offset, length
        if old not in new:
            with file_errors(store.path / file):
                data = read_bytes(store.path / file, offset, length)
                unpack(data, shape, dtype)
            with disk_errors(shards.folder):
                new[old] = shards.put(f"{scan}.scan", data)
        addresses.append(new[old])
    with disk_errors(shards.folder):
        shards.close()
    table = store.table
    for name, values in zip(ADDRESS[:3], zip(*addresses, strict=True), strict=True):
        at = table.column_names.index(name)
        table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    return table


def _sync(path: Path) -> None:
    """Flush a file to disk, so that a full disk is noticed before the store is renamed to `out`."""
    with path.open("rb") as f:
        os.fsync(f.fileno())
