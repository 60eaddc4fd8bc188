"""The page for an ethics committee: personal data in a store, data that was dropped, and data that nobody has checked."""

from collections import Counter
from typing import Any

import numpy as np

from medssl.readers.quality_flags import seen_text_height
from medssl.readers.reject_codes import CODES
from medssl.reporting.plots import is_empty
from medssl.reporting.render import render
from medssl.store.release import read_released
from medssl.store.store import Store

HEAD = {"HEAD", "BRAIN", "SKULL", "HEADNECK", "NECK", "JAW", "EYE", "WHOLEBODY"}
THIN = 3.0  # mm: a surface rendered from thinner voxels shows a face
PSEUDONYMS = {"scan", "patient", "study", "series", "group"}
ADDRESS = {"file", "offset", "length"}  # place in the store


def privacy_page(store: Store) -> str:
    """Return a self-contained HTML page about `store`, opened with quarantined=True. It has no id, no path and no picture."""
    columns = store.table.column_names
    fields, labels = ([c for c in columns if c.startswith(prefix)] for prefix in ("fact:", "label:"))
    values = {c: _values(store, c) for c in (*fields, *labels, "scanner", "site")}
    known = {c: len(v) for c, v in values.items()}
    distinct = {c: len(set(values[c])) for c in labels}
    waiting = Counter(str(reason) for reason in store.column("held") if reason)
    released = Counter(found["held"] for found in read_released(store.path).values())
    heights = [seen_text_height(shape) for shape in store.column("shape") if len(shape) == 3]
    rejected = sorted(store.info["counts"]["rejected"].items(), key=lambda item: -item[1])
    counted: dict[str, Any] = {k: known.get(f"fact:{k}", 0) for k in ("age", "sex", "burned_in")}
    return render(
        "privacy.html.j2",
        store=store,
        patients=len(set(store.column("patient"))),
        unknown=int((~np.asarray(store.column("patient_known"), bool)).sum()),
        who=store.info["uncertain_patients"],
        properties=[c for c in columns if ":" not in c and c not in PSEUDONYMS | ADDRESS],
        fields=[[c.removeprefix("fact:"), known[c]] for c in fields],
        labels=[[c.removeprefix("label:"), known[c], distinct[c]] for c in labels],
        diverse=[
            c.removeprefix("label:") for c in labels if len(store) > 20 and distinct[c] > max(20, len(store) // 2)
        ],
        released=sum(released.values()),
        quarantine=[[reason, waiting[reason], released[reason]] for reason in sorted({*waiting, *released})],
        images=len(heights),
        unseen=sorted({min(heights, default=0), max(heights, default=0)}),
        border_text=sum("text in border" in (flags or ()) for flags in store.column("flags")),
        faces=faces(store),
        thin=THIN,
        rejected=[[code, CODES.get(code, ("",))[0], n] for code, n in rejected],
        **counted,
        over_90=sum(float(age) >= 90 for age in values.get("fact:age", [])),
        scanners=known["scanner"],
        sites=known["site"],
    )


def _values(store: Store, column: str) -> list[Any]:
    return [v for v in store.column(column) if not is_empty(v)]


def faces(store: Store) -> dict[str, int]:
    """Count the scans that a face may be rendered from: {"possible": n, "cannot be excluded": n}."""
    parts = store.column("fact:body_part") if "fact:body_part" in store.table.column_names else [None] * len(store)
    counts = {"possible": 0, "cannot be excluded": 0}
    for modality, shape, spacing, part in zip(
        store.column("modality"), store.column("shape"), store.column("spacing"), parts, strict=True
    ):
        if len(shape) != 4 or modality not in {"CT", "MR", "PT", ""} or (spacing and max(spacing) > THIN):
            continue
        if part in HEAD:
            counts["possible"] += 1
        elif not part:
            counts["cannot be excluded"] += 1
    return counts
