"""Held scans -> training, after a person has looked at them."""

from pathlib import Path

import numpy as np

from medssl.errors import UserError
from medssl.store.release import release as let_in
from medssl.store.schema import MASK
from medssl.store.store import Store


def release(store: str | Path, where: str) -> int:
    """Lets the held scans that satisfy `where` (see medssl.store.query) into training; returns how many.

    Look at them first: medssl inspect store=S quarantined=true where=… sheet=FILE.png. Pseudonyms of the scans go to
    released.json, so that a later ingest lets them in again. The store's fingerprint changes, since its training set does.

    Raises:
        UserError: `where` is wrong, or selects no held scan.
    """
    found = Store.open(store, where=where, quarantined=True)
    held = found.column("held")
    rows = np.flatnonzero((held != "") & (held != MASK))
    if not len(rows):
        raise UserError(
            f"where={where!r} selects {len(found):,} scans and none of them is held but for masks: nothing to release"
        )
    reasons = dict(zip(*np.unique(held[rows].astype(str), return_counts=True), strict=True))
    n = let_in(found, rows)
    print(f"released     {n:,} scans: {', '.join(f'{reason} {count:,}' for reason, count in reasons.items())}")
    print(f"fingerprint  {Store.open(store, quarantined=True).fingerprint}")
    return n
