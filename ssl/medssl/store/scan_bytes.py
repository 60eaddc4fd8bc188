"""The bytes of stored scans: where they are, and what is said of a file that is missing or damaged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.store.chunks import unpack
from medssl.store.remote import remote_of

ADDRESS = ("file", "offset", "length", "shape", "dtype")  # columns that locate and decode a scan's bytes


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """Turn a missing or undecodable file into a UserError that names it."""
    try:
        yield
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
    except ValueError as e:
        raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e


def read_bytes(path: Path, offset: int, length: int) -> bytes:
    """Return the bytes of one scan. A `length` of 0 means up to the end of the file."""
    with path.open("rb") as f:
        f.seek(offset)
        return f.read(length) if length else f.read()


def read_array(folder: Path, row: Mapping[str, Any]) -> np.ndarray:
    """Return the array of one manifest row. Raises UserError if its bytes are missing or damaged, or cannot be fetched."""
    path, at = folder / row["file"], (row["offset"], row["length"])
    remote = remote_of(folder)
    with file_errors(path):
        data = read_bytes(path, *at) if remote is None else remote.read(row["file"], *at)
        return unpack(data, row["shape"], row["dtype"])
