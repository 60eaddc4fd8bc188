"""The long part of an ingest: find files, read them, divide slices into volumes, build these. Every step can be resumed."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.json_values import MAX_BYTES
from medssl.ingestion.ledger import Ledger
from medssl.ingestion.staged_store import StagedStore
from medssl.ingestion.worker_pool import Event, Pool, Task
from medssl.progress import Progress
from medssl.readers.dicom import grouping
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Slice, Unreadable
from medssl.readers.walk import File, open_file, walk
from medssl.store.manifest_columns import Row

VERSION = "5"  # raise it when a change alters what is read from a file: everything is then read again
SAVE_SECONDS = 2.0  # seconds between saves; a crash loses the work since the last one
MAX_DEATHS = 3  # deaths of workers on the volumes of one group, after which no slice of the volume is tried again
TRANSIENT = ("CANNOT_OPEN", "TOO_SLOW", "TOO_BIG_TO_READ")  # reject codes that may not recur the next time


class IngestPipeline:
    """The steps of an ingest on one ledger: `find_files`, `read_files`, `build_volumes`.

    Args:
        ledger: where every step records its results.
        staged: where packed images go.
        pseudonyms: those of the project.
    """

    def __init__(self, ledger: Ledger, staged: StagedStore, pseudonyms: Pseudonyms):
        self.ledger, self.staged, self.pseudonyms = ledger, staged, pseudonyms
        self.saved = time.monotonic()
        self.left_out = 0

    def _save(self, now: bool = False) -> None:
        """Write the bytes to disk, and only then the record of them."""
        if now or time.monotonic() - self.saved > SAVE_SECONDS:
            self.staged.sync()
            self.ledger.commit()
            self.saved = time.monotonic()

    def find_files(self, source: Path, archives: bool, table: Path | None, sidecars: Sidecars | None) -> None:
        """Record every file below `source` except the label table, and pass JSON files to `sidecars`."""
        skip = None if table is None else table.resolve()
        with Progress("find files", unit="file") as bar:
            for file in walk(source, archives):
                if skip is not None and file.path.endswith(skip.name) and Path(file.path).resolve() == skip:
                    continue
                bar.update()
                self._record(file, sidecars)
        self._save(now=True)

    def _record(self, file: File, sidecars: Sidecars | None) -> None:
        is_sidecar = sidecars is not None and file.name.lower().endswith(".json")
        stamp = self.pseudonyms.of("stamp", f"{file.stamp or file.problem}|{is_sidecar}")[:16]
        name, repeat = file.name, 1
        while not self.ledger.add_path(pseudonym := self.pseudonyms.of("path", name), file, stamp):
            repeat += 1  # two names that differ in their Unicode form only
            name = f"{file.name}|{repeat}"
        why = Unreadable(file.problem, CODES[file.problem][0]) if file.problem else None
        if why is None and is_sidecar and sidecars is not None:
            why = _add_sidecar(file, sidecars)
        if why is not None:
            self.ledger.forget(pseudonym)
            self.ledger.reject(pseudonym, "", why.code, "walk", str(why))
            self.ledger.mark_read(pseudonym)

    def read_files(self, pool: Pool) -> None:
        """Read every new file: images and whole volumes are packed at once, headers of slices are recorded."""
        n = self.ledger.count("unread")
        self.left_out = self.ledger.count("rejects")
        outcomes: dict[str, list[tuple[str, Any]]] = {}
        done = 0
        start = time.monotonic()
        with Progress("read files", total=n, unit="file", quiet=not n) as bar:
            for event in pool.run(self._read_tasks(bar)):
                file_id: str = event.task.context
                _raise_disk_error(event)
                outcome = outcomes.setdefault(file_id, [])
                if "retry" in event.message:
                    outcome.clear()
                elif "slice" in event.message:
                    outcome.append(("", Slice.from_dict(event.message["slice"])))
                elif "scan" in event.message:
                    outcome.append((event.message["part"], self._stored_row(event)))
                elif "reject" in event.message:
                    part, code, reason = event.message["reject"]
                    outcome.append((part, Unreadable(code, reason)))
                if not event.last:
                    continue
                if event.death:
                    outcome[:] = [("", _death(event))]
                    self._record_crash(event)
                self._record_outcome(file_id, outcomes.pop(file_id))
                done += event.task.size
                rate = f"{done / max(time.monotonic() - start, 1e-9) / 1e6:.1f}"
                bar.update(1, **{"MB/s": rate, "left out": str(self.left_out)})
                self._save()
        self._save(now=True)

    def _read_tasks(self, bar: Progress) -> Iterator[Task]:
        for file_id, file in self.ledger.unread():
            crashes = self.ledger.crash_hashes(file.size)
            if crashes and _content_hash(file) in crashes:
                self._record_outcome(file_id, [("", Unreadable("DECODER_CRASHED", CODES["DECODER_CRASHED"][0]))])
                bar.update()
                continue
            yield Task({"read": vars(file), "id": file_id}, file_id, file.size)

    def _stored_row(self, event: Event) -> Row:
        """Return the row of a scan with the address of its bytes. A volume has one already."""
        row: Row = event.message["scan"]
        if event.payload:
            row |= dict(zip(("file", "offset", "length"), self.staged.put(event.payload), strict=True))
        return row

    def _record_outcome(self, file_id: str, outcome: list[tuple[str, Any]]) -> None:
        """Record all parts of a file at once."""
        self.staged.keep = True
        self.ledger.forget(file_id)
        for part, value in outcome or [("", Unreadable("NO_PIXELS", CODES["NO_PIXELS"][0]))]:
            if isinstance(value, Unreadable):
                self.ledger.reject(file_id, part, value.code, "read", str(value))
                self.left_out += 1
            elif isinstance(value, Slice):
                self.ledger.add_slice(value)
            else:
                self.ledger.add_scan(file_id, part, value)
        self.ledger.mark_read(file_id)

    def _record_crash(self, event: Event) -> None:
        """Remember by its content a file that has crashed a decoder twice."""
        if event.death == "DECODER_CRASHED":
            file = self.ledger.file(event.task.context)
            self.ledger.add_crash(_content_hash(file), file.size)

    def build_volumes(self, pool: Pool) -> None:
        """Divide slices into volumes and build them; again, for groups in which slices turn out to be unreadable."""
        deaths: dict[str, int] = {}
        groups = self.ledger.groups()
        while groups:
            with Progress("sort slices", total=len(groups), unit="series", quiet=len(groups) < 100) as bar:
                for group in groups:
                    self._plan(group, pool)
                    bar.update()
            groups = sorted(self._build(pool, deaths))
        self._save(now=True)

    def _plan(self, group: str, pool: Pool) -> None:
        self.ledger.start_plan(group)
        slices = self.ledger.slices(group)
        if not slices:
            return
        slices, copies = _without_lossy_copies(slices)
        plan = grouping.divide(slices, lambda some: self._digests(some, pool))
        for s, why in [*plan.rejected, *copies]:
            self.ledger.reject(s.file, "", why.code, "volume", str(why))
            self.left_out += 1
        for stack, facts in zip(plan.stacks, plan.notes, strict=True):
            files = [s.file for s in stack]
            words = [VERSION, repr(sorted(facts.items())), *(f"{f}:{self.ledger.stamp(f)}" for f in files)]
            name = hashlib.blake2b("|".join(words).encode(), digest_size=16).hexdigest()
            self.ledger.plan(name, group, files, facts)

    def _digests(self, slices: list[Slice], pool: Pool) -> dict[str, str]:
        """Return a hash of each slice's pixel data; one that cannot be read equals no other."""
        files = {s.file: vars(self.ledger.file(s.file)) for s in slices}
        message = {"digest": [s.as_dict() for s in slices], "files": files}
        found = {s.file: s.file for s in slices}
        for event in pool.run([Task(message, size=sum(f["size"] for f in files.values()))]):
            found |= event.message.get("digests", {})
        return found

    def _build(self, pool: Pool, deaths: dict[str, int]) -> set[str]:
        """Build the planned volumes. Returns the groups to divide again because of unreadable slices."""
        todo = self.ledger.unbuilt()
        again: set[str] = set()
        decoded: dict[str, int] = {}  # slices of each volume
        total = sum(len(files) for _, _, files, _ in todo)
        with Progress("build volumes", total=total, unit="slice", quiet=not total) as bar:
            for event in pool.run(self._build_tasks(todo)):
                stack, group, files = event.task.context
                message = event.message
                _raise_disk_error(event)
                bad: list[tuple[str, Unreadable]] = []
                if "heartbeat" in message:
                    decoded[stack] = message["heartbeat"]
                elif "scan" in message:
                    self.ledger.add_volume(stack, group, self._stored_row(event))
                elif "reject" in message:  # the whole volume
                    bad = [(file, Unreadable(*message["reject"][1:])) for file in files]
                elif "bad" in message:
                    bad = [(file, Unreadable(code, reason)) for file, code, reason in message["bad"]]
                if event.death:
                    deaths[group] = deaths.get(group, 0) + 1
                    k = decoded.get(stack, len(files))  # if all were decoded, the volume as a whole is at fault
                    guilty = files if k >= len(files) or deaths[group] > MAX_DEATHS else files[k : k + 1]
                    bad = [(file, _death(event)) for file in guilty]
                for file, why in bad:
                    self.ledger.reject(file, "", why.code, "decode", str(why))
                    again.add(group)
                if event.last:
                    bar.update(len(files), **{"left out": str(self.left_out)})
                    self._save()
        return again

    def _build_tasks(self, todo: list[tuple[str, str, list[str], Row]]) -> Iterator[Task]:
        for stack, group, names, facts in todo:
            files = {f: vars(self.ledger.file(f)) for f in names}
            slices = [s.as_dict() for s in self.ledger.slices_of(names)]
            message = {"stack": slices, "files": files, "facts": facts}
            yield Task(message, (stack, group, names), sum(f["size"] for f in files.values()))


def _without_lossy_copies(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Slice, Unreadable]]]:
    """Drop slices stored a second time with lossy compression. Returns (those left, the dropped with the reason)."""
    lossless = {s.uid for s in slices if "lossy" not in s.about["metadata"]}
    why = Unreadable("DUPLICATE", "the same image is there without loss")
    copies = [s for s in slices if "lossy" in s.about["metadata"] and s.uid in lossless]
    gone = {s.file for s in copies}
    return [s for s in slices if s.file not in gone], [(s, why) for s in copies]


def _add_sidecar(file: File, sidecars: Sidecars) -> Unreadable:
    """Pass a JSON file to `sidecars`. Returns the reason why it is not a scan."""
    try:
        if file.size > MAX_BYTES:  # before unpacking a member of an archive
            raise Unreadable("TOO_LARGE", "a JSON file of more than 16 MB")
        with open_file(file) as stream:
            sidecars.add(file.name, stream.read(MAX_BYTES + 1))  # rejects content that is one byte too long
    except Unreadable as why:
        return why
    except OSError as e:
        return Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")
    return Unreadable("SIDECAR", CODES["SIDECAR"][0])


def _raise_disk_error(event: Event) -> None:
    """Stop if a worker cannot write: the disk is at fault, not the file."""
    if "disk" in event.message:
        raise UserError(event.message["disk"])


def _death(event: Event) -> Unreadable:
    return Unreadable(event.death, CODES[event.death][0])


def _content_hash(file: File) -> str:
    """Return BLAKE2b of a file's bytes, "" if they cannot be read."""
    h = hashlib.blake2b(digest_size=16)
    try:
        with open_file(file) as stream:
            while block := stream.read(1 << 20):
                h.update(block)
    except (OSError, Unreadable):
        return ""
    return h.hexdigest()
