"""Labels from several sources (the scan's own file, JSON, its folder, a table) joined; contradictions are counted."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from medssl.errors import UserError
from medssl.store.label_values import canonical_value, findings

FILE = "file"  # the scan's own file, such as an npz with labels
SOURCE_NAMES = {FILE: "the files themselves", "json": "the JSON files", "folders": "the folders", "table": "the table"}
SOURCES = (*SOURCE_NAMES,)
OF_PATIENT = ("patient_known", "similar_id", "born")  # columns that change together with `patient`


def updated(scan: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest row with new values, except where these are missing.

    A hash of the birth date is dropped if the patient changes.
    """
    row = {**scan, **{k: v for k, v in values.items() if v is not None or k not in scan}}
    if row.get("born") and row["patient"] != scan["patient"]:
        row["born"] = ""
    return row


def differ(name: str, a: Any, b: Any) -> bool:
    """Return whether two values of the column `name` of the manifest are known and differ."""
    if a is None or b is None or a == "" or b == "":
        return False
    if not name.startswith("label:"):
        return bool(a != b)
    return {canonical_value(v) for v in findings(a)} != {canonical_value(v) for v in findings(b)}


class LabelSources:
    """Joins values of one source after the other to the rows of a manifest, and remembers where each came from.

    A later source replaces what an earlier one says about a patient, a site or an age. Two sources that give one scan
    different labels contradict each other, and so do JSON files and a table on a patient or a fact.

    Args:
        rows: manifest rows with the values of the files.
        prefer: the source to believe where two contradict each other, one of SOURCES; "" for none.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], prefer: str = ""):
        self.rows, self.prefer = list(rows), prefer
        self._origin: list[dict[str, str]] = [{} for _ in self.rows]
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._settled: Counter[tuple[str, str, str]] = Counter()

    def join(self, source: str, rows: Sequence[dict[str, Any]], certain: Collection[str] = ()) -> None:
        """Replace the rows by those that `source` has changed; it overrides earlier sources in the columns `certain`."""
        for before, after, origin in zip(self.rows, rows, self._origin, strict=True):
            for name, value in list(after.items()):
                known = before.get(name)
                if (
                    value is known
                    or value is None
                    or name in OF_PATIENT
                    or (name == "patient" and not after["patient_known"])
                ):
                    continue
                if name not in certain and (name in origin or name.startswith("label:")):
                    earlier = origin.get(name, FILE)
                    if differ(name, known, value):
                        both = (name, earlier, source)
                        (self._settled if self.prefer in both[1:] else self._refused)[both] += 1
                        if self.prefer == earlier:
                            after |= {
                                k: before[k] for k in (name, *(["born"] if name == "patient" else [])) if k in before
                            }
                            continue
                origin[name] = source
        self.rows = list(rows)

    def check(self) -> list[str]:
        """Return lines about contradictions that `prefer` has settled. Raises UserError for all others."""
        if self._refused:
            (_, first, second), _ = self._refused.most_common(1)[0]
            pairs = {both[1:] for both in self._refused}
            counts = ", ".join(f"{_word(name)} of {n} scans" for (name, *_), n in sorted(self._refused.items()))
            names = " and ".join(SOURCE_NAMES[s] for s in SOURCES if any(s in pair for pair in pairs))
            raise UserError(
                f"{names} contradict each other: {counts}; correct one, or name the one to believe: prefer={first} or "
                f"prefer={second}"
            )
        return [
            f"{_word(name)} of {n} scans: {SOURCE_NAMES[first]} and {SOURCE_NAMES[second]} contradict each other; "
            f"{self.prefer} is preferred"
            for (name, first, second), n in sorted(self._settled.items())
        ]


def _word(column: str) -> str:
    """Return a column of the manifest in words."""
    kind, _, name = column.partition(":")
    return repr(name) if kind == "label" else name or kind
