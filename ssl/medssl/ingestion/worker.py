"""What a child does: opens files, reads, checks, packs and says what it found. One message, one task.

    python -m medssl.ingestion.worker < messages > answers

Messages (see `worker_pool.send`): first {"key", "intensity", "memory", "out"}; then {"read": file, "id"},
{"stack": [slice, …], "files": {id: file}, …} or {"digest": [slice, …], "files": …}. Answers: {"slice"}, {"scan"} with the
packed image, {"reject"}, {"bad"}, {"beat"}, {"digests"}, and {"end"} after the last.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from medssl.ingestion.worker_pool import Message, limit, receive, send
from medssl.readers import image, nifti, npz
from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.quiet import silenced
from medssl.readers.scan import Scan, Slice, Unreadable
from medssl.readers.values import is_label_name
from medssl.readers.walk import File, open_file, sniff
from medssl.store.chunks import pack
from medssl.store.schema import manifest_row, prepare_array


class Worker:
    """The state between tasks: where answers go and what the first message said."""

    def __init__(self, answers: BinaryIO, init_message: Message):
        self.answers = answers
        self.alias, self.intensity, self.out = (
            Pseudonyms(bytes.fromhex(init_message["key"])),
            init_message["intensity"],
            Path(init_message["out"]),
        )

    def do(self, message: Message) -> None:
        """One task, and the word that it is over."""
        if "read" in message:
            self._read(File(**message["read"]), message["id"])
        elif "stack" in message:
            self._stack(message)
        else:
            self._digest(message)
        self._say({"end": True})

    def _say(self, message: Message, payload: bytes = b"") -> None:
        send(self.answers, message, payload)

    def _read(self, file: File, file_id: str) -> None:
        try:
            with open_file(file) as stream:
                kind = sniff(stream)
                if kind == "dicom":
                    found = reader.read(stream, file.name, self.alias, file_id)
                    if isinstance(found, Slice):
                        self._say({"slice": found.as_dict()})
                        return
                elif kind in READERS:
                    found = READERS[kind](stream, file.name, self.alias)
                elif kind == "zip":
                    raise Unreadable("ARCHIVE", "a zip archive; with archives=true it is opened")
                elif file.name.lower().endswith((".nii", ".nii.gz", ".hdr")):
                    raise Unreadable("BAD_HEADER", "a NIfTI file by its name, but its content is not")
                else:
                    raise Unreadable("NOT_A_SCAN", "neither DICOM, NIfTI, PNG, JPEG, TIFF nor an archive of images")
                for scan, name in found:
                    self._scan(scan, name.removeprefix(file.name), empty=is_label_name(file.name))
        except BaseException as e:
            self._reject("", e)

    def _scan(self, scan: Scan | Unreadable, part: str, empty: bool = False) -> None:
        """One scan, packed: an image goes to the parent, a volume to its own file.

        empty: a label map may have one value only. A mask without a lesion says that there is none.
        """
        try:
            if isinstance(scan, Unreadable):
                raise scan
            array = prepare_array(scan)
            if array.min() == array.max() and not (empty and scan.quarantined == "label map"):
                raise Unreadable("CONSTANT", "every pixel has the same value")
            row = manifest_row(scan, array, self.intensity)
            data = pack(array)
        except BaseException as e:
            self._reject(part, e)
            return
        if array.ndim == 3:
            self._say({"scan": row, "part": part}, data)
            return
        row |= {"file": f"volumes/{row['hash']}.vol", "offset": 0, "length": 0}
        try:
            self._write(self.out / row["file"], data)
        except OSError as e:
            self._say({"disk": [e.errno, e.strerror]})
            return
        self._say({"scan": row, "part": part})

    def _write(self, path: Path, data: bytes) -> None:
        """A volume is named by its content: one that is there already is the same."""
        if path.exists():
            return
        part = path.with_name(f".{path.name}.{os.getpid()}")
        with part.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        part.replace(path)

    def _reject(self, part: str, e: BaseException) -> None:
        why = unreadable(e)
        self._say({"reject": [part, why.code, str(why)]})

    def _stack(self, message: Message) -> None:
        slices = [Slice.from_dict(s) for s in message["stack"]]
        files = {k: File(**v) for k, v in message["files"].items()}

        def opened(s: Slice) -> BinaryIO:
            return open_file(files[s.file])

        def beat(k: int) -> None:
            self._say({"beat": k})

        try:
            if len(slices) == 1:
                with opened(slices[0]) as stream:
                    found: Any = reader.single(slices[0], stream)
            else:
                found = reader.volume(slices, opened, self.alias, beat)
        except BaseException as e:
            why = unreadable(e)
            found = [(k, why) for k in range(len(slices))]
        if isinstance(found, Scan):
            self._scan(replace(found, metadata=found.metadata | message["facts"] | {"images": len(slices)}), "")
        else:
            self._say({"bad": [[slices[k].file, why.code, str(why)] for k, why in found]})

    def _digest(self, message: Message) -> None:
        """BLAKE2b of everything from the pixel data on, to tell a copy from a repeat; "" where it cannot be read."""
        digests = {}
        for s in message["digest"]:
            try:
                with open_file(File(**message["files"][s["file"]])) as stream:
                    digests[s["file"]] = reader.digest(stream, s["frame"])
            except BaseException as e:
                unreadable(e)
                digests[s["file"]] = hashlib.blake2b(s["file"].encode(), digest_size=16).hexdigest()  # equal to none
        self._say({"digests": digests})


READERS = {"nifti": nifti.read, "image": image.read, "npz": npz.read}


def unreadable(e: BaseException) -> Unreadable:
    """What a reader's exception becomes: its type but never its words, which may quote the header or the path."""
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
    """Answer until the parent closes the pipe. Standard output belongs to the protocol: libraries get none of it."""
    asks, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(nowhere, 1)
    try:
        init_message, _ = receive(asks)
        limit(int(init_message["memory"]))
        worker = Worker(answers, init_message)
        send(answers, {"ready": True})
        with silenced():
            while True:
                worker.do(receive(asks)[0])
    except (EOFError, BrokenPipeError):
        pass
    os._exit(0)  # nothing of a library needs to run now


if __name__ == "__main__":
    main()
