"""The table of file formats. To add one, write its module in this folder and add an entry to FORMATS."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from medssl.readers import archive, image, nifti, npz
from medssl.readers.dicom import reader
from medssl.readers.dicom.elements import is_dicom
from medssl.readers.nifti_header import is_nifti
from medssl.readers.other_formats import other_format
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable

HEAD = 540  # bytes; a NIfTI-2 header

Found = Slice | Iterator[tuple[Scan | Unreadable, str]]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: its name in messages.
        matches: returns whether the first HEAD bytes of a file are in this format.
        read: returns the scans of a stream, each with the path of the file plus "#part" if there are several.
            Arguments: the stream, the path of the file relative to the source, the pseudonyms.
        suffixes: usual ends of its file names, lower case. Files are recognised by their content.
        reserved: whether a file with such a name and other content is damaged.
        gzipped: whether the files may be gzipped.
    """

    name: str
    matches: Callable[[bytes], bool]
    read: Callable[[BinaryIO, str, Pseudonyms], Found]
    suffixes: tuple[str, ...]
    reserved: bool = False
    gzipped: bool = False


IMAGE = Format("PNG, JPEG, TIFF", image.is_image, image.read, (".png", ".jpg", ".jpeg", ".tif", ".tiff"))
FORMATS = (
    Format("DICOM", is_dicom, reader.read, (".dcm", ".dicom", ".ima"), gzipped=True),
    Format("NIfTI", is_nifti, nifti.read, (".nii", ".nii.gz", ".hdr"), reserved=True, gzipped=True),
    IMAGE,
    Format("MedMNIST npz", archive.is_npz, npz.read, (".npz",)),
)


def format_of(stream: BinaryIO) -> Format | None:
    """Return the format of a stream by its content, None if it is not in the table. The stream is rewound."""
    head, zipped = _head(stream)
    return next((f for f in FORMATS if f.matches(head) and f.gzipped >= zipped), None)


def _head(stream: BinaryIO) -> tuple[bytes, bool]:
    """Return the first HEAD bytes, unpacked if they are gzipped, and whether they are. The stream is rewound."""
    head = stream.read(HEAD)
    stream.seek(0)
    zipped = head[:2] == b"\x1f\x8b"
    if zipped:
        try:
            head = gzip.GzipFile(fileobj=stream).read(HEAD)
        except (EOFError, OSError, zlib.error):
            head = b""
        stream.seek(0)
    return head, zipped


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Found:
    """Return the scans of a file of any format, or one slice of a DICOM series; see `Format.read`.

    Raises:
        Unreadable: ARCHIVE, BAD_HEADER, NOT_A_SCAN, or a code of the format's reader, also during iteration.
    """
    found = format_of(stream)
    if found is not None:
        return found.read(stream, name, pseudonyms)
    head, _ = _head(stream)
    if archive.is_zip(stream.read(512)):
        raise Unreadable("ARCHIVE", "a zip archive; use archives=true to read its members")
    if other := other_format(head):
        raise Unreadable("NOT_A_SCAN", f"{other.name}, which is not read; {other.advice}")
    for known in FORMATS:
        if known.reserved and name.lower().endswith(known.suffixes):
            raise Unreadable("BAD_HEADER", f"the name is that of a {known.name} file, but the content is not")
    raise Unreadable("NOT_A_SCAN", f"the format is none of {', '.join(f.name for f in FORMATS)}")
