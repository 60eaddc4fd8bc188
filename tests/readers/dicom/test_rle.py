"""Damaged run-length frames are refused whenever a segment does not unpack to its size."""

import io
import struct

import numpy as np
import pydicom
import pytest
from pydicom.encaps import get_frame
from pydicom.uid import RLELossless

from dicom_files import compressed, dataset, only, refusal, saved, scans

ROWS = 32


def frame(bits=16, samples=1):
    """Return (stored values, the run-length encoded frame, header) of an image with long and short runs."""
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 200, (ROWS, ROWS)) * 17
    stored[:, :10] = 0
    ds = dataset(stored, bits=bits, modality="NM")
    ds.compress(RLELossless, generate_instance_uid=False)
    return stored, get_frame(ds.PixelData, 0, number_of_frames=1), ds


def heads(segment):
    """Return the offsets of the run headers of a segment."""
    at, found = 0, []
    while at < len(segment) - 1:
        found.append(at)
        at += 2 + segment[at] if segment[at] < 128 else 2 if segment[at] > 128 else 1
    return found


def unpacked(segment):
    """Return how many bytes a segment unpacks to (PS3.5 G.3.2)."""
    at = size = 0
    while at < len(segment):
        n = segment[at]
        size += min(n + 1, len(segment) - at - 1) if n < 128 else 257 - n if n > 128 and at + 1 < len(segment) else 0
        at += 2 + n if n < 128 else 2 if n > 128 else 1
    return size


def test_every_damaged_run_header_is_refused():
    _, good, ds = frame()
    first, second = struct.unpack("<2I", good[4:12])
    places = [first + k for k in heads(good[first:second])] + [second + k for k in heads(good[second:])]
    rng = np.random.default_rng(1)
    refused = 0
    for at in rng.choice(places, 120, replace=False):
        bad = bytearray(good)
        bad[at] ^= int(rng.integers(1, 256))
        sizes = [unpacked(bad[first:second]), unpacked(bad[second:])]
        if max(abs(s - ROWS * ROWS) for s in sizes) > 1:  # one byte may be padding
            assert refusal(compressed([bytes(bad)], ds, RLELossless)) == "DECODE_FAILED"
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0\0\0\0", b"\x80"])
def test_padding_after_the_last_run_is_no_damage(tail):
    stored, good, ds = frame()
    np.testing.assert_array_equal(only(compressed([good + tail], ds, RLELossless)).array[0], stored)


@pytest.mark.parametrize("tail", [b"\xff\x01", b"\x00\x07"])
def test_runs_after_the_last_pixel_are_damage(tail):
    _, good, ds = frame()
    assert refusal(compressed([good + tail], ds, RLELossless)) == "DECODE_FAILED"


@pytest.mark.parametrize("declared", [None, "1"])
def test_one_frame_in_two_fragments(declared):
    stored, good, ds = frame()
    if declared is not None:
        ds.NumberOfFrames = declared
    half = len(good) // 4 * 2
    parts = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(p)) + p for p in (b"", good[:half], good[half:]))
    data = compressed([good], ds, RLELossless)
    at = data.index(b"\xfe\xff\x00\xe0")
    data = data[:at] + parts + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    np.testing.assert_array_equal(only(data).array[0], stored)


@pytest.mark.parametrize("declared", [None, "3"])
def test_three_frames_in_two_fragments_each(declared):
    stored, good, ds = frame()
    if declared is not None:
        ds.NumberOfFrames = declared
    half = len(good) // 4 * 2
    data = compressed([good[:half], good[half:]] * 3, ds, RLELossless, table=False)
    found = [scan.array[0] for scan in scans(data)]
    assert len(found) == 3
    for array in found:
        np.testing.assert_array_equal(array, stored)


def test_sixteen_bit_colour_equals_pydicom():
    rgb = np.random.default_rng(2).integers(0, 65536, (8, 9, 3)).astype(np.uint16)
    ds = dataset(rgb[..., 0], bits=16, modality="XC")
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, 0, "RGB"
    ds.PixelData = rgb.tobytes()
    ds.compress(RLELossless, generate_instance_uid=False)
    data = saved(ds)
    np.testing.assert_array_equal(np.moveaxis(only(data).array, 0, -1), pydicom.dcmread(io.BytesIO(data)).pixel_array)
