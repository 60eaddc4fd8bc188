"""Conclusions from a score table, in sentences that claim no more than the intervals allow."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from medssl.runs.predictions import RUN
from medssl.scoring.baselines import RANDOM_INIT_FROZEN, Baseline
from medssl.scoring.comparison import SEVERAL, describe_selected
from medssl.scoring.eval_splits import marked

Table = Mapping[str, Any]
Row = Mapping[str, Any]

# A run is compared with random weights and with the k-means patch bank; without them its score means little.
BASELINES = (Baseline.RANDOM_INIT, RANDOM_INIT_FROZEN, Baseline.PATCH_BANK)


def has_interval(score: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a score has a finite value and a finite interval."""
    return score is not None and all(_finite(score.get(k)) for k in ("value", "low", "high"))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def number(score: Mapping[str, Any] | None, signed: bool = False) -> tuple[str, str]:
    """Format a score as ("0.912", "[0.887, 0.935]"), with signs for a difference.

    A missing score becomes ("–", ""), an undefined one ("undefined", ""), and one without an interval is marked.
    """
    if score is None:
        return "–", ""
    if not _finite(score.get("value")):
        return "undefined", ""
    sign = "+" if signed else ""
    interval = f"[{score['low']:{sign}.3f}, {score['high']:{sign}.3f}]" if has_interval(score) else "[no interval]"
    return f"{score['value']:{sign}.3f}", interval


def metrics(table: Table) -> list[str]:
    """Return the names of a table's scores; differences are of the first."""
    return list(dict.fromkeys(name for row in table["rows"] for name in row["scores"]))


def is_ours(row: Row) -> bool:
    """Return whether a row scores the run itself."""
    return row["source"] == RUN


def shown(row: Row, table: Table) -> str:
    """Return the name of a row's features, marked if its test set overlaps with what they were trained on."""
    return marked(row["features"], row["source"], table["overlap"])


def _probe(row: Row) -> str:
    """Return the probe, and the label budget if it is not all."""
    return row["probe"] if row["label_budget"] == "all" else f"{row['probe']}, {row['label_budget']}"


def conclusions(table: Table) -> list[str]:
    """State the run's best score, its difference to each baseline, and the best row if that is not the run's.

    Where the best was chosen among several rows, that is said.
    """
    name = next(iter(metrics(table)), None)
    if name is None:
        return [f"The table for {table['target']} has no scores."]
    scored = [row for row in table["rows"] if has_interval(row["scores"].get(name))]
    ours = [row for row in scored if is_ours(row)]
    if not ours:
        return [f"This run has no {name} with an interval for {table['target']!r}, so nothing can be concluded."]
    sign = int(table.get("sign", 1))

    def rank(row: Row) -> float:
        return sign * row["scores"][name]["value"]

    row, best = max(ours, key=rank), max(scored, key=rank)
    score = row["scores"][name]
    out = [
        f'For "{table["target"]}" on {table["test"]}, {shown(row, table)} ({_probe(row)}) has {name} '
        f"{' '.join(number(score))}: {score['n']:,} scans of {score['patients']:,} patients.",
        *_against_baselines(row, table, sign),
    ]
    if table["overlap"]:
        sets = " and ".join(table["overlap"])
        out.append(f"Rows with (!) may be too good: their test set overlaps with {sets}.")
    if not is_ours(best):
        value = " ".join(number(best["scores"][name]))
        out.append(f"The best {name} is not this run's: {shown(best, table)} ({_probe(best)}) has {value}.")
    for chosen, rows, whose in ((row, ours, "this run's"), (best, scored, "this table's")):
        if len(rows) >= SEVERAL and (chosen is best) == (rows is scored):
            out.append(
                describe_selected(f"{shown(chosen, table)} ({_probe(chosen)})", name, f"{whose} {len(rows)} rows")
            )
    return out


def _against_baselines(ours: Row, table: Table, sign: int) -> list[str]:
    """Compare the run with each baseline of the same probe. A stored difference is baseline minus run."""
    rows = [
        row
        for row in table["rows"]
        if all(row[k] == ours[k] for k in ("probe", "label_budget"))
        and has_interval(row["difference"])
        and row["source"] in BASELINES
    ]
    if not rows:
        return ["The table has neither random weights nor a k-means patch bank, so what training added is unknown."]
    out = []
    for row in rows:
        gain, *ends = (-sign * row["difference"][k] for k in ("value", "low", "high"))
        low, high = sorted(ends)
        if low > 0:
            out.append(f"It is better than {shown(row, table)} by {gain:.3f} [{low:.3f}, {high:.3f}].")
        elif high < 0:
            out.append(f"It is worse than {shown(row, table)} by {-gain:.3f} [{-high:.3f}, {-low:.3f}].")
        else:
            out.append(
                f"It cannot be told apart from {shown(row, table)} (difference {gain:+.3f} [{low:+.3f}, {high:+.3f}])."
            )
    return out
