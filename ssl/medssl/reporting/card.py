"""The tables of a report: what the data are, and what the scores are."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medssl.reporting import plots, words
from medssl.reporting.tags import Html, element, facts, figure, paragraph, table
from medssl.store.store import Store

SPLITS = ("train", "val", "test")
VALUES = 10  # values of a label with a row of their own


def data_card(store: Store) -> Html:
    """Facts about the store, then every label's prevalence by split, of patients and of scans."""
    info = store.info
    codes, twins = info["counts"]["rejected"], info["duplicates"]
    patients, known = store.column("patient"), np.asarray(store.column("patient_known"), bool)
    pairs: list[tuple[str, object]] = [
        ("scans", f"{len(store):,}"),
        (
            "patients",
            f"{len(set(patients)):,}" + ("" if known.all() else f" ({(~known).sum():,} scans without a patient id)"),
        ),
        ("modality", store.modality),
        ("dimensions", f"{store.dims}D, {store.channels} channel{'s'[: store.channels > 1]}"),
        ("sites", _counted(store.column("site"))),
        ("scanners", _counted(store.column("scanner"))),
        ("intensity", store.intensity),
        ("files rejected", ", ".join(f"{code} {n:,}" for code, n in codes.items()) or "none"),
        (
            "equal pixels",
            f"{twins['within']:,} repeats within a split, {twins['between']:,} images in several splits, "
            f"{twins['near']:,} nearly equal pairs",
        ),
        ("fingerprint", element("code", store.fingerprint)),
    ]
    split = store.column("split")
    counts = [[s, f"{(split == s).sum():,}", f"{len(set(patients[split == s])):,}"] for s in SPLITS]
    parts = [facts(pairs), element("h3", "Splits, by patient"), table(["split", "scans", "patients"], counts)]
    if store.labels:
        parts.append(element("h3", "Labels"))
        parts += [_prevalence(name, store.column(f"label:{name}"), split, patients) for name in store.labels]
    else:
        parts.append(paragraph("The store has no labels.", klass="note"))
    return Html("\n".join(parts))


def _counted(values: NDArray[Any]) -> str:
    counts = Counter("not recorded" if plots.is_empty(v) else str(v) for v in values)
    listed = [f"{name} {n:,}" for name, n in counts.most_common(VALUES)]
    return ", ".join(listed) + (f" and {len(counts) - VALUES} more" if len(counts) > VALUES else "")


def _prevalence(name: str, values: NDArray[Any], split: NDArray[Any], patients: NDArray[Any]) -> Html:
    """By value and split: patients with at least one such scan, and scans, with their share of the labelled ones."""
    word = np.array(["" if plots.is_empty(v) else str(v) for v in values], object)
    names = [n for n, _ in sorted(Counter(word[word != ""]).items(), key=lambda kv: (-kv[1], kv[0]))]
    rows: list[list[str]] = []
    for title, chosen in [*((n, word == n) for n in sorted(names[:VALUES])), *_others(names, word)]:
        cells = [title]
        for s in SPLITS:
            here = (split == s) & (word != "")
            cells += [_share(len(set(patients[here & chosen])), len(set(patients[here])))]
            cells += [_share(int((here & chosen).sum()), int(here.sum()))]
        rows.append(cells)
    if (word == "").any():
        missing = [(split == s) & (word == "") for s in SPLITS]
        rows.append(["no label", *(f"{n:,}" for m in missing for n in (len(set(patients[m])), int(m.sum())))])
    head = [name, *(f"{s} {unit}" for s in SPLITS for unit in ("patients", "scans"))]
    return table(head, rows)


def _others(names: Sequence[str], word: NDArray[Any]) -> list[tuple[str, NDArray[Any]]]:
    rest = names[VALUES:]
    return [(f"{len(rest)} other values", np.isin(word.astype(str), rest))] if rest else []


def _share(n: int, of: int) -> str:
    return f"{n:,} ({n / of:.0%})" if of else "0"


def score_table(scores: words.Table) -> Html:
    """All scores of one table with their intervals, the run's own rows marked, and a forest plot of the main score."""
    names, rows = words.metrics(scores), scores["rows"]
    ours = [i for i, row in enumerate(rows) if words.is_ours(row)]
    main = words.main_metric(scores)
    budgets = len({row.get("labels", "all") for row in rows}) > 1
    cells = [
        [
            row["features"],
            row["reader"],
            *([f"{row['labels']}, {row['draws']} draws" if row["draws"] > 1 else row["labels"]] if budgets else []),
            *(_cell(row["scores"].get(name)) for name in names),
            _cell(row.get("minus_run"), signed=True),
        ]
        for row in rows
    ]
    title = ": ".join([scores["target"], *([", ".join(map(str, scores["classes"]))] if scores.get("classes") else [])])
    title += f" ({scores['command']})" if "command" in scores else ""
    sizes = (
        f"Trained on {scores['n_train']:,} scans of {scores['patients_train']:,} patients "
        f"(store {scores['train_store'][:8]}), tested on {scores['test']}: {scores['n_test']:,} scans of "
        f"{scores['patients_test']:,} patients (store {scores['test_store'][:8]})."
    )
    hows = dict.fromkeys(s["how"] for row in rows for s in row["scores"].values() if s.get("how"))
    parts = [
        element("h3", title),
        paragraph(sizes, klass="note"),
        *(paragraph(flag, klass="flag") for flag in scores.get("flags", [])),
        table(
            ["features", "reader", *(["labels"] if budgets else []), *names, f"{main} minus this run's"],
            cells,
            words=2 + budgets,
            marked=ours,
        ),
        paragraph(f"In brackets: {'; '.join(hows)}. Marked rows are this run.", klass="note") if hows else Html(),
    ]
    bars = [
        plots.Interval(
            ", ".join([row["features"], row["reader"], *([row["labels"]] if budgets else [])]),
            **{k: s[k] for k in ("value", "low", "high")},
            marked=i in ours,
        )
        for i, row in enumerate(rows)
        if words.has_interval(s := row["scores"].get(main))
    ]
    if bars:
        spoken = "; ".join(f"{b.name} {b.value:.3f} [{b.low:.3f}, {b.high:.3f}]" for b in bars)
        parts.append(
            figure(plots.forest(bars, label=f"{main}, {scores['target']}"), f"Forest plot of {main}: {spoken}")
        )
    return Html("\n".join(parts))


def _cell(score: dict[str, Any] | None, signed: bool = False) -> Html:
    value, ends = words.number(score, signed)
    return Html(f"{value} " + element("span", ends, klass="ci")) if ends else Html(value)
