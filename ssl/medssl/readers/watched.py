"""A stream that reports progress, so that a file that takes long can be told from one that hangs."""

import io
from collections.abc import Callable
from typing import BinaryIO

PASSES = 8  # times that a file is read: its header, copies of frames, and its frames, some of them again


class Watched(io.BufferedIOBase):
    """A seekable stream that calls `beat` whenever bytes are read, for at most PASSES times its size.

    A reader that is stuck reads nothing, or the same bytes forever: in both cases the calls end.

    Args:
        stream: what is read; closing the watched stream does not close it.
        size: its bytes.
        beat: called without arguments.
    """

    def __init__(self, stream: BinaryIO, size: int, beat: Callable[[], None]):
        self.stream, self.beat, self.left = stream, beat, PASSES * size

    def read(self, size: int | None = -1, /) -> bytes:
        """Return up to `size` bytes, all if it is negative or None."""
        data = self.stream.read(-1 if size is None else size)
        if data and self.left > 0:
            self.left -= len(data)
            self.beat()
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes."""
        return self.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset and return it."""
        return self.stream.seek(offset, whence)

    def tell(self) -> int:
        """Return the offset."""
        return self.stream.tell()

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True


def watched_like(stream: BinaryIO, content: BinaryIO, size: int) -> BinaryIO:
    """Return `content`, which was unpacked from `stream`, watched if `stream` is."""
    return Watched(content, size, stream.beat) if isinstance(stream, Watched) else content  # type: ignore[return-value]
