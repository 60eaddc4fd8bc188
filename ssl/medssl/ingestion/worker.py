"""A worker process: it opens and reads files, packs the scans and reports what it found. One message is one task.

    python -m medssl.ingestion.worker < messages > answers

Messages (see `worker_pool.send`): first {"key", "intensity", "memory", "out"}; then {"read": file, "id"},
{"stack": [slice, …], "files": {id: file, …}, "facts"} or {"digest": [slice, …], "files": …}. Answers: {"slice"}, {"scan"}
with the packed image, {"reject"}, {"bad"}, {"digests"}, {"disk"}, and {"end"} after the last; in between, signs of life:
{"heartbeat": number of the slice} and {"alive": bytes of work until the next sign}.
"""

import hashlib
import os
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from medssl.errors import UserError
from medssl.files import atomic
from medssl.ingestion.worker_pool import Message, limit_resources, receive, send
from medssl.readers import formats
from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.quiet import silenced
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Scan, Slice, Unreadable
from medssl.readers.values import is_label_name
from medssl.readers.walk import File, open_file
from medssl.readers.watched import Watched
from medssl.store.chunks import pack
from medssl.store.manifest_columns import manifest_row, prepare_array

ALIVE_SECONDS = 1.0  # between two signs of life
MOST_REJECTS = 1000  # parts of one file that are listed one by one with the same code; a small file may state millions


class Worker:
    """Executes tasks.

    Args:
        answers: the stream for answers.
        init_message: the settings that all tasks share.
    """

    def __init__(self, answers: BinaryIO, init_message: Message):
        self.answers = answers
        self.pseudonyms = Pseudonyms(bytes.fromhex(init_message["key"]))
        self.intensity, self.out = init_message["intensity"], Path(init_message["out"])
        self.rejected: Counter[str] = Counter()  # rejects of the task by code
        self.sent = 0.0

    def execute(self, message: Message) -> None:
        """Execute one task and report its end."""
        self.rejected.clear()
        if "read" in message:
            self._read(File(**message["read"]), message["id"])
        elif "stack" in message:
            self._stack(message)
        else:
            self._digest(message)
        for code, n in self.rejected.items():
            if n > MOST_REJECTS:
                reason = f"so are {n - MOST_REJECTS:,} more parts of this file: {CODES[code][0]}"
                self._send({"reject": [f"#more/{code}", code, reason]})
        self._send({"end": True})

    def _send(self, message: Message, payload: bytes = b"") -> None:
        send(self.answers, message, payload)
        self.sent = time.monotonic()

    def _alive(self, work: int = 0) -> None:
        """Say, not more often than needed, that the task makes progress. work: bytes to be processed until the next time."""
        if work > 1 << 24 or time.monotonic() - self.sent >= ALIVE_SECONDS:
            self._send({"alive": work})

    def _read(self, file: File, file_id: str) -> None:
        try:
            with open_file(file) as stream:
                watched: BinaryIO = Watched(stream, file.size, self._alive)  # type: ignore[assignment]
                found = formats.read(watched, file.name, self.pseudonyms)
                if isinstance(found, Slice):
                    self._send({"slice": replace(found, file=file_id).as_dict()})
                    return
                for scan, name in found:
                    self._scan(scan, name.removeprefix(file.name), may_be_empty=is_label_name(file.name))
        except BaseException as e:
            self._reject("", e)

    def _scan(self, scan: Scan | Unreadable, part: str, may_be_empty: bool = False) -> None:
        """Pack one scan: an image is sent to the parent, a volume is written to its own file.

        A volume file is named after its content, so an existing one is the same. `may_be_empty` accepts a label map with a
        single value: the mask of a healthy patient.
        """
        try:
            if isinstance(scan, Unreadable):
                raise scan
            array = prepare_array(scan)
            if array.min() == array.max() and not (may_be_empty and scan.quarantined == "label map"):
                raise Unreadable("CONSTANT", "every pixel has the same value")
            self._alive(array.nbytes)
            row = manifest_row(scan, array, self.intensity)
            self._alive(array.nbytes)
            data = pack(array)
        except BaseException as e:
            self._reject(part, e)
            return
        if array.ndim == 3:
            self._send({"scan": row, "part": part}, data)
            return
        row |= {"file": f"volumes/{row['hash']}.vol", "offset": 0, "length": 0}
        path = self.out / row["file"]
        try:
            if not path.exists():
                with atomic(path) as temporary:
                    temporary.write_bytes(data)
        except (OSError, UserError) as e:
            self._send({"disk": str(e)})
            return
        self._send({"scan": row, "part": part})

    def _reject(self, part: str, e: BaseException) -> None:
        why = unreadable(e)
        self.rejected[why.code] += 1
        if (n := self.rejected[why.code]) <= MOST_REJECTS:
            self._send({"reject": [part, why.code, str(why)]})
        elif n % MOST_REJECTS == 0:
            self._send({"heartbeat": n})

    def _stack(self, message: Message) -> None:
        slices = [Slice.from_dict(s) for s in message["stack"]]
        files = {k: File(**v) for k, v in message["files"].items()}

        def opened(s: Slice) -> BinaryIO:
            return open_file(files[s.file])

        try:
            if len(slices) == 1:
                with opened(slices[0]) as stream:
                    found: Any = reader.single(slices[0], stream)
            else:
                found = reader.volume(slices, opened, self.pseudonyms, lambda k: self._send({"heartbeat": k}))
        except BaseException as e:
            why = unreadable(e)
            found = [(k, why) for k in range(len(slices))]
        if isinstance(found, Scan):
            self._scan(replace(found, metadata=found.metadata | message["facts"] | {"images": len(slices)}), "")
        else:
            self._send({"bad": [[slices[k].file, why.code, str(why)] for k, why in found]})

    def _digest(self, message: Message) -> None:
        """Send each slice's BLAKE2b from the pixel data on, which distinguishes a copy from a repeated acquisition."""
        digests = {}
        for s in message["digest"]:
            self._alive()
            try:
                with open_file(File(**message["files"][s["file"]])) as stream:
                    digests[s["file"]] = reader.digest(stream, s["frame"])
            except BaseException as e:
                unreadable(e)
                digests[s["file"]] = hashlib.blake2b(
                    s["file"].encode(), digest_size=16
                ).hexdigest()  # equal to no other
        self._send({"digests": digests})


def unreadable(e: BaseException) -> Unreadable:
    """Return the reject for a reader's exception. It names the exception's type only: the text may quote the header or path.

    Raises:
        BaseException: `e` itself, if it is meant to stop the worker.
    """
    if isinstance(e, Unreadable):
        return e
    if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit | BrokenPipeError):
        raise e
    if isinstance(e, MemoryError):
        return Unreadable("TOO_BIG_TO_READ", "reading it takes more memory than allowed")
    if isinstance(e, OSError):
        return Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")
    return Unreadable("READER_FAILED", f"the reader raised {type(e).__name__}")


def main() -> None:
    """Answer messages until the parent closes the pipe. Standard output is the protocol's, so libraries get /dev/null."""
    messages, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    devnull = os.open(os.devnull, os.O_RDWR)
    os.dup2(devnull, 0)
    os.dup2(devnull, 1)
    try:
        init_message, _ = receive(messages)
        limit_resources(int(init_message["memory"]))
        worker = Worker(answers, init_message)
        send(answers, {"ready": True})
        with silenced():
            while True:
                worker.execute(receive(messages)[0])
    except (EOFError, BrokenPipeError):
        pass
    os._exit(0)  # skips the cleanup of libraries, which nothing needs


if __name__ == "__main__":
    main()
