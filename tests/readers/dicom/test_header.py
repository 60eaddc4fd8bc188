import io
import struct
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import RawDataElement

from medssl.readers.dicom.header import PIXELS, parse
from medssl.readers.quiet import silenced
from medssl.readers.scan import Unreadable

BUNDLED = sorted(p for p in Path(get_testdata_file("CT_small.dcm", download=False)).parent.rglob("*") if p.is_file())
SMALL = [get_testdata_file(f"{n}.dcm", download=False) for n in ("MR_small_implicit", "rtplan", "ExplVR_BigEnd")]
MR = Path(get_testdata_file("MR_small.dcm", download=False)).read_bytes()


def is_dicom(path):
    with path.open("rb") as f:
        return f.read(132)[128:] == b"DICM"


def same(ours, theirs):
    """Compare the tags, raw bytes and items of two data sets. Return the number of elements."""
    tags = {int(tag) for tag in theirs.keys() if tag not in PIXELS and int(tag) >> 16 < 0x7FE1}  # noqa: SIM118
    assert set(ours.elements) - set(PIXELS) == tags
    count = 0
    for tag in tags:
        element = theirs.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR != "SQ" and element.value is not None:
            assert ours.value(tag) == element.value, f"{tag:08x}"
            count += 1
        elif element.VR == "SQ":
            items = theirs[tag].value
            found = ours.items(tag)
            assert len(found) == len(items)
            count += sum(same(a, b) for a, b in zip(found, items, strict=True))
    return count


def check(path):
    with silenced():
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        with path.open("rb") as f:
            header = parse(f)
        assert header.syntax == str(ds.file_meta.get("TransferSyntaxUID", ""))
        return same(header, ds)


@pytest.mark.parametrize("path", BUNDLED, ids=lambda p: p.name)
def test_bundled_headers_equal_pydicoms(path):
    if not is_dicom(path) or path.name in {"rtplan_truncated.dcm", "DICOMDIR-nooffset"}:
        pytest.skip("not DICOM, or with wrong lengths on purpose")
    assert check(path) > 0 or path.name == "UN_sequence.dcm"


def test_real_headers_equal_pydicoms(shared):
    paths = [p for p in sorted((shared / "dicom").rglob("*")) if p.is_file() and is_dicom(p)]
    assert len(paths) > 800
    assert all(check(path) > 20 for path in paths[::8])


def test_the_position_of_the_pixels_equals_pydicoms():
    header = parse(io.BytesIO(MR))
    keyword, offset, length = header.pixels
    assert keyword == "PixelData"
    assert MR[offset : offset + length] == pydicom.dcmread(io.BytesIO(MR)).PixelData


@pytest.mark.parametrize("name", SMALL, ids=lambda p: Path(p).name)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_damaged_headers_are_refused_or_read(name, data):
    whole = bytearray(Path(name).read_bytes()[:6000])
    for _ in range(data.draw(st.integers(0, 6))):
        whole[data.draw(st.integers(128, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)))
    read_all(bytes(whole[:cut]))


@settings(max_examples=120, deadline=None)
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_refused_or_read(data, preamble):
    read_all((b"\0" * 128 + b"DICM" if preamble else b"") + data)


def read_all(data):
    """Decode every element of a header, down to the third level. Only Unreadable may be raised."""
    try:
        level = [parse(io.BytesIO(data))]
    except Unreadable:
        return
    for _ in range(3):
        below = []
        for header in level:
            for tag in header.elements:
                assert len(header.value(tag)) == header.elements[tag][2]
                for question in (header.numbers, header.words, header.items):
                    try:
                        found = question(tag)
                    except Unreadable:
                        continue
                    if question == header.items:
                        below += found
        level = below


def explicit(tag, vr, value):
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    if vr in {b"SQ", b"OB", b"OW", b"UN"}:
        return head + struct.pack("<HI", 0, len(value)) + value
    return head + struct.pack("<H", len(value)) + value


PREFIX = b"\0" * 128 + b"DICM" + explicit(0x00020010, b"UI", b"1.2.840.10008.1.2.1\0")
FIRST = explicit(0x00080005, b"CS", b"ISO_IR 149")


@pytest.mark.parametrize(("depth", "code"), [(5, None), (600, "BAD_HEADER"), (100_000, "BAD_HEADER")])
def test_deep_nesting_is_not_recursive(depth, code):
    opening = struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closing = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    stream = io.BytesIO(PREFIX + FIRST + opening * depth + closing * depth)
    if code is None:
        header = parse(stream)
        for _ in range(depth):
            [header] = header.items(0x0040A730)
        assert header.elements == {}
        return
    with pytest.raises(Unreadable) as why:
        parse(stream)
    assert why.value.code == code


def test_a_length_beyond_the_file_is_refused():
    with pytest.raises(Unreadable) as why:
        parse(io.BytesIO(PREFIX + FIRST + struct.pack("<HH2sHI", 0x0009, 0x0010, b"OB", 0, 0xFFFFFFF0) + b"x" * 50))
    assert why.value.code == "TRUNCATED"


def test_a_deflated_file_is_decompressed_within_bounds(monkeypatch):
    prefix = b"\0" * 128 + b"DICM" + explicit(0x00020010, b"UI", b"1.2.840.10008.1.2.1.99")
    body = FIRST + explicit(0x00090010, b"OB", bytes(1 << 22))
    engine = zlib.compressobj(wbits=-15)
    packed = engine.compress(body) + engine.flush()
    assert parse(io.BytesIO(prefix + packed)).word("SpecificCharacterSet") == "ISO_IR 149"
    monkeypatch.setattr("medssl.readers.dicom.header.MAX_INFLATED", 1 << 20)
    with pytest.raises(Unreadable) as why:
        parse(io.BytesIO(prefix + packed))
    assert why.value.code == "TOO_LARGE"
    with pytest.raises(Unreadable) as why:
        parse(io.BytesIO(prefix + packed[:-4]))
    assert why.value.code in {"TRUNCATED", "TOO_LARGE"}


def test_numbers_are_parsed_tolerantly():
    header = parse(
        io.BytesIO(
            PREFIX
            + FIRST
            + explicit(0x00180050, b"DS", b" 2,5 ")
            + explicit(0x00180060, b"DS", b"nan ")
            + explicit(0x00180080, b"DS", b"")
            + explicit(0x00180081, b"DS", b"1e2\\ 3\0")
            + explicit(0x00181030, b"DS", b"fast")
            + explicit(0x00280010, b"US", b"\x05\x00")
            + explicit(0x00280103, b"UN", b"\x01\x00")
        )
    )
    assert header.numbers("SliceThickness") == (2.5,)
    assert header.numbers("KVP") == header.numbers("RepetitionTime") == header.numbers("FlipAngle") == ()
    assert header.numbers("EchoTime") == (100, 3)
    assert header.integer("Rows", 0) == 5
    assert header.integer("PixelRepresentation", 0) == 1
    with pytest.raises(Unreadable, match=keyword_for_tag(0x00181030)):
        header.numbers("ProtocolName")


@pytest.mark.parametrize(
    "name", ["ExplVR_LitEndNoMeta", "ExplVR_BigEndNoMeta", "no_meta_group_length", "meta_missing_tsyntax"]
)
def test_file_meta_information_may_be_missing(name):
    path = get_testdata_file(f"{name}.dcm", download=False)
    with silenced():
        theirs = pydicom.dcmread(path, force=True, stop_before_pixels=True)
        with open(path, "rb") as f:
            assert same(parse(f), theirs) > 0


def test_an_item_longer_than_its_sequence_is_refused():
    inside = explicit(0x00080100, b"SH", b"ab")
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inside) + 10) + inside  # extends beyond the sequence
    header = parse(io.BytesIO(PREFIX + FIRST + explicit(0x00081140, b"SQ", item) + explicit(0x00081150, b"UI", b"1.")))
    with pytest.raises(Unreadable) as why:
        header.items(0x00081140)
    assert why.value.code == "TRUNCATED"
