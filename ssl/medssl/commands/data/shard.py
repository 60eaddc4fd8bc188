"""Write a store as a few large tar files."""

from pathlib import Path

from medssl.errors import UserError
from medssl.results import Result
from medssl.store.shard import shard as write_shards
from medssl.store.store import Store


def shard(store: str | Path | Store, out: str | Path, *, size: int = 512) -> Result:
    """Write the whole store to `out` in tar files of about `size` MB; the new store has the same fingerprint.

    Returns:
        {"out", "scans", "shards"}.

    Raises:
        UserError: `size` is not positive, `out` exists, or the store is damaged.
    """
    if size < 1:
        raise UserError(f"size={size} is not possible; give the size of a shard in MB, at least 1")
    made = write_shards(Store.open(store, quarantined=True), Path(out), size * 10**6)
    shards = len(set(made.table["file"].to_pylist()))
    text = f"{len(made):,} scans in {shards:,} shard{'s' * (shards > 1)}: {made.path}"
    return Result({"out": str(made.path), "scans": len(made), "shards": shards}, text)
