"""Lists the files of a folder, and of the zip archives in it, and opens them. Links are not followed."""

import errno
import os
import stat
import time
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medssl.errors import UserError
from medssl.readers import archive
from medssl.readers.scan import Unreadable

JUNK = {"THUMBS.DB", "DESKTOP.INI"}
# Errors of network file systems that may succeed on a second attempt.
TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR}
ATTEMPTS, PAUSE = 3, 0.2  # seconds


@dataclass(frozen=True)
class File:
    """One file of a source, or a folder, link or device in its place.

    Attributes:
        name: path relative to the source, with "/", NFC; a member of an archive is "a.zip!/b/c.dcm". It may identify a
            patient, so it is kept in memory only and stored as a pseudonym.
        path: path on disk.
        member: name in the archive at `path`, "" for a plain file.
        size: bytes.
        stamp: changes if the file does.
        problem: reject code if it cannot be read at all, else "".
    """

    name: str
    path: str
    member: str = ""
    size: int = 0
    stamp: str = ""
    problem: str = ""


def walk(source: Path, archives: bool = False) -> Iterator[File]:
    """Yield every file below `source` in order of name; if `source` is a file, yield that file.

    Links, pipes, devices, unreadable folders and hidden or system files are yielded with a `problem`, so that everything
    is accounted for. With `archives` the members of zip files are yielded in place of the archives.

    Raises:
        UserError: `source` does not exist.
    """
    if not source.exists():
        raise UserError(f"there is nothing at {source}; give a folder of scans or one file")
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
            hidden = entry.name.startswith(".") or entry.name.upper() in JUNK
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
        return archive.is_zip(stream.read(512))
    return False


def _members(file: File) -> Iterator[File]:
    """Yield the members of an archive, or the archive itself with a problem if it is damaged."""
    try:
        for member in archive.members(file.path):
            name = unicodedata.normalize("NFC", f"{file.name}!/{member.name}")
            parts = [p for p in member.name.split("/") if p.strip(".")]  # "." and ".." are not hidden
            hidden = any(p.startswith(".") or p == "__MACOSX" or p.upper() in JUNK for p in parts)
            problem = "LITTER" if hidden else "" if member.size else "EMPTY"
            yield File(name, file.path, member.name, member.size, file.stamp, problem)
    except Unreadable as why:
        yield File(file.name, file.path, size=file.size, stamp=file.stamp, problem=why.code)


def _name(below: str) -> str:
    """Return a path with "/", NFC. Names that are not UTF-8 are decoded as CP949, common on Korean disks."""
    below = below.replace(os.sep, "/")
    try:
        below.encode()
    except UnicodeEncodeError:
        below = os.fsencode(below).decode("cp949", "backslashreplace")
    return unicodedata.normalize("NFC", below)


def open_file(file: File) -> BinaryIO:
    """Return a seekable stream of a file or a member of an archive.

    Raises:
        Unreadable: CANNOT_OPEN, NOT_A_FILE; for a member also BAD_ARCHIVE, TOO_LARGE.
    """
    return archive.open_member(file.path, file.member) if file.member else open_plain(file.path)


def open_plain(path: str) -> BinaryIO:
    """Open a regular file, without following links or blocking on pipes. Transient network errors are retried."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    for attempt in range(ATTEMPTS):
        try:
            handle = os.open(path, flags)
            break
        except OSError as e:
            if e.errno == errno.ELOOP:
                raise Unreadable("NOT_A_FILE", "a link, a pipe or a device") from None
            if e.errno not in TRANSIENT or attempt == ATTEMPTS - 1:
                raise Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})") from None
            time.sleep(PAUSE * (attempt + 1))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Unreadable("NOT_A_FILE", "a link, a pipe or a device")
    return os.fdopen(handle, "rb")
