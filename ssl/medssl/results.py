"""The return value of a command: data for programs, text for people."""

from html import escape
from pathlib import Path
from typing import Any


class Result(dict[str, Any]):
    """JSON values with the text that the command line prints for them.

    Attributes:
        text: one or more lines; `str(result)` returns them.
    """

    def __init__(self, data: dict[str, Any], text: str = ""):
        super().__init__(data)
        self.text = text

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """In a notebook, the text as in a terminal."""
        return f"<pre>{escape(self.text or repr(dict(self)))}</pre>"

    def __add__(self, other: "Result") -> "Result":
        """Return the data of both, with a blank line between their texts."""
        return Result({**self, **other}, "\n\n".join(filter(None, (self.text, other.text))))


class ShownPath(type(Path())):  # type: ignore[misc]
    """A path that a notebook shows as what is there. It works wherever a path does; what is made from it are plain paths."""

    def __truediv__(self, name: Any) -> Path:
        return Path(self) / name

    @property
    def parent(self) -> Path:
        """The folder it is in."""
        return Path(self).parent
