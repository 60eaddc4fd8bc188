"""Filter expressions that select scans: `modality == "CT" and slices >= 32 and not blank`. Nothing in them is executed.

    comparisons    == != < <= > >=, also chained: 0.5 <= spacing < 2
    membership     modality in ["CT", "MR"], "SIEMENS" in scanner (part of the text), "cut off" in flags
    missing        age is None, age is not None
    logic          and, or, not, parentheses

Names are looked up in this order: columns of the manifest; dims, channels, slices (3D only), height, width; spacing (the
largest, mm), spacing_z, spacing_y, spacing_x; acquisition metadata and labels by their own names (fact.NAME and label.NAME if
both exist); quality flags, true for the scans that have them. Characters other than letters and digits are written as
underscores, and Python keywords with an underscore at the end (class_).

Values of labels are compared as in `medssl.store.label_values`: 1, "1.0" and "true" are equal, and so are "Mass" and "mass ". A
label whose values are all numbers can be compared with numbers by size.

A scan is selected if the expression is true for it. A comparison with a missing value is neither true nor false, and neither is
its negation (three-valued logic, as in SQL).
"""

import ast
import keyword
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from medssl.errors import UserError, nearest
from medssl.readers.quality_flags import FLAGS
from medssl.store.label_values import number
from medssl.store.query_values import KINDS, Value, from_end, mapped, same_values

MAX_LENGTH = 10_000  # characters
COMPARE = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}


def select(table: pa.Table, where: str) -> np.ndarray:
    """Return the row numbers, int64, ascending, of the scans for which `where` is true; there may be none.

    Raises:
        UserError: if `where` cannot be parsed, names what the manifest does not have, or compares different kinds of values.
    """
    if not where.strip():
        raise UserError("where= is empty; leave it out to select all scans")
    if len(where) > MAX_LENGTH:
        raise UserError(f"where= is longer than {MAX_LENGTH} characters; select in several steps")
    try:
        tree = ast.parse(where.strip(), mode="eval")
        mask = _Query(table, where).condition(tree.body)
    except SyntaxError as e:
        what, at = e.msg.rstrip("?."), f" at character {e.offset}" if e.offset else ""
        raise UserError(f"where={_short(where)} cannot be read{at}: {what}.{_hint(where)}") from e
    except (ValueError, OverflowError, RecursionError, MemoryError) as e:
        raise UserError(f"where={_short(where)} cannot be read; write a shorter expression") from e
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))


def query_name(name: str) -> str:
    """Return a name as it is written in `where`: "low contrast" is low_contrast, "class" is class_."""
    word = re.sub(r"\W", "_", unicodedata.normalize("NFKC", name))
    word = "_" + word if word[:1].isdigit() else word
    return word + "_" if keyword.iskeyword(word) else word


class _Query:
    """Evaluates one `where` on one table."""

    def __init__(self, table: pa.Table, text: str):
        self.table, self.text = table, text
        self.derived: dict[str, Callable[[], pa.Array]] = {
            "dims": lambda: pc.subtract(pc.list_value_length(self._column("shape")), 1),
            "channels": lambda: pc.list_element(self._column("shape"), 0),
            "slices": lambda: from_end(self._column("shape"), 3, min_length=4),
            "height": lambda: from_end(self._column("shape"), 2),
            "width": lambda: from_end(self._column("shape"), 1),
            "spacing": lambda: pc.max_element_wise(*(from_end(self._column("spacing"), k) for k in (1, 2, 3))),
            **{
                f"spacing_{axis}": lambda k=k: from_end(self._column("spacing"), k)  # type: ignore[misc]
                for k, axis in enumerate("xyz", 1)
            },
        }
        self.columns = {c for c in table.column_names if ":" not in c}
        self.prefixed: dict[str, list[str]] = {}  # query name -> columns label:NAME and fact:NAME
        for column in table.column_names:
            kind, colon, name = column.partition(":")
            if colon and kind in {"label", "fact"}:
                self.prefixed.setdefault(query_name(name), []).append(column)
        found = pc.unique(pc.list_flatten(self._column("flags"))).to_pylist() if "flags" in self.columns else []
        self.flags = {query_name(flag): flag for flag in (*FLAGS, *sorted(found))}

    def condition(self, node: ast.expr) -> pa.Array:
        """Return true, false or null (unknown) for each row."""
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            return reduce(join, map(self.condition, node.values))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return pc.invert(self.condition(node.operand))
        if isinstance(node, ast.Compare):
            left = [node.left, *node.comparators[:-1]]
            return reduce(pc.and_kleene, map(self._compare, left, node.ops, node.comparators))
        value = self._value(node)
        if value.is_constant or value.kind != "bool":
            self._fail(node, f"{value.source} is not true or false by itself; compare it with something")
        return value.data

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pa.Array:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                self._fail(right, "only None can follow `is`; for anything else write ==")
            value = self._column_of(left)
            return pc.is_null(value.data) if isinstance(op, ast.Is) else pc.is_valid(value.data)
        if isinstance(op, ast.In | ast.NotIn):
            mask = self._member(left, right)
            return mask if isinstance(op, ast.In) else pc.invert(mask)
        a, b = self._value(left), self._value(right)
        if a.is_constant and b.is_constant:
            self._fail(left, f"{a.source} and {b.source} are both constants; one side must be a name")
        if (a.is_label or b.is_label) and {a.kind, b.kind} <= {"text", "number", "bool"}:
            order = not isinstance(op, ast.Eq | ast.NotEq)
            a, b = (self._numbers(right, v) if order else same_values(v) for v in (a, b))
        if a.kind != b.kind or a.kind in {"texts", "list"}:
            quotes = "; text must be in quotes" if {a.kind, b.kind} == {"number", "text"} else ""
            self._fail(right, f"{a.source} is {KINDS[a.kind]} and {b.source} is {KINDS[b.kind]}{quotes}")
        if a.kind != "number" and not isinstance(op, ast.Eq | ast.NotEq):
            self._fail(right, f"{a.source} has no order; write == or !=")
        return getattr(pc, COMPARE[type(op)])(a.data, b.data)

    def _member(self, left: ast.expr, right: ast.expr) -> pa.Array:
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            value, items = self._column_of(left), [self._value(item) for item in right.elts]
            if value.is_label:
                value = same_values(value)
                items = [same_values(item) if item.is_constant else item for item in items]
            for node, item in zip(right.elts, items, strict=True):
                if not item.is_constant or item.kind != value.kind:
                    self._fail(node, f"{value.source} is {KINDS[value.kind]}, so it cannot be {item.source}")
            number = value.kind == "number"
            data = value.data.cast(pa.float64()) if number else value.data
            wanted = pa.array([item.data for item in items], data.type)
            return pc.if_else(pc.is_valid(data), pc.is_in(data, wanted), None)
        word, value = self._value(left), self._column_of(right)
        if not (word.is_constant and word.kind == "text" and value.kind in {"text", "texts"}):
            self._fail(
                right, '`in` needs a list such as ["a", "b"] after it, or text before it and a text column after it'
            )
        if value.kind == "text":
            return pc.match_substring(value.data, word.data)
        if word.data not in self.flags.values():
            self._fail(left, f"there is no flag {word.source}.{nearest(word.data, self.flags.values())}")
        return self._flagged(word.data)

    def _column_of(self, node: ast.expr) -> Value:
        value = self._value(node)
        if value.is_constant:
            self._fail(node, f"{value.source} is a constant; a name must be here")
        return value

    def _value(self, node: ast.expr) -> Value:
        source = ast.get_source_segment(self.text.strip(), node) or "this"
        if isinstance(node, ast.Name):
            return self._named(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"label", "fact"}:
            prefix = node.value.id + ":"
            found = [c for c in self.prefixed.get(node.attr, ()) if c.startswith(prefix)]
            if not found:
                known = [k for k, columns in self.prefixed.items() for c in columns if c.startswith(prefix)]
                self._fail(node, f"there is no {node.value.id} {node.attr!r}.{nearest(node.attr, known)}")
            return self._single(node, found)
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-sign if isinstance(node.op, ast.USub) else sign), node.operand
        constant = node.value if isinstance(node, ast.Constant) else None
        if isinstance(constant, bool | str) and sign == 1.0:
            return Value("bool" if isinstance(constant, bool) else "text", constant, source)
        if isinstance(constant, int | float) and not isinstance(constant, bool):
            return Value("number", sign * float(constant), source)
        if isinstance(node, ast.Constant) and constant is None:
            self._fail(node, "None can only follow `is` or `is not`")
        self._fail(node, f"{source} is not allowed here; only names, numbers, text in quotes and lists of them are")

    def _named(self, node: ast.Name) -> Value:
        name = node.id
        if name in self.derived:
            return self._as_value(self.derived[name](), name)
        if name in self.columns:
            return self._as_value(self._column(name), name)
        if found := self.prefixed.get(name):
            if name in self.flags:
                other = found[0].partition(":")[0]
                flag = self.flags[name]
                self._fail(node, f'{name} is a {other} and a flag; write {other}.{name}, or "{flag}" in flags')
            return self._single(node, found)
        if name in self.flags and "flags" in self.columns:
            return Value("bool", self._flagged(self.flags[name]), name)
        known = {*self.derived, *self.columns, *self.prefixed, *self.flags}
        self._fail(node, f"there is no name {name!r} (text must be in quotes).{nearest(name, known)}")

    def _single(self, node: ast.expr, columns: list[str]) -> Value:
        if len(columns) > 1:
            ways = " or ".join(f"{kind}.{query_name(name)}" for kind, _, name in (c.partition(":") for c in columns))
            self._fail(node, f"{' and '.join(columns)} both exist; write {ways}")
        value = self._as_value(self._column(columns[0]), columns[0])
        return replace(value, is_label=columns[0].startswith("label:") and value.kind == "text")

    def _as_value(self, data: pa.Array, source: str) -> Value:
        kind = data.type
        if pa.types.is_list(kind):
            return Value("texts" if pa.types.is_string(kind.value_type) else "list", data, source)
        if pa.types.is_boolean(kind):
            return Value("bool", data, source)
        if pa.types.is_floating(kind):  # NaN is missing
            return Value("number", pc.if_else(pc.is_nan(data), None, data), source)
        return Value("number" if pa.types.is_integer(kind) else "text", data, source)

    def _flagged(self, flag: str) -> pa.Array:
        flags = self._column("flags")
        mask = np.zeros(len(flags), bool)
        parents = pc.list_parent_indices(flags).to_numpy(zero_copy_only=False)
        mask[parents[pc.equal(pc.list_flatten(flags), flag).to_numpy(zero_copy_only=False)]] = True
        return pa.array(mask)

    def _numbers(self, node: ast.expr, value: Value) -> Value:
        """Return a label or a constant as numbers."""
        if value.kind == "number":
            return value
        if value.is_constant:
            found = number(value.data) if value.kind == "text" else None
            out = Value("number", found, value.source)
        else:
            out = mapped(value, number, pa.float64(), "number")
        if out.data is None or (not value.is_constant and out.data.null_count > value.data.null_count):
            self._fail(node, f"only numbers can be compared by size, and {value.source} has other values")
        return out

    def _column(self, name: str) -> pa.Array:
        column = self.table[name].combine_chunks()
        return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)

    def _fail(self, node: ast.expr, message: str) -> NoReturn:
        raise UserError(f"where={_short(self.text)}, character {_character(self.text.strip(), node)}: {message}")


def _character(text: str, node: ast.expr) -> int:
    """Return where a node starts, counted from 1 in characters (ast counts UTF-8 bytes within the line)."""
    lines = text.splitlines(keepends=True)[: node.lineno]
    return sum(map(len, lines[:-1])) + len(lines[-1].encode()[: node.col_offset].decode()) + 1


def _short(where: str) -> str:
    return repr(where) if len(where) <= 120 else f"{where[:120]!r}…"


def _hint(where: str) -> str:
    """Return a hint at the most common mistake."""
    words = {w for w in re.findall(r"[^\W\d]\w*", re.sub(r"\"[^\"]*\"|'[^']*'", "", where)) if keyword.iskeyword(w)}
    odd = sorted(words - {"and", "or", "not", "in", "is", "None", "True", "False"})
    if re.search(r"(?<![=!<>])=(?!=)", where):
        return " Equality is written =="
    if odd:
        return f" {odd[0]} is a Python keyword; a column of that name is written {odd[0]}_"
    return " For example: where='modality == \"CT\" and spacing <= 2'"


def evenly_spaced(n: int, most: int) -> NDArray[np.int64]:
    """Return at most `most` of n rows at even spacing, including the first and the last."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(n, most)).round().astype(np.int64))
