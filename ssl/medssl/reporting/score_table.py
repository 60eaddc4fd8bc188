"""A score table in a report: every row with its interval, and a forest plot of the first metric."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from medssl.reporting.conclusions import Table, conclusions, has_interval, is_ours, metrics, shown
from medssl.reporting.messages import Messages, messages
from medssl.reporting.render import render
from medssl.runs.predictions import in_words


@dataclass(frozen=True)
class Interval:
    """A row of a forest plot; the rows of the run itself are marked."""

    name: str
    value: float
    low: float
    high: float
    marked: bool = False


@dataclass(frozen=True)
class Bar:
    """An interval placed on the axis of a forest plot: left end, width and value in percent of the axis."""

    of: Interval
    left: float
    width: float
    at: float


def forest_style() -> Markup:
    """Return the style sheet of forest plots, for where the page's own is not: a notebook."""
    return render("forest.css")


def score_table(table: Table, t: Messages | None = None, *, flags: bool = True) -> Markup:
    """Return one table of scores.json with the run's own rows marked, what it shows, and a forest plot of its first metric.

    flags: whether its warnings stand above it.
    """
    t = t or messages()
    names = metrics(table)
    budgets = {row["label_budget"] for row in table["rows"]} != {"all"}
    asked = (
        f"{k} {in_words(v)}" for k, v in table["asked"].items() if k not in ("classes", "task") and " scans" not in k
    )
    intervals = [
        Interval(
            ", ".join(
                [shown(row, table, t), t.phrase(row["probe"]), *([t.phrase(row["label_budget"])] if budgets else [])]
            ),
            **{k: score[k] for k in ("value", "low", "high")},
            marked=is_ours(row),
        )
        for row in table["rows"]
        if has_interval(score := row["scores"].get(names[0]))
    ]
    rows = [
        [shown(row, table, t), t.phrase(row["probe"]), *(row["scores"].get(name) for name in names), row["difference"]]
        for row in table["rows"]
    ]
    if budgets:
        for cells, row in zip(rows, table["rows"], strict=True):
            budget = t.phrase(row["label_budget"])
            cells.insert(2, t("draws", budget=budget, draws=row["draws"]) if row["draws"] > 1 else budget)
    words = [t("features"), t("probe"), *([t("label_budget")] if budgets else [])]
    shown_names = [t.phrase(name) for name in names]
    return render(
        "score_table.html.j2",
        t=t,
        table=table,
        conclusion=conclusions(table, t),
        flags=table["flags"] if flags else [],
        asked=", ".join(asked),
        head=[*words, *shown_names, t("versus_run", metric=shown_names[0])],
        rows=rows,
        words=len(words),
        ours=[i for i, row in enumerate(table["rows"]) if is_ours(row)],
        metric=shown_names[0],
        **forest(intervals),
    )


def forest(intervals: Sequence[Interval]) -> dict[str, object]:
    """Return the bars of a forest plot and the numbers at the two ends of its axis, for the macro `forest`."""
    if not intervals:
        return {"bars": [], "axis": ("", "")}
    low, high = min(row.low for row in intervals), max(row.high for row in intervals)
    room = 0.04 * (high - low) or 0.01
    low, high = low - room, high + room

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    bars = [Bar(row, place(row.low), place(row.high) - place(row.low), place(row.value)) for row in intervals]
    return {"bars": bars, "axis": (f"{low:.3f}", f"{high:.3f}")}
