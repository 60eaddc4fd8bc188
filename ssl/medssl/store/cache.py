"""Arrays computed from a store, kept as .npy files in its cache/ folder and mapped from disk."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic, disk_errors
from medssl.progress import say
from medssl.store.store import Store


def cached_array(
    store: Store,
    name: str,
    key: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    images: Callable[[], Iterable[tuple[int, np.ndarray]]],
) -> np.ndarray:
    """Return an array (N, …) as a read-only memory map; compute and save it unless the cache has it undamaged.

    Args:
        store: the store whose cache is used.
        name: first part of the file name.
        key: text that identifies the content.
        shape, dtype: those of the whole array.
        images: yields (row, array of shape[1:]) pairs. Missing rows are 0.

    Raises:
        UserError: if the disk is full.
    """
    path = _folder(store) / f"{name}-{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npy"
    array = _open(path, shape, dtype)
    if array is None:
        with atomic(path) as part:
            _write(part, shape, dtype, images())
        array = _open(path, shape, dtype)
        assert array is not None
    return array


def _open(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == dtype else None


def _write(path: Path, shape: tuple[int, ...], dtype: np.dtype, images: Iterable[tuple[int, np.ndarray]]) -> None:
    """Write a .npy with plain writes: a full disk then raises an error, where a memory map would kill the process."""
    stride = int(np.prod(shape[1:])) * dtype.itemsize
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    with path.open("wb") as f:
        np.lib.format.write_array_header_1_0(f, header)
        start = f.tell()
        for row, image in images:
            f.seek(start + row * stride)
            f.write(image.tobytes())
        f.truncate(start + shape[0] * stride)  # rows that were not written read as 0


def _folder(store: Store) -> Path:
    """Return cache/ in the store, or a private temporary folder if the store is read-only."""
    folder = store.path / "cache"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        if e.errno not in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    private = Path(tempfile.gettempdir()) / f"medssl-cache-{user}"
    with disk_errors(private):
        private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != user:
        raise UserError(f"{private} belongs to another user; set TMPDIR to a folder of your own")
    _say_once(f"{store.path} is read-only: resampled scans are cached in {private}")
    return private


@cache
def _say_once(text: str) -> None:
    say(text)
