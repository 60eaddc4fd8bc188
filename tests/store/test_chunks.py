"""The bytes of a scan: equal arrays back, whole and in parts; damage and foreign files are refused, never decoded."""

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
from medssl.store.chunks import foreground_start, overview, pack, read_crop, read_overview, unpack

DTYPES = ["uint8", "int16", "uint16", "float32"]


def drawn(shape, dtype="int16", seed=0):
    """Smooth, with noise, so that pieces compress; some of it constant."""
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.normal(0, 3, shape), -1) + 100
    x[..., : shape[-1] // 3] = 7
    return x.clip(0, 200).astype(dtype)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_whole_and_part_come_back(tmp_path_factory, data):
    """Any shape around the size of the pieces, any dtype, any box; beside other bytes in the same file."""
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


def test_bytes_are_the_same_on_every_machine():
    """Of a known array; a change needs another MAGIC, since stores are shared between machines and versions."""
    x = (np.arange(1 * 10 * 70 * 66).reshape(1, 10, 70, 66) // 40 % 500).astype(np.int16)
    packed = pack(x)
    assert packed[:4] == b"MSV1"
    assert (len(packed), zlib.crc32(packed)) == (6551, 3805885669)


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


def mended(packed, shape, dtype, piece, data):
    """`packed` with other bytes for one piece, and every checksum right: what a liar would write."""
    count = chunks._pieces(shape)
    table = np.frombuffer(packed, "<u4", 2 * count, offset=28).reshape(count, 2).copy()
    ends = accumulate(table[:, 0].tolist(), initial=28 + 8 * count)
    parts = [packed[a:b] for a, b in pairwise(ends)]
    parts[piece], table[piece] = data, (len(data), zlib.crc32(data))
    head = packed[:24] + struct.pack("<I", zlib.crc32(packed[:24] + table.tobytes()))
    return head + table.tobytes() + b"".join(parts)


@pytest.mark.parametrize("shape", [(1, 60, 61), (1, 9, 66, 30)])
def test_a_changed_bit_is_seen(shape):
    packed = pack(drawn(shape))
    head = 28 + 8 * chunks._pieces(shape)
    for at in [*range(head), *range(head, len(packed), 37)]:
        broken = bytearray(packed)
        broken[at] ^= 1 << at % 8
        with pytest.raises(ValueError, match=r"damaged|cut|not this|length"):
            unpack(bytes(broken), shape, "int16")


def test_a_changed_bit_is_seen_by_a_crop_that_needs_it(tmp_path):
    x = drawn((1, 9, 66, 30))
    broken = bytearray(pack(x))
    broken[28 + 8 * 5 + 40] ^= 1  # in the first piece
    path = tmp_path / "x.vol"
    path.write_bytes(broken)
    with pytest.raises(ValueError, match="damaged"):
        read_crop(path, 0, 0, x.shape, "int16", (0, 0, 0), (1, 1, 1))
    np.testing.assert_array_equal(read_crop(path, 0, 0, x.shape, "int16", (8, 0, 0), (1, 66, 30)), x[:, 8:])
    assert np.array_equal(read_overview(path, 0, 0, x.shape, "int16"), overview(x))


def test_cut_longer_or_of_another_scan_is_refused(tmp_path):
    x = drawn((1, 9, 66, 30))
    packed = pack(x)
    path = tmp_path / "x.vol"
    for n in [0, 3, 27, 40, 70, len(packed) // 2, len(packed) - 1]:
        path.write_bytes(packed[:n])
        with pytest.raises(ValueError, match=r"cut|length"):
            unpack(packed[:n], x.shape, "int16")
        with pytest.raises(ValueError, match="cut"):
            read_overview(path, 0, 0, x.shape, "int16")
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
    """With right checksums too: other codecs and filters of blosc2 may load code, or write beyond the array."""
    x = drawn((1, 8, 60, 60))
    other = blosc2.compress2(x, **{"typesize": 2, **chunks.CODEC, **options})
    lie = mended(pack(x), x.shape, "int16", 0, other)
    with pytest.raises(ValueError, match="not a piece"):
        unpack(lie, x.shape, "int16")


@pytest.mark.parametrize("scale", [0.5, 2])
def test_a_piece_of_another_size_is_refused(scale):
    x = drawn((1, 8, 60, 60))
    other = blosc2.compress2(np.zeros(int(x.size * scale), "int16"), typesize=2, **chunks.CODEC)
    with pytest.raises(ValueError, match="not a piece"):
        unpack(mended(pack(x), x.shape, "int16", 0, other), x.shape, "int16")


def test_every_flag_of_a_piece_but_ours_is_refused():
    """blosc2's lazy pieces, dictionaries and plug-ins are switched on by bits of a piece's header."""
    x = drawn((1, 8, 60, 60))
    piece = blosc2.compress2(x, typesize=2, **chunks.CODEC)
    same = mended(pack(x), x.shape, "int16", 0, piece)
    np.testing.assert_array_equal(unpack(same, x.shape, "int16"), x)
    for at, value in [(31, 0x08), (31, 0x01), (2, piece[2] | 0xC0), (17, 160), (22, 33), (0, 6)]:
        lie = bytearray(piece)
        lie[at] = value
        with pytest.raises(ValueError, match="not a piece"):
            unpack(mended(pack(x), x.shape, "int16", 0, bytes(lie)), x.shape, "int16")


@pytest.mark.parametrize(
    ("start", "size"),
    [((0, 0, -1), (1, 1, 1)), ((0, 0, 0), (1, 1, 31)), ((9, 0, 0), (1, 1, 1)), ((0, 0, 0), (0, 1, 1))],
)
def test_a_box_outside_is_refused(tmp_path, start, size):
    x = drawn((1, 9, 66, 30))
    (tmp_path / "x.vol").write_bytes(pack(x))
    with pytest.raises(ValueError, match="not inside"):
        read_crop(tmp_path / "x.vol", 0, 0, x.shape, "int16", start, size)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (2, 17, 9, 30), (1, 1, 3, 5), (1, 40, 64, 65)])
def test_overview_is_the_mean_of_blocks(tmp_path, shape, dtype):
    x = drawn(shape, dtype)
    if dtype == "int16":
        x = x - 150
    expected = np.empty((shape[0], *(-(-n // 8) for n in shape[1:])))
    for c, d, h, w in np.ndindex(expected.shape):
        expected[c, d, h, w] = x[c, d * 8 : d * 8 + 8, h * 8 : h * 8 + 8, w * 8 : w * 8 + 8].mean(dtype=np.float64)
    got = overview(x)
    assert (got.dtype, got.shape) == (np.dtype(dtype), expected.shape)
    np.testing.assert_array_equal(got, expected.astype(dtype) if dtype == "float32" else np.rint(expected))
    path = tmp_path / "x.vol"
    path.write_bytes(b"?" + pack(x))
    np.testing.assert_array_equal(read_overview(path, 1, 0, shape, dtype), got)


@settings(deadline=None)
@given(st.data())
def test_a_crop_holds_foreground(data):
    """One bright voxel block in any place: every crop has all of it, or is all within it, and lies inside."""
    shape = data.draw(st.tuples(*[st.integers(1, 60)] * 3))
    size = data.draw(st.tuples(*[st.integers(1, n) for n in shape]))
    block = [data.draw(st.integers(0, (n - 1) // 8)) for n in shape]
    u = data.draw(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3))
    x = np.full((1, *shape), -1000, np.int16)
    bright = tuple(slice(8 * b, 8 * b + 8) for b in block)
    x[0][bright] = 1000
    start = foreground_start(overview(x), x.shape, -1000, 1500, size, u)
    assert all(0 <= a <= n - s for a, n, s in zip(start, shape, size, strict=True))
    for a, s, b, n in zip(start, size, block, shape, strict=True):
        first, last = 8 * b, min(8 * b + 8, n)
        assert (a <= first and last <= a + s) or (first <= a and a + s <= last)


def test_foreground_is_drawn_evenly():
    """All blocks, and all places in the crop, are about equally likely; the same numbers give the same crop."""
    x = np.zeros((2, 80, 64, 64), np.uint8)
    x[0, :16, :8, :8] = x[1, 64:72, 56:, 32:48] = 255  # 2 + 2 blocks
    small, u = overview(x), np.random.default_rng(0).random((4000, 3))
    starts = np.array([foreground_start(small, x.shape, 0, 255, (8, 8, 8), v) for v in u])
    found, counts = np.unique(starts, axis=0, return_counts=True)
    assert found.tolist() == [[0, 0, 0], [8, 0, 0], [64, 56, 32], [64, 56, 40]]
    assert abs(counts - 1000).max() < 100
    wide = np.array([foreground_start(small, x.shape, 0, 255, (8, 8, 16), v) for v in u])[:, 2]
    places = np.bincount(wide[wide > 20], minlength=41)[24:]  # of the blocks at 32 and 40
    expected = np.where(np.arange(17) == 8, 222, 111)
    assert abs(places - expected).max() < 50


def test_where_nothing_is_foreground_a_crop_starts_anywhere():
    x = np.zeros((1, 20, 30, 40), np.int16)
    u = np.random.default_rng(0).random((500, 3))
    starts = [foreground_start(overview(x), x.shape, 0, 100, (20, 50, 10), v) for v in u]
    first, second, third = zip(*starts, strict=True)
    assert set(first) == set(second) == {0}
    assert set(third) == set(range(31))


def test_real_volumes(shared, tmp_path):
    paths = sorted((shared / "hippocampus").rglob("hippocampus_*.nii.gz"))[:4]
    for path in paths:
        x = np.asarray(nibabel.load(path).dataobj).T[None]
        x = x.astype("float32" if x.dtype.kind == "f" else "int16")
        packed = pack(x)
        np.testing.assert_array_equal(unpack(packed, x.shape, x.dtype), x)
        assert len(packed) < x.nbytes
        small = overview(x)
        u = np.random.default_rng(0).random((50, 3))
        high = np.percentile(x, 99.5)
        for v in u:
            start = foreground_start(small, x.shape, 0, high, (16, 16, 16), v)
            box = x[(0, *(slice(a, a + 16) for a in start))]
            assert box.max() > 0.1 * high
