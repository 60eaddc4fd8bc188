"""A store under construction, in a folder beside its destination. It is moved there once it is complete."""

import json
import os
import shutil
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import disk_errors, follow_links, is_empty_folder
from medssl.ingestion.ledger import Address, Ledger
from medssl.ingestion.manifest_table import Manifest
from medssl.progress import say
from medssl.store.cache import forget_outdated
from medssl.store.manifest_columns import Row
from medssl.store.store import Store

PACK = 64 << 20  # bytes of compressed images in one file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class StagedStore:
    """The folder `.NAME.part` beside the store NAME, used by one process at a time: `with StagedStore(out) as staged: …`.

    Args:
        out: the store's folder. If it is a link, the folder that it leads to is replaced, and the link stays.
        fresh: discard what an earlier, interrupted process has left.

    Attributes:
        folder: the staging folder.
        keep: leave the folder in place when the block ends without `publish`, for the next attempt.

    Raises:
        UserError: another process has the folder, or the disk is full.
    """

    def __init__(self, out: Path, fresh: bool = False):
        self.out, self.fresh, self.keep = follow_links(Path(out)), fresh, False
        self.folder = self.out.with_name(f".{self.out.name}.part")
        self.pack: BinaryIO | None = None
        self.lock: BinaryIO | None = None

    def __enter__(self) -> "StagedStore":
        with disk_errors(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / "lock").open("wb")
            if fcntl is not None:
                try:
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    self.lock.close()
                    raise UserError(
                        f"another ingest is writing {self.out}; wait for it, or choose another out="
                    ) from None
            self._undo_half_move()
            if self.fresh:
                self.clear()
            self._make_folders()
        return self

    def __exit__(self, *_: object) -> None:
        if self.pack is not None:
            with suppress(OSError):
                self.pack.close()
        if self.lock is None:  # published
            return
        if self.keep:
            say(f"everything read so far is kept for the next try, in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.lock.close()

    def _make_folders(self) -> None:
        for name in ("packs", "volumes"):
            (self.folder / name).mkdir(exist_ok=True)

    def clear(self) -> None:
        """Remove everything but the lock."""
        for entry in self.folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != "lock":
                entry.unlink()
        self._make_folders()

    def link(self, base: Path) -> None:
        """Take over the records, packs and volumes of a store, as hard links where the disk supports them."""
        with disk_errors(self.out):
            for name in ("packs", "volumes"):
                for file in (base / name).iterdir():
                    try:
                        os.link(file, self.folder / name / file.name)
                    except OSError:
                        shutil.copyfile(file, self.folder / name / file.name)
            for name in ("ledger.sqlite", "released.json"):
                if (base / name).exists():
                    shutil.copyfile(base / name, self.folder / name)

    def put(self, data: bytes) -> Address:
        """Append one packed image. Returns its address."""
        with disk_errors(self.out):
            if self.pack is None or self.pack.tell() + len(data) > PACK > len(data):
                self.end_pack()
                numbers = [int(p.stem) for p in (self.folder / "packs").glob("*.pack") if p.stem.isdigit()]
                self.pack = (self.folder / "packs" / f"{max(numbers, default=-1) + 1:06d}.pack").open("xb")
            offset = self.pack.tell()
            self.pack.write(data)
            return f"packs/{Path(self.pack.name).name}", offset, len(data)

    def sync(self) -> None:
        """Flush all packed images to disk."""
        if self.pack is not None:
            with disk_errors(self.out):
                self.pack.flush()
                os.fsync(self.pack.fileno())

    def end_pack(self) -> None:
        """Flush all packed images to disk; the next image starts a new file."""
        self.sync()
        if self.pack is not None:
            self.pack.close()
            self.pack = None

    def compact(self, ledger: Ledger) -> None:
        """Remove bytes that the ledger does not list: those of files that are gone, or of a killed process.

        The ledger gets the new addresses before the old packs are deleted, so a kill in between loses nothing.
        """
        self.end_pack()
        ledger.commit()
        listed: dict[str, int] = {}
        for *_, (file, _, length) in ledger.addresses():
            listed[file] = listed.get(file, 0) + length
        stale, unlisted = set(), []
        for folder in ("packs", "volumes"):
            for path in (self.folder / folder).iterdir():
                name = f"{folder}/{path.name}"
                if name not in listed:
                    unlisted.append(path)
                elif folder == "packs" and path.stat().st_size != listed[name]:
                    stale.add(name)
        moved = [
            (table, key, self.put(self._read(address)))
            for table, key, address in ledger.addresses()
            if address[0] in stale
        ]
        self.end_pack()
        for table, key, address in moved:
            ledger.move(table, key, address)
        ledger.commit()
        for path in (*unlisted, *(self.folder / name for name in stale)):
            path.unlink()

    def _read(self, address: Address) -> bytes:
        file, offset, length = address
        with (self.folder / file).open("rb") as f:
            f.seek(offset)
            return f.read(length)

    def publish(self, manifest: Manifest, rejects: list[Row], key_id: str, intensity: str) -> Store:
        """Write the manifest and move the folder to its destination; an old store stays there until then."""
        with disk_errors(self.out):
            self.end_pack()
            self._check(manifest.table)
            write_synced(self.folder / "rejects.jsonl", "".join(json.dumps(r) + "\n" for r in rejects).encode())
            codes = [r["code"] for r in rejects]
            info = manifest.info | {"recipe": intensity, "key_id": key_id, "created_by": _version()}
            info["counts"]["rejected"] = {code: codes.count(code) for code in sorted(set(codes))}
            with pa.BufferOutputStream() as buffer:
                pq.write_table(manifest.table, buffer, compression="zstd")
                write_synced(self.folder / "manifest.parquet", buffer.getvalue())
            write_synced(self.folder / "store.json", (json.dumps(info, indent=1) + "\n").encode())
            _move(self.folder, self.out, keep_cache=self._published_fingerprint() == info["fingerprint"])
            forget_outdated()
            (self.out / "lock").unlink()
            assert self.lock is not None
            self.lock.close()
            self.lock = None
        return Store.open(self.out, quarantined=True)

    def _check(self, table: pa.Table) -> None:
        """Check that every scan's bytes are there before the store is published."""
        ends: dict[str, int] = {}
        for file, offset, length in zip(*(table[c].to_pylist() for c in ("file", "offset", "length")), strict=True):
            ends[file] = max(ends.get(file, 1), offset + length)
        for file, end in ends.items():
            assert (self.folder / file).stat().st_size >= end, file

    def _published_fingerprint(self) -> str:
        try:
            return str(json.loads((self.out / "store.json").read_text("utf-8"))["fingerprint"])
        except (OSError, ValueError, KeyError):
            return ""

    def _undo_half_move(self) -> None:
        """Move the old store back if a process was killed between the two renames of `_move`."""
        for left in sorted(self.out.parent.glob(f".{self.out.name}.*.old")):
            if self.out.exists() and not is_empty_folder(self.out):
                shutil.rmtree(left, ignore_errors=True)
            elif (left / "store.json").is_file():
                left.rename(self.out)


def check_destination(out: Path, overwrite: bool) -> None:
    """Raise UserError if `out` must not be written: it is not a store, or a store that may not be replaced."""
    if is_empty_folder(out) and out.is_mount():
        raise UserError(
            f"{out} is where a disk is mounted, so it cannot be moved; choose a folder in it: out={out / 'store'}"
        )
    if not out.exists() or is_empty_folder(out):
        return
    if not (out / "store.json").is_file():
        raise UserError(f"{out} exists and is not a store, so it is not overwritten; choose another out=")
    _refuse_links(out)
    if not overwrite:
        raise UserError(f"{out} exists already; choose another out=, or replace it with overwrite=true")


def _refuse_links(folder: Path, depth: int = 1) -> None:
    """Raise UserError if a store has a link inside: whoever removes the store removes the link alone."""
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_symlink():
            raise UserError(
                f"{entry.path} is a link, and what it leads to would outlive this store, with scans that are withdrawn later; "
                "move that here in place of the link, and link the whole store instead"
            )
        if depth and entry.is_dir():
            _refuse_links(Path(entry.path), depth - 1)


def write_synced(path: Path, data: bytes | pa.Buffer) -> None:
    """Flush to disk, so that a full disk is noticed before the store is moved to its destination."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _version() -> str:
    try:
        return f"medssl {version('medssl')}"
    except PackageNotFoundError:
        return "medssl (from source)"


def _move(staged: Path, out: Path, keep_cache: bool = False) -> None:
    """Rename `staged` to `out`. An old store there is set aside first, and restored if that fails."""
    if not out.exists():
        staged.rename(out)
        return
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        staged.rename(out)
    except BaseException:
        old.rename(out)
        raise
    if keep_cache and (old / "cache").is_dir():
        (old / "cache").rename(out / "cache")
    shutil.rmtree(old, ignore_errors=True)
