"""`medssl COMMAND key=value …`. Keys are Hydra's; errors are one line; nothing heavy is imported before it is needed."""

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from medssl import __version__, catalog
from medssl.errors import UsageError, UserError, nearest

COMMANDS = (
    *("ingest", "inspect", "rejects", "release", "nifti", "png", "shard"),
    *("pretrain", "embed", "probe", "knn", "retrieve", "survive", "finetune", "segment", "transfer"),
    *("compare", "audit", "quality", "cam", "report", "demo"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command and exit: 0, 1 for wrong input, 2 for a command that cannot be understood, 75 for preemption."""
    args = list(sys.argv[1:] if argv is None else argv)
    before = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        with suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, _interrupt)
    try:
        _dispatch(args)
        code = 0
    except UserError as e:
        code = _fail(str(e), e.code)
    except KeyboardInterrupt:
        code = _fail("stopped; run the same command again", 1)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left, as `| head` does
        code = 0
    except OSError as e:
        code = _fail(f"cannot use {e.filename or 'a file'}: {e.strerror or e}; check the path and its permissions", 1)
    except Exception as e:
        words = " ".join(f"{type(e).__name__}: {e}".split())[:300]
        code = _fail(f"unexpected {words}; MEDSSL_DEBUG=1 shows where", 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """A scheduler's signal ends a command as Ctrl-C does, so that nothing half-written stays."""
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    if os.environ.get("MEDSSL_DEBUG") == "1":
        traceback.print_exc()
    print(f"medssl: {message}", file=sys.stderr)
    return code


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in {"-h", "--help", "help"}:
        print(overview())
    elif args[0] == "--version":
        print(__version__)
    elif args[0] not in COMMANDS:
        raise UsageError(f"there is no command {args[0]!r}.{nearest(args[0], COMMANDS)}")
    elif {"-h", "--help"} & set(args[1:]):
        print(help_of(args[0]))
    else:
        from medssl.cli.run import run

        run(args[0], args[1:])


def overview() -> str:
    """The commands, a line each."""
    lines = ["medssl: self-supervised representation learning for medical scans", ""]
    lines += [f"  medssl {c:<10}{_header(c)[0]}" for c in COMMANDS]
    return "\n".join(
        [*lines, "", "  medssl COMMAND --help lists its keys and choices; -m sweeps: method=simclr,byol seed=0,1,2"]
    )


def help_of(command: str) -> str:
    """What a command does, its keys with their defaults, and the choices of its groups."""
    about, example = _header(command)
    text = (catalog.root() / "command" / f"{command}.yaml").read_text()
    body = [
        line for line in text.splitlines() if not line.startswith(("#", "defaults:", "  - ", "_target_:", "_renamed_:"))
    ]
    pairs = [
        (setting.strip().replace(": ", "=", 1).replace("???", "…"), note)
        for setting, _, note in (b.partition("# ") for b in body)
    ]
    keys = [f"{setting:<24}{note}" for setting, note in pairs]
    groups = [line.strip("- ").split(":")[0] for line in text.splitlines() if line.startswith("  - ") and ":" in line]
    parts = [about, "", f"  {example}", "", "Keys (… must be given):", *(f"  {k}" for k in keys)]
    for group in groups:
        some = " (or any timm model's name)" if group == "encoder" else ""
        parts += ["", f"{group}= one of{some}:", *(f"  {n:<14}{d}" for n, d in catalog.choices(group).items())]
        parts += [f"  options: {group}.KEY=…, listed in configs/{group}/NAME.yaml"]
    return "\n".join(parts)


def _header(command: str) -> tuple[str, str]:
    first, second = (catalog.root() / "command" / f"{command}.yaml").read_text().splitlines()[:2]
    return first.lstrip("# "), second.lstrip("# ")
