"""Slices of one volume are found although what may tell volumes apart differs by rounding or by file."""

import io
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl.readers.dicom import reader
from medssl.readers.dicom.grouping import divide
from medssl.readers.dicom.slices import CONTRAST
from medssl.readers.dicom.stack_geometry import stack_affine
from medssl.readers.geometry import voxel_spacing
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice

PSEUDONYMS = Pseudonyms(bytes(32))
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
NONE = ((),) * len(CONTRAST)


def contrast(**values):
    return tuple((float(values[k]),) if k in values else () for k in CONTRAST)


def at(heights, start=0, **fields):
    """Return axial slices at these heights, mm, numbered from `start`. A list gives each slice its own value of a field."""
    made = []
    for i, z in enumerate(heights):
        own = {k: v[i] if isinstance(v, list) else v for k, v in fields.items()}
        usual = {"order": (0.0, 1.0, float(start + i)), "series": "s", "frame_of_reference": "r", "contrast": NONE}
        usual |= {"orientation": AXIAL, "spacing": (1.0, 1.0), "about": {"modality": "MR"}}
        made.append(Slice(f"f{start + i}", f"u{start + i}", "k", (0.0, 0.0, float(z)), **usual | own))
    return made


def divided(slices):
    """Return (volumes as lists of file numbers, codes of rejects by count, number of images) in any order of files."""
    found = None
    for seed in range(3):
        some = random.Random(seed).sample(slices, len(slices))
        plan = divide(some, lambda asked: {s.file: s.file for s in asked})
        out = [s.file for stack in plan.stacks for s in stack] + [s.file for s, _ in plan.rejected]
        assert Counter(out) == Counter(s.file for s in slices)
        assert len(plan.notes) == len(plan.stacks)
        volumes = sorted([int(s.file[1:]) for s in stack] for stack in plan.volumes)
        for stack in plan.volumes:
            stack_affine(stack)
        codes = Counter(why.code for _, why in plan.rejected)
        result = volumes, dict(codes), sum(len(stack) == 1 for stack in plan.stacks)
        assert found in (None, result)
        found = result
    return found


def whole(n, start=0):
    return list(range(start, start + n))


TURN = np.array([0.9995, np.sqrt(1 - 0.9995**2)])  # a rotation whose cosine lies on a border of rounding


def turned(cosine):
    sine = float(np.sqrt(1 - cosine**2))
    return cosine, sine, 0.0, -sine, cosine, 0.0


NOISE = {
    "orientation": [turned(0.99949997), turned(0.99950003)],
    "spacing": [(0.683551, 0.683551), (0.683549, 0.683549)],
    **{
        f"contrast {k}": [contrast(**{k: a}), contrast(**{k: b})]
        for k, a, b in (
            ("EchoTime", 4.92, 4.920001),
            ("InversionTime", 2500, 2500.0002),
            ("FlipAngle", 9.9999, 10),
            ("DiffusionBValue", 1000, 1000.0001),
            ("ReconstructionDiameter", 240, 239.99),
            ("VelocityEncodingMaximumValue", 150, 150.001),
        )
    },
    "stack": ["1", "2"],
    "frame_of_reference": ["r1", "r2"],
    "series": ["s1", "s2"],
}


@pytest.mark.parametrize("what", NOISE)
@pytest.mark.parametrize("pattern", ["alternating", "at random", "halves", "one aside"])
def test_values_either_side_of_a_border_are_one_volume(what, pattern):
    rng = np.random.default_rng(3)
    n = 16
    which = {
        "alternating": [i % 2 for i in range(n)],
        "at random": rng.integers(0, 2, n).tolist(),
        "halves": [i // 8 for i in range(n)],
        "one aside": [int(i == 5) for i in range(n)],
    }[pattern]
    fields = {what.split(" ")[0]: [NOISE[what][w] for w in which]}
    slices = (
        at(2.5 * np.arange(n), **fields, series_number="7") if what == "series" else at(2.5 * np.arange(n), **fields)
    )
    assert divided(slices) == ([whole(n)], {}, 0)


def test_values_that_differ_a_little_in_every_slice_are_one_volume():
    rng = np.random.default_rng(1)
    echoes = [
        contrast(EchoTime=4.92 + 1e-6 * rng.standard_normal(), FlipAngle=90 + 1e-5 * rng.standard_normal())
        for _ in range(30)
    ]
    assert divided(at(range(30), contrast=echoes)) == ([whole(30)], {}, 0)
    planes = [tuple(np.add(turned(0.9995), 4e-8 * rng.standard_normal(6)).tolist()) for _ in range(30)]
    assert divided(at(range(30), orientation=planes)) == ([whole(30)], {}, 0)


def test_a_missing_slice_of_a_stack_whose_values_differ_by_rounding():
    heights = [z for z in range(20) if z != 7]
    echoes = [contrast(EchoTime=(4.92, 4.920001)[z % 2]) for z in heights]
    assert divided(at(heights, contrast=echoes)) == ([whole(7), whole(12, 7)], {}, 0)


def test_time_points_of_values_that_differ_by_rounding():
    """Two time points; the echo time of each slice is rounded one way or the other."""
    rng = np.random.default_rng(5)
    echoes = [contrast(EchoTime=(4.92, 4.920001)[i]) for i in rng.integers(0, 2, 24)]
    assert divided(at([*range(12)] * 2, contrast=echoes)) == ([whole(12), whole(12, 12)], {}, 0)


@pytest.mark.parametrize(
    ("name", "a", "b"),
    [
        ("EchoTime", 4.92, 9.84),
        ("EchoTime", 4.92, 4.95),
        ("EchoNumbers", 1, 2),
        ("DiffusionBValue", 1000, 1000.5),
        ("FlipAngle", 5, 26),
        ("InversionTime", 100, 180),
    ],
)
@pytest.mark.parametrize("blocks", [False, True])
def test_contrasts_share_their_positions_and_stay_apart(name, a, b, blocks):
    """However near their values are, and also if instance numbers alternate between them."""
    places = [*range(9)] * 2 if blocks else [z for z in range(9) for _ in range(2)]
    values = [a] * 9 + [b] * 9 if blocks else [a, b] * 9
    found = divided(at(places, contrast=[contrast(**{name: v}) for v in values]))
    parts = [whole(9), whole(9, 9)] if blocks else [list(range(0, 18, 2)), list(range(1, 18, 2))]
    assert found == (parts, {}, 0)
    slices = at(places, contrast=[contrast(**{name: v}) for v in values])
    assert divide(slices, lambda asked: {s.file: s.file for s in asked}).notes == [{}, {}]  # not repeats of one


def test_other_contrasts_between_the_slices_stay_apart():
    """Volumes with echo times of 5 and 10 ms whose slices interleave share no position, but are not one contrast."""
    echoes = [contrast(EchoTime=(5, 10)[z % 2]) for z in range(16)]
    assert divided(at(range(16), contrast=echoes)) == ([list(range(0, 16, 2)), list(range(1, 16, 2))], {}, 0)


def test_an_inversion_time_for_each_slice_is_one_volume():
    times = [contrast(InversionTime=100 + 45.7 * i) for i in range(16)]
    assert divided(at(range(16), contrast=times)) == ([whole(16)], {}, 0)
    repeated = at(
        [z for z in range(3) for _ in range(8)], contrast=[contrast(InversionTime=80 * (1 + i % 8)) for i in range(24)]
    )
    assert divided(repeated) == ([], {}, 24)


def test_two_stacks_with_a_gap_between_them_stay_two():
    slices = at([*range(8), *range(20, 28)], stack=["1"] * 8 + ["2"] * 8)
    assert divided(slices) == ([whole(8), whole(8, 8)], {}, 0)
    side_by_side = [replace(s, position=(80.0 * (i > 7), 0.0, float(i % 8))) for i, s in enumerate(slices)]
    assert divided(side_by_side) == ([whole(8), whole(8, 8)], {}, 0)


# ---- series and frames of reference


@pytest.mark.parametrize("number", ["", "7"])
@pytest.mark.parametrize("fields", [("series",), ("frame_of_reference",), ("series", "frame_of_reference", "stack")])
@pytest.mark.parametrize("missing", [None, 11])
def test_an_identifier_for_each_file_is_one_volume(number, fields, missing):
    heights = [3 * z for z in range(24) if z != missing]
    slices = at(heights, **{f: [f"{f}{z}" for z in heights] for f in fields}, series_number=number)
    parts = [whole(24)] if missing is None else [whole(11), whole(12, 11)]
    assert divided(slices) == (parts, {}, 0)


def test_a_series_for_each_file_with_two_echoes_and_two_time_points():
    echoes = [contrast(EchoTime=5 * (1 + (i // 12) % 2)) for i in range(48)]
    slices = at([*range(12)] * 4, series=[f"s{i}" for i in range(48)], contrast=echoes)
    assert divided(slices) == ([whole(12, k) for k in (0, 12, 24, 36)], {}, 0)


def test_a_series_for_each_position_with_all_its_phases():
    """As for short-axis cine: ten series of one position and twelve phases each."""
    slices = at(
        [8 * z for z in range(10) for _ in range(12)],
        series=[f"s{z}" for z in range(10) for _ in range(12)],
        order=[(30.0 * t, 1.0, float(t)) for _ in range(10) for t in range(12)],
    )
    assert divided(slices) == ([[12 * z + t for z in range(10)] for t in range(12)], {}, 0)


def test_copies_of_files_with_an_identifier_each():
    slices = at(range(8), series=[f"s{i}" for i in range(8)])
    copies = [replace(s, file=f"f{i + 8}") for i, s in enumerate(slices)]
    plan = divide([*slices, *copies], lambda asked: {s.file: s.uid for s in asked})
    assert [len(stack) for stack in plan.stacks] == [8]
    assert Counter(why.code for _, why in plan.rejected) == {"DUPLICATE": 8}


def test_series_that_are_volumes_stay_apart():
    """End to end, without a series number; at the same positions; of two numbers."""
    ends = at(range(16), series=["a"] * 8 + ["b"] * 8)
    assert divided(ends) == ([whole(8), whole(8, 8)], {}, 0)
    same = at([*range(8)] * 2, series=["a"] * 8 + ["b"] * 8, series_number="3")
    assert divided(same) == ([whole(8), whole(8, 8)], {}, 0)
    numbers = at(range(16), series=["a", "b"] * 8, series_number=["1", "2"] * 8)
    assert divided(numbers) == ([list(range(0, 16, 2)), list(range(1, 16, 2))], {}, 0)


def test_a_stack_in_pieces_joins_beside_whole_series():
    """Two whole series, and one whose slices have a series each, all without a number."""
    first, second = at(range(12), series="a"), at(range(12), 12, series="b")
    pieces = at([2 * z + 0.5 for z in range(10)], 24, series=[f"p{z}" for z in range(10)])
    assert divided([*first, *second, *pieces]) == ([whole(12), whole(12, 12), whole(10, 24)], {}, 0)


def test_images_that_are_alone_in_their_series_stay_images():
    heights = [0, 7, 9, 30, 31.5, 90, 91]
    assert divided(at(heights, series=[f"s{i}" for i in range(7)])) == ([], {}, 7)
    assert divided(at([5] * 6, series=[f"s{i}" for i in range(6)])) == ([], {}, 6)
    volumes, codes, images = divided(at([*range(8), 55], series=[f"s{i}" for i in range(9)]))
    assert (volumes, codes, images) == ([whole(8)], {}, 1)


def test_of_an_unknown_modality_what_is_no_volume_is_an_image():
    assert divided(at([0, 1, 2.7, 3.1, 6, 7.3, 10.9], about={"modality": ""})) == ([], {}, 7)
    assert divided(at([0, 1, 2.7, 3.1, 6, 7.3, 10.9])) == ([], {"VARYING_SPACING": 7}, 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2), st.booleans()),
        min_size=1,
        max_size=30,
    )
)
def test_every_slice_is_accounted_for_in_any_order(cells):
    slices = at(
        [2 * z for z, *_ in cells],
        series=[f"s{v}" for _, v, *_ in cells],
        contrast=[contrast(EchoTime=5 + v) for _, _, v, *_ in cells],
        stack=[str(v) for _, _, _, v, _ in cells],
        spacing=[(0.683551, 0.683551) if v else (0.683549, 0.683549) for *_, v in cells],
    )
    divided(slices)


# ---- from files


def file(k, z, pixels, **tags):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.4", f"1.2.3.{k}", "MR"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2.3", "1.2.3.9"
    ds.FrameOfReferenceUID, ds.InstanceNumber = "1.2.3.8", str(k)
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [0, 0, z], list(AXIAL), [0.5, 0.7]
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelData = pixels.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


BY_FILE = {
    "EchoTime": ["4.92", "4.920001"],
    "PixelSpacing": [[0.5, 0.683551], [0.5, 0.683549]],
    "ImageOrientationPatient": [list(map(str, turned(0.99949997))), list(map(str, turned(0.99950003)))],
    "InversionTime": ["900", "900.0001"],
    "FlipAngle": ["8", "8.00001"],
    "DiffusionBValue": [50.0, 50.00001],
    "StackID": ["1", "2"],
    "SeriesInstanceUID": [f"1.2.3.4.{k}" for k in range(8)],
    "FrameOfReferenceUID": [f"1.2.3.5.{k}" for k in range(8)],
}


@pytest.mark.parametrize("keyword", BY_FILE)
def test_files_become_one_volume_in_the_order_of_their_positions(keyword):
    pixels = np.random.default_rng(0).integers(0, 4000, (8, 5, 6))
    values = BY_FILE[keyword]
    heights = [3.0 * z - 7 for z in range(8)]
    files = [file(k, z, pixels[k], **{keyword: values[k % len(values)]}) for k, z in enumerate(heights)]
    slices = [reader.read(io.BytesIO(f), f"{k}.dcm", PSEUDONYMS) for k, f in enumerate(files)]
    slices = [replace(s, file=str(k)) for k, s in enumerate(slices)]
    assert len({s.key for s in slices}) == 1
    plan = divide([slices[k] for k in (3, 1, 7, 0, 2, 6, 5, 4)], lambda asked: {})
    assert [[s.file for s in stack] for stack in plan.stacks] == [[str(k) for k in range(8)]]
    scan = reader.volume(plan.stacks[0], lambda s: io.BytesIO(files[int(s.file)]), PSEUDONYMS, lambda k: None)
    assert isinstance(scan, Scan)
    np.testing.assert_array_equal(scan.array[0], pixels[:, ::-1, ::-1])  # rows point to anterior, columns to right
    columns = 0.683551 if keyword == "PixelSpacing" else 0.7
    assert scan.spacing == pytest.approx((3.0, 0.5, columns), rel=1e-6)
    np.testing.assert_allclose((scan.affine @ [0, 4, 5, 1])[:3], [0, 0, -7], atol=1e-6)
    np.testing.assert_allclose((scan.affine @ [7, 4, 5, 1])[:3], [0, 0, 14], atol=1e-6)
    assert voxel_spacing(scan.affine) == pytest.approx(scan.spacing)
