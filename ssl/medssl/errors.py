"""The one error a user sees: what was wrong, which file or key, what to do. One line, no traceback."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Wrong input, with the way out in its message. The command line prints it and exits with `code`."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(" ".join(message.split()))
        self.code = code


class UsageError(UserError):
    """A command that cannot be understood: unknown key, unknown choice. Exit code 2."""

    def __init__(self, message: str):
        super().__init__(message, code=2)


class Stopped(UserError):
    """A run that somebody stopped between two steps, with everything saved."""


def nearest(word: str, known: Iterable[str]) -> str:
    """' Did you mean X?' when something is close, else ' Known: …' with the whole list."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
