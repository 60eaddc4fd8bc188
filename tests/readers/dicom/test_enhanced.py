"""Enhanced frames told apart by their Dimension Index Values alone, and enhanced objects of one frame per file."""

import io
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from medssl.readers.dicom import reader
from medssl.readers.dicom.grouping import divide
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice

PSEUDONYMS = Pseudonyms(bytes(32))
AXIAL = [1, 0, 0, 0, 1, 0]


def item(**values):
    ds = Dataset()
    for keyword, value in values.items():
        setattr(ds, keyword, [item(**value)] if isinstance(value, dict) else value)
    return ds


def write(pixels, own, syntax=ExplicitVRLittleEndian, uid="1.2.3.4", modality="MR", **tags):
    ds = FileDataset(None, {}, preamble=bytes(128), file_meta=FileMetaDataset())
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.4.1", uid, modality
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, uid
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2", "1.2.3"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.NumberOfFrames, ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence={"PixelSpacing": [1.5, 0.5]},
            PlaneOrientationSequence={"ImageOrientationPatient": AXIAL},
        )
    ]
    ds.PerFrameFunctionalGroupsSequence = [item(**f) for f in own]
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.astype("<u2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds)
    return out


def frame(z, indices=None, **macros):
    content = {} if indices is None else {"DimensionIndexValues": list(indices)}
    place = {"ImagePositionPatient": [0, 0, 3 * z]}
    return {"FrameContentSequence": content, "PlanePositionSequence": place, **macros}


def volumes(stream):
    """Return (the first voxel of each slice, from below) of every volume."""
    found = list(reader.read(stream, "a.dcm", PSEUDONYMS))
    assert all(isinstance(scan, Scan) and scan.array.ndim == 4 for scan, _ in found)
    assert all(scan.spacing == pytest.approx((3, 1.5, 0.5)) for scan, _ in found)
    return sorted(scan.array[0, :, -1, -1].tolist() for scan, _ in found)


def marked(cells):
    """Return one frame for each (position, content), whose first pixel is 100 * content + position."""
    pixels = np.random.default_rng(0).integers(1000, 2000, (len(cells), 4, 5))
    pixels[:, 0, 0] = [100 * c + z for z, c in cells]
    return pixels


def mixed(contents, places=6):
    """Return (position, content) in an order of contents that differs between positions."""
    return [(z, c) for z in range(places) for c in (range(contents) if z % 2 else reversed(range(contents)))]


@pytest.mark.parametrize("contents", [2, 3])
@pytest.mark.parametrize(
    "indices",
    [
        lambda z, c: (1, z + 1, c + 1),
        lambda z, c: (1, c + 1, z + 1),
        lambda z, c: (c + 1, 1, z + 1, 7),
        lambda z, c: (1, z + 1, c // 2 + 1, c % 2 + 1),
        lambda z, c: (1, z + 1, 10 * c + z),  # numbered through all positions, as times may be
        lambda z, c: (z + 1, 1, 6 * c + z),
    ],
    ids=["inner", "outer", "first", "two dimensions", "growing", "unique"],
)
def test_contents_told_apart_by_dimension_indices_alone(indices, contents):
    cells = mixed(contents)
    own = [frame(z, indices(z, c)) for z, c in cells]
    expected = [[100 * c + z for z in range(6)] for c in range(contents)]
    assert volumes(write(marked(cells), own)) == expected


def test_a_content_that_lacks_a_position_does_not_take_it_from_another():
    cells = [cell for cell in mixed(2, 11) if cell != (5, 1)]
    own = [frame(z, (1, z + 1, c + 1)) for z, c in cells]
    expected = [list(range(11)), [100 + z for z in range(5)], [100 + z for z in range(6, 11)]]
    assert volumes(write(marked(cells), own)) == expected


def test_times_and_contents_at_once():
    cells = mixed(6)
    own = [
        frame(z, (z + 1, c % 2 + 1), CardiacSynchronizationSequence={"NominalCardiacTriggerDelayTime": 40.0 * (c // 2)})
        for z, c in cells
    ]
    own = [
        f | {"FrameContentSequence": {"DimensionIndexValues": [z + 1, c // 2 + 1, c % 2 + 1]}}
        for f, (z, c) in zip(own, cells, strict=True)
    ]
    assert volumes(write(marked(cells), own)) == [[100 * c + z for z in range(6)] for c in range(6)]


MACROS = {
    "velocity direction": lambda c: {
        "MRVelocityEncodingSequence": {"VelocityEncodingDirection": [float(c), 0.0, 1.0 - c]}
    },
    "velocity range": lambda c: {"MRVelocityEncodingSequence": {"VelocityEncodingMaximumValue": 50.0 + 100 * c}},
    "label": lambda c: {"MRArterialSpinLabelingSequence": {"ASLContext": ("LABEL", "CONTROL")[c]}},
    "agent": lambda c: {"ContrastBolusUsageSequence": {"ContrastBolusAgentAdministered": ("NO", "YES")[c]}},
    "gradient": lambda c: {
        "MRDiffusionSequence": {
            "DiffusionBValue": 1000.0,
            "DiffusionGradientDirectionSequence": {"DiffusionGradientOrientation": [float(c), 0.0, 1.0 - c]},
        }
    },
}


@pytest.mark.parametrize("what", MACROS)
def test_contents_told_apart_by_a_functional_group(what):
    cells = mixed(2)
    own = [frame(z, None, **MACROS[what](c)) for z, c in cells]
    assert volumes(write(marked(cells), own)) == [[100 * c + z for z in range(6)] for c in range(2)]


def test_frames_whose_values_differ_by_rounding_are_one_volume():
    cells = [(z, 0) for z in range(8)]
    own = [frame(z, None, MREchoSequence={"EffectiveEchoTime": (4.92, 4.920001)[z % 2]}) for z in range(8)]
    assert volumes(write(marked(cells), own)) == [list(range(8))]
    stacks = [frame(z) | {"FrameContentSequence": {"StackID": str(z % 2)}} for z in range(8)]
    assert volumes(write(marked(cells), stacks)) == [list(range(8))]


# ---- one frame per file


def stacked(streams):
    """Return the scans that the files, each of one slice, are divided into."""
    slices = [reader.read(stream, f"{k}.dcm", PSEUDONYMS) for k, stream in enumerate(streams)]
    assert all(isinstance(s, Slice) for s in slices)
    slices = [Slice.from_dict(replace(s, file=str(k)).as_dict()) for k, s in enumerate(slices)]
    groups = {s.key: [t for t in slices if t.key == s.key] for s in slices}
    found = []
    for some in groups.values():
        plan = divide(some, lambda asked: {s.file: s.file for s in asked})
        assert plan.rejected == []
        for stack in plan.stacks:
            if len(stack) == 1:
                found.append(reader.single(stack[0], streams[int(stack[0].file)]))
            else:
                found.append(
                    reader.volume(
                        stack, lambda s: io.BytesIO(streams[int(s.file)].getvalue()), PSEUDONYMS, lambda k: None
                    )
                )
    return found


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_objects_of_one_frame_are_stacked_with_the_rescale_of_each(syntax):
    pixels = np.random.default_rng(0).integers(0, 2000, (9, 4, 5))
    streams = [
        write(
            pixels[z : z + 1],
            [frame(z, None, PixelValueTransformationSequence={"RescaleSlope": 1.0 + z, "RescaleIntercept": -5.0})],
            syntax,
            uid=f"1.2.3.{z}",
        )
        for z in range(9)
    ]
    (scan,) = stacked(streams)
    expected = pixels * np.arange(1, 10)[:, None, None] - 5
    np.testing.assert_array_equal(scan.array[0], expected[:, ::-1, ::-1])
    assert scan.spacing == pytest.approx((3, 1.5, 0.5))
    np.testing.assert_allclose((scan.affine @ [8, 3, 4, 1])[:3], [0, 0, 24], atol=1e-9)


def test_objects_of_one_frame_with_two_echoes_are_two_volumes():
    cells = [(z, c) for z in range(5) for c in range(2)]
    streams = [
        write(
            marked(cells)[i : i + 1],
            [frame(z, None, MREchoSequence={"EffectiveEchoTime": 5.0 + 5 * c})],
            uid=f"1.2.3.{i}",
        )
        for i, (z, c) in enumerate(cells)
    ]
    found = sorted((s.metadata["echo_time"], s.array[0, :, -1, -1].tolist()) for s in stacked(streams))
    assert found == [(5.0, list(range(5))), (10.0, [100 + z for z in range(5)])]


def test_a_lone_object_of_one_frame_is_an_image_under_the_same_pseudonym():
    pixels = np.random.default_rng(0).integers(0, 2000, (1, 4, 5))
    (scan,) = stacked([write(pixels, [frame(0)])])
    np.testing.assert_array_equal(scan.array[0], pixels[0])
    assert (scan.spacing, scan.scan) == ((1.5, 0.5), PSEUDONYMS.of("scan", b"1.2.3.4"))


@pytest.mark.parametrize("modality", ["MR", "XA", "US"])
def test_objects_of_one_frame_without_a_position_are_images(modality):
    pixels = np.random.default_rng(0).integers(0, 2000, (1, 4, 5))
    own = [
        {"FrameContentSequence": {}, "PixelValueTransformationSequence": {"RescaleSlope": 2.0, "RescaleIntercept": 1.0}}
    ]
    ((scan, part),) = reader.read(write(pixels, own, modality=modality), "a.dcm", PSEUDONYMS)
    np.testing.assert_array_equal(scan.array[0], 2 * pixels[0] + 1)
    assert part == "a.dcm"
