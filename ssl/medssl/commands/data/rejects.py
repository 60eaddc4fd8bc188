"""Every file that was not used, why, and what to do about it."""

import csv as csv_format
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medssl.errors import UserError, nearest
from medssl.files import write_text
from medssl.readers.pseudonyms import open_key
from medssl.readers.reject_codes import CODES, remedy
from medssl.readers.walk import walk
from medssl.reporting.text_table import aligned
from medssl.store.store import Store

FIELDS = ("file", "part", "code", "stage", "reason", "remedy")


def rejects(
    store: str | Path,
    *,
    code: str | None = None,
    csv: str | Path | None = None,
    source: str | Path | None = None,
    key: str | Path | None = None,
) -> list[dict[str, str]]:
    """Prints the files of which nothing, or not all, was used; returns them as dicts with FIELDS.

    Files go by pseudonym, because a path may hold a patient's name. With `source` and the store's `key` the pseudonyms
    are computed again from the files that lie there, and paths are printed instead: on your own terminal, and nowhere
    else does medssl show a path of a scan. Neither the returned dicts nor a CSV ever holds one.

    Args:
        store: the store.
        code: only this code.
        csv: write a table there instead of printing the list.
        source: the folder the store was made of.
        key: the file of the project's secret. Default: $MEDSSL_KEY, else ~/.config/medssl/key.

    Raises:
        UserError: no such code, `source` beside `csv`, or another key than the store's.
    """
    if csv and source:
        raise UserError("a CSV never holds paths: leave out csv= to see them, or source= to write pseudonyms")
    found = list(_read(Store.open(store, quarantined=True)))
    if code is not None:
        there = {row["code"] for row in found}
        if code not in there:
            hint = nearest(code, there) if there else ""
            if code in CODES:
                raise UserError(f"no file was left out with code {code}.{hint}")
            raise UserError(f"there is no code {code!r}.{hint or nearest(code, CODES)}")
        found = [row for row in found if row["code"] == code]
    if csv:
        out = io.StringIO()
        writer = csv_format.DictWriter(out, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
        write_text(Path(csv).expanduser(), out.getvalue())
        print(f"wrote {len(found):,} lines to {csv}")
    else:
        names = _names(store, Path(source).expanduser(), key, {row["file"] for row in found}) if source else {}
        rows = [[names.get(row["file"], row["file"]), *(row[f] for f in FIELDS[1:])] for row in found]
        print("\n".join(aligned(FIELDS, rows, "")))
    counts = Counter(row["code"] for row in found)
    print()
    lines = [[name, n, *CODES.get(name, ("", ""))] for name, n in counts.most_common()]
    print("\n".join(aligned(("code", "files", "meaning", "remedy"), lines, "")) if lines else "every file was used")
    return found


def _read(store: Store) -> Iterator[dict[str, str]]:
    path = store.path / "rejects.jsonl"
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                what = remedy(row["code"]) if row["code"] in CODES else ""
                yield {name: str(row.get(name, "")) for name in FIELDS[:-1]} | {"remedy": what}
    except FileNotFoundError as e:
        raise UserError(f"{path} is missing; copy the store or ingest the scans again") from e
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; copy the store or ingest the scans again") from e


def _names(store: str | Path, source: Path, key: str | Path | None, wanted: set[str]) -> dict[str, str]:
    """Pseudonym -> name below `source`, of the files that are wanted and still lie there."""
    path = Path(key or os.environ.get("MEDSSL_KEY") or "~/.config/medssl/key").expanduser()
    if not path.exists():
        raise UserError(f"there is no key at {path}; name the one the store was made with as key=")
    alias = open_key(path)
    if alias.key_id != (made := Store.open(store, quarantined=True).info["key_id"]):
        raise UserError(f"{path} is key {alias.key_id} and the store was made with key {made}; name that one as key=")
    names: dict[str, str] = {}
    for archives in (False, True):  # an archive as a file, then its members
        if wanted - names.keys():
            names |= {p: f.name for f in walk(source, archives) if (p := alias.of("path", f.name)) in wanted}
    return names
