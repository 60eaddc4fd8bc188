"""Stored values of codestreams whose bits or sign differ from the header's."""

import imagecodecs
import numpy as np
import pytest
from pydicom import DataElement
from pydicom.uid import UID

from dicom_files import JPEG_2000, JPEG_LOSSLESS, JPEG_LS, PLACED, compressed, dataset, only
from medssl.readers.dicom.assemble import assemble
from medssl.readers.dicom.pixels import AIR, Pixels
from medssl.readers.dicom.stored_values import BEYOND, CLIPPED

JPEG_2000_LOSSY, JPEG_LS_LOSSY = (UID(f"1.2.840.10008.1.2.4.{n}") for n in (91, 81))


def j2k(words, lossy):
    return imagecodecs.jpeg2k_encode(words, codecformat="j2k", reversible=not lossy, level=55 if lossy else 0)


def edges(low, high):
    """Bars of the smallest and the largest value: lossy compression overshoots at their edges."""
    return np.tile(np.repeat([low, high], 8), (64, 4))


def shown(stored, codestream, syntax, bits=12, signed=False, **tags):
    """Return the values and steps of a 16-bit file with the codestream and Bits Stored."""
    ds = dataset(np.zeros(stored.shape, int), bits=16, signed=signed, modality="MR", **tags)
    ds.BitsStored, ds.HighBit = bits, bits - 1
    scan = only(compressed([codestream], ds, syntax))
    return scan.array[0].astype(int), scan.steps


@pytest.mark.parametrize("signed", [False, True])
def test_lossy_overshoot_never_wraps(signed):
    stored = edges(-2048, 2047) if signed else edges(0, 4095)
    words = stored.astype(np.int16 if signed else np.uint16)  # 16 bits in the codestream, 12 in the header
    decoded = imagecodecs.jpeg2k_decode(j2k(words, lossy=True)).astype(int)
    assert decoded.max() > stored.max()
    found, steps = shown(stored, j2k(words, lossy=True), JPEG_2000_LOSSY, signed=signed)
    np.testing.assert_array_equal(found, decoded.clip(stored.min(), stored.max()))
    assert np.abs(found - stored).max() <= np.abs(decoded - stored).max() < 400
    assert CLIPPED in steps


def test_undershoot_of_a_signed_codestream_under_an_unsigned_header_is_black():
    stored = edges(0, 4095)
    codestream = j2k(stored.astype(np.int16), lossy=True)
    assert imagecodecs.jpeg2k_decode(codestream).min() < 0
    found, _ = shown(stored, codestream, JPEG_2000_LOSSY)
    assert found[stored == 0].max() < 400
    assert found.min() == 0


@pytest.mark.parametrize("cleared", [False, True], ids=["all bits", "upper bits cleared"])
def test_near_lossless_two_complement_never_wraps(cleared):
    stored = np.random.default_rng(0).integers(-2000, 2000, (40, 40))
    stored[0, :3] = -2048, 2047, -1
    words = (stored & (0xFFF if cleared else 0xFFFF)).astype(np.uint16)
    found, _ = shown(stored, imagecodecs.jpegls_encode(words, level=2), JPEG_LS_LOSSY, signed=True)
    inner = (np.abs(stored) < 2040) & (np.abs(stored) > 2)  # beside 0 and at its ends the code itself jumps
    assert np.abs(found - stored)[inner].max() <= 2
    assert np.abs(found).max() <= 2048


LOSSLESS = [
    (JPEG_2000, lambda x: imagecodecs.jpeg2k_encode(x, codecformat="j2k", level=0)),
    (JPEG_LS, imagecodecs.jpegls_encode),
    (JPEG_LOSSLESS, imagecodecs.ljpeg_encode),
]


@pytest.mark.parametrize(("syntax", "encode"), LOSSLESS, ids=["J2K", "JPEG-LS", "JPEG"])
def test_bits_that_a_lossless_codestream_uses_are_kept(syntax, encode):
    stored = np.random.default_rng(1).integers(0, 30000, (30, 30))
    found, steps = shown(stored, encode(stored.astype(np.uint16)), syntax, bits=12)
    np.testing.assert_array_equal(found, stored)
    assert BEYOND in steps


@pytest.mark.parametrize(("syntax", "encode"), LOSSLESS, ids=["J2K", "JPEG-LS", "JPEG"])
@pytest.mark.parametrize("cleared", [False, True], ids=["all bits", "upper bits cleared"])
def test_twelve_signed_bits_in_a_codestream_of_sixteen(syntax, encode, cleared):
    stored = np.random.default_rng(2).integers(-2048, 2048, (30, 30))
    words = (stored & (0xFFF if cleared else 0xFFFF)).astype(np.uint16)
    found, steps = shown(stored, encode(words), syntax, bits=12, signed=True)
    np.testing.assert_array_equal(found, stored)
    assert BEYOND not in steps


def test_values_below_zero_of_a_lossless_codestream_are_kept_under_an_unsigned_header():
    stored = np.random.default_rng(3).integers(-1000, 1000, (30, 30))
    found, steps = shown(stored, j2k(stored.astype(np.int16), lossy=False), JPEG_2000)
    np.testing.assert_array_equal(found, stored)
    assert BEYOND in steps


def test_inverted_values_stay_within_the_bits_of_the_codestream():
    stored = np.array([[0, 60000], [5000, 4095]]).repeat(8, 0).repeat(8, 1)
    ds = dataset(np.zeros(stored.shape, int), bits=16, modality="DX", PhotometricInterpretation="MONOCHROME1")
    ds.BitsStored, ds.HighBit = 12, 11
    scan = only(compressed([imagecodecs.jpegls_encode(stored.astype(np.uint16))], ds, JPEG_LS))
    np.testing.assert_array_equal(scan.array[0], 65535 - stored)


# ---- padding of CT after lossy compression


def padded_ct(codestream, syntax, signed=True, **tags):
    how = PLACED | {"RescaleSlope": "1", "RescaleIntercept": "-1024"} | tags
    pad = DataElement("PixelPaddingValue", "SS" if signed else "US", -2000)
    ds = dataset(np.zeros((64, 64), int), bits=16, signed=True, modality="CT", PixelPaddingValue=pad, **how)
    return only(compressed([codestream], ds, syntax)).array[0].astype(int)


def round_field():
    """CT of a field of view with padding outside, in stored values."""
    y, x = np.mgrid[:64, :64]
    radius = np.hypot(x - 31.5, y - 31.5)
    return np.where(radius > 31, -2000, np.where(radius > 20, 30, 1000)).astype(np.int16), radius


def test_padding_of_lossy_ct_is_air_as_in_the_lossless_copy():
    stored, radius = round_field()
    near = padded_ct(imagecodecs.jpegls_encode(stored.view(np.uint16), level=4), JPEG_LS_LOSSY)
    exact = padded_ct(imagecodecs.jpegls_encode(stored.view(np.uint16)), JPEG_LS)
    wavelet = padded_ct(j2k(stored, lossy=True), JPEG_2000_LOSSY)
    for found in (near, exact, wavelet):
        assert (found[radius > 31] == -1024).mean() > (0.95 if found is not wavelet else 0.9)
        assert found.min() == -1024
    assert np.abs(near - exact).max() <= 4


def test_padding_of_ct_that_was_lossy_before_is_air():
    stored, radius = round_field()
    stored = stored + np.random.default_rng(4).integers(-4, 5, stored.shape).astype(np.int16)
    lossy = padded_ct(imagecodecs.jpegls_encode(stored.view(np.uint16)), JPEG_LS, LossyImageCompression="01")
    assert (lossy[radius > 31] == -1024).all()
    plain = padded_ct(imagecodecs.jpegls_encode(stored.view(np.uint16)), JPEG_LS)
    assert plain.min() == -3028  # without a word of loss only the stated value is padding


def test_air_for_padding_fits_in_the_type_of_a_volume_with_values_above_int16():
    values = np.array([[[0, 40_000], [5, 7]]], np.int64)
    padding = np.array([[True, False], [False, False]])
    array, _ = assemble([Pixels(values, np.dtype(np.int16), padding, ())] * 2, hounsfield=True)
    assert array[0, :, 0, 0].tolist() == [AIR, AIR]
    assert array[0, :, 0, 1].tolist() == [40_000, 40_000]
