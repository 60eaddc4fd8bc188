"""Conclusions from a score table, in sentences that claim no more than the intervals allow."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from medssl.reporting.messages import Messages, messages
from medssl.runs.predictions import RUN
from medssl.scoring.baselines import RANDOM_INIT_FROZEN, Baseline
from medssl.scoring.comparison import SEVERAL
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


def shown(row: Row, table: Table, t: Messages | None = None) -> str:
    """Return the name of a row's features, marked if its test set overlaps with what they were trained on."""
    name = row["features"] if t is None else t.phrase(row["features"])
    return marked(name, row["source"], table["overlap"])


def probe(row: Row, t: Messages) -> str:
    """Return the probe, and the label budget if it is not all."""
    name = t.phrase(row["probe"])
    return name if row["label_budget"] == "all" else f"{name}, {t.phrase(row['label_budget'])}"


def scored_rows(table: Table) -> tuple[list[Row], list[Row]]:
    """Return the rows whose first score has an interval, best first, and those of them that score the run itself."""
    name = next(iter(metrics(table)), None)
    scored = [row for row in table["rows"] if name is not None and has_interval(row["scores"].get(name))]
    scored.sort(key=lambda row: -int(table.get("sign", 1)) * row["scores"][name]["value"])
    return scored, [row for row in scored if is_ours(row)]


def baselines(ours: Row, table: Table) -> list[tuple[Row, float, float, float]]:
    """Return each baseline of the same probe with the run's gain over it and its interval. Positive means better."""
    sign = int(table.get("sign", 1))
    out = []
    for row in table["rows"]:
        same = all(row[k] == ours[k] for k in ("probe", "label_budget"))
        if same and has_interval(row["difference"]) and row["source"] in BASELINES:
            out.append(_gain(row, sign))
    return out


def strongest_rival(ours: Row, table: Table) -> tuple[Row, float, float, float] | None:
    """Return the strongest row of the table that is not of the run, with the same labels and any probe, as in `baselines`."""
    sign = int(table.get("sign", 1))
    rivals = [
        _gain(row, sign)
        for row in table["rows"]
        if row["source"].partition(",")[0] != RUN
        and row["label_budget"] == ours["label_budget"]
        and has_interval(row["difference"])
    ]
    return min(rivals, key=lambda found: found[1], default=None)


def _gain(row: Row, sign: int) -> tuple[Row, float, float, float]:
    # a stored difference is baseline minus run
    gain, *ends = (-sign * row["difference"][k] for k in ("value", "low", "high"))
    low, high = sorted(ends)
    return row, gain, low, high


def conclusions(table: Table, t: Messages | None = None) -> list[str]:
    """State the run's best score, its difference to each baseline, and the best row if that is not the run's.

    Where the best was chosen among several rows, that is said.
    """
    t = t or messages()
    name = next(iter(metrics(table)), None)
    if name is None:
        return [t("table_without_scores", target=table["target"])]
    scored, ours = scored_rows(table)
    if not ours:
        return [t("nothing_concluded", metric=t.phrase(name), target=table["target"])]
    row, best, metric = ours[0], scored[0], t.phrase(name)
    score = row["scores"][name]
    out = [
        t(
            "has_score", target=table["target"], test=t.phrase(table["test"]), model=shown(row, table, t), metric=metric,
            probe=probe(row, t), value=" ".join(number(score)), n=score["n"], patients=score["patients"],
        ),
        *_against_baselines(row, table, t),
    ]  # fmt: skip
    if table["overlap"]:
        out.append(t("rows_overlap", sets=overlap(table, t)))
    if not is_ours(best):
        value = " ".join(number(best["scores"][name]))
        out.append(t("best_is_other", metric=metric, model=shown(best, table, t), probe=probe(best, t), value=value))
    for chosen, rows, whose in ((row, ours, "rows_of_run"), (best, scored, "rows_of_table")):
        if len(rows) >= SEVERAL and (chosen is best) == (rows is scored):
            who = f"{shown(chosen, table, t)} ({probe(chosen, t)})"
            out.append(t("selected", best=who, measure=metric, among=t(whose, n=len(rows))))
    return out


def overlap(table: Table, t: Messages) -> str:
    """Return the sets that the test set overlaps with."""
    names = [t.phrase(name) for name in table["overlap"]]
    return " and ".join(names) if t.language == "en" else ", ".join(names)


def _against_baselines(ours: Row, table: Table, t: Messages) -> list[str]:
    """Compare the run with each baseline of the same probe."""
    out = [
        verdict("{}_than", "same_as", found, t, baseline=shown(found[0], table, t)) for found in baselines(ours, table)
    ]
    return out or [t("no_baseline")]


def verdict(differs: str, same: str, found: tuple[Row, float, float, float], t: Messages, **values: Any) -> str:
    """Return a sentence about a difference: better or worse only if its whole interval lies on one side of 0."""
    _, gain, low, high = found
    if low > 0:
        return t(differs.format("better"), gain=gain, low=low, high=high, **values)
    if high < 0:
        return t(differs.format("worse"), gain=-gain, low=-high, high=-low, **values)
    return t(same, gain=gain, low=low, high=high, **values)
