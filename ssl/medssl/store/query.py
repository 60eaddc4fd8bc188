"""Which scans of a store: `modality == "CT" and slices >= 32 and not blank`. A small language that runs nothing.

    comparisons    == != < <= > >=, also chained: 0.5 <= spacing < 2
    membership     modality in ["CT", "MR"], "SIEMENS" in scanner (part of a word), "cut off" in flags
    missing        age is None, age is not None
    together       and, or, not, brackets

Names are, in this order: columns of the manifest; dims, channels, slices (of 3D), height, width; spacing (the largest, mm),
spacing_z, spacing_y, spacing_x; facts and labels by their own names (label.NAME and fact.NAME where both exist); flags, true
for the scans that carry them. Whatever is no letter or digit is written as an underscore, and a word of Python with one
behind it (class_).

A scan counts when the whole is surely true for it: a comparison with a missing value is neither true nor false, and stays so
under not (the three-valued logic of SQL).
"""

import ast
import keyword
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from medssl.errors import UserError, nearest
from medssl.readers.quality_flags import FLAGS

LONGEST = 10_000  # characters
COMPARE = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
KINDS = {"number": "a number", "word": "a word", "truth": "true or false", "words": "a list of words", "list": "a list"}


def select(table: pa.Table, where: str) -> np.ndarray:
    """Row numbers, int64 and rising, of the scans that satisfy `where`; it may be none of them.

    Raises:
        UserError: when `where` cannot be read, names what the manifest does not have, or compares unlike things.
    """
    if not where.strip():
        raise UserError("where= is empty; leave it out to select all scans")
    if len(where) > LONGEST:
        raise UserError(f"where= is longer than {LONGEST} characters; select in several steps")
    try:
        tree = ast.parse(where.strip(), mode="eval")
        mask = _Query(table, where).truth(tree.body)
    except SyntaxError as e:
        what = e.msg.rstrip("?.")
        raise UserError(f"where={_short(where)} cannot be read{_position(e)}: {what}.{_hint(where)}") from e
    except (ValueError, OverflowError, RecursionError, MemoryError) as e:
        raise UserError(f"where={_short(where)} cannot be read; write it shorter, with plain words and numbers") from e
    return np.flatnonzero(pc.fill_null(mask, False).to_numpy(zero_copy_only=False))


def query_name(name: str) -> str:
    """A name as it is written in a where: "low contrast" is low_contrast, "class" is class_."""
    word = re.sub(r"\W", "_", unicodedata.normalize("NFKC", name))
    word = "_" + word if word[:1].isdigit() else word
    return word + "_" if keyword.iskeyword(word) else word


@dataclass(frozen=True)
class _Value:
    """A column (pa.Array) or a constant, and of what kind it is."""

    kind: str
    data: Any
    said: str

    @property
    def fixed(self) -> bool:
        return not isinstance(self.data, pa.Array)


class _Query:
    """One where on one table. `truth` gives a pa.BooleanArray with nulls where nobody can know."""

    def __init__(self, table: pa.Table, text: str):
        self.table, self.text = table, text
        self.derived: dict[str, Callable[[], pa.Array]] = {
            "dims": lambda: pc.subtract(pc.list_value_length(self._column("shape")), 1),
            "channels": lambda: pc.list_element(self._column("shape"), 0),
            "slices": lambda: _from_end(self._column("shape"), 3, least=4),
            "height": lambda: _from_end(self._column("shape"), 2),
            "width": lambda: _from_end(self._column("shape"), 1),
            "spacing": lambda: pc.max_element_wise(*(_from_end(self._column("spacing"), k) for k in (1, 2, 3))),
            **{
                f"spacing_{axis}": lambda k=k: _from_end(self._column("spacing"), k)  # type: ignore[misc]
                for k, axis in enumerate("xyz", 1)
            },
        }
        self.plain = {c for c in table.column_names if ":" not in c}
        self.more: dict[str, list[str]] = {}  # written name -> columns of labels and facts
        for column in table.column_names:
            kind, colon, name = column.partition(":")
            if colon and kind in {"label", "fact"}:
                self.more.setdefault(query_name(name), []).append(column)
        there = pc.unique(pc.list_flatten(self._column("flags"))).to_pylist() if "flags" in self.plain else []
        self.flags = {query_name(flag): flag for flag in (*FLAGS, *sorted(there))}

    def truth(self, node: ast.expr) -> pa.Array:
        """What is true, false or unknown (null) for each row."""
        if isinstance(node, ast.BoolOp):
            join = pc.and_kleene if isinstance(node.op, ast.And) else pc.or_kleene
            mask = self.truth(node.values[0])
            for other in node.values[1:]:
                mask = join(mask, self.truth(other))
            return mask
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return pc.invert(self.truth(node.operand))
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            mask = self._compare(operands[0], node.ops[0], operands[1])
            for left, op, right in zip(operands[1:], node.ops[1:], operands[2:], strict=False):
                mask = pc.and_kleene(mask, self._compare(left, op, right))
            return mask
        value = self._value(node)
        if value.fixed or value.kind != "truth":
            self._fail(node, f"{value.said} is not true or false by itself; compare it with something")
        return value.data

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> pa.Array:
        if isinstance(op, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None):
                self._fail(right, "after `is` comes None; for anything else write ==")
            value = self._column_of(left)
            return pc.is_null(value.data) if isinstance(op, ast.Is) else pc.is_valid(value.data)
        if isinstance(op, ast.In | ast.NotIn):
            mask = self._member(left, right)
            return mask if isinstance(op, ast.In) else pc.invert(mask)
        a, b = self._value(left), self._value(right)
        if a.fixed and b.fixed:
            self._fail(left, f"{a.said} and {b.said} are both constants; one side must be a name")
        if a.kind != b.kind or a.kind in {"words", "list"}:
            quotes = "; words stand in quotes" if {a.kind, b.kind} == {"number", "word"} else ""
            self._fail(right, f"{a.said} is {KINDS[a.kind]} and {b.said} is {KINDS[b.kind]}{quotes}")
        if a.kind != "number" and not isinstance(op, ast.Eq | ast.NotEq):
            self._fail(right, f"{a.said} has no order; write == or !=")
        return getattr(pc, COMPARE[type(op)])(a.data, b.data)

    def _member(self, left: ast.expr, right: ast.expr) -> pa.Array:
        if isinstance(right, ast.List | ast.Tuple | ast.Set):
            value, items = self._column_of(left), [self._value(item) for item in right.elts]
            for node, item in zip(right.elts, items, strict=True):
                if not item.fixed or item.kind != value.kind:
                    self._fail(node, f"{value.said} is {KINDS[value.kind]}, so it cannot be {item.said}")
            wanted = pa.array(
                [item.data for item in items], value.data.type if value.kind != "number" else pa.float64()
            )
            data = value.data.cast(pa.float64()) if value.kind == "number" else value.data
            return pc.if_else(pc.is_valid(data), pc.is_in(data, wanted), None)
        word, value = self._value(left), self._column_of(right)
        if not (word.fixed and word.kind == "word" and value.kind in {"word", "words"}):
            self._fail(
                right, 'after `in` comes a list such as ["a", "b"], or a word may be looked for in a column of words'
            )
        if value.kind == "word":
            return pc.match_substring(value.data, word.data)
        if word.data not in self.flags.values():
            self._fail(left, f"there is no flag {word.said}.{nearest(word.data, self.flags.values())}")
        return self._flagged(word.data)

    def _column_of(self, node: ast.expr) -> _Value:
        value = self._value(node)
        if value.fixed:
            self._fail(node, f"{value.said} is a constant; a name must stand here")
        return value

    def _value(self, node: ast.expr) -> _Value:
        said = ast.get_source_segment(self.text.strip(), node) or "this"
        if isinstance(node, ast.Name):
            return self._named(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"label", "fact"}:
            found = [c for c in self.more.get(node.attr, ()) if c.startswith(node.value.id + ":")]
            if not found:
                known = [k for k, columns in self.more.items() for c in columns if c.startswith(node.value.id + ":")]
                self._fail(node, f"there is no {node.value.id} {node.attr!r}.{nearest(node.attr, known)}")
            return self._one(node, found)
        sign = 1.0
        while isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            sign, node = (-sign if isinstance(node.op, ast.USub) else sign), node.operand
        constant = node.value if isinstance(node, ast.Constant) else None
        if isinstance(constant, bool | str) and sign == 1.0:
            return _Value("truth" if isinstance(constant, bool) else "word", constant, said)
        if isinstance(constant, int | float) and not isinstance(constant, bool):
            return _Value("number", sign * float(constant), said)
        if isinstance(node, ast.Constant) and constant is None:
            self._fail(node, "None stands only after `is` or `is not`")
        self._fail(node, f"{said} cannot stand here; names, numbers, words in quotes, and lists of them can")

    def _named(self, node: ast.Name) -> _Value:
        name = node.id
        if name in self.derived:
            return self._of(self.derived[name](), name)
        if name in self.plain:
            return self._of(self._column(name), name)
        if found := self.more.get(name):
            if name in self.flags:
                other = found[0].partition(":")[0]
                flag = self.flags[name]
                self._fail(node, f'{name} is a {other} and a flag; write {other}.{name}, or "{flag}" in flags')
            return self._one(node, found)
        if name in self.flags and "flags" in self.plain:
            return _Value("truth", self._flagged(self.flags[name]), name)
        known = {*self.derived, *self.plain, *self.more, *self.flags}
        self._fail(node, f"there is no name {name!r} (words stand in quotes).{nearest(name, known)}")

    def _one(self, node: ast.expr, columns: list[str]) -> _Value:
        if len(columns) > 1:
            ways = " or ".join(f"{kind}.{query_name(name)}" for kind, _, name in (c.partition(":") for c in columns))
            self._fail(node, f"{' and '.join(columns)} are both there; write {ways}")
        return self._of(self._column(columns[0]), columns[0])

    def _of(self, data: pa.Array, said: str) -> _Value:
        kind = data.type
        if pa.types.is_list(kind):
            return _Value("words" if pa.types.is_string(kind.value_type) else "list", data, said)
        if pa.types.is_boolean(kind):
            return _Value("truth", data, said)
        if pa.types.is_floating(kind):  # not a number is missing
            return _Value("number", pc.if_else(pc.is_nan(data), None, data), said)
        return _Value("number" if pa.types.is_integer(kind) else "word", data, said)

    def _flagged(self, flag: str) -> pa.Array:
        flags = self._column("flags")
        mask = np.zeros(len(flags), bool)
        parents = pc.list_parent_indices(flags).to_numpy(zero_copy_only=False)
        mask[parents[pc.equal(pc.list_flatten(flags), flag).to_numpy(zero_copy_only=False)]] = True
        return pa.array(mask)

    def _column(self, name: str) -> pa.Array:
        column = self.table[name].combine_chunks()
        return column if isinstance(column, pa.Array) else pa.concat_arrays(column.chunks)

    def _fail(self, node: ast.expr, message: str) -> NoReturn:
        raise UserError(f"where={_short(self.text)}, character {_characters(self.text.strip(), node)}: {message}")


def _from_end(lists: pa.ListArray, k: int, least: int | None = None) -> pa.Array:
    """The k-th last item of each list, null where the list is missing or shorter than `least` (or k)."""
    offsets = lists.offsets.to_numpy()
    there = (np.diff(offsets) >= (least or k)) & lists.is_valid().to_numpy(zero_copy_only=False)
    at = np.where(there, offsets[1:] - k, 0)
    return lists.values.take(pa.array(at, mask=~there))


def _characters(text: str, node: ast.expr) -> int:
    """Where a node starts, counted from 1 in characters (ast counts UTF-8 bytes within its line)."""
    lines = text.splitlines(keepends=True)[: node.lineno]
    return sum(map(len, lines[:-1])) + len(lines[-1].encode()[: node.col_offset].decode()) + 1


def _short(where: str) -> str:
    return repr(where) if len(where) <= 120 else f"{where[:120]!r}…"


def _position(e: SyntaxError) -> str:
    return f" at character {e.offset}" if e.offset else ""


def _hint(where: str) -> str:
    """What is most often meant."""
    words = {w for w in re.findall(r"[^\W\d]\w*", re.sub(r"\"[^\"]*\"|'[^']*'", "", where)) if keyword.iskeyword(w)}
    odd = sorted(words - {"and", "or", "not", "in", "is", "None", "True", "False"})
    if re.search(r"(?<![=!<>])=(?!=)", where):
        return " Equal is written =="
    if odd:
        return f" {odd[0]} is a word of Python: a column of that name is written {odd[0]}_"
    return " For example: where='modality == \"CT\" and spacing <= 2'"
