"""The return value of a command: data for programs, text for people."""

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

    def __add__(self, other: "Result") -> "Result":
        """Return the data of both, with a blank line between their texts."""
        return Result({**self, **other}, "\n\n".join(filter(None, (self.text, other.text))))
