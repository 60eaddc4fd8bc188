"""The bytes of one scan: chunks compressed separately, so that a crop reads only the chunks it touches.

    header  MAGIC, dtype, shape, CRC-32 of the header so far and of the table
    table   per chunk: its length in bytes and its CRC-32, two uint32
    chunks  blocks of CHUNK_SHAPE, (c, d, h, w) in C order, each one blosc2 buffer (LZ4, bit-shuffled)

Volumes written by earlier versions of medssl have one more chunk at the end, a thumbnail, which is not read.

Why not .b2nd files: opening one for a partial read may evaluate an expression saved in it, that is, run code, and its chunks
have no checksum: a flipped bit can decode to other values. Here only numbers are ever decoded.
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

MAGIC = b"MSV1"  # change it with anything below that changes the bytes
CHUNK_SHAPE = {3: (1, 256, 256), 4: (1, 8, 64, 64)}  # by array.ndim; chosen with benchmarks/speed_store.py
CODEC = {
    "codec": blosc2.Codec.LZ4,
    "clevel": 5,
    "filters": [blosc2.Filter.BITSHUFFLE],
    "filters_meta": [0],
    "blocksize": 1 << 16,  # bytes; fixed, with one thread, so that every machine writes the same bytes
    "nthreads": 1,
}

_HEADER = struct.Struct("<4s4s4II")
_CHUNK_HEADER = struct.Struct("<BBBBIII16s")  # blosc2: version, -, flags, typesize, nbytes, blocksize, cbytes, codec
_LZ4_BITSHUFFLE = bytes([2, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])

crc32: Any = imagecodecs.deflate_crc32  # the same CRC-32 as zlib's, five times as fast
Ints = Sequence[int]
Dtype = str | np.dtype
Fetch = Callable[[int, int], memoryview]  # (offset in the scan's bytes, count) -> those bytes, or fewer at the end


def pack(array: np.ndarray) -> bytes:
    """Return an array (C, H, W) or (C, D, H, W) as bytes, the same on every machine.

    Needs little more memory than the result.
    """
    assert array.ndim in CHUNK_SHAPE, array.shape
    assert array.size, array.shape
    table = np.zeros((math.prod(_grid(array.shape)), 2), "<u4")
    body = io.BytesIO()
    body.seek(_HEADER.size + table.nbytes)
    for i, box in enumerate(_boxes(array.shape)):
        chunk = blosc2.compress2(np.ascontiguousarray(array[box]), typesize=array.itemsize, **CODEC)
        table[i] = len(chunk), crc32(chunk)
        body.write(chunk)
    description, raw = _description(array.shape, array.dtype), table.tobytes()
    body.seek(0)
    body.write(description + struct.pack("<I", crc32(description + raw)) + raw)
    return body.getvalue()


def unpack(data: bytes | memoryview, shape: Ints, dtype: Dtype) -> np.ndarray:
    """Return the array that was packed. Raises ValueError if the bytes are damaged or belong to another scan."""
    view = memoryview(data)

    def fetch(offset: int, count: int) -> memoryview:
        return view[offset : offset + count]

    return _read(fetch, len(view), shape, dtype, [0] * (len(shape) - 1), shape[1:])


def read_crop(
    path: str | Path, offset: int, length: int, shape: Ints, dtype: Dtype, start: Ints, size: Ints
) -> np.ndarray:
    """Return the box of `size` voxels from `start` (spatial axes), (C, *size), of the scan at [offset, offset + length).

    Reads and decodes only the chunks that the box touches. A `length` of 0 means up to the end of the file.

    Raises:
        ValueError: if the box is not inside the scan, or the bytes are damaged, cut short or belong to another scan.
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb", buffering=0) as f:
        return _read(_fetcher(f, offset), length, shape, dtype, start, size)


def _read(fetch: Fetch, length: int, shape: Ints, dtype: Dtype, start: Ints, size: Ints) -> np.ndarray:
    if not len(start) == len(size) == len(shape) - 1:
        raise ValueError(f"a crop at {tuple(start)} of {tuple(size)} does not fit a scan of {tuple(shape)}")
    if any(s < 0 or z < 1 or s + z > n for s, z, n in zip(start, size, shape[1:], strict=True)):
        raise ValueError(f"a crop at {tuple(start)} of {tuple(size)} is not inside a scan of {tuple(shape)}")
    starts, checksums = _read_table(fetch, length, shape, dtype)
    out = np.empty((shape[0], *size), dtype)
    chunk_shape, grid = CHUNK_SHAPE[len(shape)], _grid(shape)
    steps = [math.prod(grid[i + 1 :]) for i in range(len(grid) - 1)]  # chunks from one to the next along an axis
    spans = [_spans(*axis) for axis in zip((0, *start), out.shape, chunk_shape, shape, strict=True)]
    scratch = np.empty(math.prod(chunk_shape), dtype)
    for rows in product(*spans[:-1]):
        first = spans[-1][0].number + sum(row.number * step for row, step in zip(rows, steps, strict=True))
        # chunks along the last axis are adjacent in the file: one read
        ends = starts[first : first + len(spans[-1]) + 1].tolist()
        data = fetch(ends[0], ends[-1] - ends[0])
        for i, column in enumerate(spans[-1]):
            box = (*rows, column)
            length_of = tuple(x.length for x in box)
            chunk = out if length_of == out.shape else scratch[: math.prod(length_of)].reshape(length_of)
            _decode(data[ends[i] - ends[0] : ends[i + 1] - ends[0]], int(checksums[first + i]), chunk)
            if chunk is not out:
                out[tuple(x.in_crop for x in box)] = chunk[tuple(x.in_chunk for x in box)]
    return out


class _Span(NamedTuple):
    """The overlap of a crop with one chunk, along one axis."""

    number: int  # index of the chunk along this axis
    length: int  # voxels of the chunk
    in_crop: slice
    in_chunk: slice


def _spans(start: int, size: int, chunk: int, n: int) -> list[_Span]:
    out = []
    for number in range(start // chunk, (start + size - 1) // chunk + 1):
        begin, end = number * chunk, min((number + 1) * chunk, n)
        left, right = max(begin, start), min(end, start + size)
        out.append(_Span(number, end - begin, slice(left - start, right - start), slice(left - begin, right - begin)))
    return out


def _read_table(fetch: Fetch, length: int, shape: Ints, dtype: Dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return the offset of each chunk, followed by the end of the last, (N + 1,), and the checksums, (N,)."""
    chunks = math.prod(_grid(shape))
    head = bytes(fetch(0, _HEADER.size + 8 * (chunks + 1)))
    description = _description(shape, dtype)
    if len(head) < _HEADER.size + 8 * chunks or not head.startswith(description):
        raise ValueError("not this scan, or cut short")
    expected = int.from_bytes(head[len(description) : _HEADER.size], "little")
    for count in (chunks, chunks + 1):  # with the thumbnail of earlier versions
        raw = head[_HEADER.size : _HEADER.size + 8 * count]
        if crc32(description + raw) == expected:
            break
    else:
        raise ValueError("damaged table")
    table = np.frombuffer(raw, "<u4").reshape(-1, 2)
    starts = np.cumsum(np.concatenate(([_HEADER.size + len(raw)], table[:, 0])), dtype=np.int64)
    if length and starts[-1] != length:
        raise ValueError("wrong length")
    return starts, table[:, 1]


def _decode(data: memoryview, checksum: int, out: np.ndarray) -> None:
    """Decode one chunk into `out`, C-contiguous. Only what `pack` can have written reaches the decoder."""
    if crc32(data) != checksum or len(data) < _CHUNK_HEADER.size:
        raise ValueError("damaged or cut short")
    version, _, flags, typesize, nbytes, _, cbytes, codec = _CHUNK_HEADER.unpack_from(data)
    fits = (version, typesize, nbytes, cbytes) == (5, out.itemsize, out.nbytes, len(data))
    # both shuffle bits set means a long header; its codec, filters and flags (no lazy chunk) must be ours
    if not fits or flags & 0b101 != 0b101 or flags >> 5 > 1 or codec[:15] != _LZ4_BITSHUFFLE or codec[15] & ~0x70:
        raise ValueError("not a chunk of a scan")
    try:
        blosc2.decompress2(data, dst=out, nthreads=1)
    except RuntimeError as e:
        raise ValueError("damaged") from e


def _description(shape: Ints, dtype: Dtype) -> bytes:
    kind = np.dtype(dtype).newbyteorder("<").str.encode()
    return _HEADER.pack(MAGIC, kind, *shape, *[0] * (4 - len(shape)), 0)[:-4]


def _grid(shape: Ints) -> tuple[int, ...]:
    """Return the number of chunks along each axis."""
    return tuple(-(-n // c) for n, c in zip(shape, CHUNK_SHAPE[len(shape)], strict=True))


def _boxes(shape: Ints) -> Iterator[tuple[slice, ...]]:
    chunk = CHUNK_SHAPE[len(shape)]
    for index in product(*map(range, _grid(shape))):
        yield tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunk, strict=True))


def _fetcher(file: io.FileIO, offset: int) -> Fetch:
    def fetch(start: int, count: int) -> memoryview:
        file.seek(offset + start)
        # fewer than `count` bytes at the end of a cut file: the checks notice
        return memoryview(file.read(count))

    return fetch
