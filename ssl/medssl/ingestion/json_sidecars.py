"""JSON files beside scans, as in the data sets of AI-Hub: match each to its scan and take the few values that are kept.

Such a set has DICOM, PNG and JSON files with equal names in two trees (원천데이터, 라벨링데이터), often in zip files, and no
two sets are alike. A PNG there is usually a copy of a DICOM image: its name is matched here, its pixels in `rendition`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from medssl.errors import UserError
from medssl.ingestion.allow_list import METADATA, mostly_distinct
from medssl.ingestion.json_values import allowed_values, columns, parse_json
from medssl.ingestion.label_columns import LabelColumn, MissingWords
from medssl.ingestion.label_sources import differ, updated
from medssl.ingestion.path_match import compile_pattern, is_image, pair, path_pattern, without_suffix
from medssl.readers.pseudonyms import Pseudonyms


class Sidecars:
    """The JSON files of a source: `add` each, then `join` their values to the scans.

    Kept are pseudonyms of patients, the metadata of `allow_list.METADATA`, and labels: words and numbers of at most 64
    letters, several as "a|b" in alphabetical order. Nothing else of a file is stored, kept in memory or printed.

    Args:
        pseudonyms: those of the project.
        pattern: "auto" to pair files by their paths without suffix, where folders matter only if names are repeated; else a
            regular expression to search in these paths, with a group `stem` that is equal for files that belong together,
            and optionally groups `patient` and `label`.
        keys: "patient", "age", "sex", "view", "laterality" or the name of a label -> its key, or the last keys that lead to
            it, with dots ("info.sex"). Anything not listed is found by its usual names.
        targets: further labels, each a key or several with dots. If `targets` or `keys` name a label, no other is taken.
        missing: words that stand for a missing value; see `label_columns.MissingWords.of`.

    Raises:
        UserError: the pattern is not a regular expression or has no group `stem`.
    """

    def __init__(
        self,
        pseudonyms: Pseudonyms,
        pattern: str = "auto",
        keys: Mapping[str, str] | None = None,
        targets: Sequence[str] = (),
        missing: Sequence[str] | bool = (),
    ):
        self.missing = MissingWords.of(missing)
        self.pseudonyms = pseudonyms
        self.pattern = None if pattern.casefold() in {"auto", "true"} else compile_pattern("aihub", pattern)
        if self.pattern and "stem" not in self.pattern.groupindex:
            raise UserError(
                f"aihub={pattern} needs a group (?P<stem>…) for the part that files belonging together share"
            )
        self.named = bool(targets) or bool(keys and keys.keys() - {"patient", *METADATA})
        self.columns = columns(keys or {}, targets)
        self._names: list[str] = []
        self._values: list[dict[str, Any]] = []
        self._unclear: Counter[str] = Counter()
        self._encodings: Counter[str] = Counter()

    @property
    def labels_from_paths(self) -> bool:
        """Whether labels come from the paths of scans."""
        return self.pattern is not None and "label" in self.pattern.groupindex

    def add(self, name: str, data: bytes) -> None:
        """Take the allowed values from a JSON file.

        Args:
            name: path relative to the source, like a scan's.
            data: the whole content.

        Raises:
            Unreadable: BAD_SIDECAR or TOO_LARGE.
        """
        content, encoding = parse_json(data)
        values, unclear = allowed_values(content, self.columns, self.named)
        self._encodings[encoding] += 1
        if patient := values.pop("patient", None):
            values |= self.pseudonyms.person(str(patient))
        self._names.append(name)
        self._values.append(values)
        self._unclear.update(unclear)

    def join(self, scans: Sequence[dict[str, Any]], paths: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the manifest rows with the values of their JSON files, and a report in lines for the terminal.

        Args:
            scans: manifest rows.
            paths: the path of each, relative to the source; for a volume the folder that holds its slices.

        Raises:
            UserError: the pattern finds no stem, or none that a JSON file shares.
        """
        if self.pattern and not any(map(self._stem, paths)):
            example = path_pattern(without_suffix(paths[0]))
            raise UserError(
                f"aihub={self.pattern.pattern} finds no stem in the paths of the scans, which are like {example}"
            )
        matched = self._pair(paths, self._names)
        if self._names and not matched:
            why = (
                f"none of the {len(self._names)} JSON files belongs to a scan: their paths are like "
                f"{path_pattern(self._names[0])}, those of scans like {path_pattern(paths[0])}; give aihub=PATTERN, with a "
                "group (?P<stem>…) for the part that their names share"
            )
            if self.pattern:
                raise UserError(why)
            return list(scans), [why]
        values, notes = self._tidied()
        agreed = [_agreed([values[i] for i in matched.get(path, ())]) for path in paths]
        torn = Counter(k for path in paths for k in _torn([values[i] for i in matched.get(path, ())]))
        notes += [
            f"{k} not taken for {n} scans: their JSON files contradict each other" for k, n in sorted(torn.items())
        ]
        texts = set() if self.named else _texts(agreed)
        rows = [
            updated(scan, {k: v for k, v in values.items() if k not in texts} | self._from_path(path))
            for scan, path, values in zip(scans, paths, agreed, strict=True)
        ]
        return rows, self._report(paths, matched, texts) + notes

    def _tidied(self) -> tuple[list[dict[str, Any]], list[str]]:
        """Return each file's values without missing ones and with plain numbers, and notes on them."""
        out, notes = [dict(values) for values in self._values], []
        for name in sorted({k for values in out for k in values if k.startswith("label:")}):
            column = LabelColumn(name.removeprefix("label:"), [values.get(name, "") for values in out])
            column.drop_missing(self.missing)
            column.read_commas("")
            if self.named:
                column.screen()
            notes += column.notes
            for values, cell in zip(out, column.cells, strict=True):
                if name in values:
                    values |= {name: cell or None}
        notes += [f"{n} JSON files were read as {e}" for e, n in sorted(self._encodings.items()) if e != "UTF-8"]
        return [{k: v for k, v in values.items() if v is not None} for values in out], notes

    def renditions(self, kinds: Mapping[str, str]) -> list[tuple[str, str]]:
        """Return images that copy a DICOM image according to their names, as (image, DICOM); see also `rendition.is_rendition`.

        Args:
            kinds: path of a scan -> "dicom", "image", or any other word for scans that can be neither.
        """
        images, dicoms = ([name for name, kind in kinds.items() if kind == wanted] for wanted in ("image", "dicom"))
        found = self._pair(images, dicoms)
        return [(image, dicoms[found[image][0]]) for image in images if len(found.get(image, ())) == 1]

    def _from_path(self, path: str) -> dict[str, Any]:
        found = self.pattern.search(without_suffix(path)) if self.pattern else None
        values = {k: v for k, v in found.groupdict().items() if v} if found else {}
        row: dict[str, Any] = {"label:label": values["label"]} if "label" in values else {}
        if "patient" in values:
            row |= self.pseudonyms.person(values["patient"])
        return row

    def _pair(self, scans: Sequence[str], others: Sequence[str]) -> dict[str, list[int]]:
        """Return scan -> positions of the `others` that belong to it: one, or several with one name or in one folder."""
        if self.pattern is None:
            halves = [[s for s in scans if is_image(s) == wanted] for wanted in (True, False)]
            return pair(halves[0], others) | pair(halves[1], others)
        by_stem: dict[str, list[int]] = {}
        for i, name in enumerate(others):
            if stem := self._stem(name):
                by_stem.setdefault(stem, []).append(i)
        return {scan: by_stem[stem] for scan in scans if (stem := self._stem(scan)) in by_stem}

    def _stem(self, name: str) -> str:
        assert self.pattern is not None
        found = self.pattern.search(without_suffix(name))
        return (found["stem"] or "").casefold() if found else ""

    def _report(self, paths: Sequence[str], matched: Mapping[str, list[int]], texts: set[str]) -> list[str]:
        used = {i for found in matched.values() for i in found}
        labels = {k.removeprefix("label:") for i in used for k in self._values[i] if k.startswith("label:")} - texts
        have = sum(path in matched for path in paths)
        lines = [f"{have} of {len(paths)} scans have a JSON file (labels: {', '.join(sorted(labels)) or 'none'})"]
        if left := len(self._names) - len(used):
            lines.append(f"{left} JSON files belong to no scan")
        for column, count in sorted(self._unclear.items()):
            lines.append(
                f"{column} not taken from {count} JSON files: its values contradict each other, or are no short words"
            )
        for column in sorted(texts):
            name = column.removeprefix("label:")
            lines.append(
                f"{column} not taken: it differs for nearly every scan; if it is a label, add targets=[{name}]"
            )
        return lines


def _agreed(values: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the values on which several files agree."""
    return (
        {k: v for k, v in values[0].items() if all(k in o and not differ(k, o[k], v) for o in values)} if values else {}
    )


def _torn(values: list[dict[str, Any]]) -> set[str]:
    """Return the columns on which several files contradict each other."""
    return {k for one in values for k, v in one.items() if any(differ(k, other.get(k), v) for other in values)}


def _texts(rows: list[dict[str, Any]]) -> set[str]:
    """Return label columns that differ for nearly every scan: names, numbers or texts under a label's usual key."""
    values: dict[str, list[Any]] = {}
    for row in rows:
        for column in row:
            if column.startswith("label:"):
                values.setdefault(column, []).append(row[column])
    return {column for column, v in values.items() if mostly_distinct(v)}
