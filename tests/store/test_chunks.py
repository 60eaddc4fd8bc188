"""The bytes of a scan decode to equal arrays, whole and in crops; damaged and foreign bytes are refused, never decoded."""

import math
import struct
import tracemalloc
import zlib
from itertools import accumulate, pairwise

import blosc2
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.store import chunks
from medssl.store.chunks import pack, read_crop, unpack

DTYPES = ["uint8", "int16", "uint16", "float32"]


def drawn(shape, dtype="int16", seed=0):
    """Smooth values with noise, so that chunks compress; a third is constant."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(0, 3, shape), -1) + 100
    x[..., : shape[-1] // 3] = 7
    return x.clip(0, 200).astype(dtype)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whole_and_part_come_back(tmp_path_factory, data):
    """Shapes around the chunk size, any dtype, any box, with other bytes around it in the same file."""
    dims = data.draw(st.sampled_from([2, 3]))
    side = {2: st.integers(1, 530), 3: st.integers(1, 70)}[dims]
    shape = (data.draw(st.integers(1, 3)), *data.draw(st.tuples(*[side] * dims)))
    dtype = data.draw(st.sampled_from(DTYPES))
    start = [data.draw(st.integers(0, n - 1)) for n in shape[1:]]
    size = [data.draw(st.integers(1, n - a)) for n, a in zip(shape[1:], start, strict=True)]
    x = drawn(shape, dtype, data.draw(st.integers(0, 99)))
    packed = pack(x)
    whole = unpack(packed, shape, dtype)
    assert whole.dtype == dtype
    np.testing.assert_array_equal(whole, x)
    path = tmp_path_factory.getbasetemp() / "scans.bin"
    path.write_bytes(b"before" + packed + b"behind")
    part = read_crop(path, 6, len(packed), shape, dtype, start, size)
    np.testing.assert_array_equal(part, x[(slice(None), *(slice(a, a + n) for a, n in zip(start, size, strict=True)))])


@pytest.mark.parametrize("fill", ["noise", "zero", "value", "extremes"])
def test_what_compresses_oddly(fill):
    x = np.zeros((1, 20, 70, 70), np.int16)
    if fill == "noise":
        x = np.random.default_rng(0).integers(-32768, 32767, x.shape, np.int16)
    elif fill == "value":
        x[:] = -1024
    elif fill == "extremes":
        x[..., ::2], x[..., 1::2] = -32768, 32767
    np.testing.assert_array_equal(unpack(pack(x), x.shape, "int16"), x)


def test_float_bits_survive():
    x = np.array([0.0, -0.0, 1e-45, 3.4e38, -1.5, np.pi], np.float32).reshape(1, 2, 3)
    assert unpack(pack(x), x.shape, "float32").tobytes() == x.tobytes()


@pytest.mark.parametrize("order", ["C", "F"])
def test_layout_in_memory_does_not_matter(order):
    x = drawn((1, 9, 66, 67))
    assert pack(np.asarray(x, order=order)) == pack(x)
    assert pack(x[:, ::-1]) == pack(x[:, ::-1].copy())


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [((1, 10, 70, 66), "int16", (6325, 3995052783)), ((3, 300, 70), "uint16", (8911, 2274019117))],
)
def test_bytes_are_the_same_on_every_machine(shape, dtype, expected):
    """A change that the reader cannot tell apart needs another MAGIC: stores are shared between machines and versions."""
    x = (np.arange(np.prod(shape)).reshape(shape) // 40 % 500).astype(dtype)
    packed = pack(x)
    assert packed[:4] == b"MSV1"
    assert (len(packed), zlib.crc32(packed)) == expected


def test_reads_little_more_than_the_crop(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 4000, (1, 64, 256, 256)).astype(np.int16)
    path = tmp_path / "x.vol"
    path.write_bytes(pack(x))
    read = []
    fetcher = chunks._fetcher

    def counting(file, offset):
        fetch = fetcher(file, offset)
        return lambda start, n: read.append(n) or fetch(start, n)

    monkeypatch.setattr(chunks, "_fetcher", counting)
    part = read_crop(path, 0, 0, x.shape, "int16", (20, 70, 70), (1, 50, 50))
    np.testing.assert_array_equal(part, x[:, 20:21, 70:120, 70:120])
    assert sum(read) < path.stat().st_size / 100


def test_needs_little_memory():
    x = np.random.default_rng(0).integers(0, 4000, (1, 64, 256, 256)).astype(np.int16)
    tracemalloc.start()
    packed = pack(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(packed) * 1.2 + 3e6


def mended(packed, shape, chunk, data):
    """Return `packed` with other bytes for one chunk and every checksum correct, as a forger would write it."""
    count = math.prod(chunks._grid(shape))
    table = np.frombuffer(packed, "<u4", 2 * count, offset=28).reshape(count, 2).copy()
    ends = accumulate(table[:, 0].tolist(), initial=28 + 8 * count)
    parts = [packed[a:b] for a, b in pairwise(ends)]
    parts[chunk], table[chunk] = data, (len(data), zlib.crc32(data))
    head = packed[:24] + struct.pack("<I", zlib.crc32(packed[:24] + table.tobytes()))
    return head + table.tobytes() + b"".join(parts)


@pytest.mark.parametrize("shape", [(1, 60, 61), (1, 9, 66, 30)])
def test_a_changed_bit_is_seen(shape):
    packed = pack(drawn(shape))
    head = 28 + 8 * math.prod(chunks._grid(shape))
    for at in [*range(head), *range(head, len(packed), 37)]:
        broken = bytearray(packed)
        broken[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"damaged|cut|not this|length"):
            unpack(bytes(broken), shape, "int16")


def test_a_changed_bit_is_seen_by_a_crop_that_needs_it(tmp_path):
    x = drawn((1, 9, 66, 30))
    broken = bytearray(pack(x))
    broken[28 + 8 * 5 + 40] ^= 1  # in the first chunk
    path = tmp_path / "x.vol"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="damaged"):
        read_crop(path, 0, 0, x.shape, "int16", (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(read_crop(path, 0, 0, x.shape, "int16", (8, 0, 0), (1, 66, 30)), x[:, 8:])


def test_cut_longer_or_of_another_scan_is_refused(tmp_path):
    x = drawn((1, 9, 66, 30))
    packed = pack(x)
    path = tmp_path / "x.vol"
    for n in [0, 3, 27, 40, 70, len(packed) // 2, len(packed) - 1]:
        path.write_bytes(packed[:n])
        with pytest.raises(ValueError, match=r"cut|length"):
            unpack(packed[:n], x.shape, "int16")
        with pytest.raises(ValueError, match="cut"):
            read_crop(path, 0, 0, x.shape, "int16", (0, 0, 0), x.shape[1:])
    for shape, dtype in [((1, 9, 66, 31), "int16"), ((9, 66, 30), "int16"), (x.shape, "uint16"), (x.shape, "uint8")]:
        with pytest.raises(ValueError, match="not this scan"):
            unpack(packed, shape, dtype)
    with pytest.raises(ValueError, match="length"):
        unpack(packed + b"x", x.shape, "int16")
    with pytest.raises(ValueError, match="not this scan"):
        unpack(blosc2.asarray(x).to_cframe(), x.shape, "int16")


@pytest.mark.parametrize(
    "options",
    [
        {"codec": blosc2.Codec.ZSTD},
        {"filters": [blosc2.Filter.SHUFFLE]},
        {"filters": [blosc2.Filter.DELTA]},
        {"typesize": 1},
    ],
)
def test_decodes_nothing_but_what_it_writes(options):
    """Even with correct checksums: other codecs and filters of blosc2 may load code or write past the array."""
    x = drawn((1, 8, 60, 60))
    other = blosc2.compress2(x, **{"typesize": 2, **chunks.CODEC, **options})
    lie = mended(pack(x), x.shape, 0, other)
    with pytest.raises(ValueError, match="not a chunk"):
        unpack(lie, x.shape, "int16")


@pytest.mark.parametrize("scale", [0.5, 2])
def test_a_chunk_of_another_size_is_refused(scale):
    x = drawn((1, 8, 60, 60))
    other = blosc2.compress2(np.zeros(int(x.size * scale), "int16"), typesize=2, **chunks.CODEC)
    with pytest.raises(ValueError, match="not a chunk"):
        unpack(mended(pack(x), x.shape, 0, other), x.shape, "int16")


def test_every_chunk_flag_but_ours_is_refused():
    """Bits of a chunk's header switch on blosc2's lazy chunks, dictionaries and plug-ins."""
    x = drawn((1, 8, 60, 60))
    chunk = blosc2.compress2(x, typesize=2, **chunks.CODEC)
    same = mended(pack(x), x.shape, 0, chunk)
    np.testing.assert_array_equal(unpack(same, x.shape, "int16"), x)
    for at, value in [(31, 0x08), (31, 0x01), (2, chunk[2] | 0xC0), (17, 160), (22, 33), (0, 6)]:
        lie = bytearray(chunk)
        lie[at] = value
        with pytest.raises(ValueError, match="not a chunk"):
            unpack(mended(pack(x), x.shape, 0, bytes(lie)), x.shape, "int16")


@pytest.mark.parametrize(
    ("start", "size"),
    [((0, 0, -1), (1, 1, 1)), ((0, 0, 0), (1, 1, 31)), ((9, 0, 0), (1, 1, 1)), ((0, 0, 0), (0, 1, 1))],
)
def test_a_box_outside_is_refused(tmp_path, start, size):
    x = drawn((1, 9, 66, 30))
    (tmp_path / "x.vol").write_bytes(pack(x))
    with pytest.raises(ValueError, match="not inside"):
        read_crop(tmp_path / "x.vol", 0, 0, x.shape, "int16", start, size)


@pytest.mark.parametrize("shape", [(1, 9, 66, 30), (2, 3, 5, 4)])
def test_volumes_with_the_thumbnail_of_earlier_versions_open_alike(tmp_path, shape):
    """One more chunk at the end, listed in the table: not read, but a file without it is cut short."""
    x = drawn(shape)
    packed, count = pack(x), math.prod(chunks._grid(shape))
    thumbnail = blosc2.compress2(x[:, ::8, ::8, ::8].copy(), typesize=2, **chunks.CODEC)
    table = packed[28 : 28 + 8 * count] + struct.pack("<II", len(thumbnail), zlib.crc32(thumbnail))
    head = packed[:24] + struct.pack("<I", zlib.crc32(packed[:24] + table)) + table
    old = head + packed[28 + 8 * count :] + thumbnail
    np.testing.assert_array_equal(unpack(old, shape, "int16"), x)
    path = tmp_path / "x.vol"
    path.write_bytes(b"before" + old + b"behind")
    crop = read_crop(path, 6, len(old), shape, "int16", (1, 2, 3), (2, 3, 1))
    np.testing.assert_array_equal(crop, x[:, 1:3, 2:5, 3:4])
    for at in range(len(head)):
        broken = bytearray(old)
        broken[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"damaged|not this"):
            unpack(bytes(broken), shape, "int16")
    with pytest.raises(ValueError, match="length"):
        unpack(old[: -len(thumbnail)], shape, "int16")


def test_real_volumes(shared, tmp_path):
    paths = sorted((shared / "hippocampus").rglob("hippocampus_*.nii.gz"))[:4]
    for path in paths:
        x = np.asarray(nibabel.load(path).dataobj).T[None]
        x = x.astype("float32" if x.dtype.kind == "f" else "int16")
        packed = pack(x)
        np.testing.assert_array_equal(unpack(packed, x.shape, x.dtype), x)
        assert len(packed) < x.nbytes
