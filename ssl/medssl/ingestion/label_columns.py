"""Clean the label columns of a table or of JSON files: missing values, written numbers, and what must not be stored."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from medssl.ingestion.allow_list import MAX_DISTINCT, allowed_words
from medssl.readers.pseudonyms import names_nobody
from medssl.store.label_values import (
    MISSING,
    NUMBER,
    SEPARATOR,
    canonical_value,
    chosen_spellings,
    clean,
    missing_words,
    quantity,
    quoted,
    several_spellings,
)

COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+")  # decimals
THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?")  # 1,234.5
DOTTED = re.compile(r"[-+]?[0-9]{1,3}([. ][0-9]{3})+(,[0-9]+)?")  # 1.234,5 and 1 234,5
DATE = re.compile(r"(19|20)?[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")
DAY_FIRST = re.compile(r"(0[1-9]|[12][0-9]|3[01])(0[1-9]|1[0-2])(19|20)[0-9]{2}")
LONG, TOO_LONG = 7, 10  # digits of hospital numbers, and of telephone and identity numbers
NO_VALUE = frozenset(word.casefold() for word in MISSING)
MAX_UNITS = 3  # more different words after the numbers of a column may be names


@dataclass(frozen=True)
class MissingWords:
    """Which words stand for a missing value.

    Attributes:
        usual: the words of `label_values.MISSING` do.
        more: further words, in the form of `label_values.canonical_value`.
    """

    usual: bool = True
    more: Collection[str] = frozenset()

    @classmethod
    def of(cls, missing: object) -> "MissingWords":
        """Return those of the option `missing`: words to add, or False for empty cells only."""
        if missing is False:
            return cls(usual=False)
        words = [missing] if isinstance(missing, str | int | float) else list(missing or ())  # type: ignore[call-overload]
        return cls(more=frozenset(canonical_value(w) for w in words if w is not None))

    def among(self, values: Collection[str]) -> set[str]:
        """Return those of the values of one column that stand for a missing value."""
        found = missing_words(values, self.more)
        return found if self.usual else {v for v in found if canonical_value(v) in self.more}


@dataclass
class LabelColumn:
    """One column of labels, in cells "a" or "a|b" with "" where empty.

    Attributes:
        name: of the label.
        cells: cleaned, see `label_values.clean`.
        notes: lines for the report.
    """

    name: str
    cells: list[str]
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cells = [clean(cell) for cell in self.cells]

    @property
    def known(self) -> list[str]:
        """The cells that are not empty."""
        return [cell for cell in self.cells if cell]

    def drop_missing(self, missing: MissingWords) -> None:
        """Empty the cells that stand for a missing value, and count them in the notes."""
        parts = [[clean(part) for part in cell.split(SEPARATOR)] for cell in self.cells]
        gone = missing.among({part for cell in parts for part in cell if part})
        if not gone:
            return
        counts = Counter(part for cell in parts for part in cell if part in gone)
        self.cells = [
            SEPARATOR.join(p for p in cell if p and p not in gone) if gone & set(cell) else whole
            for cell, whole in zip(parts, self.cells, strict=True)
        ]
        self.notes.append(
            f"{sum(counts.values())} values of {self.name!r} count as missing: {_counted(counts)}"
            + (" (missing=false keeps them as values)" if missing.usual else "")
        )

    def drop_nobody(self) -> None:
        """Empty the cells of a column of patients that name nobody, and count them in the notes.

        As ids, they would make one patient of all who have none.
        """
        counts = Counter(cell for cell in self.cells if cell and is_nobody(cell))
        if counts:
            self.cells = ["" if cell in counts else cell for cell in self.cells]
            self.notes.append(f"{sum(counts.values())} rows name no patient in {self.name!r}: {_counted(counts)}")

    def read_commas(self, separator: str) -> None:
        """Write numbers with decimal commas or marked thousands as plain ones, if all values of the column are numbers.

        separator: between the cells of the file, "" if it is none with cells. 1,234 is 1.234 in a file with semicolons, where
        a comma marks decimals, and 1234 in one with commas; elsewhere it stays as it is.
        """
        marked = [v for v in self.known if not NUMBER.fullmatch(v)]
        if not marked:
            return
        plain = [v for v in self.known if NUMBER.fullmatch(v)]
        dotted = [v for v in plain if "." in v]
        decimals = all(COMMA.fullmatch(v) for v in marked)
        thousands = all(THOUSANDS.fullmatch(v) for v in marked)
        european = all(COMMA.fullmatch(v) or DOTTED.fullmatch(v) for v in marked)
        if decimals and thousands:
            if separator not in {",", ";"}:
                self.notes.append(f"values of {self.name!r} such as 1,234 may be thousands or decimals and stay text")
                return
            decimals, thousands = separator == ";", separator == ","
        if thousands and not decimals:
            self._rewrite(lambda v: v.replace(",", "") if THOUSANDS.fullmatch(v) else v, "commas as thousands")
        elif decimals and not any(DOTTED.fullmatch(v) for v in dotted):
            self._rewrite(lambda v: v.replace(",", "."), "commas as decimal points")
        elif european and all(DOTTED.fullmatch(v) for v in dotted):
            remove = str.maketrans({".": None, " ": None, ",": "."})
            self._rewrite(lambda v: v.translate(remove), "commas as decimal points, dots and spaces as thousands")

    def _rewrite(self, rule: Callable[[str], str], how: str) -> None:
        self.cells = [rule(cell) for cell in self.cells]
        self.notes.append(f"numbers of {self.name!r} were read with {how}")

    def screen(self) -> None:
        """Empty the cells of a column that the user named which must not be stored, and count them in the notes.

        Numbers are kept or refused as a whole: those with many digits alone would vanish otherwise.
        """
        numbers = [v for v in self.known if quantity(v) is not None]
        numeric = len(numbers) > len(self.known) / 2
        if numeric and (why := looks_like_identifiers(numbers)):
            self.notes.append(
                f"column {self.name!r} was not copied: its numbers look like {why}; measurements can be given in another unit"
            )
            self.cells = [""] * len(self.cells)
            return
        free = set(numbers) if numeric and len({quantity(v)[1] for v in numbers}) <= MAX_UNITS else set()  # type: ignore[index]
        kept = {v: v if v in free else allowed_words(v) for v in set(self.known)}
        if refused := sum(kept[v] is None for v in self.known):
            why = "they look like texts, dates or identifiers"
            self.notes.append(f"{refused} values of column {self.name!r} were not copied: {why}")
        self.cells = [kept[v] or "" if v else "" for v in self.cells]

    def unify(self) -> None:
        """Write values that count as one in one way, and name their spellings in the notes."""
        parts = [[p.strip() for p in cell.split(SEPARATOR)] for cell in self.cells]
        words = [p for cell in parts for p in cell if p]
        if not (several := several_spellings(set(words))):
            return
        spelled = chosen_spellings(words)
        self.cells = [
            SEPARATOR.join(dict.fromkeys(spelled[p] for p in cell if p)) if whole else ""
            for cell, whole in zip(parts, self.cells, strict=True)
        ]
        for each in several[:3]:
            self.notes.append(f"{quoted(each)} of {self.name!r} count as one value, {spelled[each[0]]!r}")
        if len(several) > 3:
            self.notes.append(f"{len(several) - 3} more values of {self.name!r} are written in several ways")


def is_nobody(patient: str) -> bool:
    """Return whether a patient's id in a table or JSON file is a word for nobody or for a missing value."""
    return names_nobody(patient) or clean(patient).casefold() in NO_VALUE


def _counted(words: Counter[str]) -> str:
    return ", ".join(f"{word!r} {n}" for word, n in sorted(words.items(), key=lambda item: (-item[1], item[0])))


def looks_like_identifiers(numbers: Sequence[str]) -> str:
    """Return what the numbers of a column may be that must not be stored, "" if they are measurements.

    numbers: as text, perhaps with units.
    """
    whole = [re.split(r"[^0-9]", v.lstrip("+-"), maxsplit=1)[0] for v in numbers]
    fraction = any(re.search(r"\.[0-9]*[1-9]", v) for v in numbers)
    if any(len(v) >= TOO_LONG for v in whole):
        return "telephone or identity numbers"
    if any(len(v) >= 6 and v.startswith("0") for v in whole):
        return "identifiers with leading zeros"
    if not fraction and any(all(form.fullmatch(v) for v in whole) for form in (DATE, DAY_FIRST)):
        return "dates"
    lengths = {len(v) for v in whole}
    alike = not fraction and len(lengths) == 1 and lengths.pop() >= LONG
    return "patients' numbers" if alike and len(set(whole)) > min(len(whole), MAX_DISTINCT) / 2 else ""


def tidy_labels(rows: Sequence[dict[str, Any]], missing: MissingWords) -> tuple[list[dict[str, Any]], list[str]]:
    """Return manifest rows without labels that stand for a missing value, and notes that count them."""
    return _each_label(rows, lambda column: column.drop_missing(missing))


def unified(rows: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return manifest rows in which labels that count as one value are written alike, and notes that name them."""
    return _each_label(rows, LabelColumn.unify)


def _each_label(
    rows: Sequence[dict[str, Any]], change: Callable[[LabelColumn], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    out, notes = [dict(row) for row in rows], []
    for name in sorted({k for row in out for k in row if k.startswith("label:")}):
        column = LabelColumn(name.removeprefix("label:"), [row.get(name) or "" for row in out])
        change(column)
        notes += column.notes
        for row, cell in zip(out, column.cells, strict=True):
            if name in row:
                row[name] = cell or None
    return out, notes
