"""One scan as one run of bytes, in pieces that are compressed on their own, so that a crop reads only what it needs.

    head      MAGIC, dtype, shape, CRC-32 of the head up to here and of the table
    table     for every piece: its length and its CRC-32, two uint32
    pieces    (c, d, h, w) boxes of CHUNK in C order, each one blosc2 buffer (LZ4, bit-shuffled)
    overview  of a volume only: one voxel per 8 along each axis, compressed likewise

Why not a .b2nd file: opening one for a partial read may rebuild, and so run, an expression that is saved in it, and
its pieces have no checksum: a flipped bit can decode into other values. Here nothing but numbers is ever decoded.
"""

import io
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import blosc2
import imagecodecs
import numpy as np

MAGIC = b"MSV1"  # a change of anything below is another number
CHUNK = {3: (1, 256, 256), 4: (1, 8, 64, 64)}  # by dimensions of the array; see benchmarks/speed_store.py
CODEC = {
    "codec": blosc2.Codec.LZ4,
    "clevel": 5,
    "filters": [blosc2.Filter.BITSHUFFLE],
    "filters_meta": [0],
    "blocksize": 1 << 16,  # bytes; a fixed one, and one thread: the same bytes on every machine
    "nthreads": 1,
}
FACTOR = 8  # voxels along each axis that become one of the overview
FOREGROUND = 0.1  # of the way from low to high, above which a voxel of the overview is not air

_HEAD = struct.Struct("<4s4s4II")
_PIECE = struct.Struct("<BBBBIII16s")  # blosc2's header: version, -, flags, typesize, nbytes, blocksize, cbytes, codec
_LZ4_BITSHUFFLE = bytes([2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])

crc32: Any = imagecodecs.deflate_crc32  # the CRC-32 of zlib, five times as fast
Fetch = Callable[[int, int], memoryview]  # (offset in the scan's bytes, count) -> those bytes, or fewer at the end


def pack(array: np.ndarray) -> bytes:
    """(C, H, W) or (C, D, H, W) as bytes, the same on every machine. Needs little more memory than the result."""
    assert array.ndim in CHUNK, array.shape
    assert array.size, array.shape
    table = np.zeros((_pieces(array.shape), 2), "<u4")
    body = io.BytesIO()
    body.seek(_HEAD.size + table.nbytes)
    for i, box in enumerate(_boxes(array.shape)):
        table[i] = _append(body, array[box])
    if array.ndim == 4:
        table[-1] = _append(body, overview(array))
    about, raw = _about(array.shape, array.dtype), table.tobytes()
    body.seek(0)
    body.write(about + struct.pack("<I", crc32(about + raw)) + raw)
    return body.getvalue()


def unpack(data: bytes | memoryview, shape: Sequence[int], dtype: str | np.dtype) -> np.ndarray:
    """The array that `pack` was given. Raises ValueError when the bytes are not exactly it, the overview included."""
    view = memoryview(data)

    def fetch(offset: int, count: int) -> memoryview:
        return view[offset : offset + count]

    if len(shape) == 4:
        _overview(fetch, len(view), shape, dtype)
    return _read(fetch, len(view), shape, dtype, [0] * (len(shape) - 1), shape[1:])


def read_crop(
    path: str | Path,
    offset: int,
    length: int,
    shape: Sequence[int],
    dtype: str | np.dtype,
    start: Sequence[int],
    size: Sequence[int],
) -> np.ndarray:
    """The box of `size` voxels from `start` on (spatial axes), (C, *size), of the scan at [offset, offset + length).

    Reads and decodes only the pieces that the box touches. A `length` of 0 means to the end of the file.

    Raises:
        ValueError: when the box is not inside the scan, or the bytes are damaged, cut or another scan's.
        OSError: when the file cannot be read.
    """
    with Path(path).open("rb", buffering=0) as f:
        return _read(_fetcher(f, offset), length, shape, dtype, start, size)


def read_overview(
    path: str | Path, offset: int, length: int, shape: Sequence[int], dtype: str | np.dtype
) -> np.ndarray:
    """`overview` of the volume at [offset, offset + length), from its own bytes. Raises as `read_crop`."""
    assert len(shape) == 4, shape
    with Path(path).open("rb", buffering=0) as f:
        return _overview(_fetcher(f, offset), length, shape, dtype)


def overview(array: np.ndarray) -> np.ndarray:
    """Mean of every block of 8 x 8 x 8 voxels, (C, D, H, W) -> (C, ceil(D/8), ceil(H/8), ceil(W/8)), in its own dtype."""
    out = np.empty(_overview_shape(array.shape), array.dtype)
    edges = [np.arange(0, n, FACTOR) for n in array.shape[2:]]
    sides = [np.diff(np.append(e, n)) for e, n in zip(edges, array.shape[2:], strict=True)]
    for c, d in np.ndindex(out.shape[:2]):
        slab = array[c, d * FACTOR : (d + 1) * FACTOR]
        total = slab.sum(0, dtype=np.float64 if array.dtype.kind == "f" else np.int64)
        total = np.add.reduceat(np.add.reduceat(total, edges[0], 0), edges[1], 1)
        mean = total / (len(slab) * np.outer(*sides))
        out[c, d] = mean if array.dtype.kind == "f" else np.rint(mean)
    return out


def foreground_start(
    overview: np.ndarray, shape: Sequence[int], low: float, high: float, size: Sequence[int], u: Sequence[float]
) -> tuple[int, ...]:
    """Where a crop of `size` voxels may start so that it holds foreground; anywhere when there is none.

    Every foreground block is equally likely to be the one that the crop holds, and every place of it in the crop.

    Args:
        overview: (C, d, h, w), see `overview`.
        shape: of the whole array, (C, D, H, W).
        low, high: the window of the scan; foreground is above `low + FOREGROUND * (high - low)` in any channel.
        size: of the crop, per axis; an axis shorter than that starts at 0.
        u: uniform numbers in [0, 1), one per axis. The same numbers, the same crop.
    """
    mask = np.any(overview > low + FOREGROUND * (high - low), axis=0)
    if not mask.any():
        return tuple(int(x * (max(n - s, 0) + 1)) for n, s, x in zip(shape[1:], size, u, strict=True))
    start = []
    for n, s, x in zip(shape[1:], size, u, strict=True):
        # the axes one after the other: this one's share of blocks, given the blocks chosen on those before
        share = mask.reshape(len(mask), -1).sum(1)
        edges = np.cumsum(share)
        target = float(x) * int(edges[-1])
        block = int(np.searchsorted(edges, target, side="right"))
        rest = (target - int(edges[block])) / int(share[block]) + 1  # uniform again
        mask = mask[block]
        low_start, high_start = sorted((block * FACTOR, (block + 1) * FACTOR - s))  # all of the block, or all within it
        begin = min(low_start + int(rest * (high_start - low_start + 1)), high_start)
        start.append(max(0, min(begin, n - s)))
    return tuple(start)


def _read(
    fetch: Fetch,
    length: int,
    shape: Sequence[int],
    dtype: str | np.dtype,
    start: Sequence[int],
    size: Sequence[int],
) -> np.ndarray:
    if not len(start) == len(size) == len(shape) - 1:
        raise ValueError(f"a crop at {tuple(start)} of {tuple(size)} does not fit a scan of {tuple(shape)}")
    if any(s < 0 or z < 1 or s + z > n for s, z, n in zip(start, size, shape[1:], strict=True)):
        raise ValueError(f"a crop at {tuple(start)} of {tuple(size)} is not inside a scan of {tuple(shape)}")
    starts, sums = _table(fetch, length, shape, dtype)
    out = np.empty((shape[0], *size), dtype)
    chunk, grid = CHUNK[len(shape)], _grid(shape)
    steps = [math.prod(grid[i + 1 :]) for i in range(len(grid) - 1)]  # pieces from one to the next along an axis
    spans = [_spans(*axis) for axis in zip((0, *start), out.shape, chunk, shape, strict=True)]
    scratch = np.empty(math.prod(chunk), dtype)
    for rows in product(*spans[:-1]):
        first = spans[-1][0].number + sum(row.number * step for row, step in zip(rows, steps, strict=True))
        # along the last axis the pieces lie side by side: one read
        ends = starts[first : first + len(spans[-1]) + 1].tolist()
        data = fetch(ends[0], ends[-1] - ends[0])
        for i, column in enumerate(spans[-1]):
            box = (*rows, column)
            inside = tuple(x.inside for x in box)
            piece = out if inside == out.shape else scratch[: math.prod(inside)].reshape(inside)
            _decode(data[ends[i] - ends[0] : ends[i + 1] - ends[0]], int(sums[first + i]), piece)
            if piece is not out:
                out[tuple(x.here for x in box)] = piece[tuple(x.there for x in box)]
    return out


class _Span(NamedTuple):
    """Along one axis, the part of one piece that a crop takes."""

    number: int  # of the piece
    inside: int  # voxels of the piece
    here: slice  # of the crop
    there: slice  # of the piece


def _spans(start: int, size: int, chunk: int, n: int) -> list[_Span]:
    out = []
    for number in range(start // chunk, (start + size - 1) // chunk + 1):
        begin, end = number * chunk, min((number + 1) * chunk, n)
        left, right = max(begin, start), min(end, start + size)
        out.append(_Span(number, end - begin, slice(left - start, right - start), slice(left - begin, right - begin)))
    return out


def _overview(fetch: Fetch, length: int, shape: Sequence[int], dtype: str | np.dtype) -> np.ndarray:
    starts, sums = _table(fetch, length, shape, dtype)
    out = np.empty(_overview_shape(shape), dtype)
    _decode(fetch(int(starts[-2]), int(starts[-1] - starts[-2])), int(sums[-1]), out)
    return out


def _table(fetch: Fetch, length: int, shape: Sequence[int], dtype: str | np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Where each piece starts, with the end of the last, (N + 1,), and their checksums, (N,)."""
    count = _pieces(shape)
    head = fetch(0, _HEAD.size + 8 * count)
    about = _about(shape, dtype)
    if len(head) != _HEAD.size + 8 * count or head[: len(about)] != about:
        raise ValueError("not this scan, or cut short")
    raw = head[_HEAD.size :]
    if crc32(about + bytes(raw)) != int.from_bytes(head[len(about) : _HEAD.size], "little"):
        raise ValueError("damaged table")
    table = np.frombuffer(raw, "<u4").reshape(count, 2)
    starts = np.cumsum(np.concatenate(([len(head)], table[:, 0])), dtype=np.int64)
    if length and starts[-1] != length:
        raise ValueError("wrong length")
    return starts, table[:, 1]


def _decode(data: memoryview, checksum: int, out: np.ndarray) -> None:
    """One piece into `out`, C-contiguous. Only what `pack` can have written gets as far as the decoder."""
    if crc32(data) != checksum or len(data) < _PIECE.size:
        raise ValueError("damaged or cut short")
    version, _, flags, typesize, nbytes, _, cbytes, codec = _PIECE.unpack_from(data)
    fits = (version, typesize, nbytes, cbytes) == (5, out.itemsize, out.nbytes, len(data))
    # flags: both shuffle bits mean a long header, whose codec, filters and flags (no lazy piece) must be ours
    if not fits or flags & 0b101 != 0b101 or flags >> 5 > 1 or codec[:15] != _LZ4_BITSHUFFLE or codec[15] & ~0x70:
        raise ValueError("not a piece of a scan")
    try:
        blosc2.decompress2(data, dst=out, nthreads=1)
    except RuntimeError as e:
        raise ValueError("damaged") from e


def _append(body: io.BytesIO, piece: np.ndarray) -> tuple[int, int]:
    """Its length and checksum."""
    data = blosc2.compress2(np.ascontiguousarray(piece), typesize=piece.itemsize, **CODEC)
    body.write(data)
    return len(data), crc32(data)


def _about(shape: Sequence[int], dtype: str | np.dtype) -> bytes:
    kind = np.dtype(dtype).newbyteorder("<").str.encode()
    return _HEAD.pack(MAGIC, kind, *shape, *[0] * (4 - len(shape)), 0)[:-4]


def _grid(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(-(-n // c) for n, c in zip(shape, CHUNK[len(shape)], strict=True))


def _pieces(shape: Sequence[int]) -> int:
    return math.prod(_grid(shape)) + (len(shape) == 4)


def _boxes(shape: Sequence[int]) -> Iterator[tuple[slice, ...]]:
    chunk = CHUNK[len(shape)]
    for index in product(*map(range, _grid(shape))):
        yield tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))


def _overview_shape(shape: Sequence[int]) -> tuple[int, ...]:
    return (shape[0], *(-(-n // FACTOR) for n in shape[1:]))


def _fetcher(file: io.FileIO, offset: int) -> Fetch:
    def fetch(start: int, count: int) -> memoryview:
        file.seek(offset + start)
        return memoryview(file.read(count))  # fewer than `count` at the end of a cut file: the checks see it

    return fetch
