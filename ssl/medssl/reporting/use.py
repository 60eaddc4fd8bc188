"""What a score would mean in use, for the report: operating point, prevalences, calibration, subgroups."""

from collections.abc import Mapping
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from medssl.reporting import words
from medssl.reporting.plots import COLOURS, SOFT, STYLE, _png
from medssl.reporting.tags import Html, element, figure, paragraph, table


def use(scores: words.Table) -> Html:
    """The parts of a table of `medssl probe` below its rows; empty where it has none."""
    parts: list[Html] = []
    if point := scores.get("operating"):
        parts += [element("h4", "At one threshold"), paragraph(f"{point['how']}.", klass="note")]
        parts.append(table(["of the test", "value"], [[k, _cell(s)] for k, s in point["scores"].items()]))
    elif scores.get("why"):
        parts.append(paragraph(f"No operating point: {scores['why']}.", klass="flag"))
    if found := scores.get("calibration"):
        parts += [element("h4", "Calibration"), paragraph(f"{found['how']}: {found['temperature']:.3g}.", klass="note")]
        rows = [[k, _cell(s), _cell(found["after"].get(k))] for k, s in found["before"].items()]
        parts.append(table(["of the test", "as it is", "after temperature scaling"], rows))
        spoken = "; ".join(
            f"{b['predicted']['value']:.2f} came true {b['observed']['value']:.2f}" for b in found["curve"]
        )
        parts.append(
            figure(_reliability(found["curve"]), f"Reliability curve: {spoken}", "Probabilities as they are, in bins.")
        )
    for name, groups in scores.get("subgroups", {}).items():
        parts += [element("h4", f"By {name}"), _subgroups(groups)]
    return Html("\n".join(parts))


def _subgroups(found: Mapping[str, Any]) -> Html:
    rows = [
        [g["name"], f"{g['n']:,}", f"{g['patients']:,}", _cell(g["score"]) if g["score"] else Html(g["why"])]
        for g in found["groups"]
    ]
    shown = table(["", "scans", "patients", "score"], rows)
    if not found["gap"]:
        return shown
    value, ends = words.number(found["gap"])
    return Html(shown + paragraph(f"{found['largest']} less {found['smallest']}: {value} {ends}.", klass="note"))


def _cell(score: Mapping[str, Any] | None) -> Html:
    value, ends = words.number(score)
    return Html(f"{value} " + element("span", ends, klass="ci")) if ends else Html(value)


def _reliability(curve: list[dict[str, Any]]) -> bytes:
    """Share that came true against probability, with intervals; the diagonal is a perfect answer."""
    with rc_context(STYLE):
        fig = Figure(figsize=(3.2, 3.0))
        FigureCanvasAgg(fig)
        axes = fig.add_axes((0.16, 0.15, 0.8, 0.8), xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="came true")
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.6)
        for b in curve:
            x, y = b["predicted"]["value"], b["observed"]
            axes.plot([x], [y["value"]], "o", color=COLOURS[0], markersize=3)
            if y["low"] is not None:
                axes.plot([x, x], [y["low"], y["high"]], color=COLOURS[0], linewidth=0.8)
        return _png(fig)
