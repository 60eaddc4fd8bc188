"""The walk: what lies in a folder, file by file, sniffed by content. No link is followed, no name is believed."""

import errno
import gzip
import os
import stat
import time
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medssl.errors import UserError
from medssl.readers import archive
from medssl.readers.dicom.header import VRS
from medssl.readers.scan import Unreadable

LITTER = {"THUMBS.DB", "DESKTOP.INI"}
FLEETING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}  # worth a second try on a network
TRIES, PAUSE = 3, 0.2  # seconds


@dataclass(frozen=True)
class File:
    """One file of a source, or what stands in its place.

    Attributes:
        name: path below the source with "/", NFC; a member of an archive is "a.zip!/b/c.dcm". It may identify: it stays
            in memory, and leaves only as a pseudonym.
        path: where it is on the disk.
        member: its name in the archive at `path`, "" for a plain file.
        size: bytes.
        stamp: changes when the file does.
        problem: a code when it cannot be read at all, else "".
    """

    name: str
    path: str
    member: str = ""
    size: int = 0
    stamp: str = ""
    problem: str = ""


def walk(source: Path, archives: bool = False) -> Iterator[File]:
    """Every file below `source` in the order of its names; a file is its own only member.

    Links, pipes and devices, folders that cannot be listed and the litter of operating systems are yielded with a
    `problem`, so that everything seen is accounted for. With `archives` the members of zip files follow as files.

    Raises:
        UserError: nothing is there.
    """
    if not source.exists():
        raise UserError(f"there is nothing at {source}; name a folder of scans, or one file")
    if not source.is_dir():
        yield from _entry(str(source), source.name, archives)
        return
    root = str(source)
    folders = [""]
    while folders:
        below = folders.pop()
        try:
            with os.scandir(os.path.join(root, below)) as it:
                entries = sorted(it, key=lambda e: e.name)
        except OSError:
            yield File(_name(below), os.path.join(root, below), problem="CANNOT_OPEN")
            continue
        deeper = []
        for entry in entries:
            at = os.path.join(below, entry.name)
            hidden = entry.name.startswith(".") or entry.name.upper() in LITTER
            if hidden:
                yield File(_name(at), entry.path, problem="LITTER")
            elif entry.is_dir(follow_symlinks=False):
                deeper.append(at)
            else:
                yield from _entry(entry.path, at, archives)
        folders += reversed(deeper)


def _entry(path: str, below: str, archives: bool) -> Iterator[File]:
    name = _name(below)
    try:
        info = os.lstat(path)
    except OSError:
        yield File(name, path, problem="CANNOT_OPEN")
        return
    if not stat.S_ISREG(info.st_mode):
        yield File(name, path, problem="NOT_A_FILE")
        return
    stamp = f"{info.st_size}|{info.st_mtime_ns}"
    problem = "" if info.st_size else "EMPTY"
    file = File(name, path, size=info.st_size, stamp=stamp, problem=problem)
    if archives and not problem and _is_zip(path):
        yield from _members(file)
    else:
        yield file


def _is_zip(path: str) -> bool:
    with suppress(OSError, Unreadable), open_plain(path) as stream:
        return sniff(stream) == "zip"
    return False


def _members(file: File) -> Iterator[File]:
    """The members of an archive; a damaged one stands for itself."""
    try:
        for member in archive.members(file.path):
            name = unicodedata.normalize("NFC", f"{file.name}!/{member.name}")
            parts = [p for p in member.name.split("/") if p.strip(".")]  # without "." and "..", which hide nothing
            hidden = any(p.startswith(".") or p == "__MACOSX" or p.upper() in LITTER for p in parts)
            problem = "LITTER" if hidden else "" if member.size else "EMPTY"
            yield File(name, file.path, member.name, member.size, file.stamp, problem)
    except Unreadable as why:
        yield File(file.name, file.path, size=file.size, stamp=file.stamp, problem=why.code)


def _name(below: str) -> str:
    """With "/" and in composed form; bytes that are not UTF-8 are read as CP949, as Korean disks have them."""
    below = below.replace(os.sep, "/")
    try:
        below.encode()
    except UnicodeEncodeError:
        below = os.fsencode(below).decode("cp949", "backslashreplace")
    return unicodedata.normalize("NFC", below)


def open_file(file: File) -> BinaryIO:
    """A seekable stream over a file or a member. Raises Unreadable (CANNOT_OPEN, NOT_A_FILE, BAD_ARCHIVE)."""
    return archive.open_member(file.path, file.member) if file.member else open_plain(file.path)


def open_plain(path: str) -> BinaryIO:
    """A regular file, never through a link and never waiting for a pipe. What a network loses is asked for again."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    for attempt in range(TRIES):
        try:
            handle = os.open(path, flags)
            break
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise Unreadable("NOT_A_FILE", "a link, a pipe or a device") from None
            if e.errno not in FLEETING or attempt == TRIES - 1:
                raise Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})") from None
            time.sleep(PAUSE * (attempt + 1))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unreadable("NOT_A_FILE", "a link, a pipe or a device")
    return os.fdopen(handle, "rb")


def sniff(stream: BinaryIO) -> str:
    """ "dicom", "nifti", "image", "npz", "zip", or "" for anything else: by content. The stream ends at its beginning."""
    head = stream.read(540)
    stream.seek(0)
    if head[:2] == b"\x1f\x8b":
        try:
            inner = gzip.GzipFile(fileobj=stream).read(540)
        except (EOFError, OSError, zlib.error):
            inner = b""
        stream.seek(0)
        return "nifti" if is_nifti(inner) else ""
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "dicom"
    if is_nifti(head):
        return "nifti"
    if head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*")):
        return "image"
    if head.startswith(b"PK\x03\x04"):
        return "npz" if b".npy" in head[30:200] else "zip"
    return ""


def is_nifti(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a NIfTI-1 or NIfTI-2 header."""
    first = {head[:4], head[3::-1]}  # either byte order
    one = (348).to_bytes(4, "little") in first and head[344:348] in {b"n+1\0", b"ni1\0"}
    return one or ((540).to_bytes(4, "little") in first and head[4:7] in {b"n+2", b"ni2"})


def _is_bare_dicom(head: bytes) -> bool:
    """No preamble, but the file starts with a plausible element of group 0002 or 0008, in either byte order."""
    if len(head) < 16 or head[:2] not in {b"\x02\x00", b"\x08\x00", b"\x00\x08"}:
        return False
    little = head[:2] != b"\x00\x08"
    if head[3 if little else 2] != 0:
        return False
    return head[4:6] in VRS or int.from_bytes(head[4:8], "little" if little else "big") < 1024
