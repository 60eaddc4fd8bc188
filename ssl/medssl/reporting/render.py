"""Self-contained HTML pages from the jinja2 templates in this folder. Every value is escaped unless it is `Markup`."""

import base64
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from medssl.errors import UserError
from medssl.evals.stats.text_table import in_few_words
from medssl.reporting.conclusions import number
from medssl.reporting.messages import Messages, messages

SCALE = 1.5  # pixels of a figure per CSS pixel: sharp in print; at 144 dpi, a point of type stays a point


def render(template: str, *, t: Messages | None = None, **values: Any) -> Markup:
    """Fill templates/`template` with the values and the messages `t`, English ones if None.

    A name that a template misses is an error, never an empty string.
    """
    return Markup(_environment().get_template(template).render(values, t=t or messages()))


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where there is none. Raises UserError if it is damaged."""
    try:
        return json.loads(path.read_text("utf-8")) if path.exists() else None
    except ValueError as e:
        raise damaged(path, e) from e


def read_lines(path: Path) -> list[Any]:
    """Return the values of a file with JSON in each line, none where there is no file. Raises UserError if it is damaged."""
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    except ValueError as e:
        raise damaged(path, e) from e


def damaged(path: Path, error: Exception) -> UserError:
    """Return the error for a file of a run that cannot be read."""
    return UserError(f"{path} is damaged ({type(error).__name__}); delete it and run the command that writes it again")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("medssl.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "thousands": "{:,}".format, "methods": _interval_methods}
    environment.filters |= {"base64": _base64, "size": _size, "sentence_in": lambda text, t: t.sentence(text)}
    return environment


def _base64(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _size(png: bytes) -> tuple[int, ...]:
    """Return (width, height) of a PNG in CSS pixels."""
    return tuple(round(side / SCALE) for side in struct.unpack(">II", png[16:24]))


def _interval_methods(scores: object, t: Messages) -> str:
    """Return how the intervals of all scores in nested lists and dicts were made, each method once."""
    return "; ".join(map(t.phrase, in_few_words(dict.fromkeys(_methods(scores)))))


def _methods(scores: object) -> Iterator[str]:
    if isinstance(scores, Mapping):
        if "how" in scores:
            yield scores["how"]
            return
        scores = scores.values()
    if isinstance(scores, Iterable) and not isinstance(scores, str):
        for score in scores:
            yield from _methods(score)
