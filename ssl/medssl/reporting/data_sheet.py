"""The data sheet of a store: its size, its splits, and how often each label occurs in them."""

from collections import Counter
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from medssl.reporting.messages import Messages, messages
from medssl.reporting.plots import is_empty
from medssl.reporting.render import render
from medssl.store.store import Store

SPLITS = ("train", "val", "test")
VALUES = 10  # values of a label that get a row of their own


def data_sheet(store: Store, t: Messages | None = None) -> Markup:
    """Return the facts of a store, the size of each split, and each label's prevalence by split."""
    t = t or messages()
    split, patient = store.column("split"), store.column("patient")
    labels = {name: _words(store.column(f"label:{name}")) for name in store.labels}
    return render(
        "data_sheet.html.j2",
        t=t,
        store=store,
        patients=len(set(patient)),
        unknown=int((~np.asarray(store.column("patient_known"), bool)).sum()),
        sites=_counts(store.column("site"), t),
        scanners=_counts(store.column("scanner"), t),
        splits=[[t.phrase(s), *(f"{n:,}" for n in _sizes(split == s, patient)[::-1])] for s in SPLITS],
        units=[t(f"data_unit_{unit}", split=t.phrase(s)) for s in SPLITS for unit in ("patients", "scans")],
        labels={name: _prevalence(values, split, patient, t) for name, values in labels.items()},
    )


def _words(values: NDArray[Any]) -> NDArray[Any]:
    return np.array(["" if is_empty(v) else str(v) for v in values], object)


def _counts(values: NDArray[Any], t: Messages) -> str:
    counts = Counter(word or t("data_not_recorded") for word in _words(values))
    listed = ", ".join(f"{name} {n:,}" for name, n in counts.most_common(VALUES))
    return t("data_more", listed=listed, n=len(counts) - VALUES) if len(counts) > VALUES else listed


def _sizes(scans: NDArray[Any], patient: NDArray[Any]) -> tuple[int, int]:
    """Return the number of patients and of scans where `scans` (N,) is true."""
    return len(set(patient[scans])), int(scans.sum())


def _prevalence(label: NDArray[Any], split: NDArray[Any], patient: NDArray[Any], t: Messages) -> list[list[str]]:
    """Return a row for each value: patients with such a scan, and scans, as shares of the labelled ones in each split."""
    names = [name for name, _ in sorted(Counter(label[label != ""]).items(), key=lambda item: (-item[1], item[0]))]
    chosen = {name: label == name for name in sorted(names[:VALUES])}
    if rest := names[VALUES:]:
        chosen[t("data_other_values", n=len(rest))] = np.isin(label.astype(str), rest)
    rows = []
    for name, scans in chosen.items():
        sizes = [
            (n, of)
            for s in SPLITS
            for n, of in zip(
                _sizes(scans & (split == s), patient), _sizes((label != "") & (split == s), patient), strict=True
            )
        ]
        rows.append([name, *(f"{n:,} ({n / of:.0%})" if of else "0" for n, of in sizes)])
    if (label == "").any():
        rows.append(
            [t("data_no_label"), *(f"{n:,}" for s in SPLITS for n in _sizes((label == "") & (split == s), patient))]
        )
    return rows
