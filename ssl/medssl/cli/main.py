"""`medssl COMMAND key=value …`: dispatch, one-line errors and exit codes. Nothing heavy is imported before it is needed."""

import codecs
import io
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from medssl import __version__, catalog
from medssl.cli.completion import script
from medssl.cli.help import GROUPS, choice_help, command_help, group_taken, overview
from medssl.errors import PREEMPTED, UsageError, UserError, nearest

ASCII = {"Δ": "D", "–": "-", "—": "-", "−": "-", "×": "x", "…": "...", "≥": ">=", "≤": "<=", "±": "+-", "’": "'"}
"""Written instead of characters that a terminal does not have; others are escaped."""
OF_SCHEDULERS = (signal.SIGUSR1, signal.SIGUSR2)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 for wrong input, 2 for a command that cannot be understood, 75 to try again."""
    args = list(sys.argv[1:] if argv is None else argv)
    warnings.filterwarnings("ignore", "`torch.jit.interface`", FutureWarning)  # on import of timm below 1.0.23
    _never_fail_to_print()
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP, *OF_SCHEDULERS):
        with suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, _interrupt)
    try:
        _dispatch(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # so that a full disk or a closed pipe is seen here
        code = 0
    except UserError as e:
        code = _fail(str(e), e.code)
    except KeyboardInterrupt as e:
        preempted = bool(e.args) and e.args[0] in (signal.SIGTERM, *OF_SCHEDULERS)
        code = _fail("stopped; run the same command again", PREEMPTED if preempted else 1)
    except BrokenPipeError:
        _drop_output()  # the reader left, as `| head` does
        code = 0
    except OSError as e:
        _drop_output()
        code = _fail(f"cannot use {e.filename or 'a file'}: {e.strerror or e}; check the path and its permissions", 1)
    except Exception as e:
        words = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        code = _fail(f"unexpected {words}; MEDSSL_DEBUG=1 shows where", 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code)


def _never_fail_to_print() -> None:
    """Let terminals in CP949, EUC-KR, Latin-1 or ASCII show every text: what they do not have is written in ASCII."""
    codecs.register_error("medssl", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="medssl")


def _drop_output() -> None:
    """Discard what cannot be printed, so that Python does not fail once more when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace the first character that cannot be encoded; see `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    one = UnicodeEncodeError(error.encoding, error.object, error.start, error.start + 1, error.reason)
    return ASCII.get(error.object[error.start]) or codecs.backslashreplace_errors(one)[0], error.start + 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A scheduler's signal ends a command as Ctrl-C does, so that nothing half-written stays."""
    raise KeyboardInterrupt(number)


def _fail(message: str, code: int) -> int:
    if os.environ.get("MEDSSL_DEBUG") == "1":
        traceback.print_exc()
    print(f"medssl: {message}", file=sys.stderr)
    return code


def _dispatch(args: list[str]) -> None:
    commands = catalog.entries("command")
    if args and args[0] == "help" and len(args) > 1:
        args = [args[1], "--help", *args[2:]]
    if not args or args[0] in {"-h", "--help", "help"}:
        print(overview())
    elif args[0] == "--version":
        print(__version__)
    elif args[0] == "--completion":
        print(script(*args[1:2] or [""]))
    elif args[0] not in commands:
        raise UsageError(f"there is no command {args[0]!r}.{nearest(args[0], commands)}")
    elif {"-h", "--help"} & set(args[1:]):
        chosen = dict(word.split("=", 1) for word in args[1:] if "=" in word)
        asked = [(group, chosen[group]) for group in GROUPS if group in chosen and group_taken(args[0], group)]
        print("\n\n".join(choice_help(*choice) for choice in asked) or command_help(args[0]))
    else:
        from medssl.cli.run import run

        run(args[0], args[1:])
