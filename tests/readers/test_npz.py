import io
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.readers import npz
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Scan, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 7), np.uint8)


def saved(compressed=True, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED):
    """Return a zip file of raw members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def run(data, name="x.npz"):
    return list(npz.read(io.BytesIO(data), name, PSEUDONYMS))


def code(data):
    with pytest.raises(Unreadable) as e:
        run(data)
    assert e.value.code in CODES
    return e.value.code


@pytest.mark.parametrize(
    ("name", "shape", "n"), [("breastmnist", (1, 28, 28), 780), ("adrenalmnist3d", (1, 28, 28, 28), 1584)]
)
def test_medmnist_archives(shared, name, shape, n):
    path = shared / "medmnist" / f"{name}.npz"
    with path.open("rb") as stream:
        scans = list(npz.read(stream, f"{name}.npz", PSEUDONYMS))
    assert len(scans) == n == len({scan.scan for scan, _ in scans}) == len({scan.patient for scan, _ in scans})
    arrays = dict(np.load(path))
    in_order = [f"{name}.npz#{s}/{i}" for s in ("train", "val", "test") for i in range(len(arrays[f"{s}_images"]))]
    assert [part for _, part in scans] == in_order
    for scan, part in scans[:: n // 40]:
        split, i = part.removeprefix(f"{name}.npz#").split("/")
        assert scan.split == split
        assert scan.array.shape == shape
        assert scan.labels == {"label": str(int(arrays[f"{split}_labels"][int(i), 0]))}
        np.testing.assert_array_equal(scan.array[0], arrays[f"{split}_images"][int(i)])
        assert scan.patient == PSEUDONYMS.of("patient", f"file|{part}")


@pytest.mark.parametrize("dtype", ["u1", "?", "<i2", ">i2", ">u2", "<i8", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("fortran", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_types_and_orders(dtype, fortran, compressed):
    images = (IMAGES % 2 if dtype == "?" else IMAGES).astype(dtype)
    data = saved(compressed, train_images=np.asfortranarray(images) if fortran else images)
    for i, (scan, part) in enumerate(run(data)):
        assert part == f"x.npz#train/{i}"
        np.testing.assert_array_equal(scan.array[0], images[i].astype(scan.array.dtype))
        assert scan.array.dtype.isnative
        assert scan.array.flags.writeable
        assert scan.labels == {}
    assert i == 3


def test_colour_volumes_and_labels():
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (3, 6, 7, 3), np.uint8)
    volumes = rng.integers(0, 256, (2, 4, 6, 7), np.uint8)
    colour_volumes = rng.integers(0, 256, (2, 4, 6, 7, 3), np.uint8)
    found = run(
        saved(
            test_images=colour_volumes,
            val_images=colour,
            train_images=volumes,
            val_labels=np.array([[0, 1], [1, 1], [1, 0]]),
            train_labels=np.array([5, 6], np.uint8),
            other=np.arange(3),
        )
    )
    assert [part for _, part in found] == [
        *("x.npz#train/0", "x.npz#train/1", "x.npz#val/0", "x.npz#val/1", "x.npz#val/2", "x.npz#test/0", "x.npz#test/1")
    ]
    scans = [scan for scan, _ in found]
    np.testing.assert_array_equal(scans[1].array[0], volumes[1])
    np.testing.assert_array_equal(scans[4].array, colour[2].transpose(2, 0, 1))
    np.testing.assert_array_equal(scans[5].array, colour_volumes[0].transpose(3, 0, 1, 2))
    assert (scans[1].labels, scans[4].labels) == ({"label": "6"}, {"label_0": "1", "label_1": "0"})
    grey = run(saved(train_images=np.repeat(IMAGES[..., None], 3, -1)))
    np.testing.assert_array_equal(grey[0][0].array, IMAGES[:1])
    unit = (colour / 255).astype(np.float32)  # a tolerance of 2 would be meaningless
    np.testing.assert_array_equal(run(saved(train_images=unit))[0][0].array, unit[0].transpose(2, 0, 1))


def test_a_bad_image_does_not_affect_the_others():
    images = IMAGES.astype(np.float32)
    images[1] = np.nan
    found = run(saved(train_images=images))
    assert [isinstance(scan, Scan) for scan, _ in found] == [True, False, True, True]
    assert found[1][0].code == "NON_FINITE"
    assert found[1][1] == "x.npz#train/1"


def test_other_arrays_are_refused():
    assert code(saved(volume=IMAGES)) == "NOT_AN_IMAGE"
    assert code(saved(train_images=IMAGES[0])) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES.astype(complex))) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES[:, :0])) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=np.float32(3))) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES, train_labels=np.arange(3))) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES, train_labels=IMAGES.astype(np.float32))) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES, train_labels=np.zeros((4, 20, 20), int))) == "UNSUPPORTED_PIXELS"
    assert code(b"") == "EMPTY"
    assert run(saved(train_images=IMAGES[:0])) == []


def test_pickles_are_never_loaded():
    bad = np.array([{"a": 1}] * 4)
    assert code(saved(train_images=bad)) == "UNSUPPORTED_PIXELS"
    assert code(saved(train_images=IMAGES, train_labels=bad)) == "UNSUPPORTED_PIXELS"
    records = np.zeros((4, 6, 7), [("a", "u1")])
    assert code(saved(train_images=records)) == "UNSUPPORTED_PIXELS"
    evil = npy(IMAGES).replace(b"'shape': (4, 6, 7)", b"'shape': exit(3) #")
    assert code(zipped({"train_images.npy": evil})) == "BAD_HEADER"


def test_wrong_headers_of_members_are_refused():
    data = npy(IMAGES)
    assert code(zipped({"train_images.npy": data[:-1]})) == "BAD_LENGTH"
    assert code(zipped({"train_images.npy": data + b"x"})) == "BAD_LENGTH"
    assert code(zipped({"train_images.npy": data[:50]})) == "TRUNCATED"
    assert code(zipped({"train_images.npy": b"\x93NUMPY\x09\0" + data[8:]})) in {"TRUNCATED", "UNSUPPORTED_PIXELS"}
    huge = data.replace(b"(4, 6, 7), ", b"(2, 9999999, 9999999), ")
    assert code(zipped({"train_images.npy": huge})) in {"BAD_LENGTH", "TRUNCATED"}
    assert code(zipped({"train_images.npy": data}, zipfile.ZIP_BZIP2)) == "UNSUPPORTED_PIXELS"
    encrypted = bytearray(zipped({"train_images.npy": data}))
    for start, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        encrypted[encrypted.index(start) + at] |= 1
    assert code(bytes(encrypted)) == "UNSUPPORTED_PIXELS"


def test_bombs_need_little_memory():
    """A member that is much larger than its header states; a large valid archive is read one image at a time."""
    header = npy(IMAGES)
    bomb = zipped({"train_images.npy": header + bytes(1 << 24)})
    honest = saved(train_images=np.zeros((40, 512, 1024), np.uint8))
    tracemalloc.start()
    assert code(bomb) == "BAD_LENGTH"
    for scan, _ in npz.read(io.BytesIO(honest), "x", PSEUDONYMS):
        assert scan.array.shape == (1, 512, 1024)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_a_member_shorter_than_its_header_states_is_refused():
    data = bytearray(zipped({"train_images.npy": npy(IMAGES)}))
    for start, at in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<I", data, data.index(start) + at, 1 << 30)
    assert code(bytes(data)) == "BAD_LENGTH"


def test_nothing_is_returned_before_all_checksums_are_verified():
    many = np.tile(IMAGES, (100, 1, 1))  # more than zipfile reads ahead
    data = bytearray(saved(False, train_images=many, test_images=many + 1))
    data[data.rindex((many + 1).tobytes()) + many.size - 1] ^= 1
    with pytest.raises(Unreadable) as e:
        next(npz.read(io.BytesIO(bytes(data)), "x", PSEUDONYMS))
    assert e.value.code == "TRUNCATED"


@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.just(0) | st.integers(0, 1 << 16),
    compressed=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_damage_gives_a_code_or_the_original_images(flips, cut, compressed):
    data = bytearray(saved(compressed, train_images=IMAGES, train_labels=np.arange(4)))
    for at, value in flips:
        data[at % len(data)] = value
    try:
        found = run(bytes(data[: len(data) - cut % len(data)]))
    except Unreadable as e:
        assert CODES[e.code]  # noqa: PT017
        return
    for i, (scan, _) in enumerate(found):
        assert np.array_equal(scan.array[0], IMAGES[i])
