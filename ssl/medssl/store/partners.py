"""Pairs of scans of one study or patient, for methods that compare two scans of a person."""

from dataclasses import dataclass

import numpy as np

from medssl.errors import UserError
from medssl.store.store import Store


@dataclass(frozen=True)
class Partners:
    """What each scan may be paired with.

    rows: for every row of the store, the rows of its partners; one is drawn anew in every epoch. aligned: whether both are
    cropped and turned alike, as two series of one study that show the same place.
    """

    rows: list[np.ndarray]
    aligned: bool


def series_partners(store: Store, rows: np.ndarray, method: str) -> tuple[np.ndarray, Partners]:
    """Return those of `rows` that have a partner, and for every row of the store its partners: other series of its study.

    Partners are among `rows` too. method: its name, for the message.

    Raises UserError if no scan has a partner.
    """
    series = store.column("series")
    partners = [np.zeros(0, np.int64) for _ in range(len(store))]
    for members in _groups(store, rows, "study"):
        for row in members:
            partners[row] = np.array([r for r in members if series[r] != series[row]], np.int64)
    paired = np.array([row for row in rows.tolist() if len(partners[row])], rows.dtype)
    if not len(paired):
        raise UserError(
            f"{method} pairs two series of a study, and no study of the training patients of {store.path} has two; "
            "ingest DICOM studies with several sequences, or choose another method"
        )
    return paired, Partners(partners, aligned=True)


def scan_partners(store: Store, rows: np.ndarray, within: str) -> Partners:
    """Return for every row of the store its partners: the other scans of its `within`, "patient" or "study", among `rows`.

    A scan without others is its own partner, as is one of an unknown study.

    Raises UserError if no patient or study has two scans.
    """
    partners = [np.array([row], np.int64) for row in range(len(store))]
    groups = [members for members in _groups(store, rows, within) if len(members) > 1]
    if not groups:
        raise UserError(
            f"method.pairs={within} pairs two scans of a {within}, and no {within} among the training patients of "
            f"{store.path} has two; take method.pairs=scan"
        )
    for members in groups:
        for row in members:
            partners[row] = np.array([r for r in members if r != row], np.int64)
    return Partners(partners, aligned=False)


def training_rows(store: Store, paired_within: str, method: str) -> tuple[np.ndarray, Partners | None]:
    """Return the rows that a method with this `Method.paired_within` trains on, and their partners or None.

    Raises UserError if nothing can be paired.
    """
    rows = store.rows("train")
    if paired_within == "series":
        return series_partners(store, rows, method)
    return rows, scan_partners(store, rows, paired_within) if paired_within else None


def _groups(store: Store, rows: np.ndarray, column: str) -> list[list[int]]:
    """Return the rows of each value of a column but ""."""
    groups: dict[str, list[int]] = {}
    of = store.column(column)
    for row in rows.tolist():
        if of[row]:
            groups.setdefault(of[row], []).append(row)
    return list(groups.values())
