"""A small store and its embeddings, for tests of what shows them."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan

ALIAS = Pseudonyms(b"k" * 32)
EVIL = "</script><script>alert(1)</script>"


def write_store(path, n=40, dims=2, patients=None, labels=True, start=0):
    rng = np.random.default_rng(start)
    with StoreWriter(path, ALIAS) as writer:
        for i in range(start, start + n):
            shape = (1, 16, 12) if dims == 2 else (1, 6, 12, 10)
            array = rng.integers(20, 200, shape).astype(np.uint8)
            array[..., 0, 0] = 0
            kind = {"finding": "normal" if i % 3 else EVIL, "note": f"free words {i}", "score": str(i)}
            patient = i // 2 if patients is None else i % patients
            scan = Scan(
                array=array, scan=ALIAS.of("scan", str(i)), patient=ALIAS.of("patient", str(patient)),
                study=ALIAS.of("study", str(i)), series=ALIAS.of("series", str(i)), site="north" if i % 2 else "south",
                scanner="scanner A", modality="DX" if dims == 2 else "MR", labels=kind if labels else {},
                spacing=(1.0,) * dims, patient_known=True, metadata={"age": float(30 + i)},
            )  # fmt: skip
            writer.add(scan, f"/secret/ward/file{i}.png")
        return writer.finish()


def write_embeddings(run, store, seed=0, dim=5, x=None):
    x = np.random.default_rng(seed).normal(size=(len(store), dim)).astype(np.float32) if x is None else x
    names = ["scan", "patient", "split", "site", "scanner", *(f"label:{name}" for name in store.labels)]
    columns = {name: pa.array(store.column(name).tolist(), pa.string()) for name in names}
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1), pa.float32()), x.shape[1])
    pq.write_table(pa.table(columns), run / "embeddings.parquet")
    return x


def data_of(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])
