"""A store without its test patients, whose other patients are split anew: for decisions that must not see the test."""

import copy
import hashlib

import numpy as np
import pyarrow as pa

from medssl.errors import UserError
from medssl.rng import seed_from
from medssl.store.store import Store

SHARES = {
    "test": 0.3,
    "val": 0.15,
}  # of the groups of patients, the first two; more for testing than usual, to see differences


def without_test(store: Store, seed: int = 0) -> Store:
    """Return the training and validation scans of a store, split anew by group of patients into train, val and test.

    The split of a group depends on its pseudonym and the seed alone. The result is a store in memory: the folder is unchanged.

    Raises UserError if one of the new splits is empty.
    """
    rows = np.flatnonzero(store.column("split") != "test")
    table = store.table.take(rows)
    groups = [
        group or patient for group, patient in zip(*(table[c].to_pylist() for c in ("group", "patient")), strict=True)
    ]
    split = np.array([_split(group, seed) for group in groups], object)
    missing = {"train", "val", "test"} - set(split)
    if missing:
        raise UserError(
            f"the {len(set(groups))} training and validation patients of {store.path} are too few to set some aside; ingest more"
        )
    held = copy.copy(store)
    held.table = table.set_column(table.column_names.index("split"), "split", pa.array(split.tolist(), pa.string()))
    for name in ("_split", "_moments", "_mask_rows", "fingerprint"):
        held.__dict__.pop(name, None)
    of = "|".join([store.fingerprint, str(seed), *table["scan"].to_pylist()])
    held.__dict__["fingerprint"] = hashlib.blake2b(of.encode(), digest_size=16).hexdigest()
    return held


def _split(group: str, seed: int) -> str:
    digest = int.from_bytes(hashlib.blake2b(group.encode(), digest_size=8).digest(), "big")
    place = np.random.default_rng(seed_from(seed, digest)).random()
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"
