"""The allow-list for tables and JSON files: names of columns, short words, and four metadata fields."""

import math
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any

from medssl.readers.dicom.metadata import VIEWS
from medssl.store.label_values import clean

# Names of columns, and of keys in JSON files. Case, spaces and "_-." do not count.
FILE = ("file", "filename", "path", "image", "scan", "dicom", "파일", "파일명", "영상")
ALSO_FILE = (  # only if they name files of the source: elsewhere they may be numbers of a database
    *(
        "image_index",
        "image_name",
        "image_id",
        "image_path",
        "image_file",
        "image_filename",
        "img",
        "img_name",
        "img_id",
    ),
    *("img_path", "img_file", "dicom_id", "dicom_path", "dicom_file", "scan_id", "scan_name", "scan_path", "file_id"),
    *("filepath", "파일이름", "파일경로", "영상명", "이미지", "이미지명", "이미지파일", "이미지파일명", "영상파일명"),
)
PATIENT = (
    *("patient", "patient_id", "patient_no", "subject", "subject_id", "participant", "participant_id"),
    *("환자번호", "환자id", "등록번호", "대상자번호"),
)
LABEL = (
    *("label", "labels", "target", "class", "diagnosis", "finding", "lesion"),
    *("라벨", "진단", "진단명", "병명", "질환명"),
)
METADATA = {
    "age": ("age", "patient_age", "나이", "연령"),
    "sex": ("sex", "gender", "patient_sex", "성별"),
    "view": ("view", "view_position"),
    "laterality": ("laterality",),
}
MAX_LETTERS, MAX_WORDS = 64, 5  # limits for a label; a longer value is free text
# Patterns not allowed in labels: telephone and identity numbers, dates, e-mail and web addresses, control characters.
IDENTIFIER = re.compile(r"\d{6}|\d{2,4}[-. ]\d{3,4}[-. ]\d{4}|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|@|://|[\x00-\x1f]")
NUMBER = re.compile(r"[-+]?(0|[1-9]\d{0,4})?\.\d+(e[-+]?\d{1,2})?", re.IGNORECASE)  # never a telephone number
MAX_DISTINCT = 20  # distinct values of a label column that the user did not name; beyond, it may be an identifier


def allowed_word(value: Any) -> str | None:
    """Return a label or a site as text; None if it is free text, or looks like a date or an identifier."""
    text = str(value).lower() if isinstance(value, bool) else clean(str(value))
    if len(text) > MAX_LETTERS:
        return None
    number = math.isfinite(value) if isinstance(value, float) else NUMBER.fullmatch(text)
    return text if number or (len(text.split()) <= MAX_WORDS and not IDENTIFIER.search(text)) else None


def allowed_words(cell: str) -> str | None:
    """Return a cell with one label or several, "a|b"; None if any of them is not allowed."""
    words = [allowed_word(word) for word in cell.split("|")]
    return None if None in words else "|".join(word for word in words if word)


def mostly_distinct(values: Sequence[Any]) -> bool:
    """Return whether nearly every value is different, as in names, numbers and texts."""
    return len(set(values)) > max(MAX_DISTINCT, len(values) / 2)


@lru_cache(1 << 12)
def squash(name: str) -> str:
    """Return the form in which names of columns and keys are compared."""
    return re.sub(r"[\s_.-]", "", clean(name).casefold())


@cache
def squashed(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return `squash` of each name."""
    return tuple(squash(name) for name in names)


YEARS = {"": 1.0, "Y": 1.0, "세": 1.0, "M": 1 / 12, "개월": 1 / 12, "W": 1 / 52, "D": 1 / 365}
SEX = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}
SEX |= {"남": "M", "남성": "M", "남자": "M", "여": "F", "여성": "F", "여자": "F"}
SIDE = {"l": "L", "left": "L", "r": "R", "right": "R", "b": "B", "both": "B"}


def _age(cell: str) -> float | None:
    """Return years, capped at 90, of "45", "45.5", "45세" or DICOM's "045Y" and "006M". Values over 120 are codes."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*(Y|M|W|D|세|개월)?", cell.upper())
    years = float(found[1]) * YEARS[found[2] or ""] if found else 121.0
    return min(years, 90.0) if years <= 120 else None


PARSERS: dict[str, Callable[[str], str | float | None]] = {  # only their results are stored, never free text
    "age": _age,
    "sex": lambda cell: SEX.get(cell.casefold()),
    "view": lambda cell: cell.upper() if cell.upper() in VIEWS else None,
    "laterality": lambda cell: SIDE.get(cell.casefold()),
}
