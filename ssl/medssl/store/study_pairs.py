"""Pairs of scans of one study, for methods that compare its series."""

import numpy as np

from medssl.errors import UserError
from medssl.store.store import Store


def study_partners(store: Store, rows: np.ndarray, method: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return those of `rows` that have a partner, and for every row of the store its partners: other series of its study.

    Partners are among `rows` too. method: its name, for the message.

    Raises UserError if no scan has a partner.
    """
    studies: dict[str, list[int]] = {}
    study, series = store.column("study"), store.column("series")
    for row in rows.tolist():
        if study[row]:
            studies.setdefault(study[row], []).append(row)
    partners = [np.zeros(0, np.int64) for _ in range(len(store))]
    for members in studies.values():
        for row in members:
            partners[row] = np.array([r for r in members if series[r] != series[row]], np.int64)
    paired = np.array([row for row in rows.tolist() if len(partners[row])], rows.dtype)
    if not len(paired):
        raise UserError(
            f"{method} pairs two series of a study, and no study of the training patients of {store.path} has two; "
            "ingest DICOM studies with several sequences, or choose another method"
        )
    return paired, partners


def training_rows(store: Store, paired_within: str, method: str) -> tuple[np.ndarray, list[np.ndarray] | None]:
    """Return the rows that a method with this `Method.paired_within` trains on, and their partners or None."""
    rows = store.rows("train")
    return study_partners(store, rows, method) if paired_within else (rows, None)
