import gzip
import io
import math
import struct
import tracemalloc

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.readers import nifti
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Scan, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
# Offset and `struct` format of the header fields named in `encoded`, in this order.
NIFTI1 = {
    40: "8h",
    70: "h",
    72: "h",
    76: "8f",
    108: "f",
    112: "2f",
    123: "b",
    252: "2h",
    256: "6f",
    280: "12f",
    68: "h",
}
NIFTI2 = {
    16: "8q",
    12: "h",
    14: "h",
    104: "8d",
    168: "q",
    176: "2d",
    500: "i",
    344: "2i",
    352: "6d",
    400: "12d",
    504: "i",
}
VOXELS = np.random.default_rng(0).integers(-900, 900, (4, 5, 6)).astype(np.int16)


def encoded(array, affine=None, kind=nibabel.Nifti1Image, **fields):
    """Return a file with voxels of 2 x 3 x 4 mm, the first axis pointing left, and the given header fields."""
    image = kind(array, np.diag([-2.0, 3.0, 4.0, 1.0]) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    data = bytearray(image.to_bytes())
    order = image.header.endianness
    places = NIFTI2 if kind is nibabel.Nifti2Image else NIFTI1
    names = "dim datatype bitpix pixdim offset scaling units codes quaternion srow intent".split()  # noqa: SIM905
    for field, values in fields.items():
        at, how = list(places.items())[names.index(field)]
        struct.pack_into(order + how, data, at, *(values if isinstance(values, tuple) else (values,)))
    return bytes(data)


def run(data, name="x.nii"):
    return list(nifti.read(io.BytesIO(data), name, PSEUDONYMS))


def only(data, name="x.nii"):
    [(scan, part)] = run(data, name)
    assert isinstance(scan, Scan), scan
    assert part == name
    return scan


def code(data):
    """Return the reject code of a file that contains no scan."""
    try:
        [(why, _)] = run(data)
    except Unreadable as e:
        why = e
    assert isinstance(why, Unreadable)
    assert why.code in CODES
    return why.code


def reference(image):
    """Return (array (D, H, W, …), affine of (d, h, w)) in canonical orientation, from nibabel alone."""
    image = nibabel.as_closest_canonical(image)
    return np.moveaxis(np.asarray(image.dataobj), (0, 1, 2), (2, 1, 0)), image.affine[:, [2, 1, 0, 3]]


def test_hippocampus_volumes_equal_nibabel(shared):
    files = sorted((shared / "hippocampus" / "images").glob("*.nii*"))[:12]
    assert files
    for path in files:
        scan = only(path.read_bytes())
        expected, affine = reference(nibabel.load(path))
        np.testing.assert_array_equal(scan.array[0], expected)
        np.testing.assert_allclose(scan.affine, affine, atol=1e-6)
        assert scan.spacing == pytest.approx((1, 1, 1))
        assert (scan.quarantined, scan.patient_known, scan.modality) == ("", False, "")


def test_volumes_of_other_converters_equal_nibabel(shared):
    files = sorted(p for p in (shared / "dicom").rglob("*.nii*") if p.stat().st_size < 1 << 22)
    assert len(files) >= 15
    for path in files:
        image = nibabel.load(path)
        expected, affine = reference(image)
        found = run(path.read_bytes())
        if expected.dtype.names:
            expected = np.stack([expected[c] for c in "RGB"])
            assert len(found) == 1
            np.testing.assert_array_equal(found[0][0].array, expected[: found[0][0].array.shape[0]])
            continue
        expected = expected.reshape(*expected.shape[:3], -1, order="F")
        assert len(found) == expected.shape[3]
        for k, (scan, part) in enumerate(found):
            assert part == (f"x.nii#volume/{k}" if len(found) > 1 else "x.nii")
            np.testing.assert_array_equal(scan.array[0], expected[..., k].astype(scan.array.dtype).squeeze())
            if scan.affine is not None:
                np.testing.assert_allclose(scan.affine, affine, atol=1e-4)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_type_byte_order_and_version(dtype, order, kind):
    array = np.random.default_rng(1).integers(0, 100, (4, 5, 6)).astype(order + dtype)
    header = kind.header_class(endianness=order)
    header.set_data_dtype(order + dtype)
    image = kind(array, np.diag([-2.0, 3.0, 4.0, 1.0]), header)
    expected, affine = reference(image)
    for data in (image.to_bytes(), gzip.compress(image.to_bytes())):
        scan = only(data)
        np.testing.assert_array_equal(scan.array[0], expected)
        np.testing.assert_array_equal(scan.affine, affine)
        assert scan.array.dtype == {"u1": "u1", "f4": "f4", "f8": "f4", "u2": "u2", "u4": "u2", "u8": "u2"}.get(
            dtype, "i2"
        )
        assert scan.array.flags.writeable
        assert ("64-bit to 32-bit floating point" in scan.steps) == (dtype == "f8")


def test_axes_scaling_and_units():
    scan = only(encoded(VOXELS))
    right = VOXELS[::-1].transpose(2, 1, 0)  # the first axis of the file points left
    np.testing.assert_array_equal(scan.array[0], right)
    assert scan.array.dtype == np.int16
    assert scan.spacing == (4, 3, 2)
    assert scan.steps == ("reorient to RAS",)
    scaled = only(encoded(VOXELS, scaling=(0.5, 3.0)))
    np.testing.assert_array_equal(scaled.array[0], right * np.float32(0.5) + 3)
    assert scaled.array.dtype == np.float32
    assert scaled.steps[0] == "rescale"
    whole = only(encoded(VOXELS, scaling=(2.0, -1024.0)))
    np.testing.assert_array_equal(whole.array[0], right.astype(int) * 2 - 1024)
    assert whole.array.dtype == np.int16
    for slope in (0.0, math.nan, math.inf):
        np.testing.assert_array_equal(only(encoded(VOXELS, scaling=(slope, 7.0))).array, scan.array)
    for unit, factor in ((0, 1), (1, 1000), (2, 1), (3, 1e-3), (2 + 8, 1)):
        assert only(encoded(VOXELS, units=unit)).spacing == pytest.approx((4 * factor, 3 * factor, 2 * factor))


@given(
    turn=st.tuples(*[st.floats(-3, 3)] * 3),
    zooms=st.tuples(*[st.floats(0.2, 5)] * 3),
    origin=st.tuples(*[st.floats(-200, 200)] * 3),
    left=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_qform_equals_nibabel(turn, zooms, origin, left):
    affine = np.eye(4)
    affine[:3, :3] = nibabel.eulerangles.euler2mat(*turn) @ np.diag(zooms) @ np.diag([1, 1, -1 if left else 1])
    affine[:3, 3] = origin
    image = nibabel.Nifti1Image(VOXELS, None)
    image.set_qform(affine, 1)
    image.set_sform(None, 0)
    image = nibabel.Nifti1Image.from_bytes(image.to_bytes())
    scan = only(image.to_bytes())
    expected, placed = reference(image)
    np.testing.assert_array_equal(scan.array[0], expected)
    np.testing.assert_allclose(scan.affine, placed, atol=1e-4)


def test_sform_is_preferred_to_qform():
    turned = (0.0, 0.0, math.sqrt(0.5), 10.0, 20.0, 30.0)  # a rotation by 90 degrees about the third axis
    both = only(encoded(VOXELS, quaternion=turned, codes=(1, 1)))
    np.testing.assert_array_equal(both.affine[:3, 3], [-6, 0, 0])
    q = only(encoded(VOXELS, quaternion=turned, codes=(1, 0)))
    assert q.array.shape == (1, 6, 4, 5)
    assert q.affine[2, 3] == 30 - 5 * 4  # qfac is -1: the third axis points down
    np.testing.assert_array_equal(
        only(encoded(VOXELS, quaternion=turned, codes=(1, 1), srow=(0.0,) * 12)).affine, q.affine
    )
    for fields in (
        {"codes": (0, 0)},
        {"codes": (1, 0), "quaternion": (0.9, 0.9, 0.9, 0, 0, 0)},
        {"srow": (math.nan,) * 12},
    ):
        scan = only(encoded(VOXELS, **({"codes": (0, 1)} | fields)))
        assert scan.affine is None  # the orientation is unknown, so the array is not reoriented
        assert scan.spacing == (4, 3, 2)
        np.testing.assert_array_equal(scan.array[0], VOXELS.transpose(2, 1, 0))
        assert scan.steps == ()
    for pixdim in ((1.0, 0.0, 0.0, 0.0), (1.0, -2.0, 3.0, 4.0), (1.0, math.nan, 1.0, 1.0)):
        scan = only(encoded(VOXELS, codes=(1, 0), pixdim=(*pixdim, 0.0, 0.0, 0.0, 0.0)))
        assert (scan.affine, scan.spacing) == (None, None)


def test_disagreeing_spacing_is_recorded():
    scan = only(encoded(VOXELS, pixdim=(1.0, 2.0, 3.0, 9.0, 0.0, 0.0, 0.0, 0.0)))
    assert scan.spacing == (4, 3, 2)
    assert any("disagree" in step for step in scan.steps)


def test_a_qform_of_another_orientation_is_recorded():
    image = nibabel.Nifti1Image(VOXELS, np.diag([-2.0, 3.0, 4.0, 1.0]))
    image.set_sform(np.diag([-2.0, 3.0, 4.0, 1.0]), 1)
    step = "sform and qform disagree on the orientation: sform taken"
    for first, disagree in ((2.0, True), (-2.0, False)):
        image.set_qform(np.diag([first, 3.0, 4.0, 1.0]), 1)
        [(scan, _)] = nifti.read(io.BytesIO(image.to_bytes()), "x", PSEUDONYMS)
        assert (step in scan.steps) == disagree
        assert np.array_equal(scan.array[0], VOXELS[::-1].T)
    image.set_qform(np.diag([2.0, 3.0, 4.0, 1.0]), 0)  # code 0: there is no qform
    [(scan, _)] = nifti.read(io.BytesIO(image.to_bytes()), "x", PSEUDONYMS)
    assert step not in scan.steps


def test_sheared_sform_is_kept():
    affine = np.array([[2, 0, 0, 1], [0, 3, 1.5, 2], [0, 0, 4, 3], [0, 0, 0, 1.0]])
    data = encoded(VOXELS)
    data = bytearray(data)
    struct.pack_into("<12f", data, 280, *affine[:3].ravel())
    np.testing.assert_array_equal(only(bytes(data)).affine, affine[:, [2, 1, 0, 3]])


def test_every_volume_of_a_4d_file():
    four = np.stack([VOXELS + k for k in range(3)], -1)
    for data in (encoded(four), gzip.compress(encoded(four))):
        found = run(data, "a/f.nii")
        assert [part for _, part in found] == [f"a/f.nii#volume/{k}" for k in range(3)]
        for k, (scan, part) in enumerate(found):
            np.testing.assert_array_equal(scan.array[0], (VOXELS + k)[::-1].transpose(2, 1, 0))
            assert scan.metadata == {"volume": k}
            assert scan.scan == PSEUDONYMS.of("scan", f"file|{part}")
            assert scan.patient == PSEUDONYMS.of("patient", "file|a/f.nii")
    alone = only(encoded(four[..., :1]))
    np.testing.assert_array_equal(alone.array, only(encoded(VOXELS)).array)
    assert len(run(encoded(np.stack([four, four], -1)))) == 6


def test_flat_files_are_images():
    for voxels in (VOXELS[:, :, :1], VOXELS[:, :, 0]):
        scan = only(encoded(voxels))
        np.testing.assert_array_equal(scan.array[0], VOXELS[::-1, :, 0].T)
        assert (scan.spacing, scan.affine) == ((3, 2), None)
    sagittal = only(encoded(VOXELS[:1]))
    assert (sagittal.array.shape, sagittal.spacing) == ((1, 6, 5), (4, 3))
    assert code(encoded(VOXELS[:, :1, :1])) == "NOT_AN_IMAGE"
    assert code(encoded(VOXELS[:, 0, 0])) == "NOT_AN_IMAGE"


def test_colour():
    rgb = np.random.default_rng(0).integers(0, 256, (4, 5, 6, 3), np.uint8)
    records = np.ascontiguousarray(rgb).view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    scan = only(encoded(records, scaling=(2.0, 1.0)))
    np.testing.assert_array_equal(scan.array, rgb[::-1].transpose(3, 2, 1, 0))
    rgba = np.concatenate([rgb, rgb[..., :1]], -1).view([("R", "u1"), ("G", "u1"), ("B", "u1"), ("A", "u1")])[..., 0]
    scan = only(encoded(rgba))
    np.testing.assert_array_equal(scan.array, rgb[::-1].transpose(3, 2, 1, 0))
    assert "alpha dropped" in scan.steps
    grey = np.repeat(rgb[..., :1], 3, -1).view(records.dtype)[..., 0]
    assert only(encoded(grey)).array.shape == (1, 6, 5, 4)
    assert code(encoded(VOXELS.astype(np.complex64))) == "UNSUPPORTED_PIXELS"


def test_non_finite_and_huge_values():
    voxels = np.linspace(-5, 5, 1000, dtype=np.float32).reshape(10, 10, 10)
    few, many, none = voxels.copy(), voxels.copy(), np.full_like(voxels, np.nan)
    few[5, 5, :3] = np.nan, np.inf, -np.inf
    many[5, :2] = np.nan
    scan = only(encoded(few))
    assert np.isfinite(scan.array).all()
    assert (scan.array == -5).sum() == 4
    assert "non-finite replaced" in scan.steps
    assert code(encoded(many)) == code(encoded(none)) == "NON_FINITE"
    assert code(encoded(voxels.astype(np.float64) * 1e60)) == "UNSUPPORTED_PIXELS"
    assert code(encoded((VOXELS.astype(np.int32) << 20) + 1)) == "UNSUPPORTED_PIXELS"
    assert code(encoded(voxels, scaling=(1e38, 0.0))) in {"NON_FINITE", "UNSUPPORTED_PIXELS"}


def test_a_background_that_is_not_finite_is_filled():
    """As maps computed inside a mask have it: volumes of a time series as well, and single slices."""
    outside = ((np.indices((8, 8, 8)) - 3.5) ** 2).sum(0) > 12
    voxels = np.random.default_rng(0).normal(100, 20, (8, 8, 8)).astype(np.float32)
    expected = np.where(outside, voxels[~outside].min(), voxels)
    with_nan = np.where(outside, np.nan, voxels).astype(np.float32)
    scan = only(encoded(with_nan, np.diag([1.0, 1.0, 1.0, 1.0])))
    np.testing.assert_array_equal(scan.array[0], expected.transpose(2, 1, 0))
    assert "non-finite background filled" in scan.steps
    series = run(encoded(np.stack([with_nan, with_nan + 1], -1), np.diag([1.0, 1.0, 1.0, 1.0])))
    assert [scan.array.min() for scan, _ in series] == [expected.min(), expected.min() + 1]
    flat = only(encoded(with_nan[:, :, 3:4], np.diag([1.0, 1.0, 1.0, 1.0])))
    lowest = np.nanmin(with_nan[:, :, 3])
    np.testing.assert_array_equal(flat.array[0], np.nan_to_num(with_nan[:, :, 3], nan=lowest).T)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"dim": (9, 4, 5, 6, 1, 1, 1, 1)}, "BAD_HEADER"),
        ({"dim": (0, 4, 5, 6, 1, 1, 1, 1)}, "BAD_HEADER"),
        ({"dim": (3, 4, -5, 6, 1, 1, 1, 1)}, "BAD_HEADER"),
        ({"dim": (3, 4, 0, 6, 1, 1, 1, 1)}, "BAD_HEADER"),
        ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "TOO_LARGE"),
        ({"dim": (7, *[32767] * 7)}, "TOO_LARGE"),
        ({"dim": (3, 2000, 2000, 900, 1, 1, 1, 1)}, "TRUNCATED"),
        ({"datatype": 0}, "BAD_HEADER"),
        ({"datatype": 3}, "BAD_HEADER"),
        ({"datatype": 1, "bitpix": 1}, "UNSUPPORTED_PIXELS"),
        ({"bitpix": 8}, "BAD_HEADER"),
        ({"offset": 0.0}, "BAD_HEADER"),
        ({"offset": 340.0}, "BAD_HEADER"),
        ({"offset": 352.5}, "BAD_HEADER"),
        ({"offset": math.nan}, "BAD_HEADER"),
        ({"offset": math.inf}, "BAD_HEADER"),
        ({"offset": 1e30}, "TOO_LARGE"),
        ({"offset": 400.0}, "TRUNCATED"),
        ({"scaling": (1.0, math.nan)}, "BAD_HEADER"),
        ({"intent": 1007}, "NOT_AN_IMAGE"),
        ({"intent": 1010}, "NOT_AN_IMAGE"),
        ({"intent": 2005}, "NOT_AN_IMAGE"),
        ({"intent": 3002}, "NOT_AN_IMAGE"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_wrong_headers_are_refused(fields, expected, pack):
    assert code(pack(encoded(VOXELS, **fields))) == expected


@pytest.mark.parametrize(
    ("dim", "kind"),
    [
        ((5, 1, 1, 1, 2000, 2000, 1, 1), nibabel.Nifti1Image),  # CIFTI without its intent
        ((6, 1, 1, 1, 1, 91282, 1200, 1), nibabel.Nifti2Image),
        ((4, 163842, 1, 1, 300, 1, 1, 1), nibabel.Nifti2Image),
        ((4, 1, 1, 40, 300, 1, 1, 1), nibabel.Nifti1Image),
        ((3, 27307, 1, 6, 1, 1, 1, 1), nibabel.Nifti1Image),  # surfaces as FreeSurfer writes them
        ((4, 6827, 1, 6, 200, 1, 1, 1), nibabel.Nifti1Image),
        ((3, 107, 1, 6, 1, 1, 1, 1), nibabel.Nifti1Image),
        ((3, 6087, 1, 23, 1, 1, 1, 1), nibabel.Nifti1Image),
        ((3, -1, 1, 1, 1, 1, 1, 1), nibabel.Nifti1Image),
    ],
)
def test_surfaces_and_tables_are_refused_as_one_file(dim, kind):
    """However many volumes the header states, there is one line about them, and nothing is unpacked."""
    data = bytearray(encoded(np.zeros((2, 2, 2), np.uint8), kind=kind, dim=dim))
    if kind is nibabel.Nifti1Image:
        struct.pack_into("<i", data, 144, 163842)  # glmin, the number of points if the first dimension is -1
    for packed in (bytes(data), gzip.compress(bytes(data))):
        with pytest.raises(Unreadable, match="not an image") as why:
            run(packed)
        assert why.value.code == "NOT_AN_IMAGE"


def test_narrow_images_are_kept():
    for shape in ((512, 16, 1), (80, 1, 8), (7, 40, 1), (200, 2, 3)):
        [(scan, _)] = run(encoded(np.random.default_rng(0).integers(0, 2000, shape).astype(np.int16)))
        assert scan.array.size == math.prod(shape)


def test_an_absurd_number_of_volumes_is_refused_at_once():
    data = encoded(np.zeros((2, 2, 2), np.uint8), dim=(5, 2, 2, 1, 1000, 1000, 1, 1))[:352] + bytes(4_000_000)
    with pytest.raises(Unreadable, match="1,000,000 volumes according to the header; at most 65,536"):
        run(gzip.compress(data))


def test_other_magics():
    data = encoded(VOXELS)
    assert code(data[:344] + b"ni1\0" + data[348:]) == "HEADER_PAIR"
    assert code(data[:344] + b"\0\0\0\0" + data[348:]) == "BAD_HEADER"
    assert code(data[:344] + b"n+1x" + data[348:]) == "BAD_HEADER"
    assert code(b"\0\0\1\x5d" + data[4:]) == "BAD_HEADER"
    two = encoded(VOXELS, kind=nibabel.Nifti2Image)
    assert code(two[:4] + b"ni2" + two[7:]) == "HEADER_PAIR"
    assert code(two[:8] + b"\n\n\x1a\n" + two[12:]) == "BAD_HEADER"  # damaged by a transfer in text mode
    assert code(b"") == "EMPTY"


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_truncated_file_never_gives_a_volume(kind):
    data = encoded(np.stack([VOXELS, VOXELS], -1), kind=kind)
    for whole in (data, gzip.compress(data)):
        for end in [*range(1, len(whole), 37), len(whole) - 1]:
            assert code(whole[:end]) == "TRUNCATED"


def test_a_damaged_gzip_never_gives_a_volume():
    data = gzip.compress(encoded(np.stack([VOXELS, VOXELS], -1)))
    for at in range(len(data) - 8, len(data)):  # checksum and length
        flipped = bytearray(data)
        flipped[at] ^= 1
        with pytest.raises(Unreadable) as e:
            next(nifti.read(io.BytesIO(bytes(flipped)), "x", PSEUDONYMS))
        assert e.value.code == "TRUNCATED"
    assert code(data + b"junk") == "TRUNCATED"
    only(gzip.compress(encoded(VOXELS)) + bytes(100))  # zero padding is allowed


def test_much_data_after_the_voxels_is_refused():
    only(encoded(VOXELS) + bytes(1000))
    for pack in (bytes, gzip.compress):
        assert code(pack(encoded(VOXELS) + bytes(nifti.SLACK + 1))) == "BAD_LENGTH"


def test_bombs_need_little_memory():
    """32 MiB of zeros after a small header, and a header for 4 GB in a gzip file that could hold them."""
    tail = gzip.compress(encoded(VOXELS) + bytes(1 << 25), 1)
    greedy = gzip.compress(encoded(VOXELS, dim=(3, 1000, 1000, 2000, 1, 1, 1, 1)) + bytes(1 << 25), 1)
    greedy += np.random.default_rng(0).bytes(1 << 22)  # long enough to make 4 GB possible
    tracemalloc.start()
    assert code(tail) == "BAD_LENGTH"
    assert code(greedy) == "TRUNCATED"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 << 20


def test_a_4d_file_needs_the_memory_of_one_volume():
    data = gzip.compress(encoded(np.zeros((64, 64, 64, 40), np.int16)), 1)
    tracemalloc.start()
    for scan, _ in nifti.read(io.BytesIO(data), "x", PSEUDONYMS):
        del scan
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # a volume has 0.5 MiB, the file 20


def test_label_maps_are_quarantined():
    rng = np.random.default_rng(0)
    few = rng.integers(0, 3, (6, 7, 8))
    many = rng.integers(0, 200, (6, 7, 8)).astype(np.int16)
    assert only(encoded(few.astype(np.uint8)), "case.nii").quarantined == "label map"
    assert only(encoded(few.astype(np.float64)), "case.nii").quarantined == "label map"
    assert only(encoded(few.astype(np.int16) * 1000), "case.nii").quarantined == "label map"
    assert only(encoded(few.astype(np.float32) / 2), "case_seg.nii").quarantined == ""
    assert only(encoded(many), "case.nii").quarantined == ""
    assert only(encoded(many), "case_seg.nii.gz").quarantined == "label map"
    assert only(encoded(many), "labelsTr/case.nii.gz").quarantined == "label map"
    assert only(encoded(many), "unmasked/segmental.nii.gz").quarantined == ""
    assert only(encoded(VOXELS, intent=1002)).quarantined == "label map"


def eight_bit(shape=(10, 11, 12)):
    """Return a smooth image of 256 greys with noise, in one byte."""
    i, j, k = np.indices(shape)
    noise = np.random.default_rng(0).normal(0, 6, shape)
    return np.clip(20 * np.sin(i / 2) + 15 * j + 4 * k + noise + 20, 0, 255).astype(np.uint8)


def regions(shape=(20, 22, 24), n=60):
    """Return the numbers of the nearest of n points, 0 beyond the head."""
    rng = np.random.default_rng(0)
    grid = np.indices(shape).reshape(3, -1)
    nearest = ((grid[:, None] - rng.uniform(0, 20, (3, n, 1))) ** 2).sum(0).argmin(0).reshape(shape) + 1
    radius = np.sqrt(((np.indices(shape) - 10.5) ** 2).sum(0))
    return np.where(radius < 10, nearest, 0).astype(np.int16)


@pytest.mark.parametrize(
    "name",
    [
        "tumor_seg/case.nii",
        "roi-study/a/case.nii.gz",
        "segmentation/images/case.nii",
        "gt images/case.nii",
        "a.zip!/seg_2/x.nii",
    ],
)
def test_the_name_of_a_data_set_does_not_make_its_images_label_maps(name):
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 8)).astype(np.uint8)
    for image in (eight_bit(), noise, eight_bit()[:, :, :1]):
        assert len(np.unique(image)) > 32
        assert only(encoded(image), name).quarantined == ""
    assert only(encoded(regions()), name).quarantined == "label map"
    assert only(encoded(regions() % 3), name).quarantined == "label map"


def test_the_name_of_a_file_or_a_folder_of_label_maps_is_believed():
    for name in ("tumor_seg/case_mask.nii", "tumor_seg/labels/case.nii", "a/seg_masks/case.nii", "case.label.nii"):
        assert only(encoded(eight_bit()), name).quarantined == "label map"
    assert only(encoded(regions()), "case.nii").quarantined == ""


def test_no_text_of_the_header_is_returned():
    secret = b"Qorvath^Zelimir"
    data = bytearray(encoded(VOXELS))
    for at in (4, 14, 148, 228, 328):  # data_type, db_name, descrip, aux_file, intent_name
        data[at : at + len(secret)] = secret
    extension = struct.pack("<2i", 32, 2) + secret.ljust(24, b"\0")
    data[348:352] = b"\1\0\0\0"
    data[352:352] = extension
    struct.pack_into("<f", data, 108, 384.0)
    packed = io.BytesIO()
    with gzip.GzipFile(secret.decode(), "wb", fileobj=packed) as f:
        f.write(data)
    scan = only(packed.getvalue())
    np.testing.assert_array_equal(scan.array, only(encoded(VOXELS)).array)
    assert "Qorvath" not in repr(scan)


def damaged(data, flips, cut):
    data = bytearray(data)
    for at, value in flips:
        data[at % len(data)] = value
    return bytes(data[: len(data) - cut % len(data)])


@given(
    flips=st.lists(
        st.tuples(st.integers(0, 1 << 20) | st.integers(0, 540), st.integers(0, 255)), min_size=1, max_size=4
    ),
    cut=st.just(0) | st.integers(0, 1 << 20),
    pick=st.integers(0, 3),
)
@settings(max_examples=250, deadline=None)
def test_damage_gives_a_code_or_a_valid_scan(flips, cut, pick):
    kind = (nibabel.Nifti1Image, nibabel.Nifti2Image)[pick % 2]
    data = encoded(np.stack([VOXELS, VOXELS], -1), kind=kind)
    data = damaged(data, flips, cut) if pick < 2 else damaged(gzip.compress(data), flips, cut)
    tracemalloc.start()
    try:
        for scan, _ in run(data):
            if isinstance(scan, Scan):
                assert np.isfinite(scan.array).all()
                assert scan.array.ndim in {3, 4}
                assert scan.spacing is None or all(0 < v < 1e5 for v in scan.spacing)
                assert scan.affine is None or np.isfinite(scan.affine).all()
                if pick > 1:
                    np.testing.assert_array_equal(np.sort(scan.array, None), np.sort(VOXELS, None))
    except Unreadable as e:
        assert CODES[e.code]  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20
