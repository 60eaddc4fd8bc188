"""Zip archives of scans, read where they lie: nothing is unpacked under a name that the archive chose.

The layout is PKWARE's APPNOTE.TXT 6.3, section 4.3; the parts that scans come in: one file, stored or deflated, zip64.
`zipfile` makes an object of every member before it can be asked how many there are, does so again for every member that
is opened, and refuses a whole archive for one name in another code page; it is the reference in the tests instead.
"""

import io
import os
import re
import stat
import struct
import tempfile
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from medssl.readers.scan import Unreadable

MEMBERS = 10**6
DIRECTORY = 1 << 28  # bytes of the list of members; a million of them with long names
TOTAL = 1 << 42  # bytes, unpacked
LARGEST = 1 << 33  # bytes of one member, unpacked
RATIO = 200  # deflate cannot pass 1032; a label map reaches some hundred, an image never
SMALL = 1 << 20  # what packs into less may have any ratio: it cannot do harm
IN_MEMORY = 1 << 28  # bytes of a member that is not put on disk
STEP = 1 << 20

STORED, DEFLATED = 0, 8
ENCRYPTED = 1 | 1 << 6 | 1 << 13  # general purpose bits 0, 6, 13
UTF8 = 1 << 11
END, END64, LOCATOR64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q"), struct.Struct("<4sIQI")
ENTRY, LOCAL = struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"BZh", b"\xfd7zXZ\0")


class Member(NamedTuple):
    """One file in an archive: its path there, NFC with "/", and its bytes once unpacked."""

    name: str
    size: int


def members(archive: str | BinaryIO) -> Iterator[Member]:
    """The files of a zip archive, each name once, in the order of its directory. Whether one can be used, `open_member` says.

    Raises:
        Unreadable: CANNOT_OPEN; BAD_ARCHIVE: damaged, incomplete, not a zip, or larger than an archive of scans can be.
    """
    with _opened(archive) as stream:
        directory = _directory(stream)
    for name, at in directory.where.items():
        yield Member(name, _entry(directory.data, abs(at))[0].size)


def open_member(archive: str | BinaryIO, name: str) -> BinaryIO:
    """A member unpacked and checked to its last byte: in memory, or when large in a temporary file that has no name.

    Raises:
        Unreadable: CANNOT_OPEN; NOT_A_FILE for a link; TOO_LARGE for a bomb; BAD_ARCHIVE when the member is damaged,
            encrypted, packed in an unusual way, an archive itself, named like no file below a folder, or not alone
            under its name.
    """
    with _opened(archive) as stream:
        directory = _directory(stream)
        at = directory.where.get(name)
        if at is None:
            raise Unreadable("CANNOT_OPEN", "the archive does not have this member any more")
        entry, _ = _entry(directory.data, abs(at))
        _refuse(entry, name, alone=at > 0)
        sink: BinaryIO = io.BytesIO()
        if entry.size > IN_MEMORY:
            sink = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
        try:
            _unpack(stream, directory, entry, sink)
            sink.seek(0)
            if is_archive(sink.read(512)):
                raise Unreadable("BAD_ARCHIVE", "an archive inside an archive")
        except BaseException:
            sink.close()
            raise
    sink.seek(0)
    return sink


def is_archive(head: bytes) -> bool:
    """Whether a file with these first 512 bytes is an archive: zip, tar, tar.gz, 7z, rar, bzip2 or xz. An npz file or a
    gzipped image is none.
    """
    if head[128:132] == b"DICM" or (head[:4] == PACKED[0] and b".npy" in head[30:200]):
        return False
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            return False
    return head.startswith(PACKED) or head[257:262] == b"ustar"


class _Entry(NamedTuple):
    """What the directory says of one member."""

    raw: bytes  # the name as written
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int  # of Unix, or 0
    offset: int
    extra: bytes


@dataclass
class _Directory:
    """Of an archive: `where` has for each name the place of its entry in `data`, negative when several share the name."""

    data: bytes
    base: int  # of the file, what offsets count from
    end: int  # of all members: the byte at which the directory begins
    where: dict[str, int]


_last: dict[tuple[int, ...], _Directory] = {}  # of the archive read last: its members are opened one after another


@contextmanager
def _opened(archive: str | BinaryIO) -> Iterator[BinaryIO]:
    try:
        if isinstance(archive, str):
            with open(archive, "rb") as stream:
                yield stream
        else:
            yield archive
    except OSError:
        raise Unreadable("CANNOT_OPEN", "the archive cannot be read, or there is no room to unpack it") from None


def _directory(stream: BinaryIO) -> _Directory:
    try:
        info = os.fstat(stream.fileno())
    except OSError:  # a stream in memory
        return _read_directory(stream)
    key = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
    if key not in _last:
        _last.clear()
        _last[key] = _read_directory(stream)
    return _last[key]


def _read_directory(stream: BinaryIO) -> _Directory:
    size = stream.seek(0, io.SEEK_END)
    tail = _at(stream, max(size - (1 << 16) - END.size - END64.size - LOCATOR64.size, 0), size)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + END.size > len(tail):
        raise Unreadable("BAD_ARCHIVE", "no end of a zip archive: cut off, one part of several, or no zip archive")
    _, disk, first, here, count, length, offset, _ = END.unpack_from(tail, at)
    stop = size - len(tail) + at
    before = at - LOCATOR64.size - END64.size
    if (
        before >= 0
        and tail[at - LOCATOR64.size :].startswith(b"PK\x06\x07")
        and tail[before:].startswith(b"PK\x06\x06")
    ):
        _, _, _, _, disk, first, here, count, length, offset = END64.unpack_from(tail, before)
        stop -= LOCATOR64.size + END64.size
    if disk or first or here != count:
        raise Unreadable("BAD_ARCHIVE", "one part of an archive in several files")
    if count > MEMBERS or length > DIRECTORY:
        raise Unreadable("BAD_ARCHIVE", f"more than {MEMBERS} members")
    base = stop - length - offset  # more than 0 when something stands before the archive, a program that unpacks it
    if base < 0:
        raise Unreadable("BAD_ARCHIVE", "the list of members does not lie in the file")
    data = _at(stream, stop - length, stop)
    return _Directory(data, base, stop - length, _where(data, count, size))


def _where(data: bytes, count: int, size: int) -> dict[str, int]:
    """Name -> place of its entry, after a look at all entries; places count from 1 so that the first has a sign."""
    total = packed = at = 0
    one_page = True  # all names are UTF-8
    for _ in range(count):
        entry, at = _entry(data, at + 1)
        total, packed = total + entry.size, packed + entry.packed
        one_page = one_page and _is_utf8(entry.raw)
    if packed > size:
        raise Unreadable("BAD_ARCHIVE", "members overlap")
    if total > TOTAL or _is_bomb(total, size):
        raise Unreadable("BAD_ARCHIVE", "it unpacks to far more than it holds; it may be a bomb")
    where: dict[str, int] = {}
    at = 0
    for _ in range(count):
        place = at + 1
        entry, at = _entry(data, place)
        name = _name(entry, one_page)
        if not name.endswith("/"):
            where[name] = -abs(where[name]) if name in where else place
    return where


def _entry(data: bytes, place: int) -> tuple[_Entry, int]:
    """The entry at `place` (counted from 1) and where the next one begins (counted from 0)."""
    at = place - 1
    if data[at : at + 4] != b"PK\x01\x02" or at + ENTRY.size > len(data):
        raise Unreadable("BAD_ARCHIVE", "the list of members is damaged")
    fields = ENTRY.unpack_from(data, at)
    _, made, _, flags, method, _, _, crc, packed, size, n_name, n_extra, n_comment, _, _, attributes, offset = fields
    start = at + ENTRY.size
    extra = data[start + n_name : start + n_name + n_extra]
    if 0xFFFFFFFF in {packed, size, offset}:
        wide = _field(extra, 1)  # APPNOTE 4.5.3: those of the three that do not fit, in this order
        if len(wide) < 8 * (size, packed, offset).count(0xFFFFFFFF):
            raise Unreadable("BAD_ARCHIVE", "a member without its size")
        words = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
        size, packed, offset = [next(words) if v == 0xFFFFFFFF else v for v in (size, packed, offset)]
    mode = attributes >> 16 if made >> 8 == 3 else 0
    raw = data[start : start + n_name]
    found = _Entry(raw, flags, method, crc, packed, size, mode, offset, extra)
    return found, start + n_name + n_extra + n_comment


def _field(extra: bytes, wanted: int) -> bytes:
    """An extra field by its number (APPNOTE 4.5), b"" when it is absent."""
    while len(extra) >= 4:
        number, length = struct.unpack_from("<2H", extra)
        if number == wanted:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name(entry: _Entry, one_page: bool) -> str:
    """UTF-8 where the entry says so, or carries a copy in it (APPNOTE 4.6.9), or where all names can be read so, as
    macOS and Linux write them; else CP949, as Korean Windows does; else CP437, which takes any bytes.
    """
    copy = _field(entry.extra, 0x7075)
    if len(copy) > 5 and copy[1:5] == zlib.crc32(entry.raw).to_bytes(4, "little") and _is_utf8(copy[5:]):
        name = copy[5:].decode()
    elif (entry.flags & UTF8 or one_page) and _is_utf8(entry.raw):
        name = entry.raw.decode()
    else:
        try:
            name = entry.raw.decode("cp949")
        except UnicodeDecodeError:
            name = entry.raw.decode("cp437")
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > RATIO * max(packed, SMALL)


def _refuse(entry: _Entry, name: str, alone: bool) -> None:
    """Raises Unreadable for a member that is not to be unpacked."""
    if not alone:
        raise Unreadable("BAD_ARCHIVE", "several members have the same name")
    if not name or name[0] == "/" or "\0" in name or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise Unreadable("BAD_ARCHIVE", "a member whose name leads out of the archive")
    if stat.S_IFMT(entry.mode) not in {0, stat.S_IFREG}:
        raise Unreadable("NOT_A_FILE", "a link, a pipe or a device in an archive")
    if entry.flags & ENCRYPTED:
        raise Unreadable("BAD_ARCHIVE", "encrypted")
    if entry.method not in {STORED, DEFLATED}:
        raise Unreadable("BAD_ARCHIVE", "packed in a way that is not read; stored and deflated members are")
    if entry.size > LARGEST or _is_bomb(entry.size, entry.packed):
        raise Unreadable("TOO_LARGE", "a member unpacks to far more than it holds; it may be a bomb")


def _unpack(stream: BinaryIO, directory: _Directory, entry: _Entry, sink: BinaryIO) -> None:
    """Writes a member to `sink`: never more bytes than its entry says, and with their checksum."""
    at = directory.base + entry.offset
    head = _at(stream, at, at + LOCAL.size) if at + LOCAL.size <= directory.end else b""
    if len(head) < LOCAL.size or head[:4] != b"PK\x03\x04":
        raise Unreadable("BAD_ARCHIVE", "a member is not where the list says")
    n_name, n_extra = LOCAL.unpack(head)[-2:]
    at += LOCAL.size + n_name + n_extra
    if at + entry.packed > directory.end:
        raise Unreadable("BAD_ARCHIVE", "a member reaches beyond the end of the archive")
    stream.seek(at)
    done = crc = 0
    for out in _pieces(stream, entry):
        done, crc = done + len(out), zlib.crc32(out, crc)
        if done > entry.size:
            raise Unreadable("BAD_ARCHIVE", "a member is longer than the list says")
        sink.write(out)
    if done != entry.size or crc != entry.crc:
        raise Unreadable("BAD_ARCHIVE", "a member is damaged")


def _pieces(stream: BinaryIO, entry: _Entry) -> Iterator[bytes]:
    """A member's bytes from where `stream` stands, unpacked, at most STEP at a time."""
    engine = zlib.decompressobj(wbits=-zlib.MAX_WBITS)
    left = entry.packed
    while left and (piece := stream.read(min(left, STEP))):
        left -= len(piece)
        if entry.method == STORED:
            yield piece
            continue
        try:
            while piece:
                yield engine.decompress(piece, STEP)
                piece = engine.unconsumed_tail
        except zlib.error:
            raise Unreadable("BAD_ARCHIVE", "a member is damaged") from None
    if entry.method == DEFLATED:
        yield engine.flush()  # at most what the last few bits stand for


def _at(stream: BinaryIO, start: int, stop: int) -> bytes:
    stream.seek(start)
    return stream.read(stop - start)
