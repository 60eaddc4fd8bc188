"""Lengths, frames and headers that contradict each other: what is read, what is refused, and with which reason."""

import gzip
import io

import imagecodecs
import numpy as np
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian

from dicom_files import (
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    NATIVE,
    PLACED,
    PSEUDONYMS,
    coloured,
    compressed,
    dataset,
    make,
    only,
    refusal,
    saved,
    scans,
)
from medssl.readers.dicom import reader
from medssl.readers.scan import Slice, Unreadable

# ---- the number of frames


@pytest.mark.parametrize("declared", [None, "", "0", "10"])
@pytest.mark.parametrize("modality", ["XA", "MR"])
def test_ten_native_frames_are_ten_images(declared, modality):
    stored = np.random.default_rng(0).integers(0, 4096, (10, 8, 6))
    ds = dataset(stored.reshape(80, 6), bits=16, modality=modality, **PLACED)
    ds.Rows = 8
    if declared is not None:
        ds.NumberOfFrames = declared
    np.testing.assert_array_equal([s.array[0] for s in scans(saved(ds))], stored)


@pytest.mark.parametrize("table", [True, False])
@pytest.mark.parametrize("declared", [None, "10"])
def test_ten_compressed_frames_are_ten_images(declared, table):
    stored = np.random.default_rng(1).integers(0, 4096, (10, 8, 6)).astype(np.uint16)
    ds = dataset(stored[0], bits=16, modality="XA")
    if declared is not None:
        ds.NumberOfFrames = declared
    file = compressed([imagecodecs.jpegls_encode(frame) for frame in stored], ds, JPEG_LS, table=table)
    found = scans(file)
    np.testing.assert_array_equal([s.array[0] for s in found], stored)
    assert all(("number of frames corrected" in s.steps) == (declared is None) for s in found)


def test_frames_of_subsampled_chroma_are_counted():
    ds = coloured(np.zeros((4, 6, 3), np.uint8), "YBR_FULL_422")
    ds.PixelData = bytes(range(48)) * 3
    found = scans(saved(ds))
    assert len(found) == 3
    for scan in found[1:]:
        np.testing.assert_array_equal(scan.array, found[0].array)


# ---- bytes after the pixels


@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
@pytest.mark.parametrize("extra", [bytes(8), b"\1" * 8, bytes(512), bytes(2048)], ids=["8", "8 of 1", "512", "2048"])
def test_trailing_bytes_are_ignored(syntax, extra):
    stored = np.random.default_rng(2).integers(1, 4096, (32, 24))
    ds = dataset(stored, modality="CR", syntax=syntax)
    ds.PixelData += extra
    np.testing.assert_array_equal(only(saved(ds)).array[0], stored)


@pytest.mark.parametrize(("rows", "columns"), [(31, 24), (32, 23), (32, 20), (20, 24)])
def test_other_sizes_are_not_taken_for_trailing_bytes(rows, columns):
    ds = dataset(np.random.default_rng(2).integers(1, 4096, (32, 24)), modality="CR")
    ds.Rows, ds.Columns = rows, columns
    assert refusal(saved(ds)) == "BAD_LENGTH"


def test_a_missing_column_is_not_hidden_by_a_black_border():
    stored = np.random.default_rng(3).integers(1, 4096, (32, 24))
    stored[-4:] = 0
    ds = dataset(stored, modality="CR")
    ds.Columns = 23
    assert refusal(saved(ds)) == "BAD_LENGTH"


# ---- gzipped files


def test_a_gzipped_file_is_read_like_the_file():
    stored = np.random.default_rng(4).integers(0, 4096, (9, 7))
    file = make(stored, modality="CR")
    np.testing.assert_array_equal(only(gzip.compress(file)).array[0], stored)


def test_gzipped_slices_are_one_volume():
    stored = np.random.default_rng(5).integers(0, 4096, (5, 9, 7))
    how = PLACED | {"RescaleSlope": "1", "RescaleIntercept": "0"}
    files = [
        gzip.compress(
            make(s, modality="CT", **how | {"ImagePositionPatient": [0, 0, 2 * k], "SOPInstanceUID": f"1.{k}"})
        )
        for k, s in enumerate(stored)
    ]
    slices = [reader.read(io.BytesIO(f), f"{k}.dcm.gz", PSEUDONYMS) for k, f in enumerate(files)]
    assert all(isinstance(s, Slice) for s in slices)
    by_uid = {s.uid: f for s, f in zip(slices, files, strict=True)}
    scan = reader.volume(slices, lambda s: io.BytesIO(by_uid[s.uid]), PSEUDONYMS, lambda k: None)
    np.testing.assert_array_equal(scan.array[0], stored[:, ::-1, ::-1])


@pytest.mark.parametrize("cut", [1, 8, 30])
def test_a_damaged_gzip_file_is_incomplete(cut):
    file = gzip.compress(make(np.random.default_rng(6).integers(0, 4096, (30, 30))))
    assert refusal(file[:-cut]) == "TRUNCATED"


# ---- truncated headers


@pytest.mark.parametrize("name", ["MR_small", "MR_small_implicit", "MR_small_bigendian", "CT_small", "JPEG2000"])
def test_a_file_cut_anywhere_is_incomplete(name):
    with open(get_testdata_file(f"{name}.dcm", download=False), "rb") as f:
        whole = f.read()
    pixels = whole.rindex(b"\x7f\xe0\x00\x10" if "big" in name else b"\xe0\x7f\x10\x00")
    for cut in range(200, pixels + 8, 7):
        with pytest.raises(Unreadable) as why:
            reader.read(io.BytesIO(whole[:cut]), "x", PSEUDONYMS)
        assert why.value.code == "TRUNCATED", (cut, str(why.value))


def test_a_video_is_named():
    file = compressed([b"ab"], dataset(np.zeros((4, 5), int)), UID("1.2.840.10008.1.2.4.102"))
    with pytest.raises(Unreadable, match="a video; export its frames") as why:
        scans(file)
    assert why.value.code == "UNSUPPORTED_SYNTAX"


def test_pixel_data_without_bytes_is_no_image():
    ds = dataset(np.zeros((4, 5), int))
    ds.PixelData = b""
    assert refusal(saved(ds)) == "NO_PIXELS"


# ---- colour of 16 bits


def wide(syntax, planar=0, bits=16):
    rgb = np.random.default_rng(7).integers(0, 1 << bits, (8, 6, 3)).astype(np.uint16)
    ds = dataset(rgb[..., 0], bits=16, modality="XC", syntax=syntax)
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, planar, "RGB"
    ds.BitsStored, ds.HighBit = bits, bits - 1
    words = (rgb if planar == 0 else np.moveaxis(rgb, -1, 0)).astype(">u2" if syntax == ExplicitVRBigEndian else "<u2")
    ds.PixelData = words.tobytes()
    return rgb, ds


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("syntax", NATIVE, ids=lambda uid: uid.name)
def test_native_colour_of_sixteen_bits(syntax, bits, planar):
    rgb, ds = wide(syntax, planar, bits)
    scan = only(saved(ds))
    assert scan.array.dtype == np.uint16
    np.testing.assert_array_equal(np.moveaxis(scan.array, 0, -1), rgb)


@pytest.mark.parametrize("syntax", [JPEG_2000, JPEG_LS, JPEG_LOSSLESS], ids=lambda uid: uid.name)
def test_compressed_colour_of_sixteen_bits(syntax):
    rgb, ds = wide(ExplicitVRLittleEndian)
    encode = {
        JPEG_2000: lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", level=0, mct=True),
        JPEG_LS: imagecodecs.jpegls_encode,
        JPEG_LOSSLESS: lambda x: imagecodecs.jpeg8_encode(x, lossless=True, predictor=1),
    }[syntax]
    np.testing.assert_array_equal(np.moveaxis(only(compressed([encode(rgb)], ds, syntax)).array, 0, -1), rgb)


def test_ybr_of_sixteen_bits_is_converted():
    rgb, ds = wide(ExplicitVRLittleEndian)
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = np.clip(np.rint(rgb @ matrix.T + [0, 32768, 32768]), 0, 65535).astype("<u2")
    ds.PhotometricInterpretation, ds.PixelData = "YBR_FULL", ybr.tobytes()
    found = np.moveaxis(only(saved(ds)).array, 0, -1).astype(int)
    assert np.abs(found - rgb).max() <= 3


# ---- the colour transform of a codestream


def picture():
    y, x = np.mgrid[:32, :40]
    return np.stack([y * 6 + 10, x * 5 + 5, 200 - y * 3 - x], -1).astype(np.uint8)


@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT", "YBR_ICT", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("lossy", [False, True])
def test_the_colour_transform_of_jpeg_2000_is_reversed_once(photometric, lossy):
    frame = imagecodecs.jpeg2k_encode(picture(), codecformat="j2k", reversible=not lossy, level=60 * lossy, mct=True)
    found = only(compressed([frame], coloured(np.zeros_like(picture()), photometric), UID("1.2.840.10008.1.2.4.91")))
    assert np.abs(np.moveaxis(found.array, 0, -1).astype(int) - picture()).max() <= (2 if lossy else 0)


@pytest.mark.parametrize("boxes", [False, True])
def test_ybr_in_jpeg_2000_without_its_transform_is_converted_once(boxes):
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ybr = np.clip(np.rint(picture() @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)
    how = {"codecformat": "jp2", "colorspace": "SYCC"} if boxes else {"codecformat": "j2k"}
    frame = imagecodecs.jpeg2k_encode(ybr, level=0, mct=False, **how)
    ds = coloured(np.zeros_like(ybr), "YBR_FULL")
    found = np.moveaxis(only(compressed([frame], ds, JPEG_2000)).array, 0, -1).astype(int)
    assert np.abs(found - picture()).max() <= 3


def test_a_lossless_jpeg_marked_as_rgb_is_not_converted():
    frame = imagecodecs.jpeg8_encode(picture(), lossless=True, predictor=1)
    assert b"Adobe" in frame
    found = only(compressed([frame], coloured(np.zeros_like(picture()), "YBR_FULL"), JPEG_LOSSLESS))
    np.testing.assert_array_equal(np.moveaxis(found.array, 0, -1), picture())
