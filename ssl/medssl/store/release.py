"""Release scans from quarantine after a person has looked at them."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.files import atomic, write_json
from medssl.store.manifest_columns import MASK, fingerprint
from medssl.store.store import Store


def release(store: Store, rows: Iterable[int]) -> int:
    """Release the quarantined scans among `rows` of a store opened with quarantined=True; return how many. Masks stay.

    released.json records their pseudonyms, the reason for quarantine and the content hash of what was looked at, so that later
    ingests release the same images. manifest.parquet and store.json are rewritten, each atomically; other processes must reopen
    the store.

    Raises:
        UserError: if none of the rows is quarantined, or the disk is full.
    """
    scans, held = store.column("scan"), store.column("held")
    pixels = store.column("hash")
    found = {str(scans[i]): {"held": str(held[i]), "hash": str(pixels[i])} for i in rows if held[i] not in ("", MASK)}
    if not found:
        raise UserError(
            "none of these scans is quarantined, except masks, which are never released; "
            "medssl inspect store=… lists the quarantined scans with the reasons"
        )
    path = store.path / "released.json"
    write_json(path, dict(sorted((read_released(store.path) | found).items())))

    manifest = store.path / "manifest.parquet"
    table = pq.read_table(manifest)
    reasons = [
        "" if scan in found else reason
        for scan, reason in zip(table["scan"].to_pylist(), table["held"].to_pylist(), strict=True)
    ]
    table = table.set_column(table.column_names.index("held"), "held", pa.array(reasons, pa.string()))
    with atomic(manifest) as part:
        pq.write_table(table, part, compression="zstd")
    info = json.loads((store.path / "store.json").read_text("utf-8"))
    info["counts"]["held"] = dict(sorted(Counter(r for r in reasons if r).items()))
    info["fingerprint"] = fingerprint(table)
    write_json(store.path / "store.json", info)
    return len(found)


def read_released(folder: Path) -> dict[str, dict[str, str]]:
    """Return scan -> {"held": reason for quarantine, "hash": content hash of the pixels that were looked at}."""
    path = folder / "released.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
