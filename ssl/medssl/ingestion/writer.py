"""Writes a store beside its place and moves it there when it is whole. What is there already is linked, not copied."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.ingestion.ledger import Address, Ledger
from medssl.ingestion.manifest import Found, Settled, build_manifest
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.store.chunks import pack
from medssl.store.intensity import check_intensity
from medssl.store.schema import Row, manifest_row, prepare_array
from medssl.store.store import Store

PACK = 64 << 20  # bytes of compressed images in one file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class StagedStore:
    """The folder `.NAME.part` beside a store that is being written. Only one process at a time may have it.

    Args:
        out: the store's folder.
    """

    def __init__(self, out: Path):
        self.out = Path(out).absolute()
        self.folder = self.out.with_name(f".{self.out.name}.part")
        self.pack: BinaryIO | None = None
        self.lock: BinaryIO | None = None

    def open(self, fresh: bool) -> None:
        """Takes the folder; empties it first when `fresh`. Raises UserError when another process has it."""
        with disk_errors(self.out):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.lock = (self.folder / "lock").open("wb")
            if fcntl is not None:
                try:
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    self.lock.close()
                    self.lock = None
                    raise UserError(
                        f"another ingest is writing {self.out}; wait for it, or choose another out="
                    ) from None
            self._undo_half_move()
            if fresh:
                self.empty()
            self.make()

    def make(self) -> None:
        """The folders for bytes."""
        for name in ("packs", "volumes"):
            (self.folder / name).mkdir(exist_ok=True)

    def empty(self) -> None:
        """Removes everything but the lock."""
        for entry in self.folder.iterdir():
            if entry.name != "lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def link(self, base: Path) -> None:
        """The packs and volumes of a store, linked where the disk can, else copied."""
        with disk_errors(self.out):
            for name in ("packs", "volumes"):
                for file in (base / name).iterdir():
                    _link(file, self.folder / name / file.name)
            for name in ("ledger.sqlite", "released.json"):
                if (base / name).exists():
                    shutil.copyfile(base / name, self.folder / name)

    def put(self, data: bytes) -> tuple[str, int, int]:
        """Appends one packed image. Its address: (file, offset, length)."""
        with disk_errors(self.out):
            if self.pack is None or self.pack.tell() + len(data) > PACK > len(data):
                self.flush()
                self.pack = self._next_pack().open("xb")
            offset = self.pack.tell()
            self.pack.write(data)
            return f"packs/{Path(self.pack.name).name}", offset, len(data)

    def _next_pack(self) -> Path:
        numbers = [int(p.stem) for p in (self.folder / "packs").glob("*.pack") if p.stem.isdigit()]
        return self.folder / "packs" / f"{max(numbers, default=-1) + 1:06d}.pack"

    def sync(self) -> None:
        """What was put is on the disk."""
        if self.pack is not None:
            with disk_errors(self.out):
                self.pack.flush()
                os.fsync(self.pack.fileno())

    def flush(self) -> None:
        """The same, and the next image begins a new file."""
        self.sync()
        if self.pack is not None:
            self.pack.close()
            self.pack = None

    def compact(self, ledger: Ledger) -> None:
        """Rewrites packs that hold bytes the ledger does not know (of files that are gone, of a killed run).

        The ledger is told where the others are before their old packs go, so that a kill in between loses nothing.
        """
        self.flush()
        ledger.commit()
        live: dict[str, int] = {}
        for *_, (file, _, length) in ledger.addresses():
            live[file] = live.get(file, 0) + length
        stale, lone = set(), []
        for folder in ("packs", "volumes"):
            for path in (self.folder / folder).iterdir():
                name = f"{folder}/{path.name}"
                if name not in live:
                    lone.append(path)
                elif folder == "packs" and path.stat().st_size != live[name]:
                    stale.add(name)
        moved = [
            (table, key, self.put(read_bytes(self.folder, address)))
            for table, key, address in ledger.addresses()
            if address[0] in stale
        ]
        self.flush()
        for table, key, address in moved:
            ledger.move(table, key, address)
        ledger.commit()
        for path in (*lone, *(self.folder / name for name in stale)):
            path.unlink()

    def check(self, table: pa.Table) -> None:
        """Every scan's bytes are there: what is published can be read."""
        ends: dict[str, int] = {}
        for file, offset, length in zip(*(table[c].to_pylist() for c in ("file", "offset", "length")), strict=True):
            ends[file] = max(ends.get(file, 1), offset + length)
        for file, end in ends.items():
            assert (self.folder / file).stat().st_size >= end, file

    def publish(self, settled: Settled, rejects: Iterator[Row], alias: Pseudonyms, intensity: str) -> Store:
        """Writes the manifest and moves the whole to `out`; an old store there stays until then."""
        with disk_errors(self.out):
            self.flush()
            self.check(settled.table)
            counts: dict[str, int] = {}
            with (self.folder / "rejects.jsonl").open("w") as f:
                for reject in rejects:
                    counts[reject["code"]] = counts.get(reject["code"], 0) + 1
                    f.write(json.dumps(reject) + "\n")
                f.flush()
                os.fsync(f.fileno())
            info = settled.info | {"recipe": intensity, "key_id": alias.key_id, "created_by": created_by()}
            info["counts"]["rejected"] = dict(sorted(counts.items()))
            with (self.folder / "manifest.parquet").open("wb") as out:
                pq.write_table(settled.table, out, compression="zstd")
                out.flush()
                os.fsync(out.fileno())
            write_synced(self.folder / "store.json", (json.dumps(info, indent=1) + "\n").encode())
            same = self._fingerprint_at_out() == info["fingerprint"]
            _move(self.folder, self.out, "cache" if same else None)
            (self.out / "lock").unlink()
            self._release_lock()
        return Store.open(self.out, quarantined=True)

    def _fingerprint_at_out(self) -> str:
        try:
            return str(json.loads((self.out / "store.json").read_text())["fingerprint"])
        except (OSError, ValueError, KeyError):
            return ""

    def _undo_half_move(self) -> None:
        """A kill between the two renames of a move leaves the old store aside: it comes back."""
        for left in sorted(self.out.parent.glob(f".{self.out.name}.*.old")):
            if self.out.exists():
                shutil.rmtree(left, ignore_errors=True)
            elif (left / "store.json").is_file():
                left.rename(self.out)

    def close(self, keep: bool) -> None:
        """Lets go of the folder, and removes it unless somebody will go on with it."""
        if self.pack is not None:
            with suppress(OSError):
                self.pack.close()
            self.pack = None
        if self.lock is not None and not keep:  # without the lock the folder is another process's
            shutil.rmtree(self.folder, ignore_errors=True)
        self._release_lock()

    def _release_lock(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


class StoreWriter:
    """Arrays of your own as a store: `with StoreWriter(out, alias) as writer: writer.add(scan, name); writer.finish()`.

    Until `finish` returns nothing exists at `out` (or what was there before stays); leaving the block in any other way
    removes what was written.

    Args:
        out: the store's folder.
        alias: the project's pseudonyms; also decides the splits.
        recipe: the intensity window, a name in `intensity.RECIPES`.
        overwrite: replace a store at `out`.
    """

    def __init__(self, out: str | Path, alias: Pseudonyms, intensity: str = "auto", overwrite: bool = False):
        self.alias, self.intensity = alias, check_intensity(intensity)
        check_out(Path(out).absolute(), overwrite)
        self.draft = StagedStore(Path(out))
        self.found: list[Found] = []
        self.rejects: list[Row] = []

    def __enter__(self) -> "StoreWriter":
        self.draft.open(fresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.draft.close(keep=False)

    def reject(self, name: str, why: Unreadable) -> None:
        """Notes a scan that is left out, under a pseudonym of its name."""
        file = self.alias.of("path", name)
        self.rejects.append({"file": file, "part": "", "code": why.code, "stage": "store", "reason": str(why)})

    def add(self, scan: Scan, name: str) -> None:
        """Writes one scan. `name` is what a table of labels calls it, and is not stored.

        Raises:
            Unreadable: when the array cannot be stored (NO_PIXELS, NON_FINITE).
            UserError: when the disk is full.
        """
        array = prepare_array(scan)
        row = manifest_row(scan, array, self.intensity)
        if array.ndim == 3:
            address = self.draft.put(pack(array))
        else:
            address = f"volumes/{row['hash']}.vol", 0, 0
            with disk_errors(self.draft.out):
                write_synced(self.draft.folder / address[0], pack(array))
        row |= dict(zip(("file", "offset", "length"), address, strict=True))
        self.found.append(Found(self.alias.of("path", name), "", [name], row))

    def finish(self) -> Store:
        """Settles groups and splits, writes the manifest, moves the store to `out` and opens it.

        Raises:
            UserError: when no scan is left, when a patient is in two given splits, or when the disk is full.
        """
        if not self.found:
            raise UserError(f"no scan was added; nothing was written to {self.draft.out}")
        self.draft.sync()
        settled = build_manifest(lambda: iter(self.found), self.alias, self.draft.folder, {})
        self.rejects += settled.rejects
        return self.draft.publish(settled, iter(self.rejects), self.alias, self.intensity)


def check_out(out: Path, overwrite: bool) -> None:
    """Raises UserError when `out` must not be written: it exists, and is not a store we were told to replace."""
    if not out.exists():
        return
    if not (out / "store.json").is_file():
        raise UserError(f"{out} exists and is not a store, so it is not overwritten; choose another out=")
    if not overwrite:
        raise UserError(f"{out} exists already; choose another out=, or replace it with overwrite=true")


def created_by() -> str:
    """The program and its version, for the record."""
    try:
        return f"medssl {version('medssl')}"
    except PackageNotFoundError:
        return "medssl (from source)"


def write_synced(path: Path, data: bytes | bytearray) -> None:
    """To the disk, not only to its cache: a full disk must show before the store is moved to its place."""
    with path.open("wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _link(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_bytes(folder: Path, address: Address) -> bytes:
    """A record of a pack."""
    file, offset, length = address
    with (folder / file).open("rb") as f:
        f.seek(offset)
        return f.read(length)


def _move(part: Path, out: Path, take: str | None = None) -> None:
    """Renames `part` to `out`; an old store there steps aside first, and comes back if that fails.

    `take` names a folder of the old store that the new one takes over.
    """
    if not out.exists():
        part.rename(out)
        return
    old: Any = out.with_name(f".{out.name}.{os.getpid()}.old")
    out.rename(old)
    try:
        part.rename(out)
    except BaseException:
        old.rename(out)
        raise
    if take is not None and (old / take).is_dir():
        (old / take).rename(out / take)
    shutil.rmtree(old, ignore_errors=True)
