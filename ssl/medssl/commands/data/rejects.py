"""List the files rejected by an ingest, with the reason and the remedy."""

import json
from collections import Counter
from pathlib import Path

from medssl.errors import UserError, nearest
from medssl.files import write_csv
from medssl.ingestion.options import key_path
from medssl.readers.pseudonyms import open_key
from medssl.readers.reject_codes import CODES
from medssl.readers.walk import walk
from medssl.reporting.text_table import aligned
from medssl.results import Result
from medssl.store.store import Store

FIELDS = ("file", "part", "code", "stage", "reason", "remedy")


def rejects(
    store: str | Path,
    *,
    code: str | None = None,
    csv: str | Path | None = None,
    source: str | Path | None = None,
    key: str | Path | None = None,
) -> Result:
    """List the files that were rejected, entirely or in part.

    Files are listed by pseudonym, because a path may contain a patient's name. With `source` and the store's `key` the
    pseudonyms of the files there are computed again, and the printed text shows paths instead. Nowhere else does medssl
    show the path of a scan, and neither the returned data nor a CSV file ever holds one.

    Args:
        store: the store.
        code: only files with this code.
        csv: write the list to this file instead of printing it.
        source: the folder that the store was made from.
        key: the file with the project's secret key. Default: $MEDSSL_KEY, else ~/.config/medssl/key.

    Returns:
        {"rejects": a dict with FIELDS for each file}.

    Raises:
        UserError: there is no such code, `source` is used together with `csv`, or the key is not the store's.
    """
    if csv and source:
        raise UserError("a CSV file never holds paths: leave out csv= to see them, or source= to write pseudonyms")
    opened = Store.open(store, quarantined=True)
    found = _read(opened.path / "rejects.jsonl")
    if code is not None:
        there = {row["code"] for row in found}
        if code not in there:
            hint = nearest(code, there) if there else ""
            if code in CODES:
                raise UserError(f"no file was left out with code {code}.{hint}")
            raise UserError(f"there is no code {code!r}.{hint or nearest(code, CODES)}")
        found = [row for row in found if row["code"] == code]
    if csv:
        write_csv(Path(csv).expanduser(), found, FIELDS)
        lines = [f"wrote {len(found):,} lines to {csv}"]
    else:
        names = _names(opened, Path(source).expanduser(), key, {row["file"] for row in found}) if source else {}
        rows = [[names.get(row["file"], row["file"]), *(row[f] for f in FIELDS[1:])] for row in found]
        lines = aligned(FIELDS, rows, "")
    counts = Counter(row["code"] for row in found).most_common()
    totals = aligned(("code", "files", "meaning", "remedy"), [[c, n, *CODES.get(c, ("", ""))] for c, n in counts], "")
    return Result({"rejects": found}, "\n".join([*lines, "", *(totals if found else ["every file was used"])]))


def _read(path: Path) -> list[dict[str, str]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        remedies = [CODES.get(row["code"], ("", ""))[1] for row in rows]
        return [
            {name: str(row.get(name, "")) for name in FIELDS[:-1]} | {"remedy": remedy}
            for row, remedy in zip(rows, remedies, strict=True)
        ]
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e


def _names(store: Store, source: Path, key: str | Path | None, wanted: set[str]) -> dict[str, str]:
    """Return pseudonym -> name below `source`, for the wanted files that are still there."""
    path = key_path(key)
    if not path.exists():
        raise UserError(f"there is no key at {path}; give the key that the store was made with as key=")
    pseudonyms = open_key(path)
    if pseudonyms.key_id != (made := store.info["key_id"]):
        raise UserError(
            f"{path} is key {pseudonyms.key_id}, but the store was made with key {made}; give that one as key="
        )
    names: dict[str, str] = {}
    for archives in (False, True):  # an archive as a file, then its members
        if wanted - names.keys():
            names |= {p: f.name for f in walk(source, archives) if (p := pseudonyms.of("path", f.name)) in wanted}
    return names
