"""Store -> the same store in a few large tar files."""

from pathlib import Path

from medssl.errors import UserError
from medssl.store.shard import shard as lay_out
from medssl.store.store import Store


def shard(store: str | Path | Store, out: str | Path, *, size: int = 512) -> Store:
    """Writes the whole store to `out` in tar files of about `size` MB; the new store has the same fingerprint.

    Raises:
        UserError: `size` is not positive, `out` exists, or the store is damaged.
    """
    if size < 1:
        raise UserError(f"size={size} is not possible; give the size of a shard in MB, at least 1")
    made = lay_out(Store.open(store, quarantined=True), Path(out), size * 10**6)
    files = len(set(made.table["file"].to_pylist()))
    print(f"{len(made):,} scans in {files:,} shard{'s' * (files > 1)}: {made.path}")
    return made
