"""Values in filter expressions: columns of a table and constants, with the kind that decides what they compare with."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from medssl.store.label_values import canonical_value

KINDS = {"number": "a number", "text": "text", "bool": "true or false", "texts": "a list of texts", "list": "a list"}


@dataclass(frozen=True)
class Value:
    """A column (pa.Array) or a constant; its kind, a key of KINDS; its source text for messages; whether it is a label."""

    kind: str
    data: Any
    source: str
    is_label: bool = False

    @property
    def is_constant(self) -> bool:
        """Whether this is a constant and not a column."""
        return not isinstance(self.data, pa.Array)


def same_values(value: Value) -> Value:
    """Return a label, a text or a constant in the form in which values of labels are compared."""
    if value.is_constant:
        return Value("text", canonical_value(value.data), value.source)
    return mapped(value, canonical_value, pa.string(), "text") if value.kind == "text" else value


def mapped(value: Value, f: Callable[[str], Any], kind: pa.DataType, name: str) -> Value:
    """Return a column of text with `f` of each value; null stays null."""
    found = value.data.dictionary_encode()
    words = pa.array([f(word) for word in found.dictionary.to_pylist()], kind)
    return replace(value, kind=name, data=words.take(found.indices))


def from_end(lists: pa.ListArray, k: int, min_length: int | None = None) -> pa.Array:
    """Return the k-th last item of each list, null if the list is missing or shorter than `min_length` (or k)."""
    offsets = lists.offsets.to_numpy()
    long_enough = (np.diff(offsets) >= (min_length or k)) & lists.is_valid().to_numpy(zero_copy_only=False)
    at = np.where(long_enough, offsets[1:] - k, 0)
    return lists.values.take(pa.array(at, mask=~long_enough))
