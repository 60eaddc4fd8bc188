"""Members of zip archives, read in place: nothing is extracted to disk under a name taken from the archive.

`zipfile` decodes the archive; everything that could do harm is checked before it allocates memory.
"""

import io
import os
import re
import shutil
import stat
import struct
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from medssl.readers.scan import Unreadable

MEMBERS = 10**6
DIRECTORY = 1 << 28  # bytes of the central directory
TOTAL = 1 << 42  # bytes of all members, uncompressed
LARGEST = 1 << 33  # bytes of one member, uncompressed
RATIO = 200  # deflate reaches up to 1032; label maps reach some hundred, images never
SMALL = 1 << 20  # bytes; smaller compressed members may have any ratio
IN_MEMORY = 1 << 28  # bytes; larger members are extracted to an unnamed temporary file
STEP = 1 << 20

ENCRYPTED = 1 | 1 << 6 | 1 << 13  # general purpose flags 0, 6, 13
UTF8 = 1 << 11
END, END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q20x")  # END64 includes the locator after it
LOCAL = struct.Struct("<26x2H")  # lengths of name and extra field in a local header
ZIP = b"PK\x03\x04"
ARCHIVES = (ZIP, b"PK\x05\x06", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"BZh", b"\xfd7zXZ\0")
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, struct.error)


class Member(NamedTuple):
    """A file in an archive: its path there (NFC, with "/") and its uncompressed size in bytes."""

    name: str
    size: int


def members(archive: str | BinaryIO) -> Iterator[Member]:
    """Yield the files of a zip archive, each name once, in the order of the directory. They may still be unreadable.

    Raises:
        Unreadable: CANNOT_OPEN; BAD_ARCHIVE if it is damaged, incomplete, not a zip file, or unreasonably large.
    """
    with _opened(archive) as found:
        for name, entries in found.entries.items():
            yield Member(name, entries[0].file_size)


def open_member(archive: str | BinaryIO, name: str) -> BinaryIO:
    """Return a member, extracted and validated to its last byte: in memory, or in an unnamed file if it is large.

    Raises:
        Unreadable: CANNOT_OPEN; NOT_A_FILE for a link; TOO_LARGE for a zip bomb; BAD_ARCHIVE if the member is damaged,
            encrypted, compressed with an unsupported method, an archive itself, has an unsafe path, or shares its name.
    """
    with _opened(archive) as found:
        entries = found.entries.get(name)
        if entries is None:
            raise Unreadable("CANNOT_OPEN", "the member is no longer in the archive")
        _check(entries, name)
        size = entries[0].file_size
        sink: BinaryIO = tempfile.TemporaryFile() if size > IN_MEMORY else io.BytesIO()  # noqa: SIM115
        try:
            shutil.copyfileobj(found.open(entries[0]), sink, STEP)
            if sink.tell() != size:
                raise Unreadable("BAD_ARCHIVE", "a member is damaged")
            sink.seek(0)
            if is_archive(sink.read(512)):
                raise Unreadable("BAD_ARCHIVE", "an archive inside an archive")
        except BaseException:
            sink.close()
            raise
    sink.seek(0)
    return sink


def is_archive(head: bytes) -> bool:
    """Return whether a file with these first 512 bytes is an archive: zip, tar, tar.gz, 7z, rar, bzip2 or xz.

    npz files and gzipped images are not.
    """
    if head[128:132] == b"DICM" or is_npz(head):
        return False
    if head[:2] == b"\x1f\x8b":
        try:
            head = zlib.decompressobj(wbits=31).decompress(head, 512)
        except zlib.error:
            return False
    return head.startswith(ARCHIVES) or head[257:262] == b"ustar"


def is_zip(head: bytes) -> bool:
    """Return whether a file with these first bytes is a zip archive that is neither npz nor DICOM."""
    return head.startswith(ZIP) and is_archive(head)


def is_npz(head: bytes) -> bool:
    """Return whether a file with these first bytes is a zip archive of NumPy arrays."""
    return head.startswith(ZIP) and b".npy" in head[30:200]


class _Archive:
    """An open archive and its entries by name. Several entries may have the same name."""

    def __init__(self, stream: BinaryIO):
        size, count = _check_directory(stream)
        try:
            infos = zipfile.ZipFile(stream).infolist()
        except DAMAGE:
            raise Unreadable("BAD_ARCHIVE", "the list of members is damaged") from None
        if len(infos) != count:
            raise Unreadable("BAD_ARCHIVE", "the list of members is incomplete")
        if sum(i.compress_size for i in infos) > size:
            raise Unreadable("BAD_ARCHIVE", "members overlap")
        total = sum(i.file_size for i in infos)
        if total > TOTAL or _is_bomb(total, size):
            raise Unreadable("BAD_ARCHIVE", "it unpacks to far more than its size; it may be a zip bomb")
        raw = [i.orig_filename.encode("utf-8" if i.flag_bits & UTF8 else "cp437") for i in infos]
        all_utf8 = all(map(_is_utf8, raw))
        self.entries: dict[str, list[zipfile.ZipInfo]] = {}
        for info, written in zip(infos, raw, strict=True):
            name = _name(info, written, all_utf8)
            if not name.endswith("/"):
                self.entries.setdefault(name, []).append(info)
        self.stream = stream

    def open(self, entry: zipfile.ZipInfo) -> zipfile.ZipExtFile:
        """Return a stream of a member.

        `ZipFile.open` would refuse members if the encodings of the name in the list and in the local header differ.
        """
        self.stream.seek(entry.header_offset)
        head = self.stream.read(LOCAL.size)
        if not head.startswith(ZIP) or len(head) < LOCAL.size:
            raise Unreadable("BAD_ARCHIVE", "a member is not at its listed position")
        self.stream.seek(sum(LOCAL.unpack(head)), io.SEEK_CUR)
        return zipfile.ZipExtFile(self.stream, "r", entry)


@contextmanager
def _opened(archive: str | BinaryIO) -> Iterator[_Archive]:
    try:
        if isinstance(archive, str):
            info = os.stat(archive)
            yield _cached(archive, info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
        else:
            yield _Archive(archive)
    except DAMAGE:
        raise Unreadable("BAD_ARCHIVE", "a member is damaged") from None
    except OSError:
        raise Unreadable("CANNOT_OPEN", "the archive cannot be read, or there is no room to extract it") from None


@lru_cache(maxsize=1)
def _cached(path: str, *_: int) -> _Archive:
    """Return the archive; the last one stays open, since its members are read one after another."""
    return _Archive(open(path, "rb"))


def _check_directory(stream: BinaryIO) -> tuple[int, int]:
    """Return the size of the file and its stated number of members, after checking that the directory is not too large.

    `zipfile` makes an object per entry of the directory, whatever number of entries is stated.
    """
    size = stream.seek(0, io.SEEK_END)
    start = stream.seek(max(size - (1 << 16) - END.size - END64.size, 0))
    tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + END.size > len(tail):
        raise Unreadable("BAD_ARCHIVE", "no end of a zip archive: truncated, one part of several, or not a zip file")
    _, disk, first, here, count, length, offset, _ = END.unpack_from(tail, at)
    if tail[: at - 16].endswith(b"PK\x06\x07") and tail[at - END64.size :].startswith(b"PK\x06\x06"):
        at -= END64.size
        _, _, _, _, disk, first, here, count, length, offset = END64.unpack_from(tail, at)
    if disk or first or here != count:
        raise Unreadable("BAD_ARCHIVE", "one part of an archive in several files")
    if length + offset > start + at:
        raise Unreadable("BAD_ARCHIVE", "the list of members does not lie in the file")
    stream.seek(start + at - length)
    if length > DIRECTORY or stream.read(length).count(b"PK\x01\x02") > MEMBERS:
        raise Unreadable("BAD_ARCHIVE", f"more than {MEMBERS} members")
    return size, count


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _name(info: zipfile.ZipInfo, raw: bytes, all_utf8: bool) -> str:
    """Return the path of a member.

    UTF-8 if flagged, if a UTF-8 copy is attached (APPNOTE.TXT 4.6.9), or if all names of the archive are valid UTF-8,
    as macOS and Linux write them; otherwise CP949, as Korean Windows does; otherwise CP437.
    """
    copy = _extra_field(info.extra, 0x7075)
    if len(copy) > 5 and copy[1:5] == zlib.crc32(raw).to_bytes(4, "little") and _is_utf8(copy[5:]):
        name = copy[5:].decode()
    elif info.flag_bits & UTF8 or all_utf8:
        name = raw.decode()
    else:
        try:
            name = raw.decode("cp949")
        except UnicodeDecodeError:
            name = raw.decode("cp437")
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _extra_field(extra: bytes, wanted: int) -> bytes:
    """Return an extra field by its number (APPNOTE.TXT 4.5), b"" if it is absent."""
    while len(extra) >= 4:
        number, length = struct.unpack_from("<2H", extra)
        if number == wanted:
            return extra[4 : 4 + length]
        extra = extra[4 + length :]
    return b""


def _is_bomb(unpacked: int, packed: int) -> bool:
    return unpacked > RATIO * max(packed, SMALL)


def _check(entries: list[zipfile.ZipInfo], name: str) -> None:
    """Raise Unreadable if a member must not be extracted."""
    if len(entries) > 1:
        raise Unreadable("BAD_ARCHIVE", "several members have the same name")
    entry = entries[0]
    if not name or name[0] == "/" or "\0" in name or re.match(r"[A-Za-z]:", name) or ".." in name.split("/"):
        raise Unreadable("BAD_ARCHIVE", "the path of a member leads out of the archive")
    if entry.create_system == 3 and stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
        raise Unreadable("NOT_A_FILE", "a link, a pipe or a device in an archive")
    if entry.flag_bits & ENCRYPTED:
        raise Unreadable("BAD_ARCHIVE", "encrypted")
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Unreadable("BAD_ARCHIVE", "the compression method is not supported; store or deflate the member")
    if entry.file_size > LARGEST or _is_bomb(entry.file_size, entry.compress_size):
        raise Unreadable(
            "TOO_LARGE",
            f"a member unpacks to {entry.file_size:,} bytes from {entry.compress_size:,}; at most {LARGEST:,} bytes and {RATIO} "
            "times its size are unpacked; extract it by hand if it is known to be good",
        )
