"""What a score means in clinical use: natural frequencies, calibration, net benefit and subgroups."""

import re
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from medssl.reporting.conclusions import Table, has_interval, number
from medssl.reporting.messages import Messages, messages
from medssl.reporting.plots import decision_curve, reliability
from medssl.reporting.render import render

AT = re.compile(r"PPV at ([\d.e-]+) %")
ASKED = re.compile(r"the lowest with specificity ([\d.]+) on")
THOUSAND = 1000


def meaning(table: Table, t: Messages | None = None) -> Markup:
    """Return the operating point in natural frequencies, the calibration and the decision curve; empty where it has none."""
    t = t or messages()
    calibration, decision, point = (table.get(k) for k in ("calibration", "decision_curve", "operating_point"))
    return render(
        "meaning.html.j2",
        t=t,
        target=table["target"],
        point=point,
        frequencies=frequencies(point["scores"], table, t) if point else [],
        **_rates(point, t),
        why=table.get("why"),
        calibration=calibration,
        scaled=_calibrated(calibration, t) if calibration else [],
        gap=_gap(calibration, t) if calibration else "",
        reliability=reliability(calibration["curve"]) if calibration else b"",
        decision=decision,
        net_benefit=decision_curve(decision["curve"]) if decision else b"",
    )


def subgroups(table: Table, t: Messages | None = None) -> Markup:
    """Return the scores of each subgroup, and whether the subgroups differ; empty where the table has none."""
    t = t or messages()
    found = table.get("subgroups") or {}
    return render(
        "subgroups.html.j2",
        t=t,
        target=table["target"],
        subgroups={name: groups | {"sentence": _gap_of_groups(groups, t)} for name, groups in found.items()},
    )


def frequencies(scores: Mapping[str, Any], table: Table, t: Messages) -> list[tuple[str, str, str]]:
    """Return for each prevalence: when it holds, how many of 1,000 scans are called what, and PPV and NPV in a sentence.

    The first is the test set's own prevalence where the table has it, the others those that were asked for.
    """
    shares: list[tuple[str, float, str]] = []
    if table.get("prevalence") is not None:
        shares.append((t("here"), table["prevalence"], ""))
    for name in scores:
        if at := AT.fullmatch(name):
            percent = at[1]
            shares.append((t("elsewhere", share=f"{percent} %"), float(percent) / 100, f" at {percent} %"))
    sensitivity, specificity = scores["sensitivity"], scores["specificity"]
    if any(score["value"] is None for score in (sensitivity, specificity)):
        return []
    out = []
    for when, share, suffix in shares:
        ill = round(THOUSAND * share)
        tp, fp = round(ill * sensitivity["value"]), round((THOUSAND - ill) * (1 - specificity["value"]))
        counts = {"ill": ill, "tp": tp, "fp": fp, "fn": ill - tp, "called": tp + fp, "cleared": THOUSAND - tp - fp}
        said = t("natural", name=table["classes"][1], share=f"{100 * share:.3g} %", **counts)
        values = {k.lower(): " ".join(number(scores[k + suffix])) for k in ("PPV", "NPV")}
        out.append((when, said, t("predictive", **values)))
    return out


def _rates(point: Mapping[str, Any] | None, t: Messages) -> dict[str, str]:
    """Return sensitivity and specificity in a sentence, and one that the specificity asked for was missed on the test, or ""."""
    if not point:
        return {"rates": "", "missed": ""}
    rates = {k: point["scores"][k] for k in ("sensitivity", "specificity")}
    asked, found = ASKED.search(point["how"]), rates["specificity"]
    missed = ""
    if asked and has_interval(found) and not found["low"] <= float(asked[1]) <= found["high"]:
        key = "specificity_below" if found["high"] < float(asked[1]) else "specificity_above"
        missed = t(key, asked=asked[1], found=" ".join(number(found)))
    return {"rates": t("rates", **{k: " ".join(number(score)) for k, score in rates.items()}), "missed": missed}


def _calibrated(calibration: Mapping[str, Any], t: Messages) -> list[list[Any]]:
    columns = [calibration[k] for k in ("uncalibrated", "temperature_scaled", "difference")]
    return [[t.phrase(name), *(column.get(name) for column in columns)] for name in columns[0]]


def _gap(calibration: Mapping[str, Any], t: Messages) -> str:
    before, after = (calibration[k].get("ECE") for k in ("uncalibrated", "temperature_scaled"))
    if before is None or after is None:
        return ""
    return t("calibration_gap", before=" ".join(number(before)), after=" ".join(number(after)))


def _gap_of_groups(found: Mapping[str, Any], t: Messages) -> str:
    """Return whether the best and the worst subgroup differ; "" where that is not known."""
    gap = found["gap"]
    if not has_interval(gap):
        return ""
    key = "gap_shown" if gap["low"] > 0 else "gap_not_shown"
    return t(key, largest=t.phrase(found["largest"]), smallest=t.phrase(found["smallest"]), gap=" ".join(number(gap)))
