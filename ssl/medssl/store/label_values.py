"""How values of labels are compared: numbers as numbers, words without differences of width, case and spaces.

The table of an ingest, the filters of a store and the targets of a score all compare the results of `canonical_value`.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any

SEPARATOR = "|"  # between the findings of one scan, as in the ChestX-ray14 table of the NIH
NUMBER = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
QUANTITY = re.compile(rf"({NUMBER.pattern}) ?([^\W\d_²³¹]{{1,8}}(/[^\W\d_²³¹]{{1,8}})?[²³23]?|%|°C?)", re.IGNORECASE)
BOOLEANS = {"true": "1", "false": "0"}
OTHER_NUMBERS = ("<super>", "<sub>", "<fraction>")  # NFKC would make 102 of 10²
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u200e\u200f\u2060\u00ad\ufeff"))
EXACT = Context(prec=400)

# What programs and people write for no value, besides an empty cell. Case counts: "none" is a word of its own.
MISSING = frozenset(
    """
    NA N/A n/a n.a. N.A. #N/A #NA <NA> nan NaN NAN -nan -NaN NaT null NULL Null (null) None <none> nil NIL #NULL! #VALUE! #REF!
    #DIV/0! #NAME? #NUM! . .. ... - -- --- – — ? ?? * missing Missing MISSING unknown Unknown UNKNOWN
    미상 없음 모름 불명 결측 결측값 결측치 자료없음 해당없음 미기재 미확인 不明 未知 缺失 なし 无 無
    """.split()  # noqa: SIM905
) | {
    "#N/A N/A",
    "not available",
    "Not available",
    "not applicable",
    "Not applicable",
    "해당 없음",
    "자료 없음",
    "값 없음",
}
# Beside a word for some of it, these words mean that there is none of it, and are a class.
NONE_OF_IT = frozenset({"None", "없음", "なし", "无", "無"})
SOME_OF_IT = frozenset(
    """
    trace minimal slight some mild light moderate marked severe heavy low medium high small large partial complete present
    있음 유 경미 경도 경증 중등도 중등증 중증 고도 심함 あり 有 轻度 中度 重度 軽度 高度
    """.split()  # noqa: SIM905
)


@lru_cache(1 << 16)
def clean(text: str) -> str:
    """Return text in NFKC with digits of any script as 0 to 9, single spaces, none around it, and no invisible characters.

    Superscripts, subscripts and fractions stay: NFKC would turn them into other numbers.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_compatible, text.translate(INVISIBLE))))
    return re.sub(" +", " ", text).strip()


def _compatible(c: str) -> str:
    if unicodedata.category(c) == "Nd":
        return str(unicodedata.decimal(c))
    return c if unicodedata.decomposition(c).startswith(OTHER_NUMBERS) else unicodedata.normalize("NFKC", c)


def as_text(value: Any) -> str:
    """Return a value as text, a float without trailing zeros."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def number(value: Any) -> float | None:
    """Return a value as a finite float; None if it is none. Text counts as a number if it is written as one, and nothing else."""
    if isinstance(value, str):
        value = _number_text(value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _number_text(text: str) -> str | None:
    text = clean(text).replace("−", "-")
    return text if NUMBER.fullmatch(text) else None


def quantity(value: Any) -> tuple[float, str] | None:
    """Return a number and its unit, "" if there is none: "2.5 mm" is (2.5, "mm"). None for anything else."""
    if (plain := number(value)) is not None:
        return plain, ""
    found = QUANTITY.fullmatch(clean(str(value)).replace("−", "-"))
    amount = number(found[1]) if found else None
    return None if found is None or amount is None else (amount, found[5])


def canonical_value(value: Any) -> str:
    """Return the text that is the same for values that count as one: 1, "1.0", "１" and "true"; "Mass" and "mass "."""
    return _same_text(as_text(value))


@lru_cache(1 << 16)
def _same_text(text: str) -> str:
    if (digits := _number_text(text)) is not None:
        found = Decimal(digits).normalize(EXACT)
        return str(found) if found else "0"
    folded = clean(text).casefold()
    return BOOLEANS.get(folded, folded)


def findings(value: Any) -> list[str]:
    """Return the findings in one value, which SEPARATOR joins."""
    return [f for part in as_text(value).split(SEPARATOR) if (f := part.strip())]


def missing_words(values: Iterable[str], more: Collection[str] = ()) -> set[str]:
    """Return the values of one column that stand for a missing value.

    Args:
        values: cleaned values of the column.
        more: further words, besides MISSING, in the form of `canonical_value`.
    """
    found = set(values)
    some = any(v.casefold() in SOME_OF_IT for v in found)
    usual = MISSING - NONE_OF_IT if some else MISSING
    return {v for v in found if v in usual or canonical_value(v) in more}


def chosen_spellings(values: Iterable[str]) -> dict[str, str]:
    """Return spelling -> the preferred spelling of the same value: the most frequent, then the shortest."""
    counts = Counter(values)
    best: dict[str, str] = {}
    for v in sorted(counts, key=lambda v: (-counts[v], len(v), v)):
        best.setdefault(canonical_value(v), v)
    return {v: best[canonical_value(v)] for v in counts}


def several_spellings(values: Iterable[str]) -> list[list[str]]:
    """Return the spellings of every value that has more than one, each list and all lists in alphabetical order."""
    spelled: dict[str, set[str]] = {}
    for v in values:
        spelled.setdefault(canonical_value(v), set()).add(v)
    return sorted(sorted(each) for each in spelled.values() if len(each) > 1)


def quoted(words: Sequence[str], most: int = 4) -> str:
    """Return values for a message: 'a', 'b' and 3 more."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(repr(w) for w in words[:most]) + more
