import gzip
import io
import os
import struct
import zlib
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import DataElement
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl.errors import UserError
from medssl.scans import dicom
from medssl.scans.alias import Alias
from medssl.scans.pixels import read_pixels
from medssl.scans.read import read, sniff, walk
from medssl.scans.scan import Unreadable

ALIAS = Alias(b"k" * 32)
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def ingest(source, files=None):
    """All scans with their names, and the codes of all rejects by file."""
    rejects = []
    root = source if source.is_dir() else source.parent
    scans = list(read(walk(source) if files is None else files, ALIAS, source, lambda p, why: rejects.append((p, why))))
    return scans, {p.relative_to(root).as_posix(): why.code for p, why in rejects}


def corners(affine, shape):
    """The eight corner voxels in mm."""
    index = np.array(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij")).reshape(3, -1)
    return affine[:3, :3] @ index + affine[:3, 3:]


def reference(path):
    """(array (D, H, W, rest), affine of (d, h, w)) of a NIfTI file in canonical orientation, by nibabel alone."""
    img = nibabel.as_closest_canonical(nibabel.load(path))
    array = np.asarray(img.dataobj)
    if array.dtype.names:
        array = np.stack([array[c] for c in "RGB"], -1)
    return np.moveaxis(array, (0, 1, 2), (2, 1, 0)), img.affine[:, [2, 1, 0, 3]]


# ---- real series against the volumes that other converters made of them

SERIES = [
    ("dicom2nifti/generic/anatomical/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/anatomical/001_implicit", "../001_implicit_ground_truth.nii.gz"),
    ("dicom2nifti/generic/anatomical/002_non_isotropic", "../002_non_isotropic_ground_truth.nii.gz"),
    ("dicom2nifti/generic/compressed/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/compressed_rle/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/compressed_jpeg/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/compressed_jpegls/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/compressed_j2k/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/generic/rgb/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/ge/anatomical/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/ge/anatomical/001_implicit", "../001_implicit_ground_truth.nii.gz"),
    ("dicom2nifti/ge/fmri/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/ge/fmri/001_implicit", "../001_implicit_ground_truth.nii.gz"),
    ("dicom2nifti/ge/dti/001", "../001_ground_truth.nii.gz"),
    ("dicom2nifti/ge/dti/001_implicit", "../001_implicit_ground_truth.nii.gz"),
    ("dicom2nifti/ge/dti/002", "../002_ground_truth.nii.gz"),
    *((f"dcm_qa_nih/In/20180918GE/mr_000{n}", f"../../../Ref/DCM2NIIX_regression_test_{n}.nii") for n in (4, 5, 6, 7)),
]


@pytest.mark.parametrize(("folder", "ref"), SERIES, ids=[s[0] for s in SERIES])
def test_series_equals_its_reference(shared, folder, ref):
    source = shared / "dicom" / folder
    scans, rejects = ingest(source)
    expected, affine = reference(source / ref)
    assert set(rejects.values()) <= {"NOT_A_SCAN"}, "read-me files only"
    times = expected.shape[3] if expected.ndim == 4 and "rgb" not in folder else 1
    assert len(scans) == times
    for t, (scan, name) in enumerate(scans):
        assert name == "."
        ours = np.moveaxis(scan.array, 0, -1) if scan.array.shape[0] == 3 else scan.array[0]
        theirs = expected[..., t] if times > 1 else expected
        if scan.array.dtype == np.float32:  # a fractional slope per slice: the reference is float64
            np.testing.assert_array_equal(ours, theirs.astype(np.float32))
        else:
            np.testing.assert_array_equal(ours, theirs)
        assert np.abs(corners(scan.affine, scan.array.shape[1:]) - corners(affine, expected.shape[:3])).max() < 0.1
        np.testing.assert_allclose(scan.spacing, np.linalg.norm(affine[:3, :3], axis=0), atol=1e-3)


REFUSED = [
    ("dicom2nifti/failing/sliceincrement/001", "MISSING_SLICES"),  # steps of 5, 5 and 10 mm
    ("dicom2nifti/failing/sliceincrement/002", "MISSING_SLICES"),  # one slice of five is gone
    ("dicom2nifti/failing/sliceorientation/001", "TOO_FEW_SLICES"),  # two orientations, two slices of each
    ("dicom2nifti/failing/slicecount/001", "TOO_FEW_SLICES"),
    ("dicom2nifti/failing/notavolume/001", "REPEATED_POSITIONS"),  # a bolus is watched at one position
    ("dcm_qa_nih/In/20180918Si/mr_0003", "MOSAIC_UNSUPPORTED"),  # all slices tiled into one picture
    ("dcm_qa_orientation/In/sag/sagdesc36", "MOSAIC_UNSUPPORTED"),
    ("dcm_qa_orientation/In/axmb/AxInt36mb", "MOSAIC_UNSUPPORTED"),
]


@pytest.mark.parametrize(("folder", "code"), REFUSED, ids=[r[0] for r in REFUSED])
def test_what_is_no_regular_stack_is_refused(shared, folder, code):
    scans, rejects = ingest(shared / "dicom" / folder)
    assert scans == []
    assert Counter(rejects.values()) - Counter({"NOT_A_SCAN": 1}) == {
        code: len(rejects) - ("NOT_A_SCAN" in rejects.values())
    }


@pytest.mark.parametrize("folder", ["ct_ge_variable_spacing_tilt", "dicom2nifti/failing/gantrytilting/001"])
def test_every_slice_of_a_tilted_ct_lies_where_its_header_says(shared, folder):
    """The truth is each slice's own position and pixels; the volume's affine must put them there."""
    source = shared / "dicom" / folder
    scans, _ = ingest(source)
    found = 0
    for path in walk(source):
        if sniff(path) != "dicom":
            continue
        ds = pydicom.dcmread(path)
        hu = ds.pixel_array.astype(int) * int(ds.RescaleSlope) + int(ds.RescaleIntercept)
        if "PixelPaddingValue" in ds:
            hu[ds.pixel_array == ds.PixelPaddingValue] = -1024
        for scan, _ in scans:
            assert scan.array.dtype == np.int16
            assert scan.facts["tilt"] > 10
            for d in range(scan.array.shape[1]):
                if np.array_equal(scan.array[0, d], hu[::-1, ::-1]):  # rows then run to anterior, columns to the right
                    rows, columns = hu.shape
                    row, column = np.split(np.array(ds.ImageOrientationPatient, float), 2)
                    for h, w in ((0, 0), (rows - 1, columns - 1), (0, columns - 1)):
                        truth = np.array(ds.ImagePositionPatient, float)
                        truth += (rows - 1 - h) * ds.PixelSpacing[0] * column + (columns - 1 - w) * ds.PixelSpacing[
                            1
                        ] * row
                        where = (scan.affine @ (d, h, w, 1))[:3]
                        assert np.abs(where - truth * (-1, -1, 1)).max() < 0.05
                    found += 1
    assert found == sum(scan.array.shape[1] for scan, _ in scans) == sum(sniff(p) == "dicom" for p in walk(source))


def test_tilted_ct_with_two_spacings_becomes_two_volumes(shared):
    scans, _ = ingest(shared / "dicom" / "ct_ge_variable_spacing_tilt")
    assert [scan.array.shape for scan, _ in scans] == [(1, 14, 512, 512)] * 2
    assert sorted(round(np.linalg.norm(scan.affine[:3, 0]), 2) for scan, _ in scans) == [4.22, 7.38]


def test_nine_transfer_syntaxes_give_one_picture(shared):
    """The picture is a mosaic; its tiles are the slices of the reference volume."""
    pictures, syntaxes = [], set()
    for path in walk(shared / "dicom" / "dcm_qa_ts" / "In"):
        with dicom.opened(path) as (ds, stream):
            pictures.append(read_pixels(ds, stream, "MR").values)
            syntaxes.add(ds.file_meta.TransferSyntaxUID)
    assert len(pictures) == 9
    assert len(syntaxes) == 7
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])
    tiles = pictures[0].reshape(6, 64, 6, 64).transpose(0, 2, 1, 3).reshape(36, 64, 64)[:35]
    expected, _ = reference(shared / "dicom" / "dcm_qa_ts" / "Ref" / "1.nii")
    np.testing.assert_array_equal(tiles[:, ::-1, ::-1], expected)


# ---- the other real data


def test_chest_xrays_of_two_hospitals(shared):
    for folder, suffix in (("cxr_guangzhou", ".jpeg"), ("cxr_nih", ".png")):
        files = [p for p in walk(shared / folder / "images") if p.suffix == suffix][:25]
        scans, rejects = ingest(shared / folder, files)
        assert rejects == {}
        for path, (scan, name) in zip(files, scans, strict=True):
            assert name == f"images/{path.name}"
            assert scan.array.shape == (1, 224, 224)
            assert scan.array.dtype == np.uint8
            with Image.open(path) as img:
                np.testing.assert_array_equal(scan.array[0], np.asarray(img.convert("L")))
            assert not scan.patient_known


def test_hippocampus_volumes_equal_nibabel(shared):
    files = walk(shared / "hippocampus" / "images")[:12]
    scans, rejects = ingest(shared / "hippocampus", files)
    assert rejects == {}
    for path, (scan, _) in zip(files, scans, strict=True):
        expected, affine = reference(path)
        np.testing.assert_array_equal(scan.array[0], expected)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
        assert scan.spacing == pytest.approx((1, 1, 1))
        assert scan.array.dtype == np.float32 or scan.array.dtype.kind in "iu"


@pytest.mark.parametrize(
    ("name", "shape", "n"), [("breastmnist", (1, 28, 28), 780), ("adrenalmnist3d", (1, 28, 28, 28), 1584)]
)
def test_medmnist_archives(shared, name, shape, n):
    path = shared / "medmnist" / f"{name}.npz"
    scans, rejects = ingest(path)
    assert rejects == {}
    assert len(scans) == n == len({scan.scan for scan, _ in scans}) == len({scan.patient for scan, _ in scans})
    with np.load(path) as arrays:
        for scan, where in scans[:: n // 40]:
            split, i = where.removeprefix(f"{name}.npz#").split("/")
            assert scan.split == split
            assert scan.array.shape == shape
            assert scan.labels == {"label": str(int(arrays[f"{split}_labels"][int(i), 0]))}
            np.testing.assert_array_equal(scan.array[0], arrays[f"{split}_images"][int(i)])


# ---- pixels of invented headers against plain arithmetic


def write_dicom(
    path, stored, *, bits=12, signed=False, modality="DX", syntax=ExplicitVRLittleEndian, garbage=0, **tags
):
    """A DICOM image; `garbage` fills the bits above Bits Stored."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = tags.pop("SOPClassUID", "1.2.840.10008.5.1.4.1.1.1.1")
    meta.MediaStorageSOPInstanceUID = tags.pop("SOPInstanceUID", "1.2.3.4")
    ds = Dataset()
    ds.file_meta = meta
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = (
        meta.MediaStorageSOPClassUID,
        meta.MediaStorageSOPInstanceUID,
        modality,
    )
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2.3", "1.2.3.9"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.BitsAllocated = 8 if bits <= 8 else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    for key, value in tags.items():
        ds[key] = value if isinstance(value, DataElement) else DataElement(key, dictionary_VR(key), value)
    words = np.asarray(stored, np.int64) & (1 << bits) - 1 | (garbage << bits & (1 << ds.BitsAllocated) - 1)
    big = syntax == ExplicitVRBigEndian
    data = words.astype("u1" if ds.BitsAllocated == 8 else (">u2" if big else "<u2")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


@st.composite
def encodings(draw):
    bits = draw(st.integers(2, 16))
    signed = draw(st.booleans())
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    rows, columns = draw(st.integers(2, 5)), draw(st.integers(2, 5))
    values = draw(st.lists(st.integers(low, high), min_size=rows * columns, max_size=rows * columns))
    return bits, signed, np.array(values).reshape(rows, columns)


@QUICK
@given(
    encoding=encodings(),
    syntax=st.sampled_from([ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian]),
    slope=st.sampled_from([None, 1, 2, -1, 0.5, 0.0025]),
    intercept=st.sampled_from([None, 0, -1024, 1000, 0.25]),
    inverse=st.booleans(),
    modality=st.sampled_from(["CT", "MR", "DX", "CR", "MG", "XA"]),
    garbage=st.integers(0, 15),
)
def test_pixels_equal_plain_arithmetic(tmp_path, encoding, syntax, slope, intercept, inverse, modality, garbage):
    bits, signed, stored = encoding
    if stored.min() == stored.max() or (bits <= 8 and syntax == ExplicitVRBigEndian):
        return
    tags = {"PhotometricInterpretation": "MONOCHROME1"} if inverse else {}
    if slope is not None:
        tags["RescaleSlope"] = str(slope)
    if intercept is not None:
        tags["RescaleIntercept"] = str(intercept)
    path = write_dicom(
        tmp_path / "x", stored, bits=bits, signed=signed, modality=modality, syntax=syntax, garbage=garbage, **tags
    )
    scans, rejects = ingest(path)
    if modality == "CT" and slope is None and intercept is None:
        assert rejects == {"x": "NO_RESCALE"}
        return
    assert rejects == {}
    x = stored
    if inverse and modality not in {"CT", "MR"}:
        x = (-1 if signed else (1 << bits) - 1) - stored
    expected = x * (1.0 if slope is None else slope) + (intercept or 0.0)
    array = scans[0][0].array
    np.testing.assert_array_equal(array[0], expected.astype(np.float32))
    if (expected == np.round(expected)).all() and float(slope or 1).is_integer() and float(intercept or 0).is_integer():
        fits = expected.min() >= -(1 << 15) and expected.max() < 1 << 15
        if modality == "CT" and fits:
            assert array.dtype == np.int16
        assert array.dtype.kind in "iu" or expected.max() >= 1 << 15 or expected.min() < -(1 << 15)
    if slope is None and intercept is None and not signed and modality != "CT":
        assert array.dtype == (np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("shape", [None, "INVERSE"])
@pytest.mark.parametrize("modality", ["DX", "CR", "MG", "RF", "XA"])
def test_monochrome1_is_inverted_exactly_once(tmp_path, modality, shape):
    stored = np.array([[0, 1], [7, 4095]])
    tags = {} if shape is None else {"PresentationLUTShape": shape}
    write_dicom(tmp_path / "x", stored, modality=modality, PhotometricInterpretation="MONOCHROME1", **tags)
    scan = ingest(tmp_path)[0][0][0]
    np.testing.assert_array_equal(scan.array[0], 4095 - stored)
    assert scan.steps.count("invert MONOCHROME1") == 1


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_monochrome1_is_never_inverted_where_values_mean_something(tmp_path, modality):
    stored = np.array([[0, 1], [7, 4095]])
    write_dicom(
        tmp_path / "x", stored, modality=modality, PhotometricInterpretation="MONOCHROME1", RescaleIntercept="0"
    )
    np.testing.assert_array_equal(ingest(tmp_path)[0][0][0].array[0], stored)


def test_padding_becomes_air_or_the_darkest_value(tmp_path):
    stored = np.array([[-2000, -2000, 0], [100, 200, 300]])
    unsigned = DataElement("PixelPaddingValue", "US", -2000 & 0xFFFF)  # beside signed pixels, as some scanners write it
    pad = {"PixelPaddingValue": unsigned, "RescaleSlope": "1", "RescaleIntercept": "-24"}
    write_dicom(tmp_path / "ct", stored, bits=16, signed=True, modality="CT", **pad)
    write_dicom(tmp_path / "mr", stored, bits=16, signed=True, modality="MR", SOPInstanceUID="1.2.3.5", **pad)
    ct, mr = (scan.array[0] for scan, _ in ingest(tmp_path)[0])
    assert ct.tolist() == [[-1024, -1024, -24], [76, 176, 276]]
    assert mr.tolist() == [[-24, -24, -24], [76, 176, 276]]


def test_inverted_padding_is_dark_not_bright(tmp_path):
    stored = np.array([[0, 0, 4000], [100, 200, 300]])
    write_dicom(tmp_path / "x", stored, PhotometricInterpretation="MONOCHROME1", PixelPaddingValue=0)
    assert ingest(tmp_path)[0][0][0].array[0].tolist() == [[95, 95, 95], [3995, 3895, 3795]]


def test_modality_lut_replaces_the_rescale(tmp_path):
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [4, 2, 16], [10, 20, 40, 80]
    lut["LUTDescriptor"].VR, lut["LUTData"].VR = "US", "US"
    write_dicom(tmp_path / "x", np.array([[0, 2, 3], [4, 5, 9]]), ModalityLUTSequence=[lut], RescaleSlope="9")
    assert ingest(tmp_path)[0][0][0].array[0].tolist() == [[10, 10, 20], [40, 80, 80]]


def colour(path, rgb, photometric="RGB", planar=0, **tags):
    data = rgb if planar == 0 else np.moveaxis(rgb, -1, 0)
    write_dicom(
        path,
        rgb[..., 0],
        bits=8,
        modality="US",
        SamplesPerPixel=3,
        PlanarConfiguration=planar,
        PhotometricInterpretation=photometric,
        **tags,
    )
    ds = pydicom.dcmread(path)
    ds.PixelData = np.ascontiguousarray(data).tobytes()
    ds.save_as(path)


@pytest.mark.parametrize("planar", [0, 1])
def test_colour_keeps_its_channels_and_grey_written_as_colour_loses_two(tmp_path, planar):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, 6, 3), np.uint8)
    grey = np.repeat(rng.integers(2, 250, (4, 6, 1), np.uint8), 3, -1)
    grey[1, 1] += np.array([0, 1, 2], np.uint8)  # lossy coding
    colour(tmp_path / "a", rgb, planar=planar)
    colour(tmp_path / "b", grey, planar=planar, SOPInstanceUID="1.2.3.5")
    a, b = (scan.array for scan, _ in ingest(tmp_path)[0])
    np.testing.assert_array_equal(np.moveaxis(a, 0, -1), rgb)
    assert b.shape == (1, 4, 6)
    np.testing.assert_array_equal(b[0], grey[..., 0])


def test_ybr_is_converted_once(tmp_path):
    rng = np.random.default_rng(1)
    rgb = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
    with Image.fromarray(rgb) as img:
        ybr = np.asarray(img.convert("YCbCr"))
    colour(tmp_path / "x", ybr, "YBR_FULL")
    back = np.moveaxis(ingest(tmp_path)[0][0][0].array, 0, -1).astype(int)
    assert np.abs(back - rgb).max() <= 3  # 8-bit rounding on the way there and back


# ---- series


def write_series(folder, heights, **tags):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, z in enumerate(heights):
        slice_tags = {
            "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
            "SOPInstanceUID": f"1.2.3.{i + 10}",
            "ImagePositionPatient": [-10.0, -20.0, float(z)],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [0.5, 0.7],
            "RescaleSlope": "1",
            "RescaleIntercept": "-1024",
            "InstanceNumber": str(99 - i),
            "SliceThickness": "99",
            **{k: v[i] if isinstance(v, list) else v for k, v in tags.items()},
        }
        write_dicom(folder / f"{i:03d}", rng.integers(0, 4096, (6, 5)), modality="CT", **slice_tags)


def test_order_comes_from_positions_alone(tmp_path):
    heights = [30, 0, 20, 10, 40]
    write_series(tmp_path, heights)
    [(scan, name)], rejects = ingest(tmp_path)
    assert (name, rejects) == (".", {})
    assert scan.array.shape == (1, 5, 6, 5)
    assert scan.spacing == pytest.approx((10, 0.5, 0.7))
    for d, i in enumerate(np.argsort(heights)):
        hu = pydicom.dcmread(tmp_path / f"{i:03d}").pixel_array.astype(int) - 1024
        np.testing.assert_array_equal(scan.array[0, d], hu[::-1, ::-1])
    # first voxel: last row (most anterior is -y in LPS: rows run to posterior), last column (right), lowest slice
    np.testing.assert_allclose(scan.affine @ (0, 5, 4, 1), (10, 20, 0, 1), atol=1e-9)


def test_a_missing_slice_is_refused_not_stretched(tmp_path):
    write_series(tmp_path, [0, 10, 20, 40, 50])
    assert set(ingest(tmp_path)[1].values()) == {"MISSING_SLICES"}


def test_two_spacings_are_refused(tmp_path):
    write_series(tmp_path, [0, 4.2, 8.4, 12.6, 20, 27.4, 34.8])
    assert set(ingest(tmp_path)[1].values()) == {"VARYING_SPACING"}


def test_a_copied_slice_is_dropped_and_named(tmp_path):
    write_series(tmp_path, [0, 10, 20, 30])
    (tmp_path / "copy").write_bytes((tmp_path / "001").read_bytes())
    scans, rejects = ingest(tmp_path)
    assert [scan.array.shape for scan, _ in scans] == [(1, 4, 6, 5)]
    assert list(rejects.values()) == ["DUPLICATE"]


def test_a_position_with_two_different_slices_is_refused(tmp_path):
    write_series(tmp_path, [0, 10, 20, 30, 10])
    assert set(ingest(tmp_path)[1].values()) == {"REPEATED_POSITIONS"}


def test_a_scout_in_the_series_does_not_touch_the_volume(tmp_path):
    n = 5
    orientation = [[1, 0, 0, 0, 1, 0]] * (n - 1) + [[0, 1, 0, 0, 0, -1]]
    write_series(tmp_path, [0, 10, 20, 30, 500], ImageOrientationPatient=orientation)
    scans, rejects = ingest(tmp_path)
    assert rejects == {}
    assert sorted(scan.array.shape for scan, _ in scans) == [(1, 4, 6, 5), (1, 6, 5)]
    assert len({scan.scan for scan, _ in scans}) == 2


def test_same_uid_other_pixels_get_other_pseudonyms(tmp_path):
    write_dicom(tmp_path / "a", np.array([[1, 2], [3, 4]]))
    write_dicom(tmp_path / "b", np.array([[1, 2], [3, 5]]))
    write_dicom(tmp_path / "c", np.array([[1, 2], [3, 4]]))
    scans, rejects = ingest(tmp_path)
    assert len({scan.scan for scan, _ in scans}) == 2
    assert rejects == {"c": "DUPLICATE"}


# ---- patients and facts


@pytest.mark.parametrize("placeholder", ["", "ANON", "anonymous ", "0", "UNKNOWN", "None"])
def test_a_placeholder_is_no_patient(tmp_path, placeholder):
    for i, study in enumerate(("1.2.7", "1.2.7", "1.2.8")):
        write_dicom(
            tmp_path / str(i),
            np.array([[1, 2], [3, i + 4]]),
            PatientID=placeholder,
            StudyInstanceUID=study,
            SOPInstanceUID=f"1.2.3.{i}",
        )
    a, b, c = (scan for scan, _ in ingest(tmp_path)[0])
    assert not a.patient_known
    assert a.patient == b.patient != c.patient


def test_the_issuer_is_part_of_a_patient(tmp_path):
    for i, issuer in enumerate(("North", "South", "North")):
        tags = {"IssuerOfPatientID": issuer, "SOPInstanceUID": f"1.2.3.{i}", "StudyInstanceUID": f"1.2.{i}"}
        write_dicom(tmp_path / str(i), np.array([[1, 2], [3, i + 4]]), **tags)
    a, b, c = (scan for scan, _ in ingest(tmp_path)[0])
    assert a.patient_known
    assert a.patient == c.patient != b.patient
    assert a.patient == ALIAS.alias("patient", "North|P1")


@pytest.mark.parametrize(("written", "age"), [("045Y", 45), ("093Y", 90), ("090Y", 90), ("007M", 0), ("45", None)])
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # said while the test writes them
def test_facts_are_capped_and_allow_listed(tmp_path, written, age):
    words = {
        "BodyPartExamined": "Mrs Qorvath",
        "ViewPosition": "zq",
        "PatientSex": "F",
        "ConvolutionKernel": "for Dr. Who",
    }
    write_dicom(tmp_path / "x", np.array([[1, 2], [3, 4]]), PatientAge=written, **words)
    facts = ingest(tmp_path)[0][0][0].facts
    assert facts == {"sex": "F"} | ({} if age is None else {"age": age})


# ---- files that are not what they seem, and files that end too soon


def png(mode="L", size=(9, 7), dtype=np.uint8):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    shape = (size[1], size[0]) if mode in {"L", "I;16"} else (size[1], size[0], 3)
    Image.fromarray(rng.integers(0, np.iinfo(dtype).max, shape).astype(dtype)).save(buffer, "PNG")
    return buffer.getvalue()


def nifti_bytes(array):
    """Voxels of 2 x 3 x 4 mm; the first axis runs to the left."""
    return nibabel.Nifti1Image(array, np.diag([-2.0, 3.0, 4.0, 1.0])).to_bytes()


def test_content_decides_not_the_name(tmp_path):
    rng = np.random.default_rng(0)
    nifti = nifti_bytes(rng.integers(0, 9, (4, 5, 6)).astype(np.int16))
    jpeg = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (8, 8), np.uint8)).save(jpeg, "JPEG")
    archive = io.BytesIO()
    np.savez(archive, train_images=rng.integers(0, 255, (3, 8, 8), np.uint8))
    contents = {
        "png": png(),
        "jpeg": jpeg.getvalue(),
        "nifti": nifti,
        "npz": archive.getvalue(),
        "dicom": write_dicom(tmp_path / "d", np.array([[1, 2], [3, 4]])).read_bytes(),
        "": b"%PDF-1.7 nothing to see",
    }
    for kind, data in contents.items():
        path = tmp_path / "liar.dcm"
        path.write_bytes(data)
        assert sniff(path) == kind
    path.write_bytes(gzip.compress(nifti))
    assert sniff(path) == "nifti"
    path.write_bytes(contents["dicom"][132:])  # no preamble
    assert sniff(path) == "dicom"
    path.write_bytes(gzip.compress(b"just text"))
    assert sniff(path) == ""


def test_a_file_without_preamble_and_meta_is_read(tmp_path):
    stored = np.array([[1, 2], [3, 4]])
    ds = pydicom.dcmread(write_dicom(tmp_path / "x", stored, syntax=ImplicitVRLittleEndian))
    del ds.file_meta
    ds.save_as(tmp_path / "x", implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(ingest(tmp_path)[0][0][0].array[0], stored)


@pytest.mark.parametrize("kind", ["implicit", "explicit", "png", "nifti", "nifti.gz", "npz", "rle", "jpeg2000"])
def test_a_cut_file_never_gives_a_scan(tmp_path, shared, kind):
    """At any byte: one reject, no crash."""
    rng = np.random.default_rng(0)
    if kind in {"implicit", "explicit"}:
        syntax = ImplicitVRLittleEndian if kind == "implicit" else ExplicitVRLittleEndian
        data = write_dicom(tmp_path / "x", rng.integers(0, 4096, (6, 5)), syntax=syntax).read_bytes()
    elif kind == "png":
        data = png()
    elif kind == "npz":
        buffer = io.BytesIO()
        np.savez_compressed(buffer, train_images=rng.integers(0, 255, (3, 8, 8), np.uint8))
        data = buffer.getvalue()
    elif kind.startswith("nifti"):
        data = nifti_bytes(rng.integers(0, 900, (4, 5, 6)).astype(np.int16))
        data = gzip.compress(data) if kind.endswith("gz") else data
    else:
        folder = {"rle": "compressed_rle", "jpeg2000": "compressed_j2k"}[kind]
        data = sorted((shared / "dicom" / "dicom2nifti" / "generic" / folder / "001").iterdir())[1].read_bytes()
    whole = len(data) - (12 if kind == "png" else 0)  # PNG ends with an empty chunk
    for cut in sorted({0, 1, 2, 131, 132, whole - 1, whole - 9, *rng.integers(0, whole, 30).tolist()}):
        (tmp_path / "x").write_bytes(data[:cut])
        scans, rejects = ingest(tmp_path)
        assert (len(scans), len(rejects)) == (0, 1), cut
        assert not {"READER_FAILED", "CANNOT_OPEN"} & set(rejects.values()), "noticed by luck, not by proof"
    (tmp_path / "x").write_bytes(data)
    assert len(ingest(tmp_path)[0]) >= 1


@QUICK
@given(st.data())
def test_flipped_bytes_never_stop_the_walk(tmp_path, data):
    stored = np.arange(30).reshape(6, 5) * 7
    good = write_dicom(tmp_path / "a", stored).read_bytes()
    bad = bytearray(good)
    for _ in range(data.draw(st.integers(1, 8))):
        bad[data.draw(st.integers(128, len(bad) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "b").write_bytes(bytes(bad))
    scans, rejects = ingest(tmp_path)
    np.testing.assert_array_equal(scans[0][0].array[0], stored)
    assert len(scans) + len(rejects) == 2
    for scan, _ in scans:
        assert scan.array.ndim == 3
        assert scan.array.size == 30 or scan.array.shape != (1, 6, 5)


def test_a_lying_header_is_refused_before_memory_is_taken(tmp_path):
    for i, tags in enumerate(({"Rows": 65535, "Columns": 65535}, {"Rows": 7}, {"Rows": 3}, {"NumberOfFrames": "2"})):
        write_dicom(tmp_path / str(i), np.arange(30).reshape(6, 5), SOPInstanceUID=f"1.2.{i}", **tags)
    assert ingest(tmp_path)[1] == {
        "0": "TOO_LARGE",
        "1": "BAD_LENGTH",
        "2": "BAD_LENGTH",
        "3": "MULTI_FRAME_UNSUPPORTED",
    }
    header = bytearray(nifti_bytes(np.zeros((2, 2, 2), np.int16)))
    struct.pack_into("<4h", header, 40, 3, 32767, 32767, 32767)
    (tmp_path / "n").write_bytes(gzip.compress(bytes(header)))
    assert ingest(tmp_path)[1]["n"] == "TOO_LARGE"


def test_reports_are_not_images(tmp_path):
    write_dicom(tmp_path / "x", np.array([[1, 2], [3, 4]]), SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    assert ingest(tmp_path)[1] == {"x": "NOT_AN_IMAGE"}


def test_a_compressed_size_that_lies_is_refused_before_decoding(tmp_path, shared):
    path = sorted((shared / "dicom" / "dicom2nifti" / "generic" / "compressed_j2k" / "001").iterdir())[0]
    ds = pydicom.dcmread(path)
    ds.Rows = 4096
    ds.save_as(tmp_path / "x")
    with dicom.opened(tmp_path / "x") as (ds, stream), pytest.raises(Unreadable, match="not of the size"):
        read_pixels(ds, stream, "MR")


# ---- NIfTI, PNG and archives


def test_nifti_scaling_units_and_dimensions(tmp_path):
    rng = np.random.default_rng(0)
    voxels = rng.integers(-900, 900, (4, 5, 6)).astype(np.int16)
    (tmp_path / "a.nii").write_bytes(nifti_bytes(voxels))
    scaled = bytearray(nifti_bytes(voxels))
    struct.pack_into("<2f", scaled, 112, 0.5, 3.0)
    (tmp_path / "b.nii").write_bytes(bytes(scaled))
    (tmp_path / "c.nii").write_bytes(nifti_bytes(np.stack([voxels, voxels + 1], -1)))
    (tmp_path / "d.nii").write_bytes(nifti_bytes(voxels[:, :, :1]))
    nowhere = bytearray(nifti_bytes(voxels))
    struct.pack_into("<b", nowhere, 123, 1)  # unit: metres
    struct.pack_into("<2h", nowhere, 252, 0, 0)  # neither qform nor sform
    (tmp_path / "e.nii").write_bytes(bytes(nowhere))
    (tmp_path / "f.nii").write_bytes(nifti_bytes(voxels.astype(">i2")))
    a, b, c, d, e, f = (scan for scan, _ in ingest(tmp_path)[0])
    right = voxels[::-1].transpose(2, 1, 0)  # the first axis of the file runs to the left
    np.testing.assert_array_equal(a.array[0], right)
    assert a.array.dtype == np.int16
    assert a.spacing == (4, 3, 2)
    assert b.array.dtype == np.float32
    np.testing.assert_array_equal(b.array[0], right * np.float32(0.5) + 3)
    np.testing.assert_array_equal(c.array, a.array)
    assert "first volume of 4D" in c.steps
    assert d.array.shape == (1, 5, 4)
    assert (d.spacing, d.affine) == ((3, 2), None)
    assert e.affine is None  # the file does not say how it lies, so it is left as it is
    assert e.spacing == (4000, 3000, 2000)
    np.testing.assert_array_equal(e.array[0], voxels.transpose(2, 1, 0))
    np.testing.assert_array_equal(f.array, a.array)


def test_nifti_non_finite_values(tmp_path):
    voxels = np.linspace(-5, 5, 1000, dtype=np.float32).reshape(10, 10, 10)
    few, many = voxels.copy(), voxels.copy()
    few[5, 5, :3] = np.nan, np.inf, -np.inf
    many[5, :2] = np.nan
    (tmp_path / "few").write_bytes(nifti_bytes(few))
    (tmp_path / "many").write_bytes(nifti_bytes(many))
    [(scan, _)], rejects = ingest(tmp_path)
    assert rejects == {"many": "NON_FINITE"}
    assert np.isfinite(scan.array).all()
    assert (scan.array == -5).sum() == 4


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (lambda x: Image.fromarray(x[..., 0]), lambda x: x[None, ..., 0]),
        (lambda x: Image.fromarray(x), lambda x: x.transpose(2, 0, 1)),
        (lambda x: Image.fromarray(x).convert("RGBA"), lambda x: x.transpose(2, 0, 1)),
        (lambda x: Image.fromarray(np.repeat(x[..., :1], 3, -1)), lambda x: x[None, ..., 0]),
        (lambda x: Image.fromarray(x[..., 0]).convert("LA"), lambda x: x[None, ..., 0]),
        (
            lambda x: Image.fromarray(x[..., 0].astype(np.uint16) * 257),
            lambda x: x[None, ..., 0].astype(np.uint16) * 257,
        ),
        (lambda x: Image.fromarray(x[..., 0] > 99), lambda x: np.uint8(255) * (x[None, ..., 0] > 99)),
    ],
    ids=["L", "RGB", "RGBA", "grey RGB", "LA", "I;16", "1"],
)
def test_png_modes(tmp_path, image, expected):
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
    image(x).save(tmp_path / "x", "PNG")
    [(scan, _)], rejects = ingest(tmp_path)
    assert rejects == {}
    np.testing.assert_array_equal(scan.array, expected(x))
    assert scan.array.dtype == expected(x).dtype


def test_a_palette_is_expanded(tmp_path):
    img = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)).quantize(16)
    img.save(tmp_path / "x", "PNG")
    np.testing.assert_array_equal(ingest(tmp_path)[0][0][0].array, np.asarray(img.convert("RGB")).transpose(2, 0, 1))


def test_exif_turns_the_picture(tmp_path):
    x = np.zeros((16, 32), np.uint8)
    x[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    Image.fromarray(x).save(tmp_path / "x", "JPEG", exif=exif, quality=100)
    array = ingest(tmp_path)[0][0][0].array
    assert array.shape == (1, 32, 16)
    assert array[0, :16].min() > 190
    assert array[0, 16:].max() < 10


def test_bombs_are_refused(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", 40000, 20000, 1, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(5001))) + chunk(b"IEND", b"")
    (tmp_path / "x").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    assert ingest(tmp_path)[1] == {"x": "TOO_LARGE"}


def test_archives_of_other_layouts_are_not_guessed(tmp_path):
    np.savez(tmp_path / "a.npz", volume=np.arange(27).reshape(3, 3, 3))
    np.savez(tmp_path / "b.npz", test_images=np.array([{"a": 1}]))
    assert ingest(tmp_path)[1] == {"a.npz": "NOT_AN_IMAGE", "b.npz": "TRUNCATED"}


def test_archives_of_colour_and_several_labels(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 6, 7, 3), np.uint8)
    images[1] = 5  # constant: one reject, the others stay
    np.savez(tmp_path / "x.npz", val_images=images, val_labels=np.array([[0, 1], [1, 1], [1, 0]]))
    scans, rejects = ingest(tmp_path)
    assert rejects == {"x.npz": "CONSTANT"}
    assert [name for _, name in scans] == ["x.npz#val/0", "x.npz#val/2"]
    assert scans[1][0].labels == {"label_0": "1", "label_1": "0"}
    assert scans[1][0].split == "val"
    np.testing.assert_array_equal(scans[1][0].array, images[2].transpose(2, 0, 1))


# ---- the walk


def test_walk_takes_regular_files_only(tmp_path):
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    for name in ("b/2.dcm", "b/.hidden/3", "1", ".DS_Store", "DICOMDIR", "b/Thumbs.db", "b/._2.dcm"):
        (tmp_path / name).write_bytes(b"x")
    os.symlink(tmp_path, tmp_path / "b" / "loop")
    os.symlink(tmp_path / "1", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe.dcm")
    assert walk(tmp_path) == [tmp_path / "1", tmp_path / "b" / "2.dcm"]
    assert walk(tmp_path / "1") == [tmp_path / "1"]
    with pytest.raises(UserError, match="nothing at"):
        walk(tmp_path / "absent")


def test_every_real_file_is_accounted_for(shared):
    source = shared / "dicom" / "dicom2nifti"
    files = [p for p in walk(source) if "failing" in p.parts or "compressed_jpegls" in p.parts]
    rejects: list[Path] = []
    scans = list(read(files, ALIAS, shared, lambda p, why: rejects.append(p)))
    slices = sum(s.array.shape[1 + int(np.argmin(s.array.shape[1:]))] for s, _ in scans if s.modality)
    single = sum(not s.modality for s, _ in scans)
    assert len(files) == len(rejects) + slices + single


def test_interrupting_stops(tmp_path, monkeypatch):
    write_dicom(tmp_path / "x", np.array([[1, 2], [3, 4]]))

    def interrupted(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(dicom, "look", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(tmp_path)


def test_reasons_quote_nothing(tmp_path):
    name = "Qorvath^Zelimir"
    write_dicom(tmp_path / f"{name}.dcm", np.array([[1, 2], [3, 4]]), PatientName=name, RescaleSlope="1", Rows=9)
    (tmp_path / f"{name}.png").write_bytes(png()[:60])
    reasons = []
    list(read(walk(tmp_path), ALIAS, tmp_path, lambda p, why: reasons.append(why)))
    assert len(reasons) == 2
    assert not any("Qorvath" in str(why) + repr(why) or "/" in str(why) for why in reasons)
    assert all(isinstance(why, Unreadable) for why in reasons)
