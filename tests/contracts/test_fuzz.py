"""Randomly damaged files of every kind give scans or reject codes, and never hang.

They are read in a worker process, because decoders may crash. The random damage is the same in every run.
"""

import gzip
import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

import bad_files
from bad_files import ct, data, grey, nifti, packed, picture, stored
from medssl.ingestion.worker_pool import Task, WorkerPool
from medssl.readers.dicom import reader
from medssl.readers.dicom.header import parse
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.walk import File

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PSEUDONYMS = Pseudonyms(bytes(32))
HERE = Path("fuzz")
QUICK = settings(
    max_examples=80,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WORDS = (
    *(
        b"1e308",
        b"-1e308",
        b"nan",
        b"inf",
        b"-0",
        b"1e-320",
        b"0",
        b"-1",
        b"0.5",
        b"1\\2\\3",
        b"\\",
        b"one",
        b"\xff" * 8,
    ),
    *(
        b"MONOCHROME1",
        b"PALETTE COLOR",
        b"RGB",
        b"YBR_FULL_422",
        b"PT",
        b"US",
        b"MG",
        b"MOSAIC",
        b"\1\0",
        b"\x20\0",
        b"\0\0",
    ),
)
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)


def _compressed(name: str, syntax: str, stream: bytes) -> bytes:
    return packed(ct(HERE, name), [stream], syntax)


def _rle() -> bytes:
    ds = ct(HERE, "rle")
    data(ds)
    ds.compress(RLELossless)
    return data(ds, RLELossless)


def _enhanced(folder: Path) -> bytes:
    bad_files.f54_enhanced_with_two_stacks(folder)
    return (folder / "f54.dcm").read_bytes()


def _npz() -> bytes:
    out = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 255, (3, 9, 9), np.uint8)
    np.savez(out, train_images=images, train_labels=np.arange(3)[:, None])
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a.png", picture(grey("zip")))
    return out.getvalue()


def good_files(folder: Path) -> dict[str, bytes]:
    """Return one good file of every kind."""
    words = stored(HERE, "words")
    tags = {"Modality": "DX", "SOPClassUID": bad_files.DX, "WindowCenter": 100, "WindowWidth": 900}
    return {
        "native.dcm": data(ct(HERE, "native")),
        "implicit.dcm": data(ct(HERE, "implicit"), ImplicitVRLittleEndian),
        "deflated.dcm": data(ct(HERE, "deflated"), bad_files.DEFLATED),
        "radiograph.dcm": data(ct(HERE, "radiograph", PhotometricInterpretation="MONOCHROME1", **tags)),
        "rle.dcm": _rle(),
        "jpegls.dcm": _compressed("ls", bad_files.JPEG_LS, imagecodecs.jpegls_encode(words)),
        "j2k.dcm": _compressed("j2k", bad_files.JPEG_2000, imagecodecs.jpeg2k_encode(words, level=0, reversible=True)),
        "lossless.dcm": _compressed(
            "ll", bad_files.JPEG_LOSSLESS, imagecodecs.jpeg8_encode(words, lossless=True, bitspersample=12)
        ),
        "extended.dcm": _compressed("ext", bad_files.JPEG_EXTENDED, imagecodecs.jpeg8_encode(words, bitspersample=12)),
        "enhanced.dcm": _enhanced(folder),
        "plain.nii": nifti("plain"),
        "packed.nii.gz": gzip.compress(nifti("packed"), mtime=0),
        "two.nii": nifti("two", version=2),
        "grey.png": picture(grey("png")),
        "photo.jpg": picture(grey("jpg"), "jpeg"),
        "page.tif": picture(grey("tif"), "tiff"),
        "deflated.tif": picture(grey("tif"), "tiff", compression="tiff_deflate"),
        "medmnist.npz": _npz(),
        "images.zip": _zip(),
    }


@st.composite
def damage(draw, most: int = 6) -> list[tuple[str, int, int, int]]:
    """Draw changes to a file: (kind, offset, bytes, value), half of them near the start."""
    where = st.integers(0, 700) | st.integers(0, 1 << 20)
    one = st.tuples(
        st.sampled_from(["flip", "set", "number", "cut out", "repeat", "cut off", "zero", "value", "value"]),
        where,
        st.integers(1, 64),
        st.integers(0, 255),
    )
    return draw(st.lists(one, min_size=1, max_size=most))


def elements(file: bytes) -> list[tuple[int, int]]:
    """Return the (offset, length) of every value in a DICOM header."""
    header = parse(io.BytesIO(file))
    if header.syntax == bad_files.DEFLATED:
        return []
    return [(offset, length) for _, offset, length in header.elements.values() if length]


def damaged(file: bytes, what: list[tuple[str, int, int, int]], values: Sequence[tuple[int, int]] = ()) -> bytes:
    """Return the damaged file. Values at these (offset, length) are overwritten first."""
    out = bytearray(file)
    for _, place, _, value in (w for w in what if w[0] == "value" and values):
        offset, length = values[place % len(values)]
        word = WORDS[value % len(WORDS)][:length]
        word = word.ljust(min(length, 16), b" " if len(word) > 2 else b"\0")
        out[offset : offset + len(word)] = word
    for how, place, count, value in what:
        at = place % max(1, len(out))
        if how == "flip":
            out[at : at + 1] = bytes([out[at] ^ (1 << value % 8)]) if out else b""
        elif how == "set":
            out[at : at + 1] = bytes([value])
        elif how == "number":
            width = 2 if value % 2 else 4
            number = NUMBERS[value % len(NUMBERS)] & ((1 << 8 * width) - 1)
            out[at : at + width] = number.to_bytes(width, "little" if value % 3 else "big")
        elif how == "cut out":
            del out[at : at + count]
        elif how == "repeat":
            out[at:at] = out[at : at + count]
        elif how == "zero":
            out[at : at + count] = bytes(len(out[at : at + count]))
        elif value < 64:  # otherwise most files would only be truncated
            del out[at:]
    return bytes(out)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Return a function from the name of a good file to its content, so that hypothesis does not print the content."""
    found = good_files(tmp_path_factory.mktemp("good"))
    return lambda name: found[name]


@pytest.fixture(scope="module")
def read_in_worker(tmp_path_factory):
    """Return a function that has a worker process read a file, as [(kind of answer, value), …]."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "volumes").mkdir()
    init_message = {"key": "00" * 32, "intensity": "auto", "memory": 1 << 30, "out": str(folder)}
    with WorkerPool(1, init_message, timeout=20) as children:

        def ask(file: bytes, name: str) -> list[tuple[str, object]]:
            path = folder / name
            path.write_bytes(file)
            member = "a.png" if name.endswith(".zip") else ""
            entry = asdict(File(name, str(path), member, len(file)))
            answers, slices = [], []
            for event in children.run([Task({"read": entry, "id": "f"}, size=len(file))]):
                answers += [("death", event.death)] if event.death else []
                answers += [(k, event.message[k]) for k in ("scan", "reject") if k in event.message]
                slices += [event.message["slice"]] if "slice" in event.message else []
            for s in slices:
                for event in children.run([Task({"stack": [s], "files": {"f": entry}, "facts": {}})]):
                    answers += [("death", event.death)] if event.death else []
                    answers += [(k, event.message[k]) for k in ("scan", "reject") if k in event.message]
                    answers += [("reject", ["", *bad[1:]]) for bad in event.message.get("bad", [])]
            return answers

        yield ask


NAMES = (
    *(f"{kind}.dcm" for kind in ("native", "implicit", "deflated", "radiograph", "rle", "enhanced")),
    *(f"{kind}.dcm" for kind in ("jpegls", "j2k", "lossless", "extended")),
    *("plain.nii", "packed.nii.gz", "two.nii", "medmnist.npz", "images.zip"),
    *("grey.png", "photo.jpg", "page.tif", "deflated.tif"),
)


@pytest.mark.parametrize("name", NAMES)
@QUICK
@given(what=damage())
@example(what=[])
def test_damage_is_read_or_refused(good, read_in_worker, name, what):
    file = good(name)
    answers = read_in_worker(damaged(file, what, elements(file) if name.endswith(".dcm") else ()), name)
    assert answers
    for kind, value in answers:
        if kind == "death":
            assert value == "DECODER_CRASHED"  # may happen in native code; must not hang
        elif kind == "reject":
            _, code, reason = value
            assert code in CODES
            assert code not in {"READER_FAILED", "CANNOT_OPEN"}, reason
            assert "/" not in reason
        else:
            assert np.isfinite([value["low"], value["high"], value["unit_mean"], value["unit_square"]]).all()
            assert value["low"] < value["high"]
    if not what:
        assert {kind for kind, _ in answers} == {"scan"}


@QUICK
@given(at=st.integers(0, 2 * bad_files.SIDE**2 - 1), value=st.integers(1, 255))
def test_a_changed_pixel_changes_nothing_else(good, at, value):
    file = good("native.dcm")
    start = len(file) - 2 * bad_files.SIDE**2
    changed = bytearray(file)
    changed[start + at] ^= value
    before, after = (_values(bytes(f)) for f in (file, changed))
    row, column = divmod(at // 2, bad_files.SIDE)
    words = np.frombuffer(changed[start:], "<u2").reshape(before.shape).astype(int)
    assert after[row, column] == (words[row, column] & 0xFFF) - 1024
    before[row, column] = after[row, column]
    np.testing.assert_array_equal(before, after)


def _values(file: bytes) -> np.ndarray:
    found = reader.read(io.BytesIO(file), "x", PSEUDONYMS)
    return reader.decode(io.BytesIO(file), found.frame).values[0].copy()
