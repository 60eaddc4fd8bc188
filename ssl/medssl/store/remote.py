"""A store of tar shards in object storage: read by ranges through fsspec, with a cache of bounded size on the local disk.

`Store.open("s3://bucket/store")` keeps store.json, manifest.parquet and a `remote.json` in a local folder, the mirror, which is a
store like any other except that its shards are elsewhere. Blocks of shards that were read are kept in its `blocks/` folder, the
least recently used are deleted. The mirror is in $MEDSSL_CACHE, or ~/.cache/medssl; all blocks together take $MEDSSL_CACHE_GB, 10
unless given. Credentials and endpoints are those of fsspec's libraries (AWS_PROFILE, AWS_ENDPOINT_URL, …).
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import atomic, digest, write_json
from medssl.progress import say

FILE = "remote.json"
BLOCK = 1 << 22  # bytes read and kept together; a range request takes about as long as 1 to 4 MB
TRIES, PAUSE = 4, 0.5  # of a request, and seconds before the second; each further pause is twice as long
GB = 10.0
EXTRAS = {"s3": "pip install 'medssl[s3]'", "gs": "pip install 'medssl[gcs]'", "gcs": "pip install 'medssl[gcs]'"}
REFUSED = (
    "PermissionError",
    "NoCredentialsError",
    "DefaultCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
)


def is_url(path: object) -> bool:
    """Return whether a store is given by a URL."""
    return isinstance(path, str) and "://" in path


def mirror(url: str) -> Path:
    """Return the local folder of a store at a URL, with its present table of scans.

    Raises UserError if it cannot be reached, is no store, or is not in shards.
    """
    url = url.rstrip("/")
    folder = _root() / "stores" / digest(url, 12)
    fs, base = _filesystem(url)
    with _remote_errors(url):
        described = _whole(fs, f"{base}/store.json", f"{url} has no store.json; give the folder that medssl shard made")
    known = folder / "store.json"
    if not known.is_file() or known.read_bytes() != described or not (folder / "manifest.parquet").is_file():
        with _remote_errors(url):
            table = _whole(fs, f"{base}/manifest.parquet", f"{url} has no manifest.parquet; copy the whole store again")
        for name, data in (("manifest.parquet", table), ("store.json", described)):
            with atomic(folder / name) as part:
                part.write_bytes(data)
    write_json(folder / FILE, {"url": url})
    remote_of.cache_clear()
    remote = remote_of(folder)
    assert remote is not None
    return folder


def _whole(fs: Any, path: str, missing: str) -> bytes:
    try:
        return _again(lambda: fs.cat_file(path))
    except FileNotFoundError as e:
        raise UserError(missing) from e


@lru_cache
def remote_of(folder: Path) -> "Remote | None":
    """Return the shards of a mirror; None for any other folder."""
    file = folder / FILE
    return Remote(folder, json.loads(file.read_text("utf-8"))["url"]) if file.is_file() else None


class Remote:
    """The shards of the store at `url`, whose mirror is `folder`.

    Attributes:
        requests: range requests so far.
        limit: bytes of all kept blocks.

    Raises UserError if the store is not in shards.
    """

    def __init__(self, folder: Path, url: str):
        self.folder, self.url, self.requests = folder, url, 0
        self.blocks = folder / "blocks"
        self.limit = _limit()
        # blocks of an earlier store of this name are not used
        self.version = hashlib.blake2b((folder / "store.json").read_bytes()).hexdigest()
        table = pq.read_table(folder / "manifest.parquet", columns=["file", "offset", "length"])
        if table.num_rows and not all(f.endswith(".tar") for f in pc.unique(table["file"]).to_pylist()):
            raise UserError(
                f"{url} is not in shards; write them first: medssl shard store=STORE out=NEW, and upload NEW"
            )
        ends = pc.add(table["offset"], table["length"])
        grouped = table.append_column("end", ends).group_by("file").aggregate([("end", "max")])
        self.end = dict(zip(grouped["file"].to_pylist(), grouped["end_max"].to_pylist(), strict=True))

    def read(self, file: str, offset: int, length: int) -> bytes:
        """Return bytes of a shard, from kept blocks where there are any. Raises UserError if they cannot be read."""
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        kept = {b: self._kept(file, b) for b in range(first, last + 1)}
        if missing := [b for b, data in kept.items() if data is None]:
            kept |= self._fetch(file, missing[0], missing[-1])
        joined = b"".join(data for _, data in sorted(kept.items()) if data is not None)
        return joined[offset - first * BLOCK :][:length]

    def prefetch(self, places: Iterable[tuple[str, int, int]]) -> None:
        """Keep the bytes at (file, offset, length) places, by at most one range request to each shard."""
        wanted: dict[str, set[int]] = {}
        for file, offset, length in places:
            wanted.setdefault(file, set()).update(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))
        for file, blocks in wanted.items():
            if missing := sorted(b for b in blocks if not self._path(file, b).is_file()):
                self._fetch(file, missing[0], missing[-1])

    def _path(self, file: str, block: int) -> Path:
        return self.blocks / f"{digest([self.version, file], 8)}-{block:07d}"

    def _kept(self, file: str, block: int) -> bytes | None:
        path = self._path(file, block)
        try:
            data = path.read_bytes()
            os.utime(path)  # was used now
        except OSError:  # never read, or deleted by another process
            return None
        return data if len(data) == self._size(file, block) else None

    def _size(self, file: str, block: int) -> int:
        return min(BLOCK, self.end[file] - block * BLOCK)

    def _fetch(self, file: str, first: int, last: int) -> dict[int, bytes]:
        """Return blocks by one range request, and keep them."""
        begin, end = first * BLOCK, min((last + 1) * BLOCK, self.end[file])
        fs, base = _filesystem(self.url)

        def request() -> bytes:
            self.requests += 1
            data = fs.cat_file(f"{base}/{file}", start=begin, end=end)
            if len(data) != end - begin:
                raise ConnectionError(f"{len(data)} of {end - begin} bytes came")
            return data

        with _remote_errors(self.url):
            try:
                data = _again(request)
            except FileNotFoundError as e:
                raise UserError(f"{self.url}/{file} is missing; copy the whole store again") from e
        out = {b: data[(b - first) * BLOCK :][: self._size(file, b)] for b in range(first, last + 1)}
        self._make_room(len(data))
        for block, part in out.items():
            with atomic(self._path(file, block)) as new:
                new.write_bytes(part)
        return out

    def _make_room(self, more: int) -> None:
        """Delete the blocks of all stores that were not used for the longest time, until `more` bytes fit."""
        found = []
        for path in _root().glob("stores/*/blocks/*"):
            with suppress(FileNotFoundError):
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total + more <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def _root() -> Path:
    return Path(os.environ.get("MEDSSL_CACHE") or "~/.cache/medssl").expanduser()


def _limit() -> int:
    text = os.environ.get("MEDSSL_CACHE_GB", "")
    try:
        gb = float(text or GB)
    except ValueError:
        gb = 0.0
    if not gb > 0:
        raise UserError(f"MEDSSL_CACHE_GB={text} must be a positive number of GB")
    return int(gb * 1e9)


def _filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's filesystem of a URL, one per process, and the path in it. Raises UserError without its library."""
    from fsspec.core import url_to_fs

    kind = url.partition("://")[0]
    try:
        return url_to_fs(url)
    except ImportError as e:
        how = EXTRAS.get(kind, f"install the fsspec library for {kind}://")
        raise UserError(f"reading {kind}:// needs another library: {how}") from e
    except ValueError as e:
        raise UserError(f"{url}: fsspec knows no {kind}://; use s3://, gs://, file:// or another of its kinds") from e


def _again(request: Any) -> Any:
    """Repeat a request whose connection broke; what a repetition cannot help is raised at once."""
    for attempt in range(TRIES):
        try:
            return request()
        except Exception as e:  # each library has its own
            if isinstance(e, FileNotFoundError | UserError) or _refused(e) or attempt == TRIES - 1:
                raise
            say(f"a connection broke ({type(e).__name__}); trying again")
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def _refused(e: BaseException) -> bool:
    """Return whether a server said no."""
    names = {c.__name__ for c in type(e).__mro__}
    return bool(names & set(REFUSED)) or getattr(e, "errno", None) in (1, 13)


@contextmanager
def _remote_errors(url: str) -> Iterator[None]:
    """Turn the errors of fsspec's libraries into a UserError that names the URL."""
    try:
        yield
    except UserError:
        raise
    except Exception as e:
        if _refused(e):
            raise UserError(
                f"{url} refuses to be read ({type(e).__name__}); check the credentials, "
                "for s3:// AWS_PROFILE or AWS_ACCESS_KEY_ID"
            ) from e
        raise UserError(
            f"{url} cannot be reached ({type(e).__name__}); check the address, the network and, for s3://, AWS_ENDPOINT_URL"
        ) from e
