"""Multi-frame files: every voxel lies where the header of its frame places it, with the slope of its frame."""

import contextlib
import io
from pathlib import Path

import imagecodecs
import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEGLSLossless

from medssl.readers.dicom import frames, mosaic
from medssl.readers.dicom.header import parse
from medssl.readers.dicom.ultrasound import ultrasound_crop
from medssl.readers.geometry import to_canonical
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)

MACRO = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "EffectiveEchoTime": "MREchoSequence",
    "FlipAngle": "MRTimingAndRelatedParametersSequence",
    "DiffusionBValue": "MRDiffusionSequence",
    "StackID": "FrameContentSequence",
    "TemporalPositionIndex": "FrameContentSequence",
    "FrameType": "MRImageFrameTypeSequence",
    "NominalCardiacTriggerDelayTime": "CardiacSynchronizationSequence",
}


def item(**values) -> Dataset:
    """Return a functional group item, with every element in its macro."""
    ds = Dataset()
    for keyword, value in values.items():
        if MACRO[keyword] not in ds:
            setattr(ds, MACRO[keyword], [Dataset()])
        setattr(ds[MACRO[keyword]].value[0], keyword, list(value) if isinstance(value, tuple) else value)
    return ds


def write(pixels: np.ndarray, own=None, shared=None, syntax=ExplicitVRLittleEndian, **top) -> io.BytesIO:
    """Return a DICOM file with pixels (N, rows, columns) or (N, rows, columns, 3)."""
    ds = FileDataset(None, {}, preamble=bytes(128), file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = syntax
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ENHANCED_CT, "1.2.3.4"
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = ENHANCED_CT, "1.2.3.4", "MR"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.PatientID = "1.2", "1.2.3", "P1"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.Rows, ds.Columns = pixels.shape[1:3]
    ds.SamplesPerPixel = 3 if pixels.ndim == 4 else 1
    ds.PhotometricInterpretation = "RGB" if pixels.ndim == 4 else "MONOCHROME2"
    if pixels.ndim == 4:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.NumberOfFrames = len(pixels)
    for keyword, value in top.items():
        setattr(ds, keyword, value)
    if shared is not None:
        ds.SharedFunctionalGroupsSequence = [item(**shared)]
    if own is not None:
        ds.PerFrameFunctionalGroupsSequence = [item(**f) for f in own]
    ds.PixelData = top.get("PixelData", pixels.tobytes() + bytes(pixels.nbytes % 2))
    ds["PixelData"].is_undefined_length = "PixelData" in top
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    return out


def read(stream, name: str = "a/b.dcm") -> list[tuple[Scan | Unreadable, str]]:
    return list(frames.read(parse(stream), name, PSEUDONYMS))


def noise(count: int, rows: int = 5, columns: int = 7, seed: int = 0, dtype=np.int16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (count, rows, columns)).astype(dtype)


def truth(own: list[dict], pixels: np.ndarray, orientation: tuple, spacing: tuple) -> dict[tuple, float]:
    """Return values by position in RAS+ mm, from the header of each frame (PS3.3 equation C.7.6.2.1-1)."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    found = {}
    for f, frame in zip(own, pixels, strict=True):
        for (y, x), value in np.ndenumerate(frame):
            place = np.array(f["ImagePositionPatient"]) + row * spacing[1] * x + column * spacing[0] * y
            found[tuple(np.round(place * (-1, -1, 1), 2) + 0.0)] = float(value)
    return found


def told(scan: Scan) -> dict[tuple, float]:
    """Return values by position, from a volume and its affine."""
    found = {}
    for index, value in np.ndenumerate(scan.array[0]):
        found[tuple(np.round((scan.affine @ (*index, 1))[:3], 2) + 0.0)] = float(value)
    return found


def axial(count: int, step: float = 2.0, **values) -> list[dict]:
    return [{"ImagePositionPatient": (-10.0, -20.0, 5 + step * k), **values} for k in range(count)]


PLANE = {"ImageOrientationPatient": AXIAL, "PixelSpacing": (1.5, 0.5)}


def test_voxels_of_a_shuffled_enhanced_object_lie_where_their_frames_place_them():
    own = axial(6)
    order = [3, 0, 5, 1, 4, 2]
    own = [own[k] for k in order]
    pixels = noise(6)
    ((scan, part),) = read(write(pixels, own, PLANE))
    assert part == "a/b.dcm#stack/0"
    assert told(scan) == truth(own, pixels, AXIAL, (1.5, 0.5))
    assert scan.spacing == pytest.approx((2.0, 1.5, 0.5))
    assert scan.array.dtype == np.int16


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_per_frame_groups_override_shared_groups_and_these_the_top_level(syntax):
    pixels = noise(4)
    own = axial(4)
    own[2] |= {"RescaleSlope": 3.0, "RescaleIntercept": 7.0}
    shared = PLANE | {"RescaleSlope": 2.0, "RescaleIntercept": -1000.0}
    stream = write(
        pixels, own, shared, syntax, Modality="CT", RescaleSlope=1.0, RescaleIntercept=0.0, PixelSpacing=[9.0, 9.0]
    )
    ((scan, _),) = read(stream)
    expected = pixels.astype(int) * 2 - 1000
    expected[2] = pixels[2] * 3 + 7
    assert told(scan) == truth(own, expected, AXIAL, (1.5, 0.5))


def test_fractional_slopes_of_frames_make_float32():
    pixels = noise(5)
    slopes = [0.25, 1.0, 0.5, 2.0, 0.125]
    own = [f | {"RescaleSlope": m, "RescaleIntercept": 0.0} for f, m in zip(axial(5), slopes, strict=True)]
    ((scan, _),) = read(write(pixels, own, PLANE, Modality="PT"))
    assert scan.array.dtype == np.float32
    assert told(scan) == truth(own, pixels * np.array(slopes)[:, None, None], AXIAL, (1.5, 0.5))


@pytest.mark.parametrize(
    ("keyword", "values", "field"),
    [
        ("EffectiveEchoTime", (4.6, 9.2), "echo_time"),
        ("DiffusionBValue", (0.0, 1000.0), "b_value"),
        ("FlipAngle", (5.0, 26.0), "flip_angle"),
        ("TemporalPositionIndex", (1, 2), None),
        ("StackID", ("1", "2"), None),
        ("FrameType", (["ORIGINAL", "PRIMARY", "M", "NONE"], ["ORIGINAL", "PRIMARY", "P", "NONE"]), None),
    ],
)
def test_frames_that_differ_in_more_than_position_are_different_volumes(keyword, values, field):
    pixels = noise(8)
    own = [f | {keyword: v} for k, f in enumerate(axial(4)) for v in (values if k % 2 == 0 else values[::-1])]
    scans = [scan for scan, _ in read(write(pixels, own, PLANE))]
    assert len(scans) == 2
    for i, scan in enumerate(scans):
        its = [k for k, f in enumerate(own) if f[keyword] == values[i]]
        assert told(scan) == truth([own[k] for k in its], pixels[its], AXIAL, (1.5, 0.5))
        assert field is None or scan.metadata[field] == values[i]
    assert scans[0].scan != scans[1].scan


def test_cardiac_phases_become_one_volume_each():
    pixels = noise(12)
    order = [(k, phase) for k in range(4) for phase in ((0, 1, 2) if k % 2 else (2, 0, 1))]
    own = [axial(4)[k] | {"NominalCardiacTriggerDelayTime": 100.0 * phase + k} for k, phase in order]
    scans = [scan for scan, _ in read(write(pixels, own, PLANE))]
    assert len(scans) == 3
    for phase, scan in enumerate(scans):
        its = [i for i, (_, p) in enumerate(order) if p == phase]
        assert told(scan) == truth([own[i] for i in its], pixels[its], AXIAL, (1.5, 0.5))


def test_three_planes_in_one_object_are_three_volumes():
    pixels = noise(8)
    own = [f | {"ImageOrientationPatient": AXIAL} for f in axial(4)]
    own += [{"ImagePositionPatient": (3.0 * k, 0.0, 0.0), "ImageOrientationPatient": SAGITTAL} for k in range(4)]
    scans = [scan for scan, _ in read(write(pixels, own, {"PixelSpacing": (1.5, 0.5)}))]
    assert told(scans[0]) == truth(own[:4], pixels[:4], AXIAL, (1.5, 0.5))
    assert told(scans[1]) == truth(own[4:], pixels[4:], SAGITTAL, (1.5, 0.5))


def test_a_missing_frame_splits_the_volume():
    own = axial(11)
    del own[5]
    pixels = noise(10)
    scans = [scan for scan, _ in read(write(pixels, own, PLANE))]
    assert [s.array.shape[1] for s in scans] == [5, 5]
    assert told(scans[0]) | told(scans[1]) == truth(own, pixels, AXIAL, (1.5, 0.5))


def test_a_damaged_frame_splits_the_volume():
    own, pixels = axial(11), noise(11, 32, 32)
    streams = [imagecodecs.jpegls_encode(frame.view(np.uint16)) for frame in pixels]
    streams[5] = streams[5][:60]
    packed = encapsulate([s + bytes(len(s) % 2) for s in streams])
    found = read(write(pixels, own, PLANE, JPEGLSLossless, PixelData=packed))
    assert [(r.code, part) for r, part in found if isinstance(r, Unreadable)] == [("DECODE_FAILED", "a/b.dcm#frame/5")]
    scans = [r for r, _ in found if isinstance(r, Scan)]
    assert [(s.array.shape[1], s.metadata["gap"]) for s in scans] == [(5, "yes"), (5, "yes")]
    del own[5]
    assert told(scans[0]) | told(scans[1]) == truth(own, np.delete(pixels, 5, 0), AXIAL, (1.5, 0.5))


def test_metadata_are_those_all_frames_share():
    own = [f | {"EffectiveEchoTime": 30.0, "SliceThickness": 1.0 + (k == 2)} for k, f in enumerate(axial(4))]
    ((scan, _),) = read(write(noise(4), own, PLANE | {"FlipAngle": 8.0}))
    assert (scan.metadata["echo_time"], scan.metadata["flip_angle"]) == (30.0, 8.0)
    assert "thickness" not in scan.metadata
    assert scan.metadata["transfer_syntax"] == ExplicitVRLittleEndian


def test_the_window_of_an_x_ray_sequence_is_inverted_with_it():
    stream = write(
        noise(2, dtype=np.uint8),
        Modality="XA",
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=100,
        WindowWidth=51,
    )
    for scan, _ in read(stream):
        assert (scan.metadata["voi_low"], scan.metadata["voi_high"]) == (255 - 124.5, 255 - 74.5)  # C.11.2.1.2.1


def test_frames_at_few_positions_and_frames_without_position_are_images():
    pixels = noise(4)
    own = [*axial(3), {}]
    found = read(write(pixels, own, PLANE))
    assert [part for _, part in found] == [f"a/b.dcm#frame/{k}" for k in range(4)]
    for (scan, _), frame in zip(found, pixels, strict=True):
        assert (scan.array == frame).all()
        assert (scan.affine, scan.spacing) == (None, (1.5, 0.5))


def test_frames_at_one_position_are_images():
    pixels = noise(5)
    shared = PLANE | {"ImagePositionPatient": (0.0, 0.0, 0.0)}
    found = read(write(pixels, [{"NominalCardiacTriggerDelayTime": 40.0 * k} for k in range(5)], shared))
    assert [part for _, part in found] == [f"a/b.dcm#frame/{k}" for k in range(5)]
    assert all(
        (scan.array[0] == frame).all() and scan.spacing == (1.5, 0.5)
        for (scan, _), frame in zip(found, pixels, strict=True)
    )


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(4, 7),
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    step=st.floats(0.5, 9),
    seed=st.integers(0, 99),
)
def test_any_orientation(count, angles, step, seed):
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", angles).as_matrix()
    orientation = tuple(float(v) for v in (*turn[:, 0], *turn[:, 1]))
    own = [{"ImagePositionPatient": tuple(float(v) for v in 3 + turn[:, 2] * step * k)} for k in range(count)]
    pixels = noise(count, 3, 4, seed)
    pixels += np.arange(pixels.size, dtype=np.int16).reshape(pixels.shape) * 201  # distinct values
    order = np.random.default_rng(seed).permutation(count)
    stream = write(
        pixels[order], [own[k] for k in order], {"ImageOrientationPatient": orientation, "PixelSpacing": (1.5, 0.5)}
    )
    ((scan, _),) = read(stream)
    for index, value in np.ndenumerate(scan.array[0]):
        k, y, x = (int(v[0]) for v in np.nonzero(pixels == value))
        place = np.array(own[k]["ImagePositionPatient"]) + turn[:, 0] * 0.5 * x + turn[:, 1] * 1.5 * y
        assert np.abs((scan.affine @ (*index, 1))[:3] - place * (-1, -1, 1)).max() < 1e-4


def test_image_sequences_keep_order_and_patient():
    pixels = np.random.default_rng(0).integers(0, 255, (3, 6, 8, 3)).astype(np.uint8)
    found = read(write(pixels, Modality="XA", SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1"))
    assert [part for _, part in found] == [f"a/b.dcm#frame/{k}" for k in range(3)]
    for k, (scan, _) in enumerate(found):
        assert (scan.array == pixels[k].transpose(2, 0, 1)).all()
    assert len({scan.scan for scan, _ in found}) == 3
    assert len({(scan.patient, scan.study, scan.series) for scan, _ in found}) == 1


def test_missing_frames_are_recorded():
    pixels = noise(2, dtype=np.uint8)
    found = read(write(pixels, NumberOfFrames=3, Modality="US"))
    assert len(found) == 2
    assert all(scan.steps[0] not in {"", "crop to ultrasound region"} for scan, _ in found)
    assert (found[1][0].array[0] == pixels[1]).all()


def test_without_a_uid_the_pseudonym_comes_from_path_and_frame():
    found = read(write(noise(2, dtype=np.uint8), Modality="US", SOPInstanceUID=""))
    assert [scan.scan for scan, _ in found] == [PSEUDONYMS.of("scan", f"file|a/b.dcm#frame/{k}") for k in range(2)]


def region(x0, y0, x1, y1, kind=1, units=3, delta=(0.02, 0.04), **more) -> Dataset:
    ds = Dataset()
    ds.RegionSpatialFormat, ds.RegionDataType, ds.RegionFlags = kind, 1, 0
    ds.RegionLocationMinX0, ds.RegionLocationMinY0, ds.RegionLocationMaxX1, ds.RegionLocationMaxY1 = x0, y0, x1, y1
    ds.PhysicalUnitsXDirection = ds.PhysicalUnitsYDirection = units
    ds.PhysicalDeltaX, ds.PhysicalDeltaY = delta
    return ds


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([], (None, None)),
        ([region(2, 3, 9, 7)], ((3, 8, 2, 10), (0.4, 0.2))),
        ([region(2, 3, 9, 7, delta=(-0.02, 0.04))], ((3, 8, 2, 10), (0.4, 0.2))),
        ([region(2, 3, 12, 10)], ((3, 10, 2, 12), (0.4, 0.2))),  # one pixel too many
        ([region(2, 3, 5, 7), region(6, 3, 9, 8)], ((3, 9, 2, 10), (0.4, 0.2))),
        ([region(2, 3, 5, 7), region(6, 3, 9, 8, delta=(0.03, 0.03))], ((3, 9, 2, 10), None)),
        ([region(2, 3, 9, 7, units=4)], ((3, 8, 2, 10), None)),  # seconds
        ([region(2, 3, 9, 7), region(0, 8, 11, 9, kind=5)], ((3, 8, 2, 10), (0.4, 0.2))),  # a colour bar
        ([region(2, 3, 9, 5), region(0, 6, 11, 9, kind=3)], (None, None)),  # tissue above a spectrum
        ([region(0, 6, 11, 9, kind=2)], ((6, 10, 0, 12), None)),  # M-mode: one axis is time
        ([region(9, 3, 2, 7)], (None, None)),
    ],
)
def test_ultrasound_is_cropped_and_gets_the_scale_of_its_regions(regions, expected):
    pixels = noise(2, 10, 12, dtype=np.uint8)
    stream = write(pixels, Modality="US", SequenceOfUltrasoundRegions=regions)
    assert ultrasound_crop(parse(stream)) == expected
    box, spacing = expected
    for k, (scan, _) in enumerate(read(stream)):
        top, bottom, left, right = box or (None,) * 4
        assert (scan.array[0] == pixels[k][top:bottom, left:right]).all()
        assert scan.spacing == spacing
        assert ("crop to ultrasound region" in scan.steps) == (box is not None)


def test_a_real_ultrasound_sequence():
    path = get_testdata_file("examples_ybr_color.dcm", download=False)
    with open(path, "rb") as stream:
        found = read(stream)
    whole = pydicom.dcmread(path).pixel_array  # RGB
    assert len(found) == len(whole) == 30
    for (scan, _), expected in zip(found, whole, strict=True):
        ds = pydicom.dcmread(path, stop_before_pixels=True).SequenceOfUltrasoundRegions[0]
        box = np.s_[
            ds.RegionLocationMinY0 : ds.RegionLocationMaxY1 + 1, ds.RegionLocationMinX0 : ds.RegionLocationMaxX1 + 1
        ]
        assert np.abs(scan.array.astype(int) - expected[box].transpose(2, 0, 1)).max() <= 3  # two JPEG decoders
        assert scan.spacing == pytest.approx((10 * ds.PhysicalDeltaY, 10 * ds.PhysicalDeltaX))


# ---- Siemens mosaics


def reference(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return a NIfTI file as (T, D, H, W) and the affine of (d, h, w), in canonical orientation."""
    image = nibabel.load(path)
    data = np.asarray(image.dataobj)
    data = data[..., None] if data.ndim == 3 else data
    swap = np.eye(4)[[2, 1, 0, 3]]
    return to_canonical(np.ascontiguousarray(data.transpose(3, 2, 1, 0)), image.affine @ swap)


MOSAICS = [
    ("dcm_qa_nih/In/20180918Si/mr_0003", "dcm_qa_nih/Ref/EPI_PE=AP_3.nii"),
    ("dcm_qa_nih/In/20180918Si/mr_0004", "dcm_qa_nih/Ref/EPI_PE=PA_4.nii"),
    ("dcm_qa_nih/In/20180918Si/mr_0005", "dcm_qa_nih/Ref/EPI_PE=RL_5.nii"),
    ("dcm_qa_nih/In/20180918Si/mr_0006", "dcm_qa_nih/Ref/EPI_PE=LR_6.nii"),
    ("dcm_qa_orientation/In/ax/axasc35", "dcm_qa_orientation/Ref/ax_asc_35sl_6.nii"),
    ("dcm_qa_orientation/In/ax/axdesc36", "dcm_qa_orientation/Ref/ax_desc_36sl_10.nii"),
    ("dcm_qa_orientation/In/cor/corint36", "dcm_qa_orientation/Ref/cor_int_36sl_15.nii"),
    ("dcm_qa_orientation/In/cor/cordesc35", "dcm_qa_orientation/Ref/cor_desc_35sl_17.nii"),
    ("dcm_qa_orientation/In/sag/sagasc36", "dcm_qa_orientation/Ref/sag_asc_36sl_19.nii"),
    ("dcm_qa_orientation/In/sag/sagdesc35", "dcm_qa_orientation/Ref/sag_desc_35sl_23.nii"),
    ("dcm_qa_orientation/In/axmb/AxInt36mb", "dcm_qa_orientation/Ref/fMRI_MB_int_26.nii"),
]


@pytest.mark.parametrize(("folder", "nifti"), MOSAICS)
def test_real_mosaics_equal_the_reference_volumes(shared, folder, nifti):
    expected, affine = reference(shared / "dicom" / nifti)
    files = [f for f in (shared / "dicom" / folder).iterdir() if f.suffix not in {".txt", ".nii"}]
    volumes = {}
    for file in files:
        with file.open("rb") as stream:
            header = parse(stream)
            ((scan, part),) = frames.read(header, file.name, PSEUDONYMS)
        assert part == file.name
        volumes[header.integer("AcquisitionNumber", 0)] = scan
    assert len(volumes) == len(expected)
    for scan, frame in zip((volumes[k] for k in sorted(volumes)), expected, strict=True):
        assert (scan.array[0] == frame).all()
        corners = np.array([(*c, 1) for c in np.ndindex(2, 2, 2)]) * (*np.subtract(frame.shape, 1), 1)
        assert np.abs(corners @ (scan.affine - affine).T).max() < 0.1  # mm


def mosaic_file(shared: Path, change) -> io.BytesIO:
    path = next((shared / "dicom/dcm_qa_nih/In/20180918Si/mr_0003").glob("*.dcm"))
    ds = pydicom.dcmread(path)
    change(ds)
    out = io.BytesIO()
    ds.save_as(out)
    return out


def _without(*tags):
    def change(ds):
        for tag in tags:
            del ds[tag]

    return change


def _replace(old: bytes, new: bytes):
    def change(ds):
        assert old in ds[0x00291010].value
        ds[0x00291010].value = ds[0x00291010].value.replace(old, new)

    return change


def _cut(ds):
    ds[0x00291010].value = ds[0x00291010].value[:3000]


def _seventeen(ds):
    ds[0x0019100A].value = 17


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_without(0x00291010), "BAD_GEOMETRY"),  # no normal
        (_without(0x00180088), "BAD_GEOMETRY"),  # no slice distance; the thickness does not include the gap
        (_without(0x00200032), "BAD_GEOMETRY"),
        (_seventeen, "BAD_GEOMETRY"),  # 216 rows are not divisible by five
        (_replace(b"SliceNormalVector", b"SliceNormalVectos"), "BAD_GEOMETRY"),
        (_replace(b"1.00000000", b"0.50000000"), "BAD_GEOMETRY"),  # not a unit normal
        (_replace(b"1.00000000", b"1.0000000x"), "BAD_HEADER"),
        (_cut, "BAD_HEADER"),
    ],
)
def test_mosaics_without_geometry_are_refused(shared, change, code):
    with pytest.raises(Unreadable) as caught:
        read(mosaic_file(shared, change))
    assert caught.value.code == code


def test_several_mosaics_in_one_file_are_refused():
    with pytest.raises(Unreadable) as caught:
        read(write(noise(2), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]))
    assert caught.value.code == "UNSUPPORTED_PIXELS"


def test_the_number_of_tiles_is_found_in_the_csa_header_or_another_private_block(shared):
    expected = read(mosaic_file(shared, lambda ds: None))[0][0].array

    def moved(ds):
        block = [ds[tag] for tag in list(ds.keys()) if tag.group == 0x0019]
        for element in block:
            del ds[element.tag]
        ds.add_new(0x00190010, "LO", "SOMEBODY ELSE")
        ds.add_new(0x0019100A, "US", 2)
        ds.add_new(0x00190011, "LO", "SIEMENS MR HEADER")
        ds.add_new(0x0019110A, "US", 5)

    for change in (moved, _without(0x0019100A)):
        assert (read(mosaic_file(shared, change))[0][0].array == expected).all()


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_a_damaged_csa_header_raises_only_unreadable(data):
    ds = Dataset()
    ds.SOPClassUID = ENHANCED_CT
    ds.add_new(0x00290010, "LO", "SIEMENS CSA HEADER")
    ds.add_new(0x00291010, "OB", b"SV10\4\3\2\1" + data + bytes(len(data) % 2))
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, implicit_vr=False, little_endian=True)
    header = parse(out)
    with contextlib.suppress(Unreadable):
        texts = mosaic._csa(header)
        assert all(isinstance(text, str) for found in texts.values() for text in found)
