"""Embeddings of a run, joined with the metadata of its store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.scoring.clinical import groups_of
from medssl.store.store import Store

PEOPLE = ("sex", "age", "view")


@dataclass(frozen=True)
class Embeddings:
    """The rows of embeddings.parquet.

    Attributes:
        x: (N, D) float32.
        patient: (N,) pseudonyms, to leave out other scans of the same patient; never shown.
        row: (N,) int64, the row of each scan in the store, -1 if it is not in this store.
        labels: names of the labels among the columns.
        columns: name -> (N,) strings or None: the labels, then site and scanner; sex, age in bands and view where the store
            has them; split.
    """

    x: NDArray[np.float32]
    patient: NDArray[np.object_]
    row: NDArray[np.int64]
    labels: list[str]
    columns: dict[str, NDArray[np.object_]]


def read_embeddings(run: Path, store: Store) -> Embeddings:
    """Return RUN/embeddings.parquet joined to the store by scan. Raises UserError if it is missing or damaged."""
    path = run / "embeddings.parquet"
    if not path.exists():
        raise UserError(f"{path} is missing; make it with: medssl embed run={run} store={store.path}")
    try:
        read = pq.read_table(path)
        x = pc.list_flatten(read["embedding"]).to_numpy().astype(np.float32).reshape(len(read), -1)
        names = [name for name in read.column_names if name not in {"embedding", "row"}]
        values = {name: np.array(read[name].to_pylist(), object) for name in names}
        patient, split, scans = values["patient"], values["split"], values["scan"]
    except (OSError, KeyError, ValueError, pa.ArrowException) as e:
        raise UserError(f"{path} is damaged; make it again with: medssl embed run={run} store={store.path}") from e
    at = {scan: i for i, scan in enumerate(store.column("scan"))}
    row = np.array([at.get(scan, -1) for scan in scans], np.int64)
    columns: dict[str, NDArray[Any]] = {
        name.removeprefix("label:"): column for name, column in values.items() if name.startswith("label:")
    }
    labels = list(columns)
    unknown = np.full(len(row), None, object)
    for name, column in _facts(store).items():
        columns.setdefault(name, np.where(row >= 0, column[row], unknown) if len(store) else unknown)
    columns["split"] = split
    return Embeddings(x, patient, row, labels, columns)


def _facts(store: Store) -> dict[str, NDArray[Any]]:
    """Return what is known of the scans of a store, name -> (N,) strings, None where unknown; ages in bands."""
    found = {name: np.array([v or None for v in store.column(name)], object) for name in ("site", "scanner")}
    for name in PEOPLE:
        if (groups := groups_of(store, np.arange(len(store)), name)) is not None:
            found[name] = groups
    return found


def neighbours(embeddings: Embeddings, query: int, k: int) -> NDArray[np.int64]:
    """Return the k rows most similar to row `query` by cosine, nearest first: scans of the store and of other patients."""
    others = np.flatnonzero((embeddings.row >= 0) & (embeddings.patient != embeddings.patient[query]))
    x = embeddings.x / np.maximum(np.linalg.norm(embeddings.x, axis=1, keepdims=True), 1e-12)
    return others[np.argsort(-(x[others] @ x[query]), kind="stable")[:k]]
