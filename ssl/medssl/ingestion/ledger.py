"""The record of everything read so far: an interrupted ingest continues, and a later one reads only new files.

One SQLite file with pseudonyms only. Paths are in a second, temporary database that never reaches a named file.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from medssl.readers.scan import Slice
from medssl.readers.walk import File

TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS files (file TEXT PRIMARY KEY, stamp TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS scans (file TEXT, part TEXT, row TEXT NOT NULL, PRIMARY KEY (file, part)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS slices (file TEXT PRIMARY KEY, grp TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS slices_by_group ON slices (grp);
CREATE TABLE IF NOT EXISTS stacks (stack TEXT PRIMARY KEY, grp TEXT NOT NULL, row TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS stacks_by_group ON stacks (grp);
CREATE TABLE IF NOT EXISTS rejects (
    file TEXT, part TEXT, code TEXT NOT NULL, stage TEXT NOT NULL, reason TEXT NOT NULL, PRIMARY KEY (file, part, stage)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS crashes (hash TEXT PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE now.paths (
    file TEXT PRIMARY KEY, name TEXT, path TEXT, member TEXT, size INTEGER, stamp TEXT, problem TEXT
) WITHOUT ROWID;
CREATE TABLE now.plan (stack TEXT PRIMARY KEY, grp TEXT NOT NULL, files TEXT NOT NULL, facts TEXT NOT NULL);
"""
UNREAD = "now.paths p LEFT JOIN files f USING (file) WHERE f.file IS NULL"
COUNTS = {
    "seen": "now.paths",  # by this walk
    "inaccessible": "now.paths WHERE problem = 'CANNOT_OPEN'",
    "unread": UNREAD,  # seen, without an outcome
    "known": "files",  # read before
    "seen again": "files JOIN now.paths USING (file)",
    "rejects": "rejects",
}
KEYS = {"scans": ("file", "part"), "stacks": ("stack",)}

Row = dict[str, Any]
Address = tuple[str, int, int]  # file, offset, length


class Ledger:
    """Files by pseudonym, the outcome of each, and the volumes built from slices.

    Args:
        path: the SQLite file, created if missing.
    """

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON; ATTACH DATABASE '' AS now;"
            + TABLES
        )
        self.db.execute("BEGIN")

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with suppress(sqlite3.OperationalError) if kind else nullcontext():
            self.close()

    def close(self) -> None:
        """Write everything to one file, without a journal beside it."""
        self.commit()
        self.db.execute("COMMIT")
        self.db.execute("DETACH DATABASE now")
        self.db.execute("PRAGMA journal_mode=DELETE")
        self.db.close()

    def commit(self) -> None:
        """Make everything recorded so far survive a crash."""
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")

    def _value(self, query: str, *args: Any) -> Any:
        return self.db.execute(query, args).fetchone()[0]

    def meta(self) -> dict[str, str]:
        """Return the settings that the ledger was made with."""
        return dict(self.db.execute("SELECT name, value FROM meta").fetchall())

    def set_meta(self, values: dict[str, str]) -> None:
        """Replace the settings."""
        self.db.execute("DELETE FROM meta")
        self.db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())

    # files

    def add_path(self, file: str, at: File, stamp: str) -> bool:
        """Record a file of this walk. Returns False if its pseudonym is recorded already."""
        try:
            self.db.execute(
                "INSERT INTO now.paths VALUES (?, ?, ?, ?, ?, ?, ?)",
                (file, at.name, at.path, at.member, at.size, stamp, at.problem),
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def count(self, what: str) -> int:
        """Return the number of files in a category of COUNTS."""
        return self.db.execute(f"SELECT count(*) FROM {COUNTS[what]}").fetchone()[0]

    def unread(self) -> Iterator[tuple[str, File]]:
        """Yield the files of this walk without an outcome, ordered by pseudonym."""
        after = ""
        while batch := self.db.execute(
            f"SELECT p.file, p.name, p.path, p.member, p.size, p.problem FROM {UNREAD} AND p.file > ? ORDER BY p.file LIMIT 512",
            (after,),
        ).fetchall():
            for file, name, path, member, size, problem in batch:
                yield file, File(name, path, member, size, "", problem)
            after = batch[-1][0]

    def retry(self, codes: Iterable[str]) -> None:
        """Forget files rejected for a reason that may have passed, so that they are read again."""
        for code in codes:
            for (file,) in self.db.execute("SELECT file FROM rejects WHERE code = ?", (code,)).fetchall():
                self.forget(file)

    def forget_gone(self) -> int:
        """Forget files that this walk has not found, or that have changed. Returns their number."""
        stale = "SELECT f.file FROM files f LEFT JOIN now.paths p USING (file) WHERE p.stamp IS NOT f.stamp"
        gone = [f for (f,) in self.db.execute(stale)]
        for file in gone:
            self.forget(file)
        return len(gone)

    def forget(self, file: str) -> None:
        """Forget everything about one file."""
        for table in ("files", "scans", "slices", "rejects"):
            self.db.execute(f"DELETE FROM {table} WHERE file = ?", (file,))

    def file(self, file: str) -> File:
        """Return the location of a file of this walk."""
        return File(
            *self.db.execute("SELECT name, path, member, size FROM now.paths WHERE file = ?", (file,)).fetchone()
        )

    def names(self) -> Iterator[str]:
        """Yield the name of every file of this walk."""
        yield from (name for (name,) in self.db.execute("SELECT name FROM now.paths ORDER BY file"))

    def stamp(self, file: str) -> str:
        """Return the stamp of a file that has been read."""
        return self._value("SELECT stamp FROM files WHERE file = ?", file)

    def mark_read(self, file: str) -> None:
        """Record that the file has been processed."""
        self.db.execute("INSERT OR REPLACE INTO files SELECT file, stamp FROM now.paths WHERE file = ?", (file,))

    def reject(self, file: str, part: str, code: str, stage: str, reason: str) -> None:
        """Record the rejection of a file or of a part of it."""
        self.db.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?, ?)", (file, part, code, stage, reason))

    def rejects(self) -> list[Row]:
        """Return all rejects, ordered by pseudonym."""
        names = ("file", "part", "code", "stage", "reason")
        found = self.db.execute(f"SELECT {', '.join(names)} FROM rejects ORDER BY file, part, stage")
        return [dict(zip(names, row, strict=True)) for row in found]

    def frequent_rejects(self, n: int = 3) -> list[tuple[str, str, int]]:
        """Return the `n` most frequent (code, reason, count)."""
        return self.db.execute(
            "SELECT code, reason, count(*) AS many FROM rejects GROUP BY code, reason ORDER BY many DESC, code LIMIT ?",
            (n,),
        ).fetchall()

    def crash_hashes(self, size: int) -> set[str]:
        """Return the hashes of all files of `size` bytes that have crashed a decoder."""
        return {h for (h,) in self.db.execute("SELECT hash FROM crashes WHERE size = ?", (size,))}

    def add_crash(self, content: str, size: int) -> None:
        """Record that a file with this content has crashed a decoder twice."""
        self.db.execute("INSERT OR REPLACE INTO crashes VALUES (?, ?)", (content, size))

    # scans and slices

    def empty(self) -> bool:
        """Return whether there is no scan."""
        return not any(self.db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("scans", "stacks"))

    def add_scan(self, file: str, part: str, row: Row) -> None:
        """Record a scan that one file holds."""
        self.db.execute("INSERT OR REPLACE INTO scans VALUES (?, ?, ?)", (file, part, json.dumps(row)))

    def add_slice(self, s: Slice) -> None:
        """Record a slice of a volume."""
        self.db.execute("INSERT OR REPLACE INTO slices VALUES (?, ?, ?)", (s.file, s.key, json.dumps(s.as_dict())))

    def groups(self) -> list[str]:
        """Return the groups of slices."""
        return [group for (group,) in self.db.execute("SELECT DISTINCT grp FROM slices ORDER BY grp")]

    def slices(self, group: str) -> list[Slice]:
        """Return the slices of a group that have not failed to decode."""
        found = self.db.execute(
            "SELECT s.record FROM slices s LEFT JOIN rejects r ON r.file = s.file AND r.stage = 'decode' "
            "WHERE s.grp = ? AND r.file IS NULL ORDER BY s.file",
            (group,),
        )
        return [Slice.from_dict(json.loads(record)) for (record,) in found]

    def slices_of(self, files: Iterable[str]) -> list[Slice]:
        """Return the slices of these files, in that order."""
        return [Slice.from_dict(json.loads(self._value("SELECT record FROM slices WHERE file = ?", f))) for f in files]

    # volumes

    def start_plan(self, group: str) -> None:
        """Forget how the group was divided before."""
        self.db.execute("DELETE FROM now.plan WHERE grp = ?", (group,))
        self.db.execute(
            "DELETE FROM rejects WHERE stage = 'volume' AND file IN (SELECT file FROM slices WHERE grp = ?)", (group,)
        )

    def plan(self, stack: str, group: str, files: list[str], facts: Row) -> None:
        """Record that the slices of these files make one volume."""
        self.db.execute(
            "INSERT OR REPLACE INTO now.plan VALUES (?, ?, ?, ?)", (stack, group, json.dumps(files), json.dumps(facts))
        )

    def unbuilt(self) -> list[tuple[str, str, list[str], Row]]:
        """Return the planned volumes that are not built yet: (stack, group, files, facts)."""
        found = self.db.execute("SELECT p.* FROM now.plan p LEFT JOIN stacks s USING (stack) WHERE s.stack IS NULL")
        return [(stack, group, json.loads(files), json.loads(facts)) for stack, group, files, facts in found]

    def add_volume(self, stack: str, group: str, row: Row) -> None:
        """Record a volume that has been built."""
        self.db.execute("INSERT OR REPLACE INTO stacks VALUES (?, ?, ?)", (stack, group, json.dumps(row)))

    def forget_unplanned(self) -> None:
        """Forget volumes whose slices have changed, are gone or were divided differently."""
        self.db.execute("DELETE FROM stacks WHERE stack NOT IN (SELECT stack FROM now.plan)")

    def addresses(self) -> Iterator[tuple[str, tuple[str, ...], Address]]:
        """Yield (table, key, address) of every scan and volume."""
        for table, keys in KEYS.items():
            for *key, row in self.db.execute(f"SELECT {', '.join(keys)}, row FROM {table}"):
                found = json.loads(row)
                yield table, tuple(key), (found["file"], found["offset"], found["length"])

    def move(self, table: str, key: tuple[str, ...], address: Address) -> None:
        """Record a scan's new address."""
        where = " AND ".join(f"{k} = ?" for k in KEYS[table])
        row = json.loads(self._value(f"SELECT row FROM {table} WHERE {where}", *key))
        row |= dict(zip(("file", "offset", "length"), address, strict=True))
        self.db.execute(f"UPDATE {table} SET row = ? WHERE {where}", (json.dumps(row), *key))

    def rows(self) -> Iterator[tuple[str, str, list[str], Row]]:
        """Yield (pseudonym of the first file, part, names of the files, row) of every scan, ordered by pseudonym."""
        for file, part, name, row in self.db.execute(
            "SELECT s.file, s.part, p.name, s.row FROM scans s JOIN now.paths p USING (file) ORDER BY s.file, s.part"
        ):
            yield file, part, [name], json.loads(row)
        for files, row in self.db.execute(
            "SELECT p.files, s.row FROM stacks s JOIN now.plan p USING (stack) ORDER BY s.stack"
        ):
            members = json.loads(files)
            yield members[0], "", [self.file(f).name for f in members], json.loads(row)
