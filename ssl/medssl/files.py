"""Atomic writes: a reader sees the old file or the new file, never part of one."""

import csv
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medssl.errors import PREEMPTED, UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


def follow_links(path: Path) -> Path:
    """Return the absolute path that `path` stands for, without links: what is renamed to a link replaces the link alone.

    Raises UserError if a link on the way leads to nothing, except that the last one may lead to a new name in a folder.
    """
    path = path.absolute()
    for link in (p for p in (path, *path.parents) if p.is_symlink()):
        target = Path(os.path.realpath(link))
        if not (target.parent if link == path and not target.is_symlink() else target).is_dir():
            raise UserError(f"{link} is a link that leads to nothing; mount the disk it leads to, or remove the link")
    return Path(os.path.realpath(path))


def is_empty_folder(path: Path) -> bool:
    """Return whether there is a folder at `path` with nothing in it, which a result may replace."""
    return path.is_dir() and not any(path.iterdir())


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`. On success, flush it to disk and rename it to `path`; otherwise remove it.

    If `path` is a link, the file it leads to is replaced. Raises UserError if the disk is full or cannot be written.
    """
    path = follow_links(path)
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


# Not writable, not what it should be, or a mount point, which can be filled but not replaced.
REFUSED = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EBUSY, errno.EXDEV}


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn the OSError of a full or read-only disk into a UserError that names the file."""
    try:
        yield
    except OSError as e:
        full = e.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        if full or e.errno in REFUSED:
            remedy = "free some space and run the same command again" if full else "choose another place"
            raise UserError(f"cannot write {path}: {e.strerror}; {remedy}") from e
        raise


def check_writable(folder: Path) -> None:
    """Raise UserError if no file can be written to a folder, so that this is known before the work and not after it."""
    with disk_errors(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def locked(folder: Path, command: str) -> Iterator[None]:
    """Hold a folder, made if it is not there, for this process. Raises UserError if another one holds it for `command`."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as e:
                why = f"another {command} is running on {folder}; wait for it or choose another out="
                raise UserError(why, PREEMPTED) from e  # a job may try again
            except OSError:  # a network disk without locks
                pass
        yield


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic(path) as part:
        part.write_text(text, "utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON, keys in the order given."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] = ()) -> None:
    """Write rows as CSV, atomically. The header is `fields`, else the keys of the first row; None is an empty cell."""
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, fields or list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def digest(value: Any, size: int = 6) -> str:
    """Return the BLAKE2b digest of a JSON value as 2 * size hex digits; the order of dict keys does not matter."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()
