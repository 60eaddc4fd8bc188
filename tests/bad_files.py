"""Bad files as they occur in hospitals or are made by attackers, each with the expected result of ingest.

Cases are numbered after the product's list of failures. Not included: a network that loses a file during reading (part of
3; the other part needs a non-root user), mosaics (test_frames.py), MR images with a slope per slice
(test_dicom_reader.py), forking of workers (70), and faces (68).
"""

import gzip
import io
import json
import os
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

USED = "used"
SIDE = 48  # pixels
CT, DX, MR, US = (f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("2", "1.1", "4", "6.1"))
ENHANCED_MR, CAPTURE = "1.2.840.10008.5.1.4.1.1.4.1", "1.2.840.10008.5.1.4.1.1.7"
JPEG_BASELINE, JPEG_EXTENDED, JPEG_LOSSLESS, JPEG_LS, JPEG_2000, MPEG2, JPEG_XL = (
    UID(f"1.2.840.10008.1.2.4.{n}") for n in (50, 51, 70, 80, 90, 100, 110)
)
DEFLATED = UID("1.2.840.10008.1.2.1.99")
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PREAMBLE = b"MZ\x90\0\x03" + b"this program cannot be run"  # of a Windows program


@dataclass(frozen=True)
class Case:
    """One case of the list.

    Attributes:
        number: the number in the list, such as "16".
        make: writes the files into a folder.
        expect: file name -> USED, a reject code, or a set of acceptable results.
        check: asserts that the values in the store are correct; called with a `test_bad_files.View`.
    """

    number: str
    make: Callable[[Path], None]
    expect: dict[str, str | set[str]]
    check: Callable[[Any], None] | None

    @property
    def name(self) -> str:
        return self.make.__name__


CASES: list[Case] = []


def case(
    expect: dict[str, str | set[str]] | str,
    files: str | Iterable[str] = "",
    check: Callable[[Any], None] | None = None,
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function named f16_… as a case. `expect` is one result for all `files`, or one per file."""
    names = files.split() if isinstance(files, str) else list(files)

    def add(make: Callable[[Path], None]) -> Callable[[Path], None]:
        per_file = dict.fromkeys(names, expect) if isinstance(expect, str) else expect
        CASES.append(Case(make.__name__[1:].split("_")[0], make, per_file, check))
        return make

    return add


# ---- one good scan of each kind


def uid(*words: object) -> str:
    """Return a UID that depends only on the words."""
    return generate_uid(entropy_srcs=[str(w) for w in words])


def hounsfield(*words: object) -> np.ndarray:
    """Return (SIDE, SIDE) int16 noise from -1000 to 899 HU that depends only on the words."""
    seed = zlib.crc32(repr(words).encode())
    return np.random.default_rng(seed).integers(-1000, 900, (SIDE, SIDE)).astype(np.int16)


def ct(folder: Path, name: str, hu: np.ndarray | None = None, **tags: Any) -> Dataset:
    """Return a CT slice with pixels and identifiers derived from the names of its folder and file."""
    hu = hounsfield(folder.name, name) if hu is None else hu
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = CT, uid(folder.name, name), "CT"
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = folder.name, uid(folder.name), uid(folder.name, name, "s")
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [-9, -8, 0], list(AXIAL), [0.5, 0.75]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = hu.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = (hu + 1024).astype("<u2").tobytes()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


def data(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return a data set as the bytes of a file."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    if "PixelData" in ds:
        ds["PixelData"].VR = "OB" if ds.BitsAllocated <= 8 or UID(syntax).is_encapsulated else "OW"
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def body(file: bytes) -> bytes:
    """Return what follows the file meta information."""
    return file[144 + int.from_bytes(file[140:144], "little") :]


def packed(ds: Dataset, frames: list[bytes], syntax: str) -> bytes:
    """Return a file with the given header and compressed frames."""
    ds.PixelData = encapsulate(frames)
    ds["PixelData"].is_undefined_length = True
    return data(ds, syntax)


def stored(folder: Path, name: str) -> np.ndarray:
    """Return the stored words of the good slice of that name."""
    return (hounsfield(folder.name, name) + 1024).astype(np.uint16)


def with_meta(dataset: bytes, syntax: str) -> bytes:
    """Return the bytes of a data set after file meta information with this transfer syntax."""
    element = syntax.encode().ljust(len(syntax) + len(syntax) % 2, b"\0")
    return bytes(128) + b"DICM\x02\x00\x10\x00UI" + struct.pack("<H", len(element)) + element + dataset


def edit(file: bytes, element: bytes, value: bytes) -> bytes:
    """Replace the bytes after `element`, which must occur once."""
    assert file.count(element) == 1
    at = file.index(element) + len(element)
    return file[:at] + value + file[at + len(value) :]


def nifti(*words: object, shape: tuple[int, ...] = (8, 9, 10), version: int = 1, **fields: Any) -> bytes:
    """Return a NIfTI file with noise and the given header fields."""
    seed = zlib.crc32(repr(words).encode())
    voxels = np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)
    kind = nibabel.Nifti1Image if version == 1 else nibabel.Nifti2Image
    image = kind(voxels, np.diag([1.0, 2.0, 3.0, 1.0]))
    out = bytearray(image.to_bytes())
    at = {"dim": (40, "8h"), "datatype": (70, "h"), "bitpix": (72, "h"), "vox_offset": (108, "f"), "magic": (344, "4s")}
    for name, value in fields.items():
        offset, how = at[name]
        struct.pack_into("<" + how, out, offset, *(value if isinstance(value, tuple) else (value,)))
    return bytes(out)


def nifti_of(array: np.ndarray) -> bytes:
    """Return an array as NIfTI."""
    return nibabel.Nifti1Image(array, np.eye(4)).to_bytes()


def grey(*words: object) -> np.ndarray:
    """Return (SIDE, SIDE) uint8 noise."""
    return np.random.default_rng(zlib.crc32(repr(words).encode())).integers(0, 256, (SIDE, SIDE)).astype(np.uint8)


def picture(array: np.ndarray, kind: str = "png", mode: str | None = None, **how: Any) -> bytes:
    """Return an array as PNG, JPEG, …"""
    out = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(out, kind, **how)
    return out.getvalue()


def zeros(megabytes: int) -> bytes:
    """Return a raw deflate stream of zeros, made without compressing all of them."""
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return (engine.compress(bytes(1 << 20)) + engine.flush(zlib.Z_FULL_FLUSH)) * megabytes + b"\x03\x00"


def member(name: bytes, content: bytes, size: int, crc: int = 0, flags: int = 0) -> bytes:
    """Return a zip archive with one deflated member of stated `size`."""
    common = struct.pack("<HHHHIIIHH", flags, 8, 0, 0, crc, len(content), size, len(name), 0)
    local = b"PK\x03\x04\x14\0" + common + name + content
    entry = b"PK\x01\x02\x14\0\x14\0" + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return local + entry + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1, 1, len(entry), len(local), 0)


def write(folder: Path, **files: bytes) -> None:
    """Write files given by name, with "_" before the suffix."""
    for name, content in files.items():
        stem, suffix = name.rsplit("_", 1)
        (folder / f"{stem}.{suffix}").write_bytes(content)


def same_values(view: Any) -> None:
    """Check that every used DICOM file has the values of the slice it was made from."""
    for name in view.used:
        np.testing.assert_array_equal(view.image(name), hounsfield(view.folder.name, name)[None])


# ---- listing files


@case({"loop": "NOT_A_FILE", "link.dcm": "NOT_A_FILE", "f01.dcm": USED}, check=same_values)
def f01_links(folder: Path) -> None:
    write(folder, f01_dcm=data(ct(folder, "f01.dcm")))
    (folder / "loop").symlink_to(folder)
    (folder / "link.dcm").symlink_to(folder / "f01.dcm")


@case("NOT_A_FILE", "pipe.dcm")
def f02_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.dcm")


@case("CANNOT_OPEN" if os.geteuid() else USED, "f03.dcm")
def f03_no_permission(folder: Path) -> None:
    write(folder, f03_dcm=data(ct(folder, "f03.dcm")))
    (folder / "f03.dcm").chmod(0)


def _no_name(view: Any) -> None:
    everything = b"".join(p.read_bytes() for p in view.store.path.rglob("*") if p.is_file())
    for name in ("홍길동", "800101-1234567"):
        assert name.encode() not in everything


@case({"홍길동 800101-1234567.dcm": USED, "홍길동 800101-1234567.png": {"DECODE_FAILED", "TRUNCATED"}}, check=_no_name)
def f04_name_in_path(folder: Path) -> None:
    (folder / "홍길동 800101-1234567.dcm").write_bytes(data(ct(folder, "홍길동 800101-1234567.dcm")))
    (folder / "홍길동 800101-1234567.png").write_bytes(picture(grey(folder))[:-900])


def _named(view: Any) -> None:
    assert view.row("환자.png")["label:diagnosis"] == "normal"


@case({"환자.png": USED, "환자.json": "SIDECAR", "cp949.zip!/영상.png": USED}, check=_named)
def f05_hangul_names(folder: Path) -> None:
    (folder / unicodedata.normalize("NFD", "환자.png")).write_bytes(picture(grey(folder)))
    (folder / "환자.json").write_text(json.dumps({"diagnosis": "normal"}))
    raw = picture(grey(folder, "zip"))
    write(folder, cp949_zip=member("영상.png".encode("cp949"), zlib.compress(raw)[2:-4], len(raw), zlib.crc32(raw)))


@case(
    {
        "encrypted.zip!/a.png": "BAD_ARCHIVE",
        "nested.zip!/b.zip": "BAD_ARCHIVE",
        "slip.zip!/../../c.png": "BAD_ARCHIVE",
        "bomb.zip": "BAD_ARCHIVE",
        "lying.zip!/e.dcm": "BAD_ARCHIVE",
        "damaged.zip!/f.png": "BAD_ARCHIVE",
        "cut.zip": "BAD_ARCHIVE",
        "dots.zip!/./g.png": USED,
        "mac.zip!/__MACOSX/._h.png": "LITTER",
    }
)
def f06_archives(folder: Path) -> None:
    tiny = zlib.compress(b"x" * 999, 9)[2:-4]
    dots = picture(grey(folder, "dots"))
    image = zlib.compress(dots)[2:-4]
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as z:
        z.writestr("b.png", picture(grey(folder)))
    with zipfile.ZipFile(folder / "nested.zip", "w") as z:
        z.writestr("b.zip", inner.getvalue())
    write(
        folder,
        encrypted_zip=member(b"a.png", tiny, 999, zlib.crc32(b"x" * 999), flags=1),
        slip_zip=member(b"../../c.png", tiny, 999, zlib.crc32(b"x" * 999)),
        bomb_zip=member(b"d.dcm", zeros(300), 300 << 20),
        lying_zip=member(b"e.dcm", zeros(300), 5000),
        damaged_zip=member(b"f.png", tiny, 999, crc=7),
        cut_zip=inner.getvalue()[:-30],
        dots_zip=member(b"./g.png", image, len(dots), zlib.crc32(dots)),
        mac_zip=member(b"__MACOSX/._h.png", tiny, 999, zlib.crc32(b"x" * 999)),
    )


@case(
    {
        "DICOMDIR": "NOT_AN_IMAGE",
        ".DS_Store": "LITTER",
        "Thumbs.db": "LITTER",
        "._x.dcm": "LITTER",
        "leaflet.pdf": "NOT_A_SCAN",
        "viewer.exe": "NOT_A_SCAN",
        "autorun.inf": "NOT_A_SCAN",
    }
)
def f07_disc(folder: Path) -> None:
    record = Dataset()
    record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", ["..", "..", "etc", "passwd"]
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.1.3.10", uid(folder)
    ds.FileSetID, ds.DirectoryRecordSequence = "CD", [record]
    (folder / "DICOMDIR").write_bytes(data(ds))
    for name in (".DS_Store", "Thumbs.db", "._x.dcm"):
        (folder / name).write_bytes(b"\0\5\x16\7 litter")
    write(folder, leaflet_pdf=b"%PDF-1.4 " * 99, viewer_exe=b"MZ\x90" + bytes(900), autorun_inf=b"[autorun]\r\n")


def _by_content(view: Any) -> None:
    np.testing.assert_array_equal(view.image("scan"), hounsfield(view.folder.name, "scan")[None])
    np.testing.assert_array_equal(view.image("picture.dcm"), grey(view.folder.name)[None])
    assert len(view.row("volume.jpg")["shape"]) == 4


@case(USED, "scan picture.dcm volume.jpg", check=_by_content)
def f08_wrong_suffix(folder: Path) -> None:
    (folder / "scan").write_bytes(data(ct(folder, "scan")))
    write(folder, picture_dcm=picture(grey(folder.name)), volume_jpg=gzip.compress(nifti(folder)))


@case("EMPTY", "f09.dcm f09.nii.gz f09.png")
def f09_zero_bytes(folder: Path) -> None:
    for name in ("f09.dcm", "f09.nii.gz", "f09.png"):
        (folder / name).touch()


@case({"noise.dcm": "NOT_A_SCAN", "noise.nii": "BAD_HEADER", "noise.png": "NOT_A_SCAN"})
def f10_random_bytes(folder: Path) -> None:
    noise = np.random.default_rng(10).bytes(9000)
    write(folder, noise_dcm=noise, noise_nii=noise, noise_png=noise)


def _no_program(view: Any) -> None:
    same_values(view)
    assert not [p for p in view.store.path.rglob("*") if p.is_file() and PREAMBLE in p.read_bytes()]


@case(USED, "program.dcm tiff.dcm", check=_no_program)
def f11_polyglot(folder: Path) -> None:
    for name, start in (("program.dcm", PREAMBLE), ("tiff.dcm", b"II*\0\x08\0\0\0" + PREAMBLE)):
        (folder / name).write_bytes(start.ljust(128, b"\0") + data(ct(folder, name))[128:])


# ---- DICOM headers


@case(USED, "no_preamble.dcm no_meta.dcm implicit.dcm", check=same_values)
def f12_no_preamble(folder: Path) -> None:
    (folder / "no_preamble.dcm").write_bytes(data(ct(folder, "no_preamble.dcm"))[132:])
    (folder / "no_meta.dcm").write_bytes(body(data(ct(folder, "no_meta.dcm"))))
    (folder / "implicit.dcm").write_bytes(body(data(ct(folder, "implicit.dcm"), ImplicitVRLittleEndian)))


@case(USED, "explicit.dcm implicit.dcm", check=same_values)
def f13_meta_without_syntax(folder: Path) -> None:
    meta = bytes(128) + b"DICM\x02\x00\x02\x00UI" + struct.pack("<H", len(CT) + len(CT) % 2) + CT.encode()
    meta += b"\0" * (len(CT) % 2)
    (folder / "explicit.dcm").write_bytes(meta + body(data(ct(folder, "explicit.dcm"))))
    (folder / "implicit.dcm").write_bytes(meta + body(data(ct(folder, "implicit.dcm"), ImplicitVRLittleEndian)))


@case(USED, "meta.dcm lying.dcm lying_too.dcm", check=same_values)
def f14_syntax_lies(folder: Path) -> None:
    file = data(ct(folder, "meta.dcm"))
    syntax = ExplicitVRLittleEndian.encode() + b"\0"
    meta = bytes(128) + b"DICM\x02\x00\x10\x00" + struct.pack("<I", len(syntax)) + syntax
    (folder / "meta.dcm").write_bytes(meta + body(file))
    implicit = body(data(ct(folder, "lying.dcm"), ImplicitVRLittleEndian))
    (folder / "lying.dcm").write_bytes(with_meta(implicit, ExplicitVRLittleEndian))
    explicit = body(data(ct(folder, "lying_too.dcm")))
    (folder / "lying_too.dcm").write_bytes(with_meta(explicit, ImplicitVRLittleEndian))


@case({"in_meta.dcm": "TRUNCATED", "in_element.dcm": "TRUNCATED", "before_pixels.dcm": "TRUNCATED"})
def f15_truncated_header(folder: Path) -> None:
    file = data(ct(folder, "f15"))
    pixels = file.index(b"\xe0\x7f\x10\x00OW")
    write(folder, in_meta_dcm=file[:200], in_element_dcm=file[: pixels - 3], before_pixels_dcm=file[:pixels])


@case({"short.dcm": "TRUNCATED", "three_bytes.dcm": "TRUNCATED", "no_pad.dcm": USED})
def f16_truncated_native(folder: Path) -> None:
    file = data(ct(folder, "f16"))
    odd = grey(folder)[:47, :47]
    tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Rows": 47, "Columns": 47}
    padded = data(ct(folder, "no_pad.dcm", PixelData=odd.tobytes() + b"\0", **tags))
    write(folder, short_dcm=file[:-2000], three_bytes_dcm=file[:-3], no_pad_dcm=padded[:-1])


@case("TRUNCATED", "jpegls.dcm j2k.dcm rle.dcm")
def f17_truncated_encapsulated(folder: Path) -> None:
    words = stored(folder, "f17")
    ls = packed(ct(folder, "a"), [imagecodecs.jpegls_encode(words)], JPEG_LS)
    j2k = packed(ct(folder, "b"), [imagecodecs.jpeg2k_encode(words, level=0, reversible=True)], JPEG_2000)
    ds = ct(folder, "c")
    data(ds)
    ds.compress(RLELossless)
    rle = data(ds, RLELossless)
    write(folder, jpegls_dcm=ls[: len(ls) // 2], j2k_dcm=j2k[: len(j2k) - 900], rle_dcm=rle[:-900])


def _flip(stream: bytes, start: int, every: int) -> bytes:
    out = bytearray(stream)
    for at in range(start, len(out) - 8, every):
        out[at] ^= 0x5A
    return bytes(out)


@case({"jpegls.dcm": "DECODE_FAILED"})
def f18_bit_flips_jpeg_ls(folder: Path) -> None:
    stream = imagecodecs.jpegls_encode(stored(folder, "f18"))
    write(folder, jpegls_dcm=packed(ct(folder, "f18"), [_flip(stream, 40, 7)], JPEG_LS))


@case({"j2k.dcm": {USED, "DECODE_FAILED"}})
def f19_bit_flips_jpeg_2000(folder: Path) -> None:
    stream = imagecodecs.jpeg2k_encode(stored(folder, "f19"), level=0, reversible=True)
    write(folder, j2k_dcm=packed(ct(folder, "j2k.dcm"), [_flip(stream, 900, 700)], JPEG_2000))


@case("DECODE_FAILED", "segments.dcm short.dcm order.dcm none.dcm")
def f20_bit_flips_rle(folder: Path) -> None:
    size = SIDE * SIDE
    segment = b"".join(b"\x7f" + bytes(range(128)) for _ in range(size // 128))
    second = 64 + len(segment)
    for name, head, segments in (
        ("segments.dcm", (9, 64, second), segment * 2),
        ("short.dcm", (2, 64, second), segment + b"\x81\0" + segment[:500]),
        ("order.dcm", (2, second, 64), segment * 2),
        ("none.dcm", (2, 64, 1 << 31), segment * 2),
    ):
        frame = struct.pack("<3I", *head).ljust(64, b"\0") + segments
        (folder / name).write_bytes(packed(ct(folder, name), [frame + b"\0" * (len(frame) % 2)], RLELossless))


@case({"pixels.dcm": {"BAD_LENGTH", "TRUNCATED"}, "frames.dcm": {"BAD_LENGTH", "TRUNCATED"}, "text.dcm": "TRUNCATED"})
def f21_four_gigabytes(folder: Path) -> None:
    file = data(ct(folder, "f21", ImageComments="x" * 8))
    element = b"\xe0\x7f\x10\x00OW\0\0"
    frames = (1 << 32) // (2 * SIDE * SIDE) * 2 * SIDE * SIDE
    text = b"\x20\x00\x00\x40LT"
    unknown = file.replace(text + b"\x08\0", b"\x20\x00\x00\x40UN\0\0\xf0\xff\xff\xff")
    assert unknown != file
    write(
        folder,
        pixels_dcm=edit(file, element, struct.pack("<I", 0xFFFFFFF0)),
        frames_dcm=edit(file, element, struct.pack("<I", frames)),
        text_dcm=unknown,
    )


@case("TOO_LARGE", "deflate.dcm")
def f22_deflate_bomb(folder: Path) -> None:
    ds = body(data(ct(folder, "f22")))
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    start = engine.compress(ds) + engine.flush(zlib.Z_FULL_FLUSH)
    write(folder, deflate_dcm=with_meta(start + zeros(1100), DEFLATED))


@case({"tail.nii.gz": "BAD_LENGTH", "huge.nii.gz": "TOO_LARGE", "lie.nii.gz": "TRUNCATED"})
def f23_gzip_bomb(folder: Path) -> None:
    for name, head, tail in (
        ("tail.nii.gz", nifti(folder), 2000),
        ("huge.nii.gz", nifti(folder, dim=(3, 3000, 3000, 3000, 1, 1, 1, 1)), 9),
        ("lie.nii.gz", nifti(folder, dim=(3, 1500, 1500, 900, 1, 1, 1, 1)), 9),
    ):
        engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        start = engine.compress(head) + engine.flush(zlib.Z_FULL_FLUSH)
        (folder / name).write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start + zeros(tail) + bytes(8))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, content: bytes) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", b"\x78\xda" + content) + _chunk(b"IEND", b"")


@case("TOO_LARGE", "huge.png large.png")
def f24_png_bomb(folder: Path) -> None:
    write(folder, huge_png=_png(40000, 40000, zeros(1526)), large_png=_png(13000, 13000, zeros(162)))


@case({"f25.dcm": "TOO_LARGE", "below.dcm": "BAD_LENGTH"})
def f25_rows_65535(folder: Path) -> None:
    for name, side in (("f25.dcm", 65535), ("below.dcm", 16000)):
        (folder / name).write_bytes(data(ct(folder, name, Rows=side, Columns=side)))


@case({"small.dcm": "DECODE_FAILED", "lie.dcm": {"DECODE_FAILED", "TOO_BIG_TO_READ"}, "box.dcm": "DECODE_FAILED"})
def f26_jpeg_2000_size(folder: Path) -> None:
    tiny = imagecodecs.jpeg2k_encode(stored(folder, "f26")[:8, :8], level=0, codecformat="j2k", reversible=True)
    jp2 = imagecodecs.jpeg2k_encode(stored(folder, "f26")[:8, :8], level=0, codecformat="jp2", reversible=True)
    at = tiny.index(b"\xff\x51") + 6
    huge = bytearray(tiny)
    struct.pack_into(">2I", huge, at, 16000, 16000)
    write(
        folder,
        small_dcm=packed(ct(folder, "small", Rows=9000, Columns=9000), [tiny], JPEG_2000),
        lie_dcm=packed(ct(folder, "lie", Rows=16000, Columns=16000), [bytes(huge)], JPEG_2000),
        box_dcm=packed(ct(folder, "box"), [jp2], JPEG_2000),
    )


@case("BAD_HEADER", "deep.dcm deeper.dcm")
def f27_deep_sequences(folder: Path) -> None:
    file = data(ct(folder, "f27"))
    pixels = file.index(b"\xe0\x7f\x10\x00OW")
    opening = b"\x54\x00\x16\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    closing = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    for name, n in (("deep.dcm", 600), ("deeper.dcm", 100_000)):
        (folder / name).write_bytes(file[:pixels] + opening * n + closing * n + file[pixels:])


@case({"rows.dcm": "BAD_LENGTH", "columns.dcm": "BAD_LENGTH", "long.dcm": USED}, check=same_values)
def f28_rows_lie(folder: Path) -> None:
    long = ct(folder, "long.dcm")
    long.PixelData += bytes(50)
    write(
        folder,
        rows_dcm=data(ct(folder, "rows.dcm", Rows=SIDE + 1)),
        columns_dcm=data(ct(folder, "columns.dcm", Columns=SIDE - 1)),
        long_dcm=data(long),
    )


def _frames(view: Any) -> None:
    same_values(view)
    assert "number of frames corrected" in view.row("two.dcm")["fact:steps"]


@case(USED, "two.dcm zero.dcm", check=_frames)
def f29_number_of_frames(folder: Path) -> None:
    write(
        folder,
        two_dcm=data(ct(folder, "two.dcm", NumberOfFrames=2)),
        zero_dcm=data(ct(folder, "zero.dcm", NumberOfFrames=0)),
    )


@case(
    {"rows.dcm": "NO_PIXELS", "twelve.dcm": USED, "bits.dcm": "BAD_HEADER", "colour.dcm": "UNSUPPORTED_PIXELS"},
    check=same_values,
)
def f30_impossible_numbers(folder: Path) -> None:
    wide = {"Modality": "DX", "SOPClassUID": DX, "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}
    wide |= {"BitsAllocated": 32, "BitsStored": 8, "HighBit": 7, "PlanarConfiguration": 0}
    twelve = edit(data(ct(folder, "twelve.dcm")), b"\x28\x00\x00\x01US\x02\0", b"\x0c\0")
    write(
        folder,
        rows_dcm=data(ct(folder, "rows.dcm", Rows=0)),
        twelve_dcm=twelve,
        bits_dcm=data(ct(folder, "bits.dcm", BitsStored=20)),
        colour_dcm=data(ct(folder, "colour.dcm", PixelData=bytes(12 * SIDE * SIDE), **wide)),
    )


def _extended(view: Any) -> None:
    wrong = view.image("f31.dcm")[0] - _ramp()
    assert np.abs(wrong).max() < 60


def _ramp() -> np.ndarray:
    return np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.int16) * 20 - 1000


@case(USED, "f31.dcm", check=_extended)
def f31_twelve_bit_jpeg(folder: Path) -> None:
    stream = imagecodecs.jpeg8_encode((_ramp() + 1024).astype(np.uint16), level=98, bitspersample=12)
    write(folder, f31_dcm=packed(ct(folder, "f31.dcm"), [stream], JPEG_EXTENDED))


@case("NOT_AN_IMAGE", "report.dcm key.dcm state.dcm structures.dcm ecg.dcm pdf.dcm")
def f32_not_images(folder: Path) -> None:
    for name, sop in (
        ("report.dcm", "88.11"),
        ("key.dcm", "88.59"),
        ("state.dcm", "11.1"),
        ("structures.dcm", "481.3"),
        ("ecg.dcm", "9.1.1"),
        ("pdf.dcm", "104.1"),
    ):
        ds = Dataset()
        ds.SOPClassUID, ds.SOPInstanceUID = f"1.2.840.10008.5.1.4.1.1.{sop}", uid(folder, name)
        ds.PatientID, ds.Modality = folder.name, "SR"
        (folder / name).write_bytes(data(ds))


@case("NOT_AN_IMAGE", "dose.dcm")
def f33_rt_dose(folder: Path) -> None:
    write(folder, dose_dcm=data(ct(folder, "f33", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2", Modality="RTDOSE")))


@case("NOT_AN_IMAGE", "seg.dcm")
def f34_segmentation(folder: Path) -> None:
    tags = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelData": bytes(SIDE * SIDE // 8)}
    write(folder, seg_dcm=data(ct(folder, "f34", SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", Modality="SEG", **tags)))


@case(USED, "f35.dcm", check=same_values)
def f35_big_endian(folder: Path) -> None:
    words = stored(folder, "f35.dcm").astype(">u2").tobytes()
    write(folder, f35_dcm=data(ct(folder, "f35.dcm", PixelData=words), ExplicitVRBigEndian))


# ---- series: three corner pixels of every slice encode its number, so that it can be found in a volume


def marked(folder: Path, name: str, k: int, rows: int = SIDE, columns: int = SIDE) -> np.ndarray:
    """Return a slice whose number is encoded in three corner pixels."""
    hu = hounsfield(folder.name, name)[:rows, :columns].copy()
    hu[0, 0], hu[0, -1], hu[-1, 0] = (1000 + 3 * k + i for i in range(3))
    return hu


Change = Callable[[int, Dataset], None]


def series(
    folder: Path,
    heights: Iterable[float],
    change: Change | None = None,
    first: int = 0,
    orientation: tuple[float, ...] = AXIAL,
    slant: float = 0.0,
    shape: tuple[int, int] = (SIDE, SIDE),
    **tags: Any,
) -> None:
    """Write slices s00.dcm, s01.dcm, … of one series at these heights along the normal (mm). `change` edits each."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    for k, height in enumerate(heights, first):
        name = f"s{k:02d}.dcm"
        position = np.array([-9.0, -8.0, 7.0]) + height * np.cross(row, column) + height * slant * column
        ds = ct(folder, name, marked(folder, name, k, *shape))
        ds.SeriesInstanceUID, ds.InstanceNumber = uid(folder.name, "series"), k + 1
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [round(float(v), 4) for v in position], list(orientation)
        for keyword, value in tags.items():
            setattr(ds, keyword, value)
        if change is not None:
            change(k, ds)
        (folder / name).write_bytes(data(ds))


def names(count: int, first: int = 0) -> list[str]:
    return [f"s{k:02d}.dcm" for k in range(first, first + count)]


def volumes(*depths: int, **facts: object) -> Callable[[Any], None]:
    """Return a check that the volumes have these depths and metadata, and that every slice is in place."""

    def check(view: Any) -> None:
        assert sorted(row["shape"][1:] for row in view.volumes) == sorted(view.expected_shapes(depths))
        view.every_slice_is_in_place()
        for name, value in facts.items():
            assert {row[f"fact:{name}"] for row in view.volumes} == {value}

    return check


@case(USED, names(8), check=volumes(8))
def f00_control(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)])


def _one_copy_left(depth: int) -> Callable[[Any], None]:
    """Return a check for one volume of this depth and one file rejected as a copy."""

    def check(view: Any) -> None:
        volumes(depth)(view)
        assert list(view.codes.values()) == ["DUPLICATE"]

    return check


EITHER: str | set[str] = {"DUPLICATE", USED}  # either of two equal files may be the copy


@case(dict.fromkeys(names(8), USED) | {"s03.dcm": EITHER, "copy.dcm": EITHER}, check=_one_copy_left(8))
def f36_duplicate(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)])
    (folder / "copy.dcm").write_bytes((folder / "s03.dcm").read_bytes())


def _both(view: Any) -> None:
    assert len(view.images) == 2
    assert len({row["scan"] for row in view.images}) == 2
    assert len({row["hash"] for row in view.images}) == 2


@case(USED, "a.dcm b.dcm", check=_both)
def f37_same_uid_other_pixels(folder: Path) -> None:
    for name in ("a.dcm", "b.dcm"):
        ds = ct(folder, name, SOPClassUID=DX, Modality="DX", SOPInstanceUID=uid(folder.name, "one"))
        (folder / name).write_bytes(data(ds))


@case(dict.fromkeys(names(9), USED) | {"s04.dcm": EITHER, "again.dcm": EITHER}, check=_one_copy_left(9))
def f38_duplicate_with_new_uid(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(9)])
    ds = pydicom.dcmread(folder / "s04.dcm")
    ds.SOPInstanceUID = uid(folder, "again")
    (folder / "again.dcm").write_bytes(data(ds))


@case(
    dict.fromkeys(names(13), USED) | dict.fromkeys(("s05.dcm", "s12.dcm"), "REPEATED_POSITIONS"),
    check=volumes(5, 6, gap="yes"),
)
def f38_other_image_at_one_position(folder: Path) -> None:
    series(folder, [*(2.5 * k for k in range(12)), 12.5])


@case(USED, names(12), check=volumes(5, 7, gap="yes"))
def f39_missing_slice(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(13) if k != 5])


@case("MISSING_SLICES", names(11))
def f39_slices_missing_all_over(folder: Path) -> None:
    series(folder, [k for k in range(16) if k % 3 != 2])


def _scout(view: Any) -> None:
    volumes(8)(view)
    [scout] = view.images
    assert scout["held"] == "localizer"


@case(USED, names(9), check=_scout)
def f40_localizer(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)])
    tags = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "PixelSpacing": [1, 1]}
    series(folder, [300], first=8, orientation=(0, 1, 0, 0, 0, -1), **tags)


@case(USED, names(12), check=volumes(6, 6))
def f41_spacing_changes(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(6)])
    series(folder, [2.5 * k for k in range(6, 12)], first=6, PixelSpacing=[0.9, 0.9])


def _echo(k: int, ds: Dataset) -> None:
    ds.EchoTime, ds.EchoNumbers = 10 + 20 * (k % 2), 1 + k % 2


@case(USED, names(12), check=volumes(6, 6))
def f42_two_echoes(folder: Path) -> None:
    series(folder, [2.5 * (k // 2) for k in range(12)], _echo, Modality="MR", SOPClassUID=MR)


@case(USED, names(12), check=volumes(6, 6))
def f42_two_phases(folder: Path) -> None:
    def change(k: int, ds: Dataset) -> None:
        ds.AcquisitionNumber = 1 + k % 2

    series(folder, [2.5 * (k // 2) for k in range(12)], change)


@case(USED, names(8), check=volumes(8, tilt=15.0))
def f43_gantry_tilt(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)], slant=float(np.tan(np.radians(15))))


@case(USED, names(8), check=volumes(8, tilt=63.0))
def f43_extreme_tilt(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)], slant=float(np.tan(np.radians(63))))


@case(USED, names(12), check=volumes(6, 6))
def f44_two_plateaus(folder: Path) -> None:
    series(folder, [*(2.5 * k for k in range(6)), *(12.5 + 5 * k for k in range(1, 7))])


@case("VARYING_SPACING", names(8))
def f44_no_pattern(folder: Path) -> None:
    series(folder, [0, 1, 2.7, 3.1, 6, 7.3, 10.9, 12.1])


def _sizes(view: Any) -> None:
    assert sorted(row["shape"][1] for row in view.volumes) == [5, 6]
    view.every_slice_is_in_place()


@case(dict.fromkeys(names(11), USED) | {"dose.dcm": "NO_RESCALE"}, check=_sizes)
def f45_mixed_sizes(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(6)])
    series(folder, [2.5 * k for k in range(5)], first=6, shape=(SIDE - 8, SIDE))
    page = np.stack([grey(folder)] * 3, -1)
    tags = {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0}
    ds = ct(folder, "dose", BitsAllocated=8, BitsStored=8, HighBit=7, PixelData=page.tobytes(), **tags)
    write(folder, dose_dcm=data(ds))


def _captured(view: Any) -> None:
    assert view.row("capture.dcm")["held"] == "burned-in risk"
    assert view.row("derived.dcm")["fact:derived"] == "yes"


@case({"capture.dcm": USED, "derived.dcm": USED, "screen.dcm": "NO_RESCALE"}, check=_captured)
def f46_secondary_capture(folder: Path) -> None:
    captured = ct(folder, "capture.dcm", SOPClassUID=CAPTURE, Modality="OT", ConversionType="WSD")
    derived = ct(folder, "derived.dcm", ImageType=["DERIVED", "SECONDARY", "MPR"])
    screen = ct(folder, "screen.dcm", SOPClassUID=CAPTURE)
    del screen.RescaleSlope, screen.RescaleIntercept
    write(folder, capture_dcm=data(captured), derived_dcm=data(derived), screen_dcm=data(screen))


@case(USED, names(8), check=volumes(8))
def f47_instance_numbers_scrambled(folder: Path) -> None:
    def change(k: int, ds: Dataset) -> None:
        ds.InstanceNumber = (5 * k + 3) % 8

    series(folder, [2.5 * k for k in range(8)], change)


@case(USED, names(8), check=volumes(8))
def f47_instance_number_constant(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)], InstanceNumber=1)


@case(USED, names(8), check=volumes(8))
def f47_instance_number_absent(folder: Path) -> None:
    def change(k: int, ds: Dataset) -> None:
        del ds.InstanceNumber

    series(folder, [2.5 * k for k in range(8)], change)


@case(USED, names(8), check=volumes(8))
def f47_thickness_lies(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)], SliceThickness=99, SpacingBetweenSlices=-4)


@case(USED, names(3), check=volumes())
def f47_three_slices(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(3)])


@case(dict.fromkeys(names(8), USED) | {"s08.dcm": {USED, "BAD_GEOMETRY"}}, check=volumes(8))
def f47_one_slice_aside(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(8)])

    def aside(k: int, ds: Dataset) -> None:
        ds.ImagePositionPatient = [60, 50, 27]

    series(folder, [20], aside, first=8)


def _lossy(view: Any) -> None:
    row = view.row("f48.dcm")
    assert row["fact:lossy"] == "yes"
    assert row["fact:lossy_ratio"] == 11
    assert row["fact:lossy_method"] == "ISO_10918_1"
    np.testing.assert_array_equal(view.image("f48.dcm"), hounsfield("f48_lossy", "f48.dcm")[None])


@case(USED, "f48.dcm", check=_lossy)
def f48_lossy(folder: Path) -> None:
    tags = {"LossyImageCompressionRatio": 11, "LossyImageCompressionMethod": "ISO_10918_1"}
    write(folder, f48_dcm=data(ct(folder, "f48.dcm", LossyImageCompression="01", **tags)))


@case(USED, names(9), check=volumes(9))
def f49_mixed_syntaxes(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(9)])
    encoders: list[tuple[str, Callable[[np.ndarray], bytes]]] = [
        (JPEG_LS, imagecodecs.jpegls_encode),
        (JPEG_2000, lambda x: imagecodecs.jpeg2k_encode(x, level=0, reversible=True)),
        (JPEG_LOSSLESS, lambda x: imagecodecs.jpeg8_encode(x, lossless=True, bitspersample=12)),
    ]
    for k, (syntax, encode) in enumerate(encoders, 2):
        ds = pydicom.dcmread(folder / f"s{k:02d}.dcm")
        words = np.frombuffer(ds.PixelData, "<u2").reshape(SIDE, SIDE)
        (folder / f"s{k:02d}.dcm").write_bytes(packed(ds, [encode(words)], syntax))
    for k, syntax in ((6, ImplicitVRLittleEndian), (7, DEFLATED)):
        (folder / f"s{k:02d}.dcm").write_bytes(data(pydicom.dcmread(folder / f"s{k:02d}.dcm"), syntax))
    ds = pydicom.dcmread(folder / "s08.dcm")
    ds.compress(RLELossless)
    (folder / "s08.dcm").write_bytes(data(ds, RLELossless))


@case("UNSUPPORTED_SYNTAX", "mpeg.dcm jxl.dcm private.dcm")
def f50_no_decoder(folder: Path) -> None:
    for name, syntax in (("mpeg.dcm", MPEG2), ("jxl.dcm", JPEG_XL), ("private.dcm", UID("1.2.840.113619.5.2"))):
        ds = ct(folder, name)
        ds.PixelData = encapsulate([b"\0\0\1\xb3" * 99])
        ds["PixelData"].is_undefined_length = True
        file = data(ds, JPEG_LS)
        start = file.index(b"\xe0\x7f\x10\x00OB")
        (folder / name).write_bytes(with_meta(body(file)[: start - len(file)] + file[start:], syntax))


def _same_person(view: Any) -> None:
    same_values(view)
    assert len({row["patient"] for row in view.images}) == 1


@case(USED, "right.dcm undefined.dcm none.dcm", check=same_values)
def f51_korean_charset(folder: Path) -> None:
    for name, charset in (("right.dcm", "\\ISO 2022 IR 149"), ("undefined.dcm", "ISO_IR 149"), ("none.dcm", "")):
        file = data(ct(folder, name, SpecificCharacterSet="ISO_IR 100", PatientName="x" * 20, PatientSex="F"))
        term = charset.encode().ljust(16)
        file = file.replace(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", b"\x08\x00\x05\x00CS\x10\x00" + term)
        name_element = "김희중^길동".encode("cp949").ljust(20)
        (folder / name).write_bytes(edit(file, b"\x10\x00\x10\x00PN\x14\x00", name_element))


def _odd(view: Any) -> None:
    for name in ("comma.dcm", "spaces.dcm", "exponent.dcm"):
        np.testing.assert_array_equal(view.image(name), hounsfield(view.folder.name, name)[None])
    assert view.row("spacing.dcm")["spacing"] is None


@case(
    {
        "comma.dcm": USED,
        "spaces.dcm": USED,
        "exponent.dcm": USED,
        "words.dcm": "BAD_HEADER",
        "nan.dcm": "NO_RESCALE",
        "spacing.dcm": USED,
    },
    check=_odd,
)
def f52_odd_numbers(folder: Path) -> None:
    both = b"\x28\x00\x52\x10DS\x10\x00", b"\x28\x00\x53\x10DS\x10\x00"
    for name, intercept, slope in (
        ("comma.dcm", b"-1024,000", b"1,0"),
        ("spaces.dcm", b"   -1024", b"  +1.0\0"),
        ("exponent.dcm", b"-1.024E+003", b"0000000000000001"),
        ("words.dcm", b"minus a lot", b"one"),
        ("nan.dcm", b"NaN", b"NaN"),
    ):
        file = data(ct(folder, name, RescaleIntercept="-1024.0000000000", RescaleSlope="1.00000000000000"))
        file = edit(file, both[0], intercept.ljust(16))
        (folder / name).write_bytes(edit(file, both[1], slope.ljust(16)))
    file = data(ct(folder, "spacing.dcm", PixelSpacing="0.12345678\\0.12345678"))
    write(folder, spacing_dcm=edit(file, b"\x28\x00\x30\x00DS\x16\x00", b"half a mm\\half of it".ljust(22)))


def _flat(view: Any) -> None:
    same_values(view)
    for row in view.images:
        assert row["affine"] is None
    assert view.row("zero.dcm")["spacing"] is None
    assert view.row("aslant.dcm")["spacing"] == [0.5, 0.75]


@case(USED, "zero.dcm missing.dcm aslant.dcm nowhere.dcm", check=_flat)
def f53_unknown_geometry(folder: Path) -> None:
    missing = ct(folder, "missing.dcm")
    del missing.PixelSpacing
    nowhere = ct(folder, "nowhere.dcm")
    del nowhere.ImagePositionPatient
    write(
        folder,
        zero_dcm=data(ct(folder, "zero.dcm", PixelSpacing=[0, 0])),
        missing_dcm=data(missing),
        aslant_dcm=data(ct(folder, "aslant.dcm", ImageOrientationPatient=[1, 0, 0, 0, 2, 0])),
        nowhere_dcm=data(nowhere),
    )


def _no_volume(view: Any) -> None:
    assert len(view.images) == 6
    assert not view.volumes


@case(USED, names(6), check=_no_volume)
def f53_series_with_wrong_directions(folder: Path) -> None:
    series(folder, [2.5 * k for k in range(6)], orientation=(1, 0, 0, 0, 1.2, 0))


def _item(**tags: Any) -> Dataset:
    ds = Dataset()
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    return ds


@case(USED, "f54.dcm", check=volumes(5, 4))
def f54_enhanced_with_two_stacks(folder: Path) -> None:
    sagittal = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
    places = [((-9.0, -8.0, 2.5 * k), AXIAL, "1") for k in range(5)]
    places += [((3.0 * k, -8.0, 50.0), sagittal, "2") for k in range(4)]
    own = [
        _item(
            PlanePositionSequence=[_item(ImagePositionPatient=list(position))],
            PlaneOrientationSequence=[_item(ImageOrientationPatient=list(orientation))],
            FrameContentSequence=[_item(StackID=stack)],
        )
        for position, orientation, stack in places
    ]
    words = np.stack([marked(folder, "f54.dcm", k) + 1024 for k in range(9)]).astype("<u2")
    ds = ct(folder, "f54.dcm", SOPClassUID=ENHANCED_MR, Modality="MR", NumberOfFrames=9, PixelData=words.tobytes())
    del ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing
    ds.SharedFunctionalGroupsSequence = [_item(PixelMeasuresSequence=[_item(PixelSpacing=[0.5, 0.75])])]
    ds.PerFrameFunctionalGroupsSequence = own
    write(folder, f54_dcm=data(ds))


@case(USED, names(16), check=volumes(8, 8))
def f55_turned_patients(folder: Path) -> None:
    feet_first, decubitus = (-1.0, 0.0, 0.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, -1.0, 0.0, 0.0)
    series(folder, [2.5 * k for k in range(8)], orientation=feet_first, PatientPosition="FFS")
    series(folder, [1.5 * k for k in range(8)], first=8, orientation=decubitus, PatientPosition="HFDR")


# ---- NIfTI


@case("TRUNCATED", "raw.nii packed.nii.gz stub.nii")
def f56_truncated_nifti(folder: Path) -> None:
    file = nifti(folder)
    write(folder, raw_nii=file[:-100], stub_nii=file[:350])
    (folder / "packed.nii.gz").write_bytes(gzip.compress(file)[:-300])


@case({"checksum.nii.gz": "TRUNCATED", "flips.nii.gz": "TRUNCATED"})
def f56_damaged_gzip(folder: Path) -> None:
    file = gzip.compress(nifti(folder, shape=(20, 20, 20)))
    (folder / "checksum.nii.gz").write_bytes(file[:-8] + bytes(4) + file[-4:])
    middle = len(file) // 2
    (folder / "flips.nii.gz").write_bytes(
        file[:middle] + bytes(b ^ 255 for b in file[middle : middle + 4]) + file[middle + 4 :]
    )


def _voxels(view: Any) -> None:
    for name in view.used:
        truth = np.asanyarray(nibabel.Nifti1Image.from_bytes(_plain(view.folder / name)).dataobj)
        np.testing.assert_array_equal(view.image(name)[0], truth.transpose(2, 1, 0))
        assert view.row(name)["spacing"] == [3, 2, 1]


def _plain(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


@case(USED, "plain.nii.gz packed.nii", check=_voxels)
def f57_wrong_suffix(folder: Path) -> None:
    (folder / "plain.nii.gz").write_bytes(nifti(folder, 1))
    write(folder, packed_nii=gzip.compress(nifti(folder, 2)))


@case(
    {
        "magic.nii": "BAD_HEADER",
        "offset.nii": "BAD_HEADER",
        "dim.nii": "BAD_HEADER",
        "type.nii": "BAD_HEADER",
        "huge.nii": "TOO_LARGE",
        "pair.hdr": "HEADER_PAIR",
        "negative.nii": "BAD_HEADER",
    }
)
def f58_bad_nifti_header(folder: Path) -> None:
    write(
        folder,
        magic_nii=nifti(folder, magic=b"nope"),
        offset_nii=nifti(folder, vox_offset=0.0),
        dim_nii=nifti(folder, dim=(9, 8, 9, 10, 1, 1, 1, 1)),
        type_nii=nifti(folder, datatype=0),
        huge_nii=nifti(folder, dim=(3, 32767, 32767, 32767, 1, 1, 1, 1)),
        pair_hdr=nifti(folder, magic=b"ni1\0")[:348],
        negative_nii=nifti(folder, dim=(3, 8, -9, 10, 1, 1, 1, 1)),
    )


def _finite(view: Any) -> None:
    array = view.image("few.nii")
    assert np.isfinite(array).all()
    truth = np.random.default_rng(59).normal(size=(12, 12, 12)).astype(np.float32)
    truth.flat[:3] = truth.flat[3:].min()
    np.testing.assert_array_equal(array[0], truth.transpose(2, 1, 0))


@case({"zero.nii": "CONSTANT", "many.nii": "NON_FINITE", "few.nii": USED}, check=_finite)
def f59_non_finite_nifti(folder: Path) -> None:
    noise = np.random.default_rng(59).normal(size=(12, 12, 12)).astype(np.float32)
    many, few = noise.copy(), noise.copy()
    many.flat[:900] = np.nan
    few.flat[:3] = np.nan, np.inf, -np.inf
    write(folder, zero_nii=nifti_of(np.zeros((8, 8, 8), np.int16)), many_nii=nifti_of(many), few_nii=nifti_of(few))


def _the_same(view: Any) -> None:
    truth = np.asanyarray(nibabel.Nifti1Image.from_bytes(nifti(view.folder.name)).dataobj).transpose(2, 1, 0)
    for name in view.used:
        np.testing.assert_array_equal(view.image(name)[0], truth)
        assert view.row(name)["spacing"] == [3, 2, 1]


@case(USED, "f60.nii", check=_the_same)
def f60_big_endian_nifti(folder: Path) -> None:
    image = nibabel.Nifti1Image.from_bytes(nifti(folder.name))
    swapped = nibabel.Nifti1Image(np.asanyarray(image.dataobj), image.affine, image.header.as_byteswapped(">"))
    write(folder, f60_nii=swapped.to_bytes())


@case(USED, "f61.nii.gz", check=_the_same)
def f61_nifti_2(folder: Path) -> None:
    (folder / "f61.nii.gz").write_bytes(gzip.compress(nifti(folder.name, version=2)))


def _labels(view: Any) -> None:
    assert {row["held"] for row in view.volumes} == {"label map"}


@case(USED, "f62_seg.nii.gz plain.nii", check=_labels)
def f62_label_maps(folder: Path) -> None:
    labels = np.zeros((9, 9, 9), np.int16)
    labels[3:6, 2:7, 4:] = 2
    (folder / "f62_seg.nii.gz").write_bytes(gzip.compress(nifti_of(labels)))
    write(folder, plain_nii=nifti_of(labels[::-1].copy()))


# ---- PNG, JPEG, TIFF


def _deep(*words: object) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(repr(words).encode())).integers(0, 1 << 16, (SIDE, SIDE)).astype(np.uint16)


def _sixteen(view: Any) -> None:
    np.testing.assert_array_equal(view.image("f63.png")[0], _deep(view.folder.name))


@case(USED, "f63.png", check=_sixteen)
def f63_sixteen_bits(folder: Path) -> None:
    write(folder, f63_png=picture(_deep(folder.name)))


def _palette_image(*words: object) -> Image.Image:
    colours = np.random.default_rng(64).integers(0, 256, (256, 3)).astype(np.uint8)
    image = Image.fromarray(grey(*words), "L").convert("P")
    image.putpalette(colours.tobytes())
    return image


def _expanded(view: Any) -> None:
    truth = np.asarray(_palette_image(view.folder.name).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(view.image("f64.png"), truth)


@case(USED, "f64.png", check=_expanded)
def f64_palette(folder: Path) -> None:
    _palette_image(folder.name).save(folder / "f64.png")


def _kinds(view: Any) -> None:
    base = grey(view.folder.name)
    np.testing.assert_array_equal(view.image("la.png")[0], base)
    np.testing.assert_array_equal(view.image("rgba.png"), _colour(view.folder.name)[..., :3].transpose(2, 0, 1))
    np.testing.assert_array_equal(view.image("bit.png")[0] > 0, base > 127)
    upright = np.asarray(Image.open(view.folder / "turned.jpg").transpose(Image.Transpose.ROTATE_270))
    assert view.image("turned.jpg").shape == (1, *upright.shape)
    np.testing.assert_array_equal(view.image("turned.jpg")[0], upright)
    cmyk = view.image("cmyk.jpg").astype(int).mean((1, 2))
    assert np.abs(cmyk - [250, 20, 30]).max() < 25
    for page in range(2):
        np.testing.assert_array_equal(view.image("pages.tif", f"#page/{page}")[0], grey(view.folder.name, page))


def _colour(*words: object) -> np.ndarray:
    return np.stack([grey(*words, c) for c in "rgba"], -1)


@case(
    {
        "cmyk.jpg": USED,
        "la.png": USED,
        "rgba.png": USED,
        "bit.png": USED,
        "turned.jpg": USED,
        "pages.tif": USED,
        "gif.png": "NOT_A_SCAN",
    },
    check=_kinds,
)
def f65_kinds_of_pictures(folder: Path) -> None:
    base = grey(folder.name)
    red = np.empty((SIDE, SIDE, 3), np.uint8)
    red[:] = 250, 20, 30
    red[::9, ::7] = 240, 30, 40
    Image.fromarray(red).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    alpha = Image.fromarray(base)
    alpha.putalpha(Image.fromarray(base[::-1].copy()))
    alpha.save(folder / "la.png")
    Image.fromarray(_colour(folder.name)).save(folder / "rgba.png")
    Image.fromarray(base > 127).save(folder / "bit.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(base[:30]).save(folder / "turned.jpg", exif=exif)
    pages = [Image.fromarray(grey(folder.name, k)) for k in range(2)]
    pages[0].save(folder / "pages.tif", save_all=True, append_images=pages[1:])
    write(folder, gif_png=picture(base, "gif"))


@case("TRUNCATED", "half.jpg most.jpg")
def f66_truncated_jpeg(folder: Path) -> None:
    file = picture(grey(folder), "jpeg", quality=95)
    write(folder, half_jpg=file[: len(file) // 2], most_jpg=file[:-40])


DAMAGED = {"DECODE_FAILED", "TRUNCATED", "BAD_HEADER"}


@case({f"flip{k}.png": DAMAGED for k in range(12)} | {"cut.png": "TRUNCATED"})
def f67_corrupt_png(folder: Path) -> None:
    file = picture(grey(folder))
    for k, at in enumerate(np.random.default_rng(67).integers(9, len(file) - 13, 12)):
        damaged = bytearray(file)
        damaged[at] ^= 0xFF
        (folder / f"flip{k}.png").write_bytes(damaged)
    write(folder, cut_png=file[:-700])


def _held(view: Any) -> None:
    assert {row["held"] for row in view.images} == {"burned-in risk"}


@case(USED, "us.dcm said.dcm save.dcm", check=_held)
def f68_burned_in(folder: Path) -> None:
    write(
        folder,
        us_dcm=data(ct(folder, "us.dcm", SOPClassUID=US, Modality="US")),
        said_dcm=data(ct(folder, "said.dcm", SOPClassUID=DX, Modality="DX", BurnedInAnnotation="YES")),
        save_dcm=data(ct(folder, "save.dcm", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])),
    )


def _one_of_each(view: Any) -> None:
    assert view.row("f69.dcm")["label:diagnosis"] == "normal"


@case(
    {"f69.dcm": USED, "f69.png": "RENDITION", "f69.json": "SIDECAR", "other69.dcm": USED, "other69.png": USED},
    check=_one_of_each,
)
def f69_rendition(folder: Path) -> None:
    tags = {"SOPClassUID": DX, "Modality": "DX", "PhotometricInterpretation": "MONOCHROME1"}
    for name, shown in (("f69", hounsfield(folder.name, "f69.dcm")), ("other69", hounsfield(folder.name, "unrelated"))):
        ds = ct(folder, f"{name}.dcm", **tags)
        (folder / f"{name}.dcm").write_bytes(data(ds))
        window = np.clip((shown.astype(float) + 700) / 1200, 0, 1)
        (folder / f"{name}.png").write_bytes(picture((255 * (1 - window)).astype(np.uint8)))
    (folder / "f69.json").write_text(json.dumps({"diagnosis": "normal"}))


@case({"broken.json": "BAD_SIDECAR", "deep.json": "BAD_SIDECAR"})
def f69_bad_sidecars(folder: Path) -> None:
    (folder / "broken.json").write_text('{"diagnosis": ')
    (folder / "deep.json").write_text("[" * 100_000)
