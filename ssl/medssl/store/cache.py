"""Arrays computed from a store, kept as .npy files in its cache/ folder and mapped from disk.

Those of a read-only store are in a private folder for temporary files. They hold pixels of all its scans, so they are deleted as
soon as any read-only store is used, or any store written, after that store has changed or is gone.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.files import atomic, disk_errors
from medssl.progress import say
from medssl.store.store import Store

ORIGIN = "store.json"  # path and fingerprint of the store that a folder in the private folder belongs to


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


def forget_outdated() -> None:
    """Delete what the private folder has of stores that are gone or have changed: a scan may have been withdrawn from them."""
    root = _private_root()
    with suppress(OSError):
        if root.stat().st_uid == _user():
            for folder in root.iterdir():
                if not folder.name.startswith(".") and not _is_current(folder):
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.unlink(missing_ok=True)


def _is_current(folder: Path) -> bool:
    """Return whether a folder in the private folder belongs to a store that is as it was."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        origin = json.loads((folder / ORIGIN).read_text("utf-8"))
        info = json.loads((Path(origin["path"]) / "store.json").read_text("utf-8"))
        return bool(info["fingerprint"] == origin["fingerprint"])
    return False


def _folder(store: Store) -> Path:
    """Return cache/ in the store, or a folder in a private temporary one if the store is read-only."""
    folder = store.path / "cache"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as e:
        if e.errno not in {errno.EACCES, errno.EROFS, errno.EPERM}:
            raise
    root = _private_root()
    with disk_errors(root):
        root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != _user():
        raise UserError(f"{root} belongs to another user; set TMPDIR to a folder of your own")
    forget_outdated()
    origin = {"path": str(store.path.resolve()), "fingerprint": store.info["fingerprint"]}
    own = root / hashlib.blake2b(json.dumps(origin).encode(), digest_size=16).hexdigest()
    if not own.exists():
        with disk_errors(root):
            new = Path(
                tempfile.mkdtemp(dir=root, prefix=".")
            )  # renamed when complete, as others delete what has no origin
            (new / ORIGIN).write_text(json.dumps(origin), "utf-8")
            with suppress(FileExistsError):
                new.rename(own)
    _say_once(f"{store.path} is read-only: resampled scans are cached in {root} until the store changes or is gone")
    return own


def _private_root() -> Path:
    return Path(tempfile.gettempdir()) / f"medssl-cache-{_user()}"


def _user() -> int:
    return os.geteuid() if hasattr(os, "geteuid") else 0


@cache
def _say_once(text: str) -> None:
    say(text)
