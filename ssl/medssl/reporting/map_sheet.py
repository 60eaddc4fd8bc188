"""The map of the scans: a t-SNE of their features, coloured by each column of the store, with its faithfulness."""

from collections import Counter
from dataclasses import replace
from typing import Any

from medssl.errors import UserError
from medssl.reporting import plots
from medssl.reporting.embeddings import Embeddings
from medssl.reporting.messages import Messages
from medssl.reporting.tsne import FEWEST, trustworthiness, tsne

LABELS = 4  # labels that get a map of their own


def map_sheet(embeddings: Embeddings | None, seed: int, t: Messages) -> dict[str, Any]:
    """Return the map by each column, its trustworthiness, and a sentence about the columns that are not drawn."""
    if embeddings is None:
        return {}
    if len(embeddings.x) < FEWEST:
        return {"few": FEWEST}
    try:
        xy, rows = tsne(embeddings.x, seed=seed)
    except UserError as e:
        return {"error": t.phrase(str(e))}
    drawn: dict[str, tuple[bytes, list[plots.Entry]]] = {}
    left_out: list[str] = []
    for column, values in embeddings.columns.items():
        if column in embeddings.labels[LABELS:]:
            continue
        counts = Counter(str(v) for v in values[rows] if not plots.is_empty(v))
        name = column if column in embeddings.labels else t.phrase(column)
        if len(counts) < 2:
            one = next(iter(counts), None)
            left_out.append(t("not_recorded", column=name) if one is None else t("one_value", column=name, value=one))
            continue
        entries = plots.legend(values[rows], unknown=t("unknown"), others=t("others", n="{n}"))
        if column == "split":
            entries = [replace(entry, name=t.phrase(entry.name)) for entry in entries]
        drawn[name] = plots.scatter(xy, values[rows], seed=seed), entries
    shown, all_rows = len(xy), len(embeddings.x)
    return {
        "trust": trustworthiness(embeddings.x[rows], xy),
        "shown": t("shown_all", n=shown) if shown == all_rows else t("shown_some", n=shown, all=all_rows),
        "drawn": drawn,
        "left_out": t("not_coloured", columns=", ".join(left_out)) if left_out else "",
    }
