"""Text as a terminal shows it."""

import shutil
import sys
import textwrap


def fitted(text: str) -> str:
    """Return text with its sentences wrapped at words to the width of the terminal; tables stay as they are.

    Without a terminal, such as in a file, nothing is wrapped.
    """
    if not sys.stdout.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return "\n".join(part for line in text.splitlines() for part in _wrapped(line, width))


def _wrapped(line: str, width: int) -> list[str]:
    # two spaces stand between columns
    if len(line) <= width or "  " in line.strip():
        return [line]
    indent = "  " if line.startswith("! ") else ""
    return textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
