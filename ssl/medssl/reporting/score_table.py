"""A score table in a report: every row with its interval, a forest plot, and what the score means in clinical use."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from medssl.reporting.conclusions import Table, has_interval, is_ours, metrics, shown
from medssl.reporting.plots import Interval, decision_curve, forest, reliability
from medssl.reporting.render import render
from medssl.runs.predictions import in_words


def score_table(table: Table) -> Markup:
    """Return one table of scores.json with the run's own rows marked and a forest plot of its first metric."""
    names = metrics(table)
    budgets = {row["label_budget"] for row in table["rows"]} != {"all"}
    asked = (
        f"{k} {in_words(v)}" for k, v in table["asked"].items() if k not in ("classes", "task") and " scans" not in k
    )
    intervals = [
        Interval(
            ", ".join([shown(row, table), row["probe"], *([row["label_budget"]] if budgets else [])]),
            **{k: score[k] for k in ("value", "low", "high")},
            marked=is_ours(row),
        )
        for row in table["rows"]
        if has_interval(score := row["scores"].get(names[0]))
    ]
    rows = [
        [shown(row, table), row["probe"], *(row["scores"].get(name) for name in names), row["difference"]]
        for row in table["rows"]
    ]
    if budgets:
        for cells, row in zip(rows, table["rows"], strict=True):
            cells.insert(2, row["label_budget"] + (f", {row['draws']} draws" if row["draws"] > 1 else ""))
    return render(
        "score_table.html.j2",
        table=table,
        asked=", ".join(asked),
        head=["features", "probe", *(["label budget"] if budgets else []), *names, f"Δ {names[0]} vs run"],
        rows=rows,
        words=2 + budgets,
        ours=[i for i, row in enumerate(table["rows"]) if is_ours(row)],
        metric=names[0],
        intervals=intervals,
        forest=forest(intervals, label=f"{names[0]}, {table['target']}") if intervals else b"",
        clinical_use=clinical_use(table),
    )


def clinical_use(table: Table) -> Markup:
    """Return the operating point, calibration, decision curve and subgroups of a table; empty where it has none."""
    calibration, decision = table.get("calibration"), table.get("decision_curve")
    return render(
        "clinical_use.html.j2",
        point=table.get("operating_point"),
        why=table.get("why"),
        calibration=calibration,
        scaled=_calibrated(calibration) if calibration else [],
        reliability=reliability(calibration["curve"]) if calibration else b"",
        decision=decision,
        net_benefit=decision_curve(decision["curve"]) if decision else b"",
        subgroups=table.get("subgroups", {}),
    )


def _calibrated(calibration: Mapping[str, Any]) -> list[list[Any]]:
    columns = [calibration[k] for k in ("uncalibrated", "temperature_scaled", "difference")]
    return [[name, *(column.get(name) for column in columns)] for name in columns[0]]
