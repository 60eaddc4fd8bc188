"""Values of a JSON file beside a scan: the few that are kept, found by the keys that lead to them."""

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medssl.ingestion.allow_list import LABEL, MAX_LETTERS, METADATA, PARSERS, PATIENT, allowed_word, squash
from medssl.ingestion.label_columns import is_nobody
from medssl.ingestion.text_encoding import decode
from medssl.readers.scan import Unreadable
from medssl.store.label_values import clean, quantity

MAX_BYTES = 16 << 20
MAX_DEPTH = 64  # nested lists and objects

Json = dict[str, Any] | list[Any]
Keys = tuple[str, ...]  # keys that lead to a value, from the outside in
Columns = dict[str, list[tuple[str, Keys]]]  # last key -> columns that it may be, and the keys that must lead to it


def parse_json(data: bytes) -> tuple[Json, str]:
    """Return the content of a JSON file in UTF-8, UTF-16 or CP949, and the encoding it was read as.

    Raises:
        Unreadable: TOO_LARGE; BAD_SIDECAR if it is not text, not JSON, neither an object nor a list, or too deep.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable("TOO_LARGE", "a JSON file of more than 16 MB")
    if (decoded := decode(data)) is None:
        raise Unreadable("BAD_SIDECAR", "neither UTF-8 nor Korean CP949")
    try:
        content = json.loads(decoded[0])
    except (ValueError, RecursionError):
        raise Unreadable("BAD_SIDECAR", "not JSON, or nested too deeply") from None
    if not isinstance(content, dict | list):
        raise Unreadable("BAD_SIDECAR", "neither an object nor a list")
    return content, decoded[1]


def columns(keys: Mapping[str, str], targets: Sequence[str] = ()) -> Columns:
    """Return the keys that lead to each column of the manifest; see `Sidecars`."""
    labels = {f"label:{name}": (name,) for name in targets}
    labels |= {f"label:{name}": (key,) for name, key in keys.items() if name not in {"patient", *METADATA}}
    patient = {"patient": (keys["patient"],) if "patient" in keys else PATIENT}
    known = {f"fact:{kind}": (keys[kind],) if kind in keys else names for kind, names in METADATA.items()}
    out: Columns = {}
    for column, names in (patient | known | (labels or {f"label:{name}": (name,) for name in LABEL})).items():
        for name in names:
            way = tuple(squash(part) for part in name.split("."))
            out.setdefault(way[-1], []).append((column, way))
    return out


def allowed_values(content: Json, columns: Columns, numbers: bool = False) -> tuple[dict[str, str | float], set[str]]:
    """Return the values of a JSON file by column (the patient's id as written), and the columns with unclear values.

    A patient or metadata field must have the same single value wherever it occurs. A label may be a list, or occur in
    several items of one list; labels in several places must agree.

    Args:
        content: a JSON file's content.
        columns: see `columns`.
        numbers: take numbers of any length as labels; `label_columns` keeps or refuses them as a whole.

    Raises:
        Unreadable: BAD_SIDECAR if it is nested too deeply.
    """
    found: dict[str, dict[Keys, set[str | None]]] = {}
    for way, value in _leaves(content):
        for column, end in columns.get(way[-1], ()) if way else ():
            if way[-len(end) :] == end and value is not None and value != "":
                found.setdefault(column, {}).setdefault(way, set()).add(_allowed(column, value, numbers))
    out: dict[str, str | float] = {}
    for column, places in found.items():
        distinct = set(map(frozenset, places.values()))
        values = distinct.pop()
        if distinct or None in values or (len(values) > 1 and not column.startswith("label:")):
            continue
        text = "|".join(sorted(v for v in values if v is not None))
        value = PARSERS[column.removeprefix("fact:")](text) if column.startswith("fact:") else text
        if value is not None:
            out[column] = value
    return out, found.keys() - out.keys()


def _leaves(content: Json) -> Iterator[tuple[Keys, Any]]:
    """Yield (keys, value) of every value that is neither an object nor a list. Items of a list have the list's keys."""
    stack: list[tuple[Keys, int, Any]] = [((), 0, content)]
    while stack:
        way, depth, value = stack.pop()
        if depth > MAX_DEPTH:
            raise Unreadable("BAD_SIDECAR", "not JSON, or nested too deeply")
        if isinstance(value, dict):
            stack += [((*way, squash(key)), depth + 1, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            stack += [(way, depth + 1, inner) for inner in value]
        else:
            yield way, value


def _allowed(column: str, value: Any, numbers: bool) -> str | None:
    """Return a value as text, None if it must not be kept or is a placeholder."""
    if column.startswith("label:"):
        word = allowed_word(value)
        return clean(str(value)) if word is None and numbers and quantity(value) is not None else word
    text = unicodedata.normalize("NFC", str(value)).strip() if column == "patient" else clean(str(value))
    nobody = column == "patient" and (is_nobody(text) or text == "0")
    return None if len(text) > MAX_LETTERS or nobody else text
