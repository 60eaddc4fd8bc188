"""The section of a report about shortcuts: what a score lives off."""

import json
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.reporting import words
from medssl.reporting.tags import Html, absent, bullets, element, paragraph, table

PART = "part"  # the finding that a part of the score is the fact
TOLD, LEFT = "Told, goes with the label", "What is left of the score without it"


def audit_section(run: Path) -> Html:
    """What `medssl audit` has left in the folder of a run: of each target a verdict, a sentence for each fact, and the numbers.

    Raises UserError when the file is damaged.
    """
    path = run / "audit.json"
    if not path.exists():
        return absent("audit.json is missing.", f"medssl audit run={run.resolve().name} store=STORE target=LABEL")
    try:
        audits = json.loads(path.read_text("utf-8"))["tables"]
        return Html("\n".join(_audit(each) for each in audits))
    except (ValueError, KeyError, TypeError, IndexError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}); remove it and run medssl audit again") from e


def _audit(audit: dict[str, Any]) -> Html:
    facts = audit["facts"]
    marked = [i for i, f in enumerate(facts) if f["finding"] == PART]
    left = [f"{name}: {why}" for name, why in audit["left_out"].items()]
    notes = [f"{f['fact']}: {note}" for f in facts for note in f["notes"]]
    parts = [
        element("h3", f"{audit['target']}, on {audit['test']}"),
        paragraph(audit["verdict"], klass="flag" if marked else ""),
        *(paragraph(flag, klass="flag") for flag in audit["flags"]),
        bullets(f["sentence"] for f in facts),
        element("h4", TOLD),
        table(
            ["fact", "by", *_told(facts[0])],
            [[f["fact"], _by(f), *_cells(_told(f))] for f in facts],
            words=2,
            marked=marked,
        ),
        element("h4", LEFT),
        table(["fact", *_left(facts[0])], [[f["fact"], *_cells(_left(f))] for f in facts], marked=marked),
        _sites(audit["sites"]),
        paragraph(f"In brackets: {'; '.join(_hows(facts))}.", klass="note"),
        paragraph(f"Not audited: {'; '.join(left)}.", klass="note") if left else Html(),
        bullets([*notes, *audit["limits"]]),
    ]
    return Html("\n".join(filter(None, parts)))


def _told(fact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The run's features first; of each the first metric."""
    told = {name: next(iter(each.values())) for name, each in fact["told"].items()}
    return told | {
        f"{fact['metric']} of the fact alone": fact["alone"],
        "association in training": fact["trained"],
        "association in test": fact["tested"],
    }


def _left(fact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    out = {fact["metric"]: fact["whole"]}
    for key, name in (("without", "regressed out"), ("within", "within"), ("balanced", "balanced")):
        out |= {name: fact[key], f"change {name}": fact["changes"][key]}
    return out


def _sites(sites: dict[str, dict[str, Any]]) -> Html:
    """Each site under a probe fitted without it, or nothing."""
    if not sites:
        return Html()
    columns = ("fitted on all", "without it", "change")
    cells = [
        [site, line["has"], *(_cell(line.get(c)) for c in columns), line.get("why", "")] for site, line in sites.items()
    ]
    return Html(
        element("h4", "Each site under a probe fitted without it")
        + table(["site", "has", *columns, ""], cells, words=2)
    )


def _by(fact: dict[str, Any]) -> str:
    """How well a fact is told, and how much it goes with the label, are measured by."""
    return f"{next(iter(next(iter(fact['told'].values()))))}, {fact['association']}"


def _cells(scores: dict[str, dict[str, Any]]) -> list[Html]:
    return [_cell(s) for s in scores.values()]


def _hows(facts: list[dict[str, Any]]) -> list[str]:
    scores = [s for f in facts for s in [*_told(f).values(), *_left(f).values()]]
    return list(dict.fromkeys(s["how"] for s in scores))


def _cell(score: dict[str, Any] | None) -> Html:
    value, ends = words.number(score)
    return Html(f"{value} " + element("span", ends, klass="ci")) if ends else Html(value)
