"""Run + store -> embeddings.parquet: one row per scan."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.files import atomic
from medssl.runs.run_folder import Run
from medssl.scoring.features import device_of, of_run
from medssl.store.store import Store


def embed(
    run: str | Path,
    store: str | Path | Store,
    *,
    where: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Features of every scan of a store by the encoder of a run; returns the parquet file (default RUN/embeddings.parquet).

    `where` selects scans; see `medssl.store.query`.

    Columns: scan, patient (pseudonyms), split, site, scanner, label:NAME for each label, embedding (list of float32).
    """
    folder, source_store = Run(Path(run)), Store.open(store, where)
    folder.finished()
    source, _ = of_run(folder.path, device_of(device))
    x = source(source_store, source_store.rows())
    names = ["scan", "patient", "split", "site", "scanner", *(f"label:{name}" for name in source_store.labels)]
    columns = {name: pa.array(source_store.column(name).tolist(), pa.string()) for name in names}
    flat = pa.array(x.reshape(-1), pa.float32())
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(flat, x.shape[1])
    path = Path(out).expanduser() if out is not None else folder.path / "embeddings.parquet"
    with atomic(path) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata({"store": source_store.fingerprint}), part)
    print(f"{len(x)} scans x {x.shape[1]} features: {path}")
    return path
