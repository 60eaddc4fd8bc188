import io
import json
import re
from dataclasses import replace
from functools import partial

import imagecodecs
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import DataElement
from pydicom.data import get_testdata_file
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import apply_color_lut, apply_modality_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_files import (
    HTJ2K,
    JPEG_2000,
    JPEG_EXTENDED,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    PLACED,
    PSEUDONYMS,
    coloured,
    compressed,
    dataset,
    element,
    make,
    only,
    refusal,
    saved,
)
from medssl.readers.dicom import codecs, reader
from medssl.readers.dicom.frame_places import frame_places
from medssl.readers.dicom.grouping import exact_groups
from medssl.readers.dicom.header import parse
from medssl.readers.dicom.identity import identify
from medssl.readers.dicom.layout import Layout
from medssl.readers.dicom.metadata import metadata_of, modality_of, scanner_of
from medssl.readers.dicom.pixels import arguments, to_values
from medssl.readers.scan import Scan, Slice, Unreadable

QUICK = settings(max_examples=60, deadline=None)


# ---- stored values against plain arithmetic


@st.composite
def encodings(draw):
    bits, signed = draw(st.integers(2, 16)), draw(st.booleans())
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    values = draw(st.lists(st.integers(low, high), min_size=rows * columns, max_size=rows * columns))
    return bits, signed, np.array(values).reshape(rows, columns)


@QUICK
@given(
    encoding=encodings(),
    syntax=st.sampled_from(NATIVE),
    slope=st.sampled_from([None, 1, 2, -1, 0.5, 0.0025, 30000]),
    intercept=st.sampled_from([None, 0, -1024, 1000, 0.25]),
    inverse=st.booleans(),
    modality=st.sampled_from(["CT", "MR", "DX", "CR", "MG", "XA"]),
    garbage=st.integers(0, 15),
    placed=st.booleans(),
)
def test_pixels_equal_plain_arithmetic(encoding, syntax, slope, intercept, inverse, modality, garbage, placed):
    bits, signed, stored = encoding
    tags = PLACED if placed else {}
    tags = tags | ({"PhotometricInterpretation": "MONOCHROME1"} if inverse else {})
    if slope is not None:
        tags = tags | {"RescaleSlope": str(slope)}
    if intercept is not None:
        tags = tags | {"RescaleIntercept": str(intercept)}
    data = make(stored, bits=bits, signed=signed, modality=modality, syntax=syntax, garbage=garbage, **tags)
    if modality == "CT" and slope is None and intercept is None:
        assert refusal(data) == "NO_RESCALE"
        return
    scan = only(data)
    m, b = 1.0 if slope is None else slope, intercept or 0.0
    expected = stored * m + b
    if inverse and modality not in {"CT", "MR"}:
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        expected = (low * m + b) + (high * m + b) - expected
    np.testing.assert_array_equal(scan.array[0], expected.astype(np.float32))
    if float(slope or 1).is_integer() and float(intercept or 0).is_integer():
        fits = expected.min() >= -(1 << 15) and expected.max() < 1 << 15
        if modality == "CT" and fits:
            assert scan.array.dtype == np.int16
        assert scan.array.dtype.kind in "iu" or not fits
    if slope is None and intercept is None and not signed:
        assert scan.array.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert ("missing or invalid slope or intercept replaced" in scan.steps) == ((slope is None) != (intercept is None))


@pytest.mark.parametrize("shape", [None, "INVERSE"])
@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "RF", "XA"])
def test_monochrome1_is_inverted_exactly_once(modality, shape):
    stored = np.array([[0, 1], [7, 4095]])
    tags = {} if shape is None else {"PresentationLUTShape": shape}
    scan = only(make(stored, modality=modality, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_array_equal(scan.array[0], 4095 - stored)
    assert scan.steps.count("invert MONOCHROME1") == 1


@pytest.mark.parametrize("modality", ["CT", "MR", "PT", "NM"])
def test_monochrome1_is_not_inverted_in_quantitative_modalities(modality):
    stored = np.array([[0, 1], [7, 4095]])
    data = make(stored, modality=modality, PhotometricInterpretation="MONOCHROME1", RescaleIntercept="0")
    np.testing.assert_array_equal(only(data).array[0], stored)


@pytest.mark.parametrize(("modality", "expected"), [("CT", -1024), ("MR", -24)])
def test_padding_becomes_air_or_the_darkest_value(modality, expected):
    stored = np.array([[-2000, -2000, 0], [100, 200, 300]])
    unsigned = DataElement("PixelPaddingValue", "US", -2000 & 0xFFFF)  # with signed pixels, as some scanners write it
    pad = {"PixelPaddingValue": unsigned, "RescaleSlope": "1", "RescaleIntercept": "-24"}
    scan = only(make(stored, bits=16, signed=True, modality=modality, **pad))
    assert scan.array[0].tolist() == [[expected, expected, -24], [76, 176, 276]]


def test_padding_is_a_range_if_a_limit_is_given():
    stored = np.array([[0, 5, 9], [10, 200, 300]])
    limits = {
        "PixelPaddingValue": DataElement("PixelPaddingValue", "US", 9),
        "PixelPaddingRangeLimit": DataElement("PixelPaddingRangeLimit", "US", 3),
    }
    assert only(make(stored, modality="MR", **limits)).array[0].tolist() == [[0, 0, 0], [10, 200, 300]]
    assert refusal(make(np.full((2, 2), 5), modality="MR", **limits)) == "NO_PIXELS"


@pytest.mark.parametrize(("signed", "outside"), [(False, 63536), (True, -32768)])
def test_padding_beyond_bits_stored_is_compared_with_whole_words(signed, outside):
    words = np.array([[outside, outside, outside & 0x7FF], [100, 200, 300]])
    ds = dataset(words, bits=16, signed=signed, modality="MR", PixelPaddingValue=outside & 0xFFFF)
    ds["PixelPaddingValue"].VR = "US"
    ds.BitsStored, ds.HighBit = 12, 11
    darkest = min(100, outside & 0x7FF)
    assert only(saved(ds)).array[0].tolist() == [[darkest, darkest, outside & 0x7FF], [100, 200, 300]]


def test_padding_is_found_under_unused_upper_bits():
    pad = DataElement("PixelPaddingValue", "US", 9)
    ds = dataset(np.array([[9, 9], [10, 200]]), modality="MR", garbage=5, PixelPaddingValue=pad)
    assert only(saved(ds)).array[0].tolist() == [[10, 10], [10, 200]]


def test_inverted_padding_is_dark():
    stored = np.array([[0, 0, 4000], [100, 200, 300]])
    pad = DataElement("PixelPaddingValue", "US", 0)
    scan = only(make(stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=pad))
    assert scan.array[0].tolist() == [[95, 95, 95], [3995, 3895, 3795]]


def test_modality_lut_replaces_the_rescale():
    lut = Dataset()
    lut["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [4, 2, 16])
    lut["LUTData"] = DataElement("LUTData", "US", [10, 20, 40, 80])
    data = make(np.array([[0, 2, 3], [4, 5, 9]]), ModalityLUTSequence=Sequence([lut]), RescaleSlope="9")
    assert only(data).array[0].tolist() == [[10, 10, 20], [40, 80, 80]]
    ct = make(
        np.array([[0, 2, 3], [4, 5, 9]]), modality="CT", ModalityLUTSequence=Sequence([lut]), RescaleSlope="9", **PLACED
    )
    assert only(ct).array[0].tolist() == [[10, 10, 20], [40, 80, 80]]


@pytest.mark.parametrize("slope", ["0", "nan"])
def test_an_invalid_slope_is_replaced_and_recorded(slope):
    raw = DataElement("RescaleSlope", "LO", slope)
    data = make(
        np.array([[0, 1], [2, 3]]), syntax=ImplicitVRLittleEndian, modality="MR", RescaleSlope=raw, RescaleIntercept="5"
    )
    scan = only(data)
    assert scan.array[0].tolist() == [[5, 6], [7, 8]]
    assert "missing or invalid slope or intercept replaced" in scan.steps


def test_32_bits_are_read_if_nothing_is_lost():
    exact = np.array([[0, 1], [70000, 1 << 24]])
    scan = only(make(exact, bits=32, modality="NM"))
    assert scan.array.dtype == np.float32
    np.testing.assert_array_equal(scan.array[0], exact)
    assert refusal(make(exact + 1, bits=32, modality="NM")) == "UNSUPPORTED_PIXELS"


@pytest.mark.parametrize(("keyword", "dtype"), [("FloatPixelData", "<f4"), ("DoubleFloatPixelData", "<f8")])
def test_floating_point_pixels(keyword, dtype):
    values = np.linspace(-1, 1, 120).reshape(10, 12)
    values[3, 3] = np.nan
    ds = dataset(np.zeros((10, 12), int), modality="MR", **PLACED)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del ds[name]
    ds[keyword] = DataElement(keyword, dictionary_VR(keyword), values.astype(dtype).tobytes())
    scan = only(saved(ds))
    values[3, 3] = -1
    np.testing.assert_array_equal(scan.array[0], values.astype(np.float32))
    ds[keyword] = DataElement(keyword, dictionary_VR(keyword), np.full((10, 12), np.nan).astype(dtype).tobytes())
    assert refusal(saved(ds)) == "NON_FINITE"


def parametric_map(values, **tags):
    """Return a file with 32-bit floating point pixels."""
    ds = dataset(np.zeros(values.shape, int), modality="MR", **PLACED | tags)
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del ds[name]
    ds["FloatPixelData"] = DataElement("FloatPixelData", "OF", values.astype("<f4").tobytes())
    return saved(ds)


def test_a_map_is_not_finite_outside_the_organ():
    """The background of a volume gets its smallest finite value, also where a whole slice is background."""
    z = np.indices((9, 12, 12)) - np.array([4, 5.5, 5.5]).reshape(3, 1, 1, 1)
    outside = (z**2).sum(0) > 14
    assert outside[0].all()
    assert not outside[1].all()
    values = np.random.default_rng(0).normal(1, 0.2, outside.shape).astype(np.float32)
    values[outside] = np.nan
    files = [
        parametric_map(v, ImagePositionPatient=[0, 0, 3.0 * i], SOPInstanceUID=f"1.2.3.{i}")
        for i, v in enumerate(values)
    ]
    scan = build(files)
    expected = np.where(outside, np.nanmin(values), values)
    np.testing.assert_array_equal(scan.array[0], expected[:, ::-1, ::-1])
    assert "non-finite background filled" in scan.steps
    single = only(files[4])
    np.testing.assert_array_equal(single.array[0], np.where(outside[4], np.nanmin(values[4]), values[4]))
    hole = np.ones((12, 12))
    hole[3:9, 3:9] = np.nan
    assert refusal(parametric_map(hole)) == "NON_FINITE"
    lost = [*files[:4], parametric_map(np.full((12, 12), np.nan), ImagePositionPatient=[0, 0, 12.0]), *files[5:]]
    with pytest.raises(Unreadable, match="no value of a frame is finite"):
        build(lost)


# ---- colour


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_has_three_channels_and_grey_stored_as_colour_one(planar):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, 6, 3), np.uint8)
    grey = np.repeat(rng.integers(2, 250, (4, 6, 1), np.uint8), 3, -1)
    grey[1, 1] += np.array([0, 1, 2], np.uint8)  # as after lossy compression
    np.testing.assert_array_equal(np.moveaxis(only(saved(coloured(rgb, planar=planar))).array, 0, -1), rgb)
    array = only(saved(coloured(grey, planar=planar))).array
    assert array.shape == (1, 4, 6)
    np.testing.assert_array_equal(array[0], grey[..., 0])


def test_ybr_is_converted_once():
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    back = np.moveaxis(only(saved(coloured(ybr, "YBR_FULL"))).array, 0, -1).astype(int)
    assert np.abs(back - rgb).max() <= 3  # 8-bit rounding in both directions


def jpegs():
    """Return (kind, codestream, photometric interpretation, whether that is correct) of one red image."""
    red = np.tile(np.array([201, 40, 30], np.uint8), (16, 16, 1))
    out = io.BytesIO()
    Image.fromarray(red).save(out, "JPEG", quality=95)
    jfif = out.getvalue()
    bare = jfif[:2] + jfif[20:]  # without its APP0 of 18 bytes
    adobe = [b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform]) for transform in (0, 1)]
    rgb = imagecodecs.jpeg8_encode(red, level=95, colorspace="RGB", outcolorspace="RGB")
    at = rgb.index(b"\xff\xc0")
    plain = b"\xff\xd8" + rgb[rgb.index(b"\xff\xdb") : at] + rgb[at:]
    yield from (("JFIF", jfif, word, word != "RGB") for word in ("RGB", "YBR_FULL_422"))
    yield from (("Adobe YCbCr", bare[:2] + adobe[1] + bare[2:], w, w != "RGB") for w in ("RGB", "YBR_FULL_422"))
    yield from (("names", plain, w, w == "RGB") for w in ("RGB", "YBR_FULL_422"))
    numbered = bytearray(plain)
    frame, scan = plain.index(b"\xff\xc0"), plain.index(b"\xff\xda")
    for k in range(3):
        numbered[frame + 10 + 3 * k] = numbered[scan + 5 + 2 * k] = k + 1
    numbered = bytes(numbered)
    yield from (("Adobe RGB", numbered[:2] + adobe[0] + numbered[2:], w, w == "RGB") for w in ("RGB", "YBR_FULL_422"))
    yield "nothing: the header", numbered, "RGB", True
    yield "nothing: the header", bare, "YBR_FULL_422", True


@pytest.mark.parametrize(("what", "data", "word", "right"), list(jpegs()))
def test_the_colour_space_of_a_jpeg_stream_overrides_the_header(what, data, word, right):
    ds = coloured(np.zeros((16, 16, 3), np.uint8), word)
    file = compressed([data], ds, UID("1.2.840.10008.1.2.4.50"))
    scan = only(file)
    assert np.abs(scan.array.reshape(3, -1).T.astype(int) - [201, 40, 30]).max() <= 3
    assert ("colour space from the codestream" in scan.steps) == (not right)
    if what == "JFIF":  # pydicom misreads the other two
        np.testing.assert_array_equal(np.moveaxis(scan.array, 0, -1), pydicom.dcmread(io.BytesIO(file)).pixel_array)
    if "header" not in what:
        np.testing.assert_array_equal(np.moveaxis(scan.array, 0, -1), np.asarray(Image.open(io.BytesIO(data))))


def test_big_endian_words_of_two_samples_are_swapped():
    rgb = np.random.default_rng(2).integers(0, 256, (3, 3, 3), np.uint8)  # 27 bytes: the last word is incomplete
    ds = coloured(rgb, syntax=ExplicitVRBigEndian)
    ds.PixelData = np.frombuffer(ds.PixelData, np.uint16).byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    np.testing.assert_array_equal(np.moveaxis(only(saved(ds)).array, 0, -1), rgb)


def palette_dataset(stored, segmented):
    ds = dataset(stored, bits=8, modality="US", PhotometricInterpretation="PALETTE COLOR")
    for k, colour in enumerate(("Red", "Green", "Blue")):
        ds[f"{colour}PaletteColorLookupTableDescriptor"] = DataElement(
            f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 16]
        )
        # 6 discrete entries, a ramp of 130, both again by reference, and the rest as a ramp
        words = [0, 6, *(1000 * k + 777 * np.arange(6)), 1, 120, 40000 + k, 2, 2, 0, 0, 1, 4, 12]
        key, data = f"Segmented{colour}PaletteColorLookupTableData", np.array(words, "<u2").tobytes()
        if not segmented:
            key, data = (
                f"{colour}PaletteColorLookupTableData",
                (np.arange(256) * (200 - 60 * k)).astype("<u2").tobytes(),
            )
        ds[key] = DataElement(key, "OW", data)
    return ds


@pytest.mark.parametrize("segmented", [False, True])
def test_palettes_equal_pydicoms(segmented):
    ds = palette_dataset(np.arange(256).reshape(16, 16), segmented)
    scan = only(saved(ds))
    truth = apply_color_lut(np.arange(256).reshape(16, 16), ds) >> 8
    assert np.abs(np.moveaxis(scan.array, 0, -1).astype(int) - truth).max() <= segmented  # a ramp's rounding
    assert "palette to RGB" in scan.steps


def test_colour_in_ct_has_no_hounsfield_units():
    rgb = np.zeros((4, 4, 3), np.uint8)
    assert refusal(saved(coloured(rgb, modality="CT", RescaleSlope="1", RescaleIntercept="0"))) == "NO_RESCALE"


# ---- files bundled with pydicom, compared with pydicom

EQUAL = """
CT_small MR_small_padded SC_rgb_rle_16bit ExplVR_BigEnd
J2K_pixelrep_mismatch JPEG2000 MR_small MR_small_RLE MR_small_bigendian MR_small_expb
MR_small_implicit MR_small_jp2klossless SC_jpeg_no_color_transform SC_jpeg_no_color_transform_2 SC_rgb_dcmtk_+eb+cr
SC_rgb_dcmtk_+eb+cy+n1 SC_rgb_dcmtk_+eb+cy+n2 SC_rgb_dcmtk_+eb+cy+np SC_rgb_dcmtk_+eb+cy+s2 SC_rgb_dcmtk_+eb+cy+s4
SC_rgb_gdcm_KY SC_rgb_jpeg SC_rgb_jpeg_app14_dcmd SC_rgb_jpeg_dcmd SC_rgb_jpeg_dcmtk SC_rgb_jpeg_lossy_gdcm SC_rgb_rle
SC_rgb_small_odd SC_rgb_small_odd_big_endian SC_rgb_small_odd_jpeg SC_ybr_full_422_uncompressed examples_jpeg2k
examples_overlay examples_rgb_color image_dfl
""".split()  # noqa: SIM905


def bundled(name):
    path = get_testdata_file(f"{name}.dcm", download=False)
    assert path is not None
    return open(path, "rb").read()


@pytest.mark.parametrize("name", EQUAL)
def test_bundled_files_equal_pydicom(name):
    scan = only(bundled(name))
    ds = pydicom.dcmread(io.BytesIO(bundled(name)))
    truth = ds.pixel_array
    truth = np.moveaxis(truth, -1, 0) if truth.ndim == 3 else apply_modality_lut(truth, ds)[None]
    np.testing.assert_array_equal(scan.array, truth[: scan.array.shape[0]])


NOT_EQUAL = {
    "MR_truncated": "TRUNCATED",
    "JPEG2000-embedded-sequence-delimiter": "DECODE_FAILED",  # not a valid codestream
    "liver_1frame": "NOT_AN_IMAGE",
    "rtdose": "NOT_AN_IMAGE",
    "rtplan": "NOT_AN_IMAGE",
    "rtstruct": "NOT_AN_IMAGE",
    "reportsi": "NOT_AN_IMAGE",
    "test-SR": "NOT_AN_IMAGE",
    "waveform_ecg": "NOT_AN_IMAGE",
    "rtplan_truncated": "TRUNCATED",
}


@pytest.mark.parametrize("name", NOT_EQUAL)
def test_bundled_files_that_are_refused(name):
    assert refusal(bundled(name)) == NOT_EQUAL[name]


def test_a_dicomdir_is_not_an_image():
    with open(get_testdata_file("DICOMDIR", download=False), "rb") as f:
        assert refusal(f.read()) == "NOT_AN_IMAGE"


def test_nine_real_transfer_syntaxes_give_the_same_image(shared):
    pictures, syntaxes = [], set()
    for path in sorted((shared / "dicom" / "dcm_qa_ts" / "In").rglob("*.dcm")):
        with path.open("rb") as f:
            header = parse(f)
            layout = Layout.of(header)
            [place] = frame_places(f, header, layout)
            pictures.append(to_values(codecs.words(f, layout, place), layout, **arguments(header, layout, "MR")).values)
            syntaxes.add(layout.syntax)
    assert (len(pictures), len(syntaxes)) == (9, 7)
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


# ---- compressed frames

LOSSLESS = {
    JPEG_LOSSLESS: imagecodecs.ljpeg_encode,
    JPEG_LS: imagecodecs.jpegls_encode,
    JPEG_2000: partial(imagecodecs.jpeg2k_encode, level=0, codecformat="j2k"),
    HTJ2K: imagecodecs.htj2k_encode,
}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.name)
def test_lossless_codecs_lose_nothing(syntax, signed):
    stored = np.random.default_rng(3).integers(0, 4096, (40, 52)) - 2048 * signed
    ds = dataset(stored, bits=16, signed=signed, modality="MR")
    frame = LOSSLESS[syntax](stored.astype(np.uint16))  # unsigned codestream; the sign is in the header
    np.testing.assert_array_equal(only(compressed([frame], ds, syntax)).array[0], stored)


def test_a_sign_of_the_codestream_that_contradicts_the_header_is_recorded():
    stored = np.random.default_rng(3).integers(-2000, 2000, (40, 52)).astype(np.int16)
    frame = LOSSLESS[JPEG_2000](stored)
    right = only(compressed([frame], dataset(stored, bits=16, signed=True, modality="MR"), JPEG_2000))
    wrong = only(compressed([frame], dataset(stored, bits=16, modality="MR"), JPEG_2000))
    step = "sign of the codestream replaced by the header's"
    np.testing.assert_array_equal(right.array[0], stored)
    np.testing.assert_array_equal(wrong.array[0], stored.view(np.uint16))
    assert step in wrong.steps
    assert step not in right.steps


@pytest.mark.parametrize(("bits", "signed"), [(8, False), (12, False), (16, True)])
def test_rle_loses_nothing(bits, signed):
    rng = np.random.default_rng(4)
    stored = np.repeat(rng.integers(0, 200, (30, 8)), rng.integers(1, 9, 8), axis=1) - 100 * signed
    ds = dataset(stored, bits=bits, signed=signed, modality="NM")
    ds.compress(RLELossless, generate_instance_uid=False)
    np.testing.assert_array_equal(only(saved(ds)).array[0], stored)


def test_rle_of_thirty_two_bits_equals_pydicom():
    stream = io.BytesIO(bundled("rtdose_rle"))
    header = parse(stream)
    layout = Layout.of(header)
    frames = [codecs.words(stream, layout, place).array for place in frame_places(stream, header, layout)]
    np.testing.assert_array_equal(frames, pydicom.dcmread(io.BytesIO(bundled("rtdose_rle"))).pixel_array)


def test_twelve_bit_jpeg():
    y, x = np.mgrid[:64, :48]
    stored = 40 * y + 20 * x + 300
    frame = imagecodecs.jpeg8_encode(stored.astype(np.uint16), level=100, bitspersample=12)
    array = only(compressed([frame], dataset(stored, modality="DX"), JPEG_EXTENDED)).array[0]
    assert np.abs(array.astype(int) - stored).max() <= 4  # of 4095; the codec is lossy
    assert only(bundled("JPEG-lossy")).array.max() in range(256, 4096)


def test_a_codestream_of_another_size_is_not_decoded():
    frame = LOSSLESS[JPEG_2000](np.zeros((20, 20), np.uint16))
    for rows, columns in ((20, 21), (10, 20), (2000, 2000)):
        data = compressed([frame], dataset(np.zeros((rows, columns), int)), JPEG_2000)
        assert refusal(data) == "DECODE_FAILED"
    colour = LOSSLESS[JPEG_2000](np.zeros((20, 20, 3), np.uint8))
    assert refusal(compressed([colour], dataset(np.zeros((20, 20), int)), JPEG_2000)) == "DECODE_FAILED"


@QUICK
@given(data=st.data())
def test_damaged_rle_is_refused_or_decoded_to_the_stated_size(data):
    ds = dataset(np.arange(600).reshape(20, 30) // 7, bits=16, modality="NM")
    ds.compress(RLELossless, generate_instance_uid=False)
    whole = bytearray(saved(ds))
    start = whole.rindex(b"\xe0\x7f\x10\x00")
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(start, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        scan = only(bytes(whole))
    except Unreadable:
        return
    assert scan.array.shape == (1, 20, 30)


CORRECTED = "number of frames corrected"


def streams(count, split=1):
    """Return random frames and their codestreams."""
    images = np.random.default_rng(5).integers(0, 4000, (count, 24, 24)).astype(np.uint16)
    return images, [LOSSLESS[JPEG_LS](image) for image in images]


@pytest.mark.parametrize("per_frame", [1, 3])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
@pytest.mark.parametrize("declared", [1, 2, 4, 6])
def test_frames_are_found_by_table_or_by_fragments(table, per_frame, declared):
    images, coded = streams(4 if declared > 1 else 1)
    ds = dataset(images[0], bits=16, modality="XA", NumberOfFrames=str(declared))
    ds.file_meta.TransferSyntaxUID = JPEG_LS
    if table == "extended" and per_frame == 1:
        ds.PixelData, ds.ExtendedOffsetTable, ds.ExtendedOffsetTableLengths = encapsulate_extended(coded)
    else:
        ds.PixelData = encapsulate(coded, fragments_per_frame=per_frame, has_bot=table == "basic")
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO(saved(ds))
    header = parse(stream)
    layout = Layout.of(header)
    places = frame_places(stream, header, layout)
    assert len(places) == min(declared, len(images))
    corrected = {CORRECTED in scan.steps for scan, _ in reader.read(stream, "x", PSEUDONYMS)}
    assert corrected == {declared > len(images)}
    for place, image in zip(places, images, strict=False):
        np.testing.assert_array_equal(codecs.words(stream, layout, place).array, image)


def test_compressed_pixels_without_an_end_are_truncated():
    images, coded = streams(1)
    data = compressed(coded, dataset(images[0], bits=16), JPEG_LS)
    assert only(data).array.shape == (1, 24, 24)
    for cut in (1, 8, 9, 100):
        assert refusal(data[:-cut]) == "TRUNCATED"
    empty = compressed([b"ab"], dataset(images[0], bits=16), JPEG_LS).replace(b"\2\0\0\0ab", b"\0\0\0\0")
    assert refusal(empty) == "NO_PIXELS"
    assert refusal(compressed([b"\0" * 80], dataset(images[0], bits=16), JPEG_LS)) == "DECODE_FAILED"


# ---- wrong lengths and headers


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ({"Rows": 3}, "BAD_LENGTH"),
        ({"Rows": 4000}, "BAD_LENGTH"),
        ({"Rows": 0}, "NO_PIXELS"),
        ({"Rows": 65535, "Columns": 65535}, "TOO_LARGE"),
        ({"BitsStored": 17}, "BAD_HEADER"),
        ({"HighBit": 3}, "BAD_HEADER"),
        ({"BitsAllocated": 64}, "UNSUPPORTED_PIXELS"),
        ({"SamplesPerPixel": 4}, "UNSUPPORTED_PIXELS"),
        ({"PhotometricInterpretation": "RGB"}, "UNSUPPORTED_PIXELS"),
        ({"RescaleSlope": DataElement("RescaleSlope", "LO", "abc"), "RescaleIntercept": "0"}, "BAD_HEADER"),
    ],
)
def test_headers_that_contradict_the_pixels_are_refused(tags, code):
    ds = dataset(np.arange(20).reshape(4, 5), syntax=ImplicitVRLittleEndian)
    for key, value in tags.items():
        ds[key] = element(key, value)
    assert refusal(saved(ds)) == code


def test_truncated_native_pixels_are_refused_but_missing_padding_is_tolerated():
    data = make(np.arange(15).reshape(3, 5), bits=8, modality="US")
    assert data.endswith(b"\x0e\0")
    assert only(data[:-1]).array.shape == (1, 3, 5)
    assert refusal(data[:-2]) == "TRUNCATED"
    assert refusal(make(np.arange(20).reshape(4, 5), syntax=ExplicitVRLittleEndian)[:-1]) == "TRUNCATED"


def test_unknown_syntax_and_headers_without_pixels():
    ds = dataset(np.arange(20).reshape(4, 5))
    assert refusal(compressed([b"ab"], ds, UID("1.2.840.10008.1.2.4.102"))) == "UNSUPPORTED_SYNTAX"
    ds = dataset(np.arange(20).reshape(4, 5))
    del ds.PixelData
    assert refusal(saved(ds)) == "TRUNCATED"  # an X-ray image that ends early
    ds.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4.2"  # spectroscopy
    assert refusal(saved(ds)) == "NO_PIXELS"
    del ds.Rows
    assert refusal(saved(ds)) == "NO_PIXELS"


@pytest.mark.parametrize("declared", [None, "0", "1"])
def test_no_or_zero_frames_are_one(declared):
    tags = {} if declared is None else {"NumberOfFrames": declared}
    assert only(make(np.arange(20).reshape(4, 5), **tags)).array.shape == (1, 4, 5)


def test_native_frames_are_those_both_stated_and_present():
    whole = np.arange(60).reshape(12, 5)
    for declared, expected in ((2, 2), (3, 3), (9, 3)):
        ds = dataset(whole, bits=16, NumberOfFrames=str(declared))
        ds.Rows = 4
        stream = io.BytesIO(saved(ds))
        header = parse(stream)
        layout = Layout.of(header)
        places = frame_places(stream, header, layout)
        np.testing.assert_array_equal(
            np.concatenate([codecs.words(stream, layout, p).array for p in places]), whole[: 4 * expected]
        )
        corrected = {CORRECTED in scan.steps for scan, _ in reader.read(stream, "x", PSEUDONYMS)}
        assert corrected == {declared > 3}


def test_twelve_bits_allocated_are_read_as_sixteen_if_the_length_fits():
    ds = dataset(np.arange(20).reshape(4, 5))
    ds.BitsAllocated = 12
    np.testing.assert_array_equal(only(saved(ds)).array[0], np.arange(20).reshape(4, 5))
    ds.PixelData = ds.PixelData[:30]  # packed
    assert refusal(saved(ds)) == "BAD_LENGTH"


def test_single_bits_are_unpacked():
    bits = np.random.default_rng(6).integers(0, 2, (5, 7))
    ds = dataset(bits, bits=8, modality="OT")
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    np.testing.assert_array_equal(only(saved(ds)).array[0], bits)


def test_invalid_unimportant_elements_are_ignored():
    tags = {
        "KVP": DataElement("KVP", "LO", "a hundred"),
        "ImagePositionPatient": DataElement("ImagePositionPatient", "LO", "here\\there\\0"),
        "EchoTime": DataElement("EchoTime", "LO", "?"),
    }
    scan = only(make(np.arange(20).reshape(4, 5), syntax=ImplicitVRLittleEndian, modality="MR", **PLACED | tags))
    assert scan.array.shape == (1, 4, 5)
    assert "kvp" not in scan.metadata


# ---- slices and volumes


def series(count=5, **tags):
    """Return (files, stored values) of a CT series. A list gives each slice its own tag value."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4096, (count, 6, 5))
    files = []
    for i in range(count):
        own = {k: v[i] if isinstance(v, tuple) else v for k, v in tags.items()}
        how = PLACED | {"RescaleSlope": "1", "RescaleIntercept": "-1024", "SOPInstanceUID": f"1.2.3.{i}"} | own
        how["ImagePositionPatient"] = [0, 0, 3.0 * i]
        files.append(make(stored[i], modality="CT", **how))
    return files, stored


def slices_of(files):
    found = [reader.read(io.BytesIO(f), f"{k}.dcm", PSEUDONYMS) for k, f in enumerate(files)]
    assert all(isinstance(s, Slice) for s in found)
    found = [replace(s, file=str(k)) for k, s in enumerate(found)]
    return [Slice.from_dict(json.loads(json.dumps(s.as_dict()))) for s in found]


def build(files, slices=None):
    beats = []
    slices = slices or slices_of(files)
    made = reader.volume(slices, lambda s: io.BytesIO(files[int(s.file)]), PSEUDONYMS, beats.append)
    assert beats == list(range(len(slices) + isinstance(made, Scan)))  # the last one: all are decoded
    return made


def test_a_volume_is_its_slices_in_hounsfield_units():
    files, stored = series()
    scan = build(files)
    assert scan.array.dtype == np.int16
    np.testing.assert_array_equal(
        scan.array[0], (stored - 1024)[:, ::-1, ::-1]
    )  # rows point to anterior, columns to right
    assert scan.spacing == pytest.approx((3, 0.5, 0.7))
    corner = scan.affine @ [0, 5, 4, 1]  # the first pixel of the first file
    np.testing.assert_allclose(corner[:3], [0, 0, 0], atol=1e-9)
    assert scan.scan == PSEUDONYMS.of("scan", "volume|" + "|".join(sorted(s.uid for s in slices_of(files))))


def test_slopes_that_vary_by_slice_are_applied_before_stacking():
    slopes = ("1", "2", "0.5", "1", "3")
    files, stored = series(RescaleSlope=slopes)
    scan = build(files)
    assert scan.array.dtype == np.float32
    expected = stored * np.array(slopes, float)[:, None, None] - 1024
    np.testing.assert_array_equal(scan.array[0], expected[:, ::-1, ::-1].astype(np.float32))


def test_all_slices_that_cannot_be_decoded_are_reported():
    images = np.random.default_rng(5).integers(0, 4000, (5, 24, 24)).astype(np.uint16)
    files = []
    for k, image in enumerate(images):
        place = PLACED | {"ImagePositionPatient": [0, 0, 3.0 * k], "SOPInstanceUID": f"1.2.{k}", "RescaleSlope": "1"}
        coded = LOSSLESS[JPEG_LS](image)
        broken = coded[:-200] + b"\xff" * 200 if k in {1, 3} else coded
        files.append(compressed([broken], dataset(image, bits=16, modality="CT", **place), JPEG_LS))
    assert [(k, why.code) for k, why in build(files)] == [(1, "DECODE_FAILED"), (3, "DECODE_FAILED")]


def test_defects_of_a_slice_are_found_before_decoding():
    files, _ = series(1)
    cut = files[0][:-4]
    with pytest.raises(Unreadable, match="ends inside"):
        reader.read(io.BytesIO(cut), "x", PSEUDONYMS)
    ds = pydicom.dcmread(io.BytesIO(files[0]))
    del ds.RescaleSlope, ds.RescaleIntercept
    with pytest.raises(Unreadable, match="Hounsfield"):
        reader.read(io.BytesIO(saved(ds)), "x", PSEUDONYMS)


def test_slices_that_cannot_be_opened_are_reported_without_paths():
    files, _ = series()

    class Torn(io.BytesIO):
        def read(self, *_):
            raise OSError(5, "Input/output error", "ward/MUELLER/x.dcm")

    def opened(s):
        if s.file == "1":
            raise FileNotFoundError(2, "No such file", "ward/MUELLER/x.dcm")
        return Torn() if s.file == "3" else io.BytesIO(files[int(s.file)])

    bad = reader.volume(slices_of(files), opened, PSEUDONYMS, lambda k: None)
    assert [(k, why.code) for k, why in bad] == [(1, "CANNOT_OPEN"), (3, "CANNOT_OPEN")]
    assert "MUELLER" not in "".join(str(why) for _, why in bad)


@pytest.mark.parametrize(
    ("patients", "folders", "series_uid", "groups"),
    [
        (("P1", "P2"), ("a", "a"), "1.2.3.9", 2),
        (("P1", "P2"), ("a", "a"), "", 2),
        (("", ""), ("a", "b"), "", 2),
        (("P1", "P1"), ("a", "b"), "1.2.3.9", 1),
        (("", ""), ("a", "a"), "", 1),
    ],
)
def test_slices_of_two_patients_are_never_one_volume(patients, folders, series_uid, groups):
    keys = set()
    for patient, folder in zip(patients, folders, strict=True):
        files, _ = series(2, PatientID=patient, SeriesInstanceUID=series_uid, StudyInstanceUID="")
        keys |= {reader.read(io.BytesIO(f), f"{folder}/{k}.dcm", PSEUDONYMS).key for k, f in enumerate(files)}
    assert len(keys) == groups


# Slices that differ in one of these are never compared.
OTHER_KEY = {
    "PatientID": "P2",
    "IssuerOfPatientID": "another hospital",
    "StudyInstanceUID": "9.8",
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
    "ConvolutionKernel": "B70f",
    "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"],
}
# Slices that differ in one of these are different volumes, unless they share no position and together are one stack.
OTHER_VOLUME = {
    "FrameOfReferenceUID": "9.7",
    "SeriesInstanceUID": "9.9",
    "EchoTime": "12.5",
    "EchoNumbers": "2",
    "DiffusionBValue": 700.0,
    "DiffusionGradientOrientation": [0.0, 1.0, 0.0],
    "FlipAngle": "20",
    "InversionTime": "300",
    "ReconstructionDiameter": "400",
    "StackID": "2",
    "PixelSpacing": [0.5, 0.71],
    "ImageOrientationPatient": [0, 1, 0, 0, 0, -1],
}
ONE_VOLUME = {
    "AcquisitionNumber": "7",
    "InstanceNumber": "33",
    "XRayTubeCurrent": "211",
    "ExposureTime": "500",
    "WindowCenter": "3",
    "TriggerTime": "12",
    "SliceLocation": "4",
    "ImageOrientationPatient": [1, 1e-5, 0, 0, 1, 0],
}


@pytest.mark.parametrize(("key", "value", "keys", "groups"), [(k, v, 2, 2) for k, v in OTHER_KEY.items()] + [
    (k, v, 1, 2) for k, v in OTHER_VOLUME.items()
] + [(k, v, 1, 1) for k, v in ONE_VOLUME.items()])  # fmt: skip
def test_what_slices_of_one_volume_share(key, value, keys, groups):
    found = [slices_of(series(1, **tags)[0])[0] for tags in ({}, {key: value})]
    assert len({s.key for s in found}) == keys
    assert len(exact_groups(found)) == groups


def test_a_series_stands_for_a_missing_study():
    found = [slices_of(series(1, StudyInstanceUID="", SeriesInstanceUID=uid)[0])[0] for uid in ("1.2", "1.3")]
    assert found[0].key != found[1].key


def test_order_is_time_acquisition_and_instance():
    time = {"AcquisitionNumber": "2", "InstanceNumber": "7", "TriggerTime": "80"}
    orders = [
        slices_of(series(1, **time | tags)[0])[0].order
        for tags in ({}, {"CardiacNumberOfImages": "20"}, {"TemporalPositionIdentifier": "4"})
    ]
    assert orders == [(0, 2, 7), (80, 2, 7), (4, 2, 7)]


@pytest.mark.parametrize(
    "lost",
    [
        {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]},
        {"ImageOrientationPatient": [2, 0, 0, 0, 1, 0]},
        {"PixelSpacing": [0, 1]},
        {"ImageOrientationPatient": []},
    ],
)
def test_a_slice_with_an_invalid_position_is_an_image(lost):
    data = make(np.arange(20).reshape(4, 5), modality="CT", RescaleIntercept="0", **PLACED | lost)
    [(scan, name)] = reader.read(io.BytesIO(data), "x", PSEUDONYMS)
    assert (scan.array.shape, scan.affine, name) == ((1, 4, 5), None, "x")


def test_a_digest_depends_on_the_pixels_alone():
    (a, b, c), _ = series(3)
    same = saved(replaced(a, SOPInstanceUID="1.2.3.77", PatientName="x"))
    digests = [reader.digest(io.BytesIO(f), slices_of([f])[0].frame) for f in (a, b, c, same)]
    assert len(set(digests)) == 3
    assert digests[0] == digests[3]


def replaced(data, **tags):
    ds = pydicom.dcmread(io.BytesIO(data))
    for key, value in tags.items():
        ds[key] = element(key, value)
    return ds


# ---- metadata, pseudonyms, quarantine


def headed(**tags):
    return parse(io.BytesIO(make(np.arange(20).reshape(4, 5), **tags)))


def test_no_planted_identifier_leaves_a_header():
    secrets = {
        "PatientName": "HONG^GILDONG",
        "PatientID": "SECRET77",
        "OtherPatientIDs": "SECRET78",
        "PatientBirthDate": "19570203",
        "AccessionNumber": "ACC9911",
        "InstitutionName": "Sacred Hospital",
        "StudyDescription": "for Mrs Smith",
        "SeriesDescription": "Smith knee",
        "ProtocolName": "Smith protocol",
        "StationName": "STAT01",
        "BodyPartExamined": "SMITHS KNEE",
        "ConvolutionKernel": "SMITH JOHN 1957",
        "ViewPosition": "SMITH",
        "ImageType": ["ORIGINAL", "PRIMARY", "SMITH"],
        "CorrectedImage": ["ATTN", "SMITH"],
        "LossyImageCompressionMethod": "SMITH",
        "PatientAge": "SMIT",
        "StudyDate": "20240503",
        "PatientComments": "Smith",
    }
    how = PLACED | {"RescaleIntercept": "0", "modality": "CT"}
    data = make(np.arange(20).reshape(4, 5), **how, **secrets)
    found = reader.read(io.BytesIO(data), "smith/secret77.dcm", PSEUDONYMS)
    text = json.dumps(found.as_dict()) + repr(replace(only(data), array=np.zeros(1)))
    for value in secrets.values():
        for word in re.findall(r"[A-Za-z0-9]{4,}", str(value)):
            if word not in {"ORIGINAL", "PRIMARY", "ATTN"}:
                assert word.lower() not in text.lower(), word
    for uid in ("1.2.3.4", "1.2.3.9", '"1.2.3"'):
        assert uid not in text


def test_metadata_are_allow_listed():
    metadata = metadata_of(
        headed(
            modality="CT",
            PatientSex="F",
            PatientAge="094Y",
            KVP="120",
            LossyImageCompression="01",
            LossyImageCompressionRatio="12.5",
            LossyImageCompressionMethod="ISO_15444_1",
            PatientPosition="HFS",
            PatientIdentityRemoved="YES",
            WindowCenter=["40", "50"],
            WindowWidth=["400", "500"],
            CorrectedImage=["ATTN", "DECY"],
            ConvolutionKernel="B30f",
            BodyPartExamined="CHEST",
        )
    )
    assert metadata == {
        "sex": "F",
        "age": 90.0,
        "kvp": 120.0,
        "lossy": "yes",
        "lossy_ratio": 12.5,
        "lossy_method": "ISO_15444_1",
        "patient_position": "HFS",
        "deidentified": "YES",
        "voi_center": 40.0,
        "voi_width": 400.0,
        "corrected": "ATTN DECY",
        "kernel": "B30f",
        "body_part": "CHEST",
        "bits_stored": 12.0,
        "photometric": "MONOCHROME2",
        "transfer_syntax": "1.2.840.10008.1.2.1",
        "sop_class": "1.2.840.10008.5.1.4.1.1.1.1",
    }


def test_identifiers_become_pseudonyms_and_placeholders_are_unknown_patients():
    known = identify(headed(PatientBirthDate="19570203"), PSEUDONYMS, "a")
    assert known == identify(headed(PatientBirthDate="19570203", SOPInstanceUID="7"), PSEUDONYMS, "b")
    assert known["patient"] == PSEUDONYMS.of("patient", b"P1")
    assert known["patient"] != identify(headed(IssuerOfPatientID="other"), PSEUDONYMS, "a")["patient"]
    assert known["birth_date_hash"] == PSEUDONYMS.of("born", b"P1|19570203")
    for placeholder in ("", "ANONYMOUS", "0", " unknown ", "N/A", "UNK", "anonymised"):
        ids = identify(headed(PatientID=placeholder), PSEUDONYMS, "a")
        assert ids["patient"] == PSEUDONYMS.of("patient", b"study|1.2.3")
        assert ids["patient_known"] is False
        assert ids["birth_date_hash"] == ""
    alone = identify(headed(PatientID="", StudyInstanceUID=""), PSEUDONYMS, "한글/a.dcm")
    assert alone["patient"] == PSEUDONYMS.of("patient", "file|한글/a.dcm")


def test_pseudonyms_of_scans():
    data = make(np.arange(20).reshape(4, 5))
    assert only(data).scan == PSEUDONYMS.of("scan", b"1.2.3.4")
    nameless = data.replace(b"\x08\x00\x18\x00UI\x08\x001.2.3.4\x00", b"\x08\x00\x18\x00UI\x00\x00")
    assert only(nameless).scan == PSEUDONYMS.of("scan", "file|a/x.dcm")


def test_modality_and_scanner():
    header = headed(modality="ct", Manufacturer="ACME (R) \\ Co.", ManufacturerModelName="X-Ray/9 " + "z" * 60)
    assert modality_of(header) == "CT"
    assert scanner_of(header) == ("ACME R Co. X-Ray 9 " + "z" * 60)[:48]
    assert modality_of(headed(modality="SMITH", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")) == ""


@pytest.mark.parametrize("word", ["", "OT", "SMITH"])
@pytest.mark.parametrize(
    ("sop", "modality"),
    [
        ("2", "CT"),
        ("2.1", "CT"),
        ("4", "MR"),
        ("4.1", "MR"),
        ("128", "PT"),
        ("20", "NM"),
        ("1", "CR"),
        ("1.1", "DX"),
        ("1.2.1", "MG"),
        ("6.1", "US"),
        ("12.1", "XA"),
        ("77.1.5.1", "OP"),
        ("7", None),
        ("66.4", None),
        ("77.1.5.9", None),
    ],
)
def test_the_sop_class_gives_the_modality_if_the_header_does_not(word, sop, modality):
    header = headed(modality=word, SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop}")
    assert modality_of(header) == (modality or ("OT" if word == "OT" else ""))
    assert modality_of(headed(modality=word, SOPClassUID=sop)) == ("OT" if word == "OT" else "")  # of another root
    said = headed(modality="MR", SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{sop}")
    assert modality_of(said) == "MR"


# ---- the window of a projection


def test_a_window_is_recorded_after_the_inversion():
    how = {"WindowCenter": "1000.5", "WindowWidth": "201"}
    plain = only(make(np.arange(20).reshape(4, 5), **how)).metadata
    assert (plain["voi_low"], plain["voi_high"]) == (900, 1100)
    inverted = only(make(np.arange(20).reshape(4, 5), PhotometricInterpretation="MONOCHROME1", **how)).metadata
    assert (inverted["voi_low"], inverted["voi_high"]) == (4095 - 1100, 4095 - 900)
    exact = only(make(np.arange(20).reshape(4, 5), VOILUTFunction="LINEAR_EXACT", **how)).metadata
    assert (exact["voi_low"], exact["voi_high"]) == (900, 1101)
    none = only(make(np.arange(20).reshape(4, 5), WindowCenter="3", WindowWidth="0.5")).metadata
    assert "voi_low" not in none


def test_a_voi_lut_is_preferred_to_a_window_and_its_flat_ends_are_outside():
    lut = Dataset()
    lut["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [8, 100, 16])
    lut["LUTData"] = DataElement("LUTData", "US", [0, 0, 0, 10, 20, 30, 30, 30])
    how = {"VOILUTSequence": Sequence([lut]), "WindowCenter": "5", "WindowWidth": "9"}
    metadata = only(make(np.arange(20).reshape(4, 5), **how)).metadata
    assert (metadata["voi_low"], metadata["voi_high"]) == (102, 105)


def test_multi_frame_files():
    whole = np.arange(60).reshape(12, 5)
    ds = dataset(whole, bits=16, modality="XA", NumberOfFrames="3")
    ds.Rows = 4
    found = list(reader.read(io.BytesIO(saved(ds)), "x", PSEUDONYMS))
    assert [name for _, name in found] == ["x#frame/0", "x#frame/1", "x#frame/2"]
    np.testing.assert_array_equal(np.concatenate([scan.array[0] for scan, _ in found]), whole)
