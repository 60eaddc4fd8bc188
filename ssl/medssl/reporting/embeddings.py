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
from medssl.store.store import Store


@dataclass(frozen=True)
class Embeddings:
    """The rows of embeddings.parquet.

    Attributes:
        x: (N, D) float32.
        patient: (N,) pseudonyms, to leave out other scans of the same patient; never shown.
        row: (N,) int64, the row of each scan in the store, -1 if it is not in this store.
        labels: names of the labels among the columns.
        columns: name -> (N,) strings or None: the labels, then site, scanner and split.
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
    for name in ("site", "scanner"):
        columns[name] = np.where(row >= 0, store.column(name)[row], "") if len(store) else np.full(len(row), "", object)
    columns["split"] = split
    return Embeddings(x, patient, row, labels, columns)


def neighbours(embeddings: Embeddings, query: int, k: int) -> NDArray[np.int64]:
    """Return the k rows most similar to row `query` by cosine, nearest first: scans of the store and of other patients."""
    others = np.flatnonzero((embeddings.row >= 0) & (embeddings.patient != embeddings.patient[query]))
    x = embeddings.x / np.maximum(np.linalg.norm(embeddings.x, axis=1, keepdims=True), 1e-12)
    return others[np.argsort(-(x[others] @ x[query]), kind="stable")[:k]]
