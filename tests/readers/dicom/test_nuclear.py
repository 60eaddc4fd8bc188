"""Nuclear medicine: the slices of a reconstruction are a volume, other frames are images."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan

PSEUDONYMS = Pseudonyms(bytes(32))
AXIAL = [1, 0, 0, 0, 1, 0]
CORONAL = [1, 0, 0, 0, 0, -1]


def frames(count, rows=5, columns=6):
    return np.random.default_rng(count).integers(0, 900, (count, rows, columns)).astype("<u2")


def write(pixels, orientation=AXIAL, position=(-10, -20, 30), spacing=4.5, kind="RECON TOMO", syntax=None, **tags):
    ds = FileDataset(None, {}, preamble=bytes(128), file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.20", "1.2.3.4", "NM"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2", "1.2.3"
    ds.ImageType = ["ORIGINAL", "PRIMARY", kind, "EMISSION"]
    ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelSpacing = [1.5, 2.5]
    if spacing is not None:
        ds.SpacingBetweenSlices = spacing
    if orientation is not None:
        detector = Dataset()
        detector.ImageOrientationPatient, detector.ImagePositionPatient = orientation, list(position)
        ds.DetectorInformationSequence = [detector]
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    return out


def read(stream):
    return list(reader.read(stream, "a.dcm", PSEUDONYMS))


def check_places(scan, pixels, orientation, position, step):
    """Check every voxel of the frames (in the order of the file) against its place, from the header alone."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    inverse = np.linalg.inv(scan.affine)
    for (k, y, x), value in np.ndenumerate(pixels):
        place = np.array(position) + k * step * np.cross(row, column) + 2.5 * x * row + 1.5 * y * column
        index = inverse @ [*(place * (-1, -1, 1)), 1]
        np.testing.assert_allclose(index, index.round(), atol=1e-6)
        assert scan.array[0][tuple(index[:3].round().astype(int))] == value


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, [0, 1, 0, 0, 0, -1]], ids=["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("spacing", [4.5, -4.5])
def test_a_reconstruction_lies_where_its_detector_and_signed_spacing_place_it(orientation, spacing, syntax):
    pixels = frames(7)
    ((scan, part),) = read(write(pixels, orientation, spacing=spacing, syntax=syntax))
    assert part == "a.dcm#stack/0"
    assert (scan.modality, scan.array.shape[0], scan.array.size) == ("NM", 1, pixels.size)
    assert sorted(scan.spacing) == pytest.approx([1.5, 2.5, 4.5])
    check_places(scan, pixels, orientation, (-10, -20, 30), spacing)


def test_the_first_slice_is_the_one_that_the_detector_places():
    """Frames may stand in any order: the slice vector says which slice each one is."""
    pixels, order = frames(6), [4, 1, 6, 2, 3, 5]
    ((scan, _),) = read(write(pixels, SliceVector=order, NumberOfSlices=6))
    check_places(scan, pixels[np.argsort(order)], AXIAL, (-10, -20, 30), 4.5)


@pytest.mark.parametrize("outer", ["TimeSlotVector", "RRIntervalVector", "EnergyWindowVector", "DetectorVector"])
def test_gates_and_energy_windows_are_one_volume_each(outer):
    pixels = frames(15)
    vectors = {outer: [1] * 5 + [2] * 5 + [3] * 5, "SliceVector": [1, 2, 3, 4, 5] * 3}
    found = read(write(pixels, kind="RECON GATED TOMO", **vectors))
    assert [part for _, part in found] == [f"a.dcm#stack/{k}" for k in range(3)]
    for k, (scan, _) in enumerate(found):
        check_places(scan, pixels[5 * k : 5 * k + 5], AXIAL, (-10, -20, 30), 4.5)
    mixed = np.random.default_rng(0).permutation(15)
    again = read(
        write(pixels[mixed], kind="RECON GATED TOMO", **{n: [v[i] for i in mixed] for n, v in vectors.items()})
    )
    for scan, _ in again:
        assert any(np.array_equal(scan.array, other.array) for other, _ in found)


@pytest.mark.parametrize("spacing", [4.0, -4.0])
def test_without_an_orientation_the_slices_are_a_volume_of_unknown_position(spacing):
    pixels = frames(5)
    ((scan, part),) = read(write(pixels, None, spacing=spacing))
    np.testing.assert_array_equal(scan.array[0], pixels)
    assert (scan.affine, scan.spacing, part) == (None, (4.0, 1.5, 2.5), "a.dcm#stack/0")


@pytest.mark.parametrize(
    "tags",
    [
        {"kind": "TOMO"},  # projections, each from another side
        {"kind": "DYNAMIC"},
        {"kind": "WHOLE BODY"},
        {"spacing": None},
        {"spacing": 0},
        {"PixelSpacing": [0, 0]},
        {"SliceVector": [1, 2]},
    ],
    ids=repr,
)
def test_other_frames_are_images(tags):
    pixels = frames(6)
    found = read(write(pixels, **tags))
    assert [part for _, part in found] == [f"a.dcm#frame/{k}" for k in range(6)]
    for (scan, _), frame in zip(found, pixels, strict=True):
        assert isinstance(scan, Scan)
        np.testing.assert_array_equal(scan.array[0], frame)


def test_three_slices_are_images():
    found = read(write(frames(3)))
    assert [(scan.array.ndim, part) for scan, part in found] == [(3, f"a.dcm#frame/{k}") for k in range(3)]


def test_an_invalid_orientation_is_unknown():
    pixels = frames(4)
    ((scan, _),) = read(write(pixels, [1, 0, 0, 1, 0, 0]))
    np.testing.assert_array_equal(scan.array[0], pixels)
    assert scan.affine is None
