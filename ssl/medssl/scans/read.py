"""The walk: every file of a folder becomes a scan, a part of one, or a reject with a code. Nothing stops it."""

import gzip
import hashlib
import os
import stat
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.progress import Progress, track
from medssl.scans import dicom, image, nifti, npz, series
from medssl.scans.alias import Alias
from medssl.scans.scan import Scan, Unreadable

IGNORED = {"DICOMDIR", "THUMBS.DB", "DESKTOP.INI"}
OnReject = Callable[[Path, Unreadable], None]
# Value representations of PS3.5 table 6.2-1: how a header without preamble betrays explicit VR.
VRS = {
    *(b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL UN UR US UT UV".split()),
}


def walk(source: Path) -> list[Path]:
    """Regular files below `source`, sorted, links never followed; hidden files and viewers' litter are left out.

    A folder that cannot be listed stands in the list itself, so that reading it says so. A file is a list of one.

    Raises:
        UserError: nothing is there.
    """
    if not source.exists():
        raise UserError(f"there is nothing at {source}; name a folder of scans, or one file")
    if not source.is_dir():
        return [source]
    found: list[Path] = []
    for folder, folders, names in os.walk(source, onerror=lambda e: found.append(Path(e.filename)), followlinks=False):
        folders[:] = sorted(n for n in folders if not n.startswith("."))
        for name in names:
            path = Path(folder, name)
            if not name.startswith(".") and name.upper() not in IGNORED and stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
    return sorted(found)


def sniff(path: Path) -> str:
    """ "dicom", "nifti", "png", "jpeg", "npz", or "" for anything else: by content, never by name."""
    with path.open("rb") as f:
        head = f.read(540)
        if head[:2] == b"\x1f\x8b":
            f.seek(0)
            try:
                head = gzip.GzipFile(fileobj=f).read(540)
            except (EOFError, OSError, zlib.error):
                return ""
            return "nifti" if _is_nifti(head) else ""
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "dicom"
    if _is_nifti(head):
        return "nifti"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"PK\x03\x04") and b".npy" in head[30:200]:
        return "npz"
    return ""


def _is_nifti(head: bytes) -> bool:
    first = {head[:4], head[3::-1]}  # either byte order
    one = (348).to_bytes(4, "little") in first and head[344:347] == b"n+1"
    return one or ((540).to_bytes(4, "little") in first and head[4:7] == b"n+2")


def _is_bare_dicom(head: bytes) -> bool:
    """No preamble, but the file starts with a plausible element of group 0002 or 0008."""
    if len(head) < 16 or head[:2] not in {b"\x02\x00", b"\x08\x00"} or head[3] != 0:
        return False
    return head[4:6] in VRS or int.from_bytes(head[4:8], "little") < 1024


def read(files: list[Path], alias: Alias, root: Path, on_reject: OnReject) -> Iterator[tuple[Scan, str]]:
    """Yields every scan in `files` with the path it came from, relative to `root`, for joining tables of labels.

    Images come in the order of the files, volumes after them; a volume's path is the folder that holds its slices, a
    record's is `file.npz#train/12`. At most one volume is in memory. Every file ends in a scan or in `on_reject`, whose
    message quotes nothing from the file.
    """
    slices: list[series.Slice] = []
    seen: dict[str, bytes] = {}
    root = root.parent if root.is_file() else root
    for path in track(files, "read files", unit="file"):
        relative = relative_to(path, root)
        try:
            kind = _kind(path)
            found = dicom.look(path) if kind == "dicom" else None
            if found is not None:
                slices.append(found)
                continue
            for scan, name in _scans(kind, path, alias, relative):
                try:
                    yield _fresh(scan, seen, alias), name
                except Unreadable as why:  # one record of an archive; the next may be fine
                    on_reject(path, why)
        except BaseException as e:
            on_reject(path, _unreadable(e))
    with Progress("read volumes", total=len(slices), unit="slice", quiet=not slices) as bar:
        for group in series.group(slices):
            try:
                stacks, duplicates = series.stacks(group, dicom.pixel_digest)
            except BaseException as e:
                _reject_all(group, e, on_reject)
                bar.update(len(group))
                continue
            _reject_all(duplicates, Unreadable("DUPLICATE", "the same slice is there already"), on_reject)
            bar.update(len(duplicates))
            for repeat, stack in enumerate(stacks):
                try:
                    scan, where = _volume(stack, repeat, alias, root)
                    yield _fresh(scan, seen, alias), where
                except BaseException as e:
                    _reject_all(stack, e, on_reject)
                bar.update(len(stack))


def relative_to(path: Path, root: Path) -> str:
    """The path below `root`, with /, in Unicode's composed form."""
    path = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
    return unicodedata.normalize("NFC", path.as_posix())


def _kind(path: Path) -> str:
    info = path.lstat()
    if not stat.S_ISREG(info.st_mode):
        raise Unreadable("NOT_A_FILE", "not a regular file, or a folder that cannot be listed")
    if info.st_size == 0:
        raise Unreadable("EMPTY", "the file has no bytes")
    kind = sniff(path)
    if not kind:
        raise Unreadable("NOT_A_SCAN", "neither DICOM, NIfTI, PNG, JPEG nor an archive of images")
    return kind


def _scans(kind: str, path: Path, alias: Alias, relative: str) -> Iterator[tuple[Scan, str]]:
    if kind == "npz":
        yield from npz.images(path, alias, relative)
    else:
        reader = {"dicom": dicom.image, "nifti": nifti.image, "png": image.image, "jpeg": image.image}[kind]
        yield reader(path, alias, relative), relative


def _volume(stack: list[series.Slice], repeat: int, alias: Alias, root: Path) -> tuple[Scan, str]:
    """A stack and the folder that holds all its slices; a lonely slice stays an image."""
    if len(stack) == 1:
        where = relative_to(stack[0].path, root)
        return dicom.image(stack[0].path, alias, where), where
    where = relative_to(Path(os.path.commonpath([s.path.parent for s in stack])), root)
    return dicom.volume(stack, repeat, alias, where), where


def _reject_all(slices: list[series.Slice], e: BaseException, on_reject: OnReject) -> None:
    why = _unreadable(e)
    for s in slices:
        on_reject(s.path, why)


def _fresh(scan: Scan, seen: dict[str, bytes], alias: Alias) -> Scan:
    """The scan, under a pseudonym that no other scan has; a constant image, or the same one again, is refused.

    A UID that returns with other pixels is a broken anonymiser's work: the pixels then become part of the pseudonym.
    """
    if scan.array.min() == scan.array.max():
        raise Unreadable("CONSTANT", "every pixel has the same value")
    digest = hashlib.blake2b(np.ascontiguousarray(scan.array).data, digest_size=16).digest()
    if seen.get(scan.scan, digest) != digest:
        scan = replace(scan, scan=alias.alias("scan", scan.scan.encode() + b"|" + digest))
    if scan.scan in seen:
        raise Unreadable("DUPLICATE", "the same image is there already")
    seen[scan.scan] = digest
    return scan


def _unreadable(e: BaseException) -> Unreadable:
    """What a reader's exception becomes: its type but never its words, which may quote the header or the path."""
    if isinstance(e, Unreadable):
        return e
    if isinstance(e, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise e
    if isinstance(e, MemoryError):
        return Unreadable("OUT_OF_MEMORY", "the file needs more memory than there is")
    if isinstance(e, OSError):
        return Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")
    return Unreadable("READER_FAILED", f"the reader raised {type(e).__name__}")
