"""`medssl embed`: write the features of every scan of a store to a parquet file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medssl.encoders.export import load_encoder
from medssl.files import atomic, check_writable
from medssl.progress import say
from medssl.runs.run_folder import Run
from medssl.scoring.features import from_encoder, resolve_device
from medssl.store.store import Store


def embed(
    run: str | Path,
    store: str | Path | Store,
    *,
    where: str | None = None,
    out: str | Path | None = None,
    device: str = "auto",
) -> Path:
    """Write one row per scan, with the features of a run's encoder, and return the parquet file.

    Columns: scan and patient (pseudonyms), split, site, scanner, label:NAME for each label, and embedding (list of float32).

    Args:
        run: a finished run folder.
        store: the scans.
        where: filter expression selecting scans; see `medssl.store.query`.
        out: the file to write; None: RUN/embeddings.parquet.
        device: auto, cpu or cuda.

    Raises UserError if the run is not finished, its encoder does not fit the store, or `out` cannot be written.
    """
    folder, scans = Run(Path(run)), Store.open(store, where)
    folder.finished()
    path = Path(out).expanduser() if out is not None else folder.path / "embeddings.parquet"
    if path.parent.exists():
        check_writable(path.parent)
    encoder, config = load_encoder(folder.path)
    features = from_encoder(encoder, config.input, resolve_device(device))
    x = features(scans, scans.rows())
    names = ["scan", "patient", "split", "site", "scanner", *(f"label:{name}" for name in scans.labels)]
    columns = {name: pa.array(scans.column(name).tolist(), pa.string()) for name in names}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), pa.float32()), x.shape[1])
    with atomic(path) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata({"store": scans.fingerprint}), part)
    say(f"{len(x)} scans x {x.shape[1]} features: {path}")
    return path
