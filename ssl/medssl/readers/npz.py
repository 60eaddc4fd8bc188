"""MedMNIST archives (https://medmnist.com): arrays train_images, train_labels, val_…, test_… in one npz file.

Images are read one at a time to save memory, after every array has been read to its end to verify the checksum.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np

from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.values import lossless, one_channel

SPLITS = ("train", "val", "test")
MAX_IMAGE = 1 << 31  # bytes of one image
MAX_LABELS = 1 << 28  # bytes of the labels of a split
MAX_LABEL_WIDTH = 128  # numbers per image; more means a mask
MAX_HEADER = 1 << 12  # characters of an npy header
CHUNK = 1 << 22
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, NotImplementedError)


@dataclass(frozen=True)
class Array:
    """One npy member: its name, and the shape, type and memory order in its header."""

    member: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def record(self) -> int:
        """Bytes per index of the first axis."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """Yield every image as `name#train/12`, in the order train, val, test. Each image is its own patient.

    Images: (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3). An image that cannot be stored is yielded as Unreadable.

    Raises:
        Unreadable: EMPTY, NOT_AN_IMAGE for other arrays, TRUNCATED, BAD_HEADER, BAD_LENGTH, TOO_LARGE,
            UNSUPPORTED_PIXELS.
    """
    if not stream.read(1):
        raise Unreadable("EMPTY", "the file has no bytes")
    with _guarded():
        archive = zipfile.ZipFile(stream)
    with archive:
        splits = [s for s in SPLITS if f"{s}_images.npy" in archive.NameToInfo]
        if not splits:
            raise Unreadable("NOT_AN_IMAGE", "the archive has no train_images, val_images or test_images")
        parts = [(split, *_part(archive, split)) for split in splits]
        for split, images, labels in parts:
            for i, record in enumerate(_records(archive, images)):
                part = f"{name}#{split}/{i}"
                try:
                    yield _scan(record, None if labels is None else labels[i], split, pseudonyms, part), part
                except Unreadable as why:
                    yield why, part


@contextmanager
def _guarded() -> Iterator[None]:
    try:
        yield
    except DAMAGE:
        raise Unreadable("TRUNCATED", "the archive is damaged or incomplete") from None


def _part(archive: zipfile.ZipFile, split: str) -> tuple[Array, np.ndarray | None]:
    """Return the images of a split, verified, and its labels (N, K)."""
    images = _check(archive, f"{split}_images.npy")
    if len(images.shape) not in {3, 4, 5} or images.dtype.kind not in "iufb" or not all(images.shape[1:]):
        raise Unreadable("UNSUPPORTED_PIXELS", f"{split}_images is not a stack of images")
    at_once = images.record * (images.shape[0] if images.fortran else 1)
    if max(images.record, at_once) > MAX_IMAGE:
        raise Unreadable("TOO_LARGE", f"{at_once:,} bytes of {split}_images at once; at most {MAX_IMAGE:,} are read")
    if f"{split}_labels.npy" not in archive.NameToInfo:
        return images, None
    found = _check(archive, f"{split}_labels.npy")
    wide = math.prod(found.shape[1:])
    if found.shape[:1] != images.shape[:1] or found.dtype.kind not in "iub" or not 1 <= wide <= MAX_LABEL_WIDTH:
        raise Unreadable("UNSUPPORTED_PIXELS", f"{split}_labels are not one row of integers per image")
    if found.record * found.shape[0] > MAX_LABELS:
        raise Unreadable("TOO_LARGE", f"{split}_labels are too large")
    return images, _whole(archive, found).reshape(found.shape[0], wide)


def _check(archive: zipfile.ZipFile, member: str) -> Array:
    """Return the header of a member, after checking its length and checksum.

    Raises:
        Unreadable: TRUNCATED, BAD_HEADER, BAD_LENGTH, UNSUPPORTED_PIXELS.
    """
    info = archive.NameToInfo[member]
    if info.flag_bits & 1 or info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise Unreadable("UNSUPPORTED_PIXELS", "the archive is encrypted or uses an unsupported compression")
    with _guarded(), archive.open(info) as opened:
        array = _header(opened, member)
        if info.file_size != opened.tell() + array.record * array.shape[0]:
            raise Unreadable("BAD_LENGTH", "the length of an array contradicts its header")
        while opened.read(CHUNK):
            pass
    return array


def _header(opened: IO[bytes], member: str) -> Array:
    """Return the header of an npy file (numpy.lib.format). Only literals are evaluated."""
    version = np.lib.format.read_magic(opened)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise Unreadable("UNSUPPORTED_PIXELS", "an array of an unknown npy version")
    try:
        shape, fortran, dtype = readers[version](opened, max_header_size=MAX_HEADER)
    except DAMAGE:
        raise
    except Exception:  # the tokenizer raises various errors
        raise Unreadable("BAD_HEADER", "the header of an array cannot be parsed") from None
    if dtype.hasobject or dtype.names or dtype.subdtype or not dtype.itemsize or not shape or min(shape) < 0:
        raise Unreadable("UNSUPPORTED_PIXELS", "not an array of numbers")
    return Array(member, shape, dtype, fortran)


def _records(archive: zipfile.ZipFile, images: Array) -> Iterator[np.ndarray]:
    if images.fortran:  # images are interleaved in memory
        yield from _whole(archive, images)
        return
    with archive.open(images.member) as opened:
        _header(opened, images.member)
        for _ in range(images.shape[0]):
            yield np.frombuffer(bytearray(_exactly(opened, images.record)), images.dtype).reshape(images.shape[1:])


def _whole(archive: zipfile.ZipFile, array: Array) -> np.ndarray:
    with archive.open(array.member) as opened:
        _header(opened, array.member)
        data = np.frombuffer(_exactly(opened, array.record * array.shape[0]), array.dtype)
    return data.reshape(array.shape, order="F" if array.fortran else "C")


def _exactly(opened: IO[bytes], size: int) -> bytes:
    with _guarded():
        data = opened.read(size)
    if len(data) != size:
        raise Unreadable("TRUNCATED", "the archive changed while it was read")
    return data


def _scan(record: np.ndarray, label: np.ndarray | None, split: str, pseudonyms: Pseudonyms, part: str) -> Scan:
    """Return an image (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3) as a scan."""
    colour = record.ndim > 2 and record.shape[-1] == 3
    array = np.moveaxis(record, -1, 0) if colour else record[None]
    array, steps = lossless(np.ascontiguousarray(array))
    if array.ndim > 4:
        raise Unreadable("UNSUPPORTED_PIXELS", "neither an image nor a volume")
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    values = [] if label is None else [str(int(v)) for v in label]
    return Scan(
        array=array,
        scan=pseudonyms.of("scan", f"file|{part}"),
        patient=pseudonyms.of("patient", f"file|{part}"),
        patient_known=False,
        labels={"label": values[0]} if len(values) == 1 else {f"label_{k}": v for k, v in enumerate(values)},
        split=split,
        steps=tuple(steps),
    )
