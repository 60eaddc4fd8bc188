"""Release quarantined scans for training, after a person has looked at them."""

from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.results import Result
from medssl.store.manifest_columns import MASK
from medssl.store.release import release as release_rows
from medssl.store.store import Store


def release(store: str | Path, where: str) -> Result:
    """Release the quarantined scans selected by `where` for training.

    Look at them first: medssl inspect store=S quarantined=true where=… sheet=FILE.png. Their pseudonyms are recorded in
    released.json, so that later ingests release them too. The store's fingerprint changes with its training set.

    Args:
        store: the store.
        where: filter expression selecting scans; see `medssl.store.query`.

    Returns:
        {"released": reason of the quarantine -> number of scans, "fingerprint"}.

    Raises:
        UserError: `where` is invalid, or selects no quarantined scan.
    """
    found = Store.open(store, where=where, quarantined=True)
    held = found.column("held")
    rows = np.flatnonzero((held != "") & (held != MASK))
    if not len(rows):
        raise UserError(
            f"where={where!r} selects {len(found):,} scans, none of which is quarantined except masks: nothing to release"
        )
    reasons = {str(why): int(n) for why, n in zip(*np.unique(held[rows].astype(str), return_counts=True), strict=True)}
    n = release_rows(found, rows)
    fingerprint = Store.open(store, quarantined=True).fingerprint
    text = f"released     {n:,} scans: {', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}"
    return Result({"released": reasons, "fingerprint": fingerprint}, f"{text}\nfingerprint  {fingerprint}")
