"""The long part of an ingest: walk, read, divide slices into volumes, build these. Each step may be killed and go on."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medssl.files import disk_errors
from medssl.ingestion.json_sidecars import LARGEST, Sidecars
from medssl.ingestion.ledger import Ledger
from medssl.ingestion.worker_pool import Event, Task, WorkerPool
from medssl.ingestion.writer import StagedStore
from medssl.progress import Progress
from medssl.readers.dicom import series
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Slice, Unreadable
from medssl.readers.walk import File, open_file, walk
from medssl.store.schema import Row

VERSION = "3"  # a change in what is read from a file is another number: everything is then read again
EVERY = 2.0  # seconds after which what was done survives a crash
DEATHS = 3  # of a volume, after which no slice of it is tried again
FLEETING = ("CANNOT_OPEN", "TOO_SLOW", "TOO_BIG_TO_READ")  # reasons that may be gone the next time


class Reading:
    """What the steps share.

    Args:
        ledger: what is known, and where every step notes what it did.
        draft: where packed images go.
        alias: the project's pseudonyms.
    """

    def __init__(self, ledger: Ledger, draft: StagedStore, alias: Pseudonyms):
        self.ledger, self.draft, self.alias = ledger, draft, alias
        self.saved = time.monotonic()
        self.left_out = 0

    def save(self, now: bool = False) -> None:
        """First the bytes, then the word that they are there."""
        if now or time.monotonic() - self.saved > EVERY:
            self.draft.sync()
            self.ledger.commit()
            self.saved = time.monotonic()

    def look(self, source: Path, archives: bool, table: Path | None, sidecars: Sidecars | None) -> None:
        """Walks the source: notes every file, and takes the JSON files when somebody wants them."""
        skip = None if table is None else table.resolve()
        with Progress("look for files", unit="file") as bar:
            for file in walk(source, archives):
                if skip is not None and file.path.endswith(skip.name) and Path(file.path).resolve() == skip:
                    continue
                bar.update()
                self._note(file, sidecars)
        self.save(now=True)

    def _note(self, file: File, sidecars: Sidecars | None) -> None:
        facts = sidecars is not None and file.name.lower().endswith(".json")
        stamp = self.alias.of("stamp", f"{file.stamp or file.problem}|{facts}")[:16]
        name, repeat = file.name, 1
        while not self.ledger.saw(pseudonym := self.alias.of("path", name), file, stamp):
            repeat += 1  # two names that differ in their Unicode form only
            name = f"{file.name}|{repeat}"
        why = Unreadable(file.problem, CODES[file.problem][0]) if file.problem else None
        if why is None and facts and sidecars is not None:
            why = _take(file, sidecars)
        if why is not None:
            self.ledger.forget(pseudonym)
            self.ledger.reject(pseudonym, "", why.code, "walk", str(why))
            self.ledger.read(pseudonym)

    def read(self, children: WorkerPool) -> None:
        """Reads every file that is new: images and whole volumes are packed at once, slices are noted."""
        n, _ = self.ledger.count_unread()
        self.left_out = self.ledger.count_rejects()
        waiting: dict[str, list[tuple[str, Any]]] = {}
        done = 0
        start = time.monotonic()
        with Progress("read files", total=n, unit="file", quiet=not n) as bar:
            for event in children.run(self._files(bar)):
                file_id: str = event.task.about
                self._check_disk(event)
                said = waiting.setdefault(file_id, [])
                if "again" in event.message:
                    said.clear()
                elif "slice" in event.message:
                    said.append(("slice", Slice.from_dict(event.message["slice"])))
                elif "scan" in event.message:
                    said.append((event.message["part"], self._addressed(event)))
                elif "reject" in event.message:
                    part, code, reason = event.message["reject"]
                    said.append((part, Unreadable(code, reason)))
                if not event.last:
                    continue
                if event.death:
                    said[:] = [("", _died(event))]
                    self._quarantine(event)
                self._settle_file(file_id, waiting.pop(file_id))
                done += event.task.size
                rate = f"{done / max(time.monotonic() - start, 1e-9) / 1e6:.1f}"
                bar.update(1, **{"MB/s": rate, "left out": str(self.left_out)})
                self.save()
        self.save(now=True)

    def _files(self, bar: Progress) -> Iterator[Task]:
        for file_id, file in self.ledger.unread():
            killers = self.ledger.killers(file.size)
            if killers and _content(file) in killers:
                self._settle_file(file_id, [("", Unreadable("DECODER_CRASHED", CODES["DECODER_CRASHED"][0]))])
                bar.update()
                continue
            yield Task({"read": vars(file), "id": file_id}, file_id, file.size)

    def _check_disk(self, event: Event) -> None:
        """A child that cannot write is nobody's fault but the disk's."""
        if "disk" in event.message:
            with disk_errors(self.draft.out):
                raise OSError(*event.message["disk"])

    def _addressed(self, event: Event) -> Row:
        """The row of a scan with the address of its bytes; a volume has one already."""
        row: Row = event.message["scan"]
        if event.payload:
            row |= dict(zip(("file", "offset", "length"), self.draft.put(event.payload), strict=True))
        return row

    def _settle_file(self, file_id: str, said: list[tuple[str, Any]]) -> None:
        """What a file became, all at once."""
        if not said:
            said = [("", Unreadable("NO_PIXELS", "the file has no image in it"))]
        self.ledger.forget(file_id)
        for part, what in said:
            if isinstance(what, Unreadable):
                self.ledger.reject(file_id, part, what.code, "read", str(what))
                self.left_out += 1
            elif isinstance(what, Slice):
                self.ledger.add_slice(what)
            else:
                self.ledger.add_scan(file_id, part, what)
        self.ledger.read(file_id)

    def _quarantine(self, event: Event) -> None:
        """What killed a decoder twice is known by its content from now on."""
        if event.death == "DECODER_CRASHED":
            file = self.ledger.file(event.task.about)
            self.ledger.killed(_content(file), file.size)

    def stack(self, children: WorkerPool) -> None:
        """Divides slices into volumes and builds these; without the slices that turn out to be unreadable, again."""
        deaths: dict[str, int] = {}
        groups = [group for group, _ in self.ledger.groups()]
        while groups:
            with Progress("sort slices", total=len(groups), unit="series", quiet=len(groups) < 100) as bar:
                for group in groups:
                    self._plan(group, children)
                    bar.update()
            groups = sorted(self._build(children, deaths))
        self.save(now=True)

    def _plan(self, group: str, children: WorkerPool) -> None:
        self.ledger.start_plan(group)
        slices = self.ledger.slices(group)
        if not slices:
            return
        slices, copies = without_lossy_copies(slices)
        plan = series.plan(slices, lambda some: self._digests(some, children))
        for s, why in [*plan.rejected, *copies]:
            self.ledger.reject(s.file, "", why.code, "volume", str(why))
            self.left_out += 1
        for stack, facts in zip(plan.stacks, plan.notes, strict=True):
            files = [s.file for s in stack]
            words = [VERSION, repr(sorted(facts.items())), *(f"{f}:{self.ledger.stamp(f)}" for f in files)]
            name = hashlib.blake2b("|".join(words).encode(), digest_size=16).hexdigest()
            self.ledger.plan(name, group, files, facts)

    def _digests(self, slices: list[Slice], children: WorkerPool) -> dict[str, str]:
        files = {s.file: vars(self.ledger.file(s.file)) for s in slices}
        message = {"digest": [s.as_dict() for s in slices], "files": files}
        found: dict[str, str] = {}
        for event in children.run([Task(message, size=sum(f["size"] for f in files.values()))]):
            found |= event.message.get("digests", {})
        return {s.file: found.get(s.file, s.file) for s in slices}  # unknown is equal to nothing

    def _build(self, children: WorkerPool, deaths: dict[str, int]) -> set[str]:
        """Builds what is planned. Returns the groups that must be divided again because slices turned out bad."""
        todo = self.ledger.unbuilt()
        again: set[str] = set()
        at: dict[str, int] = {}
        total = sum(len(files) for _, _, files, _ in todo)
        with Progress("build volumes", total=total, unit="slice", quiet=not total) as bar:
            for event in children.run(self._stacks(todo)):
                stack, group, files = event.task.about
                message = event.message
                self._check_disk(event)
                if "beat" in message:
                    at[stack] = message["beat"]
                elif "scan" in message:
                    self.ledger.built(stack, group, self._addressed(event))
                elif "reject" in message:  # the volume as a whole
                    self._drop(files, Unreadable(*message["reject"][1:]))
                    again.add(group)
                elif "bad" in message:
                    for file, code, reason in message["bad"]:
                        self.ledger.reject(file, "", code, "decode", reason)
                    again.add(group)
                if event.death:
                    deaths[group] = deaths.get(group, 0) + 1
                    k = at.get(
                        stack, len(files)
                    )  # that many: all are decoded, and the volume as a whole is the trouble
                    guilty = files if k >= len(files) or deaths[group] > DEATHS else files[k : k + 1]
                    self._drop(guilty, _died(event))
                    again.add(group)
                if event.last:
                    bar.update(len(files), **{"left out": str(self.left_out)})
                    self.save()
        return again

    def _stacks(self, todo: list[tuple[str, str, list[str], Row]]) -> Iterator[Task]:
        for stack, group, names, facts in todo:
            files = {f: vars(self.ledger.file(f)) for f in names}
            slices = [s.as_dict() for s in self.ledger.slices_of(names)]
            message = {"stack": slices, "files": files, "facts": facts}
            yield Task(message, (stack, group, names), sum(f["size"] for f in files.values()))

    def _drop(self, files: list[str], why: Unreadable) -> None:
        for file in files:
            self.ledger.reject(file, "", why.code, "decode", str(why))


def without_lossy_copies(slices: list[Slice]) -> tuple[list[Slice], list[tuple[Slice, Unreadable]]]:
    """(the others, those that are there without loss as well): one image that somebody has saved in two ways."""
    whole = {s.uid for s in slices if "lossy" not in s.about["metadata"]}
    why = Unreadable("DUPLICATE", "the same image is there without loss")
    copies = [s for s in slices if "lossy" in s.about["metadata"] and s.uid in whole]
    gone = {s.file for s in copies}
    return [s for s in slices if s.file not in gone], [(s, why) for s in copies]


def _take(file: File, sidecars: Sidecars) -> Unreadable:
    """Hands a JSON file over. It is never a scan, so the answer says why it is none."""
    try:
        if file.size > LARGEST:  # before a member of an archive is unpacked
            raise Unreadable("TOO_LARGE", "a JSON file larger than any about scans")
        with open_file(file) as stream:
            sidecars.add(file.name, stream.read(LARGEST + 1))  # one byte too many is refused there
    except Unreadable as why:
        return why
    except OSError as e:
        return Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")
    return Unreadable("SIDECAR", CODES["SIDECAR"][0])


def _died(event: Event) -> Unreadable:
    return Unreadable(event.death, CODES[event.death][0])


def _content(file: File) -> str:
    """BLAKE2b of a file's bytes, "" when they cannot be read."""
    h = hashlib.blake2b(digest_size=16)
    try:
        with open_file(file) as stream:
            while block := stream.read(1 << 20):
                h.update(block)
    except (OSError, Unreadable):
        return ""
    return h.hexdigest()
