"""What may be kept of tables and of JSON files: names by which columns are known, short words, and four facts."""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from medssl.readers.dicom.metadata import VIEWS

# Names of columns, and of keys in JSON files; case, spaces and "_-." do not count.
FILE = ("file", "filename", "path", "image", "scan", "dicom", "파일", "파일명", "영상")
PATIENT = (
    "patient",
    "patient_id",
    "patient_no",
    "subject",
    "subject_id",
    "환자번호",
    "환자id",
    "등록번호",
    "대상자번호",
)
LABEL = (
    "label",
    "labels",
    "target",
    "class",
    "diagnosis",
    "finding",
    "lesion",
    "라벨",
    "진단",
    "진단명",
    "병명",
    "질환명",
)
FACT = {
    "age": ("age", "patient_age", "나이", "연령"),
    "sex": ("sex", "gender", "patient_sex", "성별"),
    "view": ("view", "view_position"),
    "laterality": ("laterality",),
}
LONGEST, WORDS = 64, 5  # of a value that is a word, not a text: letters and words
# What no label has: telephone and identity numbers, dates, addresses of mail and pages, line ends.
IDENTIFIER = re.compile(r"\d{6}|\d{2,4}[-. ]\d{3,4}[-. ]\d{4}|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|@|://|[\x00-\x1f]")
NUMBER = re.compile(r"[-+]?(0|[1-9]\d{0,4})?\.\d+(e[-+]?\d{1,2})?", re.IGNORECASE)  # its digits are no telephone number
DISTINCT = 20  # different values of a label that nobody named, before it counts as an identifier or a text
ENCODINGS = ("utf-8-sig", "cp949")  # cp949: what Excel writes on a Korean Windows


def decoded(data: bytes) -> str | None:
    """Text in UTF-8 or CP949; None when it is neither."""
    for encoding in ENCODINGS:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


def allowed(value: Any) -> str | None:
    """A label or a site as text; None when it is no short word, or looks like a date or a number of a person."""
    text = str(value).lower() if isinstance(value, bool) else unicodedata.normalize("NFC", str(value)).strip()
    if len(text) > LONGEST:
        return None
    number = math.isfinite(value) if isinstance(value, float) else NUMBER.fullmatch(text)
    return text if number or (len(text.split()) <= WORDS and not IDENTIFIER.search(text)) else None


def words(cell: str) -> str | None:
    """A cell with a label or with several, "a|b"; None when one may not be kept."""
    words = [allowed(word) for word in cell.split("|")]
    return None if None in words else "|".join(word for word in words if word)


def many(values: Sequence[Any]) -> bool:
    """Whether nearly every value is another, as names, numbers and texts are."""
    return len(set(values)) > max(DISTINCT, len(values) / 2)


@lru_cache(1 << 12)
def squash(name: str) -> str:
    """How names of columns and keys compare."""
    return re.sub(r"[\s_.-]", "", unicodedata.normalize("NFC", name).casefold())


@cache
def squashed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Names as `squash` makes them."""
    return tuple(squash(name) for name in names)


YEARS = {"": 1.0, "Y": 1.0, "세": 1.0, "M": 1 / 12, "개월": 1 / 12, "W": 1 / 52, "D": 1 / 365}


def _age(cell: str) -> float | None:
    """Years, 90 at most; "45", "45.5", "45세", DICOM's "045Y", "006M". What is over 120 stands for something else."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*(Y|M|W|D|세|개월)?", cell.upper())
    years = float(found[1]) * YEARS[found[2] or ""] if found else 121.0
    return min(years, 90.0) if years <= 120 else None


def _word(choices: dict[str, str], cell: str) -> str | None:
    return choices.get(cell.casefold())


SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
SEX |= {"남": "M", "남성": "M", "남자": "M", "여": "F", "여성": "F", "여자": "F"}
FACTS: dict[str, Callable[[str], str | float | None]] = {  # only what these let through is stored, never free text
    "age": _age,
    "sex": lambda cell: _word(SEX, cell),
    "view": lambda cell: cell.upper() if cell.upper() in VIEWS else None,
    "laterality": lambda cell: _word({"l": "L", "left": "L", "r": "R", "right": "R", "b": "B", "both": "B"}, cell),
}
