"""Atomic writes: a reader sees the old file or the new one, never half of one."""

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medssl.errors import UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it is flushed to disk and renamed over `path`, else removed."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with disk_errors(path):
            yield part
            with part.open("rb") as f:
                os.fsync(f.fileno())
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into one line that names the file."""
    try:
        yield
    except OSError as e:
        full = e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if full or e.errno in {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            remedy = "free some space and run the same command again" if full else "choose another place"
            raise UserError(f"cannot write {path}: {e.strerror}; {remedy}") from e
        raise


def write_text(path: Path, text: str) -> None:
    """Atomic."""
    with atomic(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Atomic, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=1) + "\n")
