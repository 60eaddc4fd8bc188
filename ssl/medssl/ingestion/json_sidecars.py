"""JSON files beside scans, as the sets of AI-Hub have them: whose each is, and the few values of it that are kept.

Such a set is DICOM, PNG and JSON files with equal names in two trees (원천데이터, 라벨링데이터), often in zip files, and no two
sets are alike. A PNG there is usually a copy of a DICOM: it is found by its name here, and by its pixels in `rendition`.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.allow_list import FACT, FACTS, LABEL, LONGEST, PATIENT, allowed, decoded, many, squash
from medssl.ingestion.label_table import told
from medssl.ingestion.path_match import bare, is_image, pair, shape
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Unreadable

LARGEST = 16 << 20  # bytes
DEEPEST = 64  # lists and objects inside each other
UNKNOWN = {"", "0", "-", "none", "null", "nan", "unknown", "anonymous", "anonymized"}  # patients that are nobody

Json = dict[str, Any] | list[Any]
Way = tuple[str, ...]  # keys, from the outside in
Columns = dict[str, list[tuple[str, Way]]]  # last key -> columns that it may be, and the keys that must lead to it


class Sidecars:
    """The JSON files of a source: `add` each, then `join` what they say to the scans.

    Kept are pseudonyms of patients, the facts of `labels.FACTS`, and labels: words and numbers of at most 64 letters, a
    list of them as "a|b" in the order of the alphabet. Nothing else of a file is stored, held or said.

    Args:
        alias: makes patient ids into pseudonyms.
        pattern: "auto" to pair files by their path without suffix, of which the folders count only where names repeat;
            else a regular expression that is searched in that path and has a group `stem`, equal in what belongs
            together, and maybe groups `patient` and `label` that say so by themselves.
        keys: where to find what: "patient", "age", "sex", "view", "laterality", or a name for a label -> a key, or the
            last keys on the way to it with dots ("info.sex"). What is not named is found by its usual names.
        targets: further labels, each a key or the way to it. With a label in `targets` or `keys` no other is taken.

    Raises:
        UserError: the pattern is no regular expression or has no group `stem`.
    """

    def __init__(
        self,
        alias: Pseudonyms,
        pattern: str = "auto",
        keys: Mapping[str, str] | None = None,
        targets: Sequence[str] = (),
    ):
        self.alias = alias
        self.pattern = None if pattern.casefold() in {"auto", "true"} else _pattern(pattern)
        self.named = bool(targets) or bool(keys and keys.keys() - {"patient", *FACT})
        self.columns = columns(keys or {}, targets)
        self._names: list[str] = []
        self._values: list[dict[str, Any]] = []
        self._lost: Counter[str] = Counter()

    def add(self, name: str, data: bytes) -> None:
        """Takes from a JSON file what may be kept.

        Args:
            name: path relative to the source, like a scan's.
            data: all its bytes.

        Raises:
            Unreadable: BAD_SIDECAR or TOO_LARGE.
        """
        values, lost = facts(read_json(data), self.columns)
        if patient := values.pop("patient", None):
            values |= {"patient": self.alias.patient(str(patient)), "patient_known": True}
        self._names.append(name)
        self._values.append(values)
        self._lost.update(lost)

    def join(self, scans: Sequence[dict[str, Any]], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Manifest rows with the values of the JSON files in them, and a report in lines for the terminal: only counts.

        Args:
            scans: manifest rows.
            paths: the path of each, relative to the source; of a volume the folder that holds its slices.

        Raises:
            UserError: the pattern finds no stem, or none that a JSON file shares.
        """
        if self.pattern and not any(map(self._stem, paths)):
            raise UserError(
                f"aihub={self.pattern.pattern} finds no stem in the paths of the scans, which are like {shape(bare(paths[0]))}"
            )
        mine = self._pair(paths, self._names)
        if self._names and not mine:
            why = (
                f"none of the {len(self._names)} JSON files belongs to a scan: they lie like {shape(self._names[0])}, scans "
                f"like {shape(paths[0])}; give aihub=PATTERN, with a group (?P<stem>…) for what names have in common"
            )
            if self.pattern:
                raise UserError(why)
            return list(scans), [why]
        agreed = [_agreed([self._values[i] for i in mine.get(path, ())]) for path in paths]
        texts = set() if self.named else _texts(agreed)
        rows = [
            told(scan, {k: v for k, v in said.items() if k not in texts} | self._from_path(path))
            for scan, path, said in zip(scans, paths, agreed, strict=True)
        ]
        return rows, self._report(paths, mine, texts)

    def renditions(self, kinds: Mapping[str, str]) -> list[tuple[str, str]]:
        """Images that by their names are copies of DICOM images, as (image, DICOM). `rendition.same` looks at the pixels.

        Args:
            kinds: path of a scan -> "dicom", "image", or any other word for what can be neither.
        """
        images, dicoms = ([name for name, kind in kinds.items() if kind == wanted] for wanted in ("image", "dicom"))
        found = self._pair(images, dicoms)
        return [(image, dicoms[found[image][0]]) for image in images if len(found.get(image, ())) == 1]

    def _from_path(self, path: str) -> dict[str, Any]:
        found = self.pattern.search(bare(path)) if self.pattern else None
        said = {k: v for k, v in found.groupdict().items() if v} if found else {}
        row: dict[str, Any] = {"label:label": said["label"]} if "label" in said else {}
        if "patient" in said:
            row |= {"patient": self.alias.patient(said["patient"]), "patient_known": True}
        return row

    def _pair(self, scans: Sequence[str], others: Sequence[str]) -> dict[str, list[int]]:
        """scan -> the `others` that belong to it, which is one, or several of one name or one folder."""
        if self.pattern is None:
            return {
                scan: found
                for wanted in (True, False)
                for scan, found in pair([s for s in scans if is_image(s) == wanted], others).items()
            }
        by_stem: dict[str, list[int]] = {}
        for i, name in enumerate(others):
            if word := self._stem(name):
                by_stem.setdefault(word, []).append(i)
        stems = {scan: self._stem(scan) for scan in scans}
        return {scan: by_stem[word] for scan, word in stems.items() if word in by_stem}

    def _stem(self, name: str) -> str:
        assert self.pattern is not None
        found = self.pattern.search(bare(name))
        return (found["stem"] or "").casefold() if found else ""

    def _report(self, paths: Sequence[str], mine: Mapping[str, list[int]], texts: set[str]) -> list[str]:
        used = {i for found in mine.values() for i in found}
        labels = {k.removeprefix("label:") for i in used for k in self._values[i] if k.startswith("label:")} - texts
        have = sum(path in mine for path in paths)
        lines = [f"{have} of {len(paths)} scans have a JSON file (labels: {', '.join(sorted(labels)) or 'none'})"]
        if left := len(self._names) - len(used):
            lines.append(f"{left} JSON files belong to no scan")
        for column, count in sorted(self._lost.items()):
            lines.append(f"{column} not taken from {count} JSON files: it is said in several ways, or is no short word")
        for column in sorted(texts):
            name = column.removeprefix("label:")
            lines.append(f"{column} not taken: nearly every scan has another; if it is a label, add targets=[{name}]")
        return lines


def read_json(data: bytes) -> Json:
    """The content of a JSON file in UTF-8 or CP949.

    Raises:
        Unreadable: TOO_LARGE; BAD_SIDECAR: not text, not JSON, neither an object nor a list, or too deep.
    """
    if len(data) > LARGEST:
        raise Unreadable("TOO_LARGE", "a JSON file of more than 16 MB")
    if (text := decoded(data)) is None:
        raise Unreadable("BAD_SIDECAR", "neither UTF-8 nor CP949")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise Unreadable("BAD_SIDECAR", "not JSON, or too deep") from None
    if not isinstance(content, dict | list):
        raise Unreadable("BAD_SIDECAR", "neither an object nor a list")
    return content


def columns(keys: Mapping[str, str], targets: Sequence[str] = ()) -> Columns:
    """Where which column of the manifest may be; see `Sidecars`."""
    labels = {f"label:{name}": (name,) for name in targets}
    labels |= {f"label:{name}": (key,) for name, key in keys.items() if name not in {"patient", *FACT}}
    patient = {"patient": (keys["patient"],) if "patient" in keys else PATIENT}
    known = {f"fact:{fact}": (keys[fact],) if fact in keys else names for fact, names in FACT.items()}
    out: Columns = {}
    for column, names in (patient | known | (labels or {f"label:{name}": (name,) for name in LABEL})).items():
        for name in names:
            way = tuple(squash(part) for part in name.split("."))
            out.setdefault(way[-1], []).append((column, way))
    return out


def facts(content: Json, columns: Columns) -> tuple[dict[str, str | float], set[str]]:
    """What a JSON file says of some columns, the patient's id as it is written; and the columns it has but not clearly.

    A patient and a fact must have one value in all places that say it. A label may be a list, or be said by several
    items of one list; said in several places, these must agree.

    Args:
        content: of a JSON file.
        columns: of `columns`.

    Raises:
        Unreadable: BAD_SIDECAR: it is too deep.
    """
    found: dict[str, dict[Way, set[str | None]]] = {}
    for way, value in _leaves(content):
        for column, end in columns.get(way[-1], ()) if way else ():
            if way[-len(end) :] == end and value is not None and value != "":
                found.setdefault(column, {}).setdefault(way, set()).add(_allowed(column, value))
    out: dict[str, str | float] = {}
    for column, places in found.items():
        values = set(map(frozenset, places.values()))
        said = values.pop()
        if values or None in said or (len(said) > 1 and not column.startswith("label:")):
            continue
        text = "|".join(sorted(v for v in said if v is not None))
        fact = FACTS[column.removeprefix("fact:")](text) if column.startswith("fact:") else text
        if fact is not None:
            out[column] = fact
    return out, found.keys() - out.keys()


def _leaves(content: Json) -> Iterator[tuple[Way, Any]]:
    """(keys on the way, value) of all that is neither object nor list; a list is as many values as it has."""
    stack: list[tuple[Way, int, Any]] = [((), 0, content)]
    while stack:
        way, depth, value = stack.pop()
        if depth > DEEPEST:
            raise Unreadable("BAD_SIDECAR", "not JSON, or too deep")
        if isinstance(value, dict):
            stack += [((*way, squash(key)), depth + 1, inner) for key, inner in value.items()]
        elif isinstance(value, list):
            stack += [(way, depth + 1, inner) for inner in value]
        else:
            yield way, value


def _allowed(column: str, value: Any) -> str | None:
    """A value as text, None when it may not be kept or means nothing."""
    if column.startswith("label:"):
        return allowed(value)
    text = unicodedata.normalize("NFC", str(value)).strip()
    return None if len(text) > LONGEST or (column == "patient" and text.casefold() in UNKNOWN) else text


def _agreed(said: list[dict[str, Any]]) -> dict[str, Any]:
    """What all of several files say."""
    return {k: v for k, v in said[0].items() if all(other.get(k) == v for other in said)} if said else {}


def _texts(rows: list[dict[str, Any]]) -> set[str]:
    """Labels that nearly every scan has another of: names, numbers or texts under a key that usually has a label."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for column in row:
            if column.startswith("label:"):
                values.setdefault(column, []).append(row[column])
    return {column for column, v in values.items() if many(v)}


def _pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(unicodedata.normalize("NFC", pattern))
    except re.error as e:
        raise UserError(f"aihub={pattern} is not a regular expression: {e}") from e
    if "stem" not in compiled.groupindex:
        raise UserError(f"aihub={pattern} needs a group (?P<stem>…) for what files that belong together share")
    return compiled
