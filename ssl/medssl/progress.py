"""Progress with rate and time left: a bar on a terminal and in a notebook, else a line every ten seconds; nothing under CI."""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from importlib.util import find_spec
from typing import Any, TypeVar

T = TypeVar("T")
FIRST, EVERY = 3.0, 10.0  # seconds until the first line, and between the others, when the output is not a terminal
LONG = 1200.0  # seconds of work about which `Progress` says how it can be shortened


def say(text: str) -> None:
    """Write a one-line notice to stderr at once, so that stdout holds results only."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Return a time in words: "45 s", "3 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def in_notebook() -> bool:
    """Return whether this runs in a notebook that can show a bar, for which tqdm needs ipywidgets."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel") and find_spec("ipywidgets") is not None


class Progress:
    """A progress display: `with Progress("train", total=1000, unit="step") as bar: bar.update(1, loss="0.31")`.

    advice: how to shorten the work, said once, with the time left, if that is longer than LONG.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "it",
        done: int = 0,
        quiet: bool = False,
        advice: str = "",
    ):
        self.label, self.total, self.unit, self.done, self.first = label, total, unit, done, done
        self.notes: dict[str, str] = {}
        self.start = self.last = time.monotonic()
        self.wait = FIRST
        self.quiet = quiet or bool(os.environ.get("CI"))
        self.advice = advice
        self.bar: Any = None
        if not self.quiet and (sys.stderr.isatty() or in_notebook()):
            from tqdm.auto import tqdm  # a bar of text on a terminal, a widget in a notebook

            self.bar = tqdm(total=total, initial=done, desc=label, unit=unit, dynamic_ncols=True)

    def update(self, n: int = 1, **notes: str) -> None:
        """Count `n` more as done; show `notes` beside the rate."""
        self.done += n
        self.notes |= notes
        if self.advice and not self.quiet and time.monotonic() - self.start > FIRST:
            if (left := self._left()) > LONG:
                say(f"{self.label}: about {duration(left)} at this rate; {self.advice}")
            self.advice = ""
        if self.bar is not None:
            self.bar.set_postfix(self.notes, refresh=False)
            self.bar.update(n)
        elif not self.quiet and time.monotonic() - self.last > self.wait:
            self.last, self.wait = time.monotonic(), EVERY
            self._line()

    def _rate(self) -> float:
        return (self.done - self.first) / max(time.monotonic() - self.start, 1e-9)

    def _left(self) -> float:
        """Return the seconds left, 0 if that is unknown."""
        rate = self._rate()
        return (self.total - self.done) / rate if self.total and rate > 0 else 0.0

    def _line(self) -> None:
        """Write one line."""
        rate = self._rate()
        left = f", {duration(self._left())} left" if self.total and rate > 0 else ""
        of = f"/{self.total}" if self.total else ""
        notes = "".join(f", {k} {v}" for k, v in self.notes.items())
        say(f"{self.label}: {self.done}{of} {self.unit}, {rate:.3g} {self.unit}/s{left}{notes}")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Yield `items` and show progress."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
