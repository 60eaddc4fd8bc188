"""Mosaics: every tile lies where the private elements of its maker place it; other tilings are refused."""

import io
import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
AXIAL = np.array([1.0, 0, 0, 0, 1, 0])
SAGITTAL = np.array([0, 1.0, 0, 0, 0, -1])


def tiles(count, rows, columns):
    return np.random.default_rng(count).integers(1, 4000, (count, rows, columns)).astype("<u2")


def tiled(parts, across, down):
    """Return tiles side by side, row by row."""
    _, rows, columns = parts.shape
    whole = np.zeros((down * rows, across * columns), "<u2")
    for i, part in enumerate(parts):
        y, x = i // across * rows, i % across * columns
        whole[y : y + rows, x : x + columns] = part
    return whole


def base(pixels, word, orientation=AXIAL):
    ds = FileDataset(None, {}, preamble=bytes(128), file_meta=FileMetaDataset())
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4", "MR"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2", "1.2.3"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", word] if word else ["ORIGINAL", "PRIMARY", "M"]
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 12, 11
    ds.PixelSpacing, ds.ImageOrientationPatient = [1.5, 2.5], orientation.tolist()
    ds.PixelData = pixels.tobytes()
    return ds


def uih(parts, places, word="VFRAME", across=None, down=None, count=None, orientation=AXIAL):
    across = across or int(np.ceil(np.sqrt(len(parts))))
    down = down or -(-len(parts) // across)
    ds = base(tiled(parts, across, down), word, orientation)
    block = ds.private_block(0x0065, "Image Private Header", create=True)
    block.add_new(0x50, "DS", str(len(parts) if count is None else count))
    items = []
    for place in places:
        item = Dataset()
        item.ImagePositionPatient = list(place)
        items.append(item)
    block.add_new(0x51, "SQ", items)
    return ds


def read(ds, syntax=ExplicitVRLittleEndian):
    ds.file_meta.TransferSyntaxUID = syntax
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    return list(reader.read(out, "a.dcm", PSEUDONYMS))


def check_places(scan, parts, places, orientation=AXIAL):
    """Check every voxel of the tiles against its place, from the header alone."""
    inverse = np.linalg.inv(scan.affine)
    assert scan.array.size == parts.size
    for (k, y, x), value in np.ndenumerate(parts):
        place = np.array(places[k]) + 2.5 * x * orientation[:3] + 1.5 * y * orientation[3:]
        index = inverse @ [*(place * (-1, -1, 1)), 1]
        np.testing.assert_allclose(index, index.round(), atol=1e-6)
        assert scan.array[0][tuple(index[:3].round().astype(int))] == value


def line(count, step, orientation=AXIAL):
    return [np.array([-7.0, 3.0, 11.0]) + k * step * np.cross(orientation[:3], orientation[3:]) for k in range(count)]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("count", "across", "down"), [(4, 2, 2), (5, 3, 2), (6, 3, 2), (7, 3, 3), (9, 3, 3), (12, 4, 3), (6, 3, 3)]
)
@pytest.mark.parametrize("step", [4.0, -4.0])
def test_tiles_of_uih_lie_where_each_is_placed(count, across, down, step, syntax):
    parts, places = tiles(count, 8, 8), line(count, step)
    ((scan, part),) = read(uih(parts, places, across=across, down=down), syntax)
    assert part == "a.dcm"
    assert scan.spacing == pytest.approx((4.0, 1.5, 2.5))
    assert scan.array.shape == (1, count, 8, 8)
    check_places(scan, parts, places)


def test_tiles_of_uih_need_not_be_square_nor_in_order():
    parts, places = tiles(6, 6, 10), line(6, 3.0, SAGITTAL)
    order = [0, 3, 1, 4, 2, 5]  # as acquired
    ds = uih(parts[order], [places[k] for k in order], orientation=SAGITTAL)
    ((scan, _),) = read(ds)
    check_places(scan, parts, places, SAGITTAL)


def test_tiles_are_found_without_the_word_in_image_type():
    parts, places = tiles(6, 8, 8), line(6, 4.0)
    ((scan, _),) = read(uih(parts, places, word=""))
    check_places(scan, parts, places)


def test_an_image_of_uih_that_is_one_slice_is_not_tiled():
    parts = tiles(1, 8, 8)
    ds = uih(parts, line(1, 1.0), word="", across=1)
    ds.ImagePositionPatient = [0, 0, 0]
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    found = reader.read(out, "a.dcm", PSEUDONYMS)
    np.testing.assert_array_equal(reader.single(found, out).array[0], parts[0])


def refused(ds):
    with pytest.raises(Unreadable) as why:
        read(ds)
    return why.value.code


def test_tilings_that_are_not_understood_are_refused():
    parts, places = tiles(6, 8, 8), line(6, 4.0)
    assert refused(base(tiled(parts, 3, 2), "VFRAME")) == "BAD_GEOMETRY"  # nothing says how many
    assert refused(base(tiled(parts, 3, 2), "MOSAIC")) == "BAD_GEOMETRY"
    assert refused(uih(parts, places[:5])) == "BAD_GEOMETRY"  # a tile has no position
    assert refused(uih(parts, places, count=50)) == "BAD_GEOMETRY"
    assert refused(uih(parts, [*places[:5], places[4]])) == "BAD_GEOMETRY"  # two tiles at one position
    assert refused(uih(parts, [*places[:5], places[5] + [9, 0, 0]])) == "BAD_GEOMETRY"
    no_spacing = uih(parts, places)
    del no_spacing.PixelSpacing
    assert refused(no_spacing) == "BAD_GEOMETRY"


def test_few_tiles_are_images():
    parts = tiles(3, 8, 8)
    found = read(uih(parts, line(3, 4.0)))
    assert [part for _, part in found] == [f"a.dcm#tile/{k}" for k in range(3)]
    for (scan, _), tile in zip(found, parts, strict=True):
        np.testing.assert_array_equal(scan.array[0], tile)
        assert scan.spacing == (1.5, 2.5)
    assert len({scan.scan for scan, _ in found}) == 3


def csa(**entries):
    """Return a Siemens CSA header of the second format."""
    out = b"SV10\4\3\2\1" + struct.pack("<2I", len(entries), 77)
    for name, texts in entries.items():
        out += struct.pack("<64si4siii", name.encode(), len(texts), b"FD\0\0", 4, len(texts), 77)
        for text in texts:
            data = text.encode() + b"\0"
            out += struct.pack("<4i", len(data), len(data), 77, len(data)) + data + bytes(-len(data) % 4)
    return out


def siemens(parts, sign, numbered_backwards, distance=3.0):
    across = int(np.ceil(np.sqrt(len(parts))))
    ds = base(tiled(parts, across, across), "MOSAIC")
    _, rows, columns = parts.shape
    # the corner of a slice as large as the mosaic, around the centre of the first slice
    ds.ImagePositionPatient = [-7 - 2.5 * columns * (across - 1) / 2, 3 - 1.5 * rows * (across - 1) / 2, 11]
    ds.SpacingBetweenSlices = distance
    ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", len(parts))
    texts = {"SliceNormalVector": ["0", "0", str(sign)], "ProtocolSliceNumber": ["5" if numbered_backwards else "0"]}
    ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True).add_new(0x10, "OB", csa(**texts))
    return ds


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("numbered_backwards", [False, True])
@pytest.mark.parametrize("count", [4, 6, 9, 11])
def test_a_siemens_mosaic_lies_where_position_normal_and_distance_place_it(count, sign, numbered_backwards):
    """The protocol's slice number changes nothing: the normal has its sign, and tile 0 is the first."""
    parts = tiles(count, 8, 6)
    ((scan, part),) = read(siemens(parts, sign, numbered_backwards))
    assert isinstance(scan, Scan)
    assert part == "a.dcm"
    check_places(scan, parts, line(count, 3.0 * sign))


def test_few_tiles_of_a_siemens_mosaic_are_images():
    parts = tiles(2, 8, 6)
    found = read(siemens(parts, 1, False))
    assert [part for _, part in found] == ["a.dcm#tile/0", "a.dcm#tile/1"]
    for (scan, _), tile in zip(found, parts, strict=True):
        np.testing.assert_array_equal(scan.array[0], tile)
