"""Errors in the input: what was wrong, which file or key, what to do. The command line prints one line, no traceback."""

import difflib
from collections.abc import Iterable

PREEMPTED = 75  # exit code after a scheduler's signal (SIGTERM, SIGUSR1, SIGUSR2), EX_TEMPFAIL: it tries again


class UserError(Exception):
    """Wrong input. The message is one line with the remedy; `code` is the exit code of the command line."""

    def __init__(self, message: str, code: int = 1):
        super().__init__(" ".join(message.split()))
        self.code = code


class UsageError(UserError):
    """A wrong command: an unknown key or choice. Exit code 2."""

    def __init__(self, message: str):
        super().__init__(message, code=2)


class Interrupted(UserError):
    """A run that a signal stopped between two steps, with everything saved."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" if a known word is close to `word`, else " Known: …" with all of them."""
    known = sorted(map(str, known))
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
