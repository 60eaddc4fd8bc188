"""What has been read so far, so that an interrupted ingest goes on and a later one reads only what is new.

One SQLite file, pseudonyms only. Paths are held in a second, temporary database that never reaches a named file.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator
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
KEYS = {"scans": ("file", "part"), "stacks": ("stack",)}
OF_A_FILE = ("files", "scans", "slices", "rejects")

Row = dict[str, Any]
Address = tuple[str, int, int]  # file, offset, length


class Ledger:
    """Files by pseudonym, what each became, and the volumes made of slices."""

    def __init__(self, path: Path):
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA secure_delete=ON; ATTACH DATABASE '' AS now;"
            + TABLES
        )
        self.db.execute("BEGIN")

    def close(self) -> None:
        """Everything to one file, without a journal beside it."""
        self.commit()
        self.db.execute("COMMIT")
        self.db.execute("DETACH DATABASE now")
        self.db.execute("PRAGMA journal_mode=DELETE")
        self.db.close()

    def commit(self) -> None:
        """What was said until now survives a crash."""
        self.db.execute("COMMIT")
        self.db.execute("BEGIN")

    def meta(self) -> dict[str, str]:
        """What the ledger was made with."""
        return dict(self.db.execute("SELECT name, value FROM meta").fetchall())

    def set_meta(self, values: dict[str, str]) -> None:
        """Replaces it."""
        self.db.execute("DELETE FROM meta")
        self.db.executemany("INSERT INTO meta VALUES (?, ?)", values.items())

    # files

    def saw(self, file: str, at: File, stamp: str) -> bool:
        """Notes a file of this walk. False when its pseudonym was noted already."""
        try:
            self.db.execute(
                "INSERT INTO now.paths VALUES (?, ?, ?, ?, ?, ?, ?)",
                (file, at.name, at.path, at.member, at.size, stamp, at.problem),
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def unlisted(self) -> int:
        """Folders and files of this walk that could not be looked at."""
        return self.db.execute("SELECT count(*) FROM now.paths WHERE problem = 'CANNOT_OPEN'").fetchone()[0]

    def known(self) -> tuple[int, int]:
        """How many files were read before this walk, and how many of these it has seen."""
        before = self.db.execute("SELECT count(*) FROM files").fetchone()[0]
        return before, self.db.execute("SELECT count(*) FROM files JOIN now.paths USING (file)").fetchone()[0]

    def retry(self, codes: Iterable[str]) -> None:
        """Files left out for reasons that may be gone are as good as unread."""
        for code in codes:
            for (file,) in self.db.execute("SELECT file FROM rejects WHERE code = ?", (code,)).fetchall():
                self.forget(file)

    def forget_gone(self) -> int:
        """Drops what is known of files that this walk did not see, or that have changed. How many they were."""
        stale = "SELECT f.file FROM files f LEFT JOIN now.paths p USING (file) WHERE p.stamp IS NOT f.stamp"
        gone = [f for (f,) in self.db.execute(stale)]
        for file in gone:
            self.forget(file)
        return len(gone)

    def forget(self, file: str) -> None:
        """Drops what is known of one file."""
        for table in OF_A_FILE:
            self.db.execute(f"DELETE FROM {table} WHERE file = ?", (file,))

    def unread(self) -> Iterator[tuple[str, File]]:
        """Files of this walk that have no outcome yet, in the order of the walk's pseudonyms."""
        after = ""
        while batch := self.db.execute(
            "SELECT p.file, p.name, p.path, p.member, p.size, p.problem FROM now.paths p LEFT JOIN files f USING (file) "
            "WHERE f.file IS NULL AND p.file > ? ORDER BY p.file LIMIT 512",
            (after,),
        ).fetchall():
            for file, name, path, member, size, problem in batch:
                yield file, File(name, path, member, size, "", problem)
            after = batch[-1][0]

    def count_unread(self) -> tuple[int, int]:
        """How many these are, and their bytes."""
        return self.db.execute(
            "SELECT count(*), coalesce(sum(p.size), 0) FROM now.paths p LEFT JOIN files f USING (file) "
            "WHERE f.file IS NULL"
        ).fetchone()

    def file(self, file: str) -> File:
        """Where a file of this walk is."""
        name, path, member, size = self.db.execute(
            "SELECT name, path, member, size FROM now.paths WHERE file = ?", (file,)
        ).fetchone()
        return File(name, path, member, size)

    def stamp(self, file: str) -> str:
        """The stamp of a file that has been read."""
        return self.db.execute("SELECT stamp FROM files WHERE file = ?", (file,)).fetchone()[0]

    def seen(self) -> int:
        """Files of this walk."""
        return self.db.execute("SELECT count(*) FROM now.paths").fetchone()[0]

    def read(self, file: str) -> None:
        """The file has its outcome."""
        self.db.execute("INSERT OR REPLACE INTO files SELECT file, stamp FROM now.paths WHERE file = ?", (file,))

    def reject(self, file: str, part: str, code: str, stage: str, reason: str) -> None:
        """A file, or a part of it, is left out."""
        self.db.execute("INSERT OR REPLACE INTO rejects VALUES (?, ?, ?, ?, ?)", (file, part, code, stage, reason))

    def rejects(self) -> Iterator[Row]:
        """Every reject, in the order of the pseudonyms."""
        for file, part, code, stage, reason in self.db.execute("SELECT * FROM rejects ORDER BY file, part, stage"):
            yield {"file": file, "part": part, "code": code, "stage": stage, "reason": reason}

    def count_rejects(self) -> int:
        """How many."""
        return self.db.execute("SELECT count(*) FROM rejects").fetchone()[0]

    def worst(self, n: int = 3) -> list[tuple[str, str, int]]:
        """The most frequent (code, reason, count)."""
        return self.db.execute(
            "SELECT code, reason, count(*) AS many FROM rejects GROUP BY code, reason ORDER BY many DESC, code LIMIT ?",
            (n,),
        ).fetchall()

    def killers(self, size: int) -> set[str]:
        """Hashes of files of that size that have killed a decoder."""
        return {h for (h,) in self.db.execute("SELECT hash FROM crashes WHERE size = ?", (size,))}

    def killed(self, content: str, size: int) -> None:
        """A file with this content killed a decoder, twice."""
        self.db.execute("INSERT OR REPLACE INTO crashes VALUES (?, ?)", (content, size))

    def empty(self) -> bool:
        """Whether there is no scan."""
        return not any(self.db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in ("scans", "stacks"))

    def names(self) -> Iterator[str]:
        """Of every file of this walk."""
        yield from (name for (name,) in self.db.execute("SELECT name FROM now.paths ORDER BY file"))

    # scans and slices

    def add_scan(self, file: str, part: str, row: Row) -> None:
        """A scan that a file holds by itself."""
        self.db.execute("INSERT OR REPLACE INTO scans VALUES (?, ?, ?)", (file, part, json.dumps(row)))

    def add_slice(self, s: Slice) -> None:
        """A slice of a volume."""
        self.db.execute("INSERT OR REPLACE INTO slices VALUES (?, ?, ?)", (s.file, s.key, json.dumps(s.as_dict())))

    def groups(self) -> list[tuple[str, int]]:
        """Every group of slices and how many it has."""
        return self.db.execute("SELECT grp, count(*) FROM slices GROUP BY grp ORDER BY grp").fetchall()

    def slices(self, group: str) -> list[Slice]:
        """Those of a group that could be decoded as far as is known."""
        found = self.db.execute(
            "SELECT s.record FROM slices s LEFT JOIN rejects r ON r.file = s.file AND r.stage = 'decode' "
            "WHERE s.grp = ? AND r.file IS NULL ORDER BY s.file",
            (group,),
        )
        return [Slice.from_dict(json.loads(record)) for (record,) in found]

    def slices_of(self, files: Iterable[str]) -> list[Slice]:
        """By pseudonym, in that order."""
        get = "SELECT record FROM slices WHERE file = ?"
        return [Slice.from_dict(json.loads(self.db.execute(get, (f,)).fetchone()[0])) for f in files]

    # volumes

    def start_plan(self, group: str) -> None:
        """Forgets how the group was divided before."""
        self.db.execute("DELETE FROM now.plan WHERE grp = ?", (group,))
        self.db.execute(
            "DELETE FROM rejects WHERE stage = 'volume' AND file IN (SELECT file FROM slices WHERE grp = ?)", (group,)
        )

    def plan(self, stack: str, group: str, files: list[str], facts: Row) -> None:
        """These slices make one volume."""
        self.db.execute(
            "INSERT OR REPLACE INTO now.plan VALUES (?, ?, ?, ?)", (stack, group, json.dumps(files), json.dumps(facts))
        )

    def unbuilt(self) -> list[tuple[str, str, list[str], Row]]:
        """Planned volumes that nobody has built: (stack, group, files, facts)."""
        found = self.db.execute("SELECT p.* FROM now.plan p LEFT JOIN stacks s USING (stack) WHERE s.stack IS NULL")
        return [(stack, group, json.loads(files), json.loads(facts)) for stack, group, files, facts in found]

    def built(self, stack: str, group: str, row: Row) -> None:
        """A volume was written."""
        self.db.execute("INSERT OR REPLACE INTO stacks VALUES (?, ?, ?)", (stack, group, json.dumps(row)))

    def forget_unplanned(self) -> None:
        """Volumes whose slices have changed, gone or been divided otherwise."""
        self.db.execute("DELETE FROM stacks WHERE stack NOT IN (SELECT stack FROM now.plan)")

    def addresses(self) -> Iterator[tuple[str, tuple[str, ...], Address]]:
        """(table, key, address) of every scan and volume."""
        for table, keys in KEYS.items():
            for *key, row in self.db.execute(f"SELECT {', '.join(keys)}, row FROM {table}"):
                found = json.loads(row)
                yield table, tuple(key), (found["file"], found["offset"], found["length"])

    def move(self, table: str, key: tuple[str, ...], address: Address) -> None:
        """A scan's bytes are somewhere else now."""
        where = " AND ".join(f"{k} = ?" for k in KEYS[table])
        (row,) = self.db.execute(f"SELECT row FROM {table} WHERE {where}", key).fetchone()
        moved = json.loads(row) | dict(zip(("file", "offset", "length"), address, strict=True))
        self.db.execute(f"UPDATE {table} SET row = ? WHERE {where}", (json.dumps(moved), *key))

    def rows(self) -> Iterator[tuple[str, str, list[str], Row]]:
        """Every scan: (pseudonym of its first file, part, names of its files, row). In the order of the pseudonyms."""
        yield from (
            (file, part, [name], json.loads(row))
            for file, part, name, row in self.db.execute(
                "SELECT s.file, s.part, p.name, s.row FROM scans s JOIN now.paths p USING (file) ORDER BY s.file, s.part"
            )
        )
        for files, row in self.db.execute(
            "SELECT p.files, s.row FROM stacks s JOIN now.plan p USING (stack) ORDER BY s.stack"
        ):
            members = json.loads(files)
            yield members[0], "", [self.file(f).name for f in members], json.loads(row)
