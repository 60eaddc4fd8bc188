"""The sections of a report about the results of `medssl audit`, `medssl quality` and `medssl cam`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import UndefinedError
from markupsafe import Markup

from medssl.evals.explain.evidence import PART
from medssl.evals.label_free.quality import MEASURES
from medssl.reporting.render import damaged, read_json, render

BETTER = {1: "higher", -1: "lower", 0: ""}
SITE = ("scans", "trained on all sites", "trained without it", "difference")


def audit_section(run: Path) -> Markup:
    """Return RUN/audit.json as HTML: for each target a verdict, a sentence per metadata field, and the numbers.

    Raises UserError if the file is damaged.
    """
    return _section(run, "audit.json", lambda found: {"audits": [_audit(table) for table in found["tables"]]})


def quality_section(run: Path) -> Markup:
    """Return RUN/quality.json as HTML: each label-free measure with its interval, on all and on half of the patients.

    Raises UserError if the file is damaged.
    """
    return _section(run, "quality.json", _quality)


def cam_section(run: Path) -> Markup:
    """Return RUN/cam.json and RUN/cam.png as HTML: the maps, their share inside masks, and the randomisation check.

    Raises UserError if a file is damaged.
    """
    picture = run / "cam.png"
    return _section(run, "cam.json", _cam, picture=picture.read_bytes() if picture.exists() else b"")


def _section(run: Path, file: str, prepare: Callable[[Any], dict[str, Any]], **values: Any) -> Markup:
    """Fill the template named after `file` with its content and what `prepare` makes of it; `found` is None without it."""
    path = run / file
    found = read_json(path)
    try:
        prepared = {} if found is None else prepare(found)
        return render(f"{path.stem}.html.j2", run=run.resolve().name, found=found, **values, **prepared)
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise damaged(path, e) from e


def _audit(table: dict[str, Any]) -> dict[str, Any]:
    """Return the tables of one audit: how well each field is predicted, and what the score is without it."""
    fields = table["metadata"]
    metric = fields[0]["metric"] if fields else ""
    predicted = [
        [
            field["field"],
            f"{next(iter(next(iter(field['predicted'].values()))))}, {field['association']}",
            *(next(iter(scores.values())) for scores in field["predicted"].values()),
            *(field[k] for k in ("alone", "association_train", "association_test")),
        ]
        for field in fields
    ]
    controls = {"regressed_out": "regressed out", "within": "within", "balanced": "balanced"}
    controlled = [
        [field["field"], field["score"], *(v for k in controls for v in (field[k], field["differences"][k]))]
        for field in fields
    ]
    return {
        "table": table,
        "marked": [i for i, field in enumerate(fields) if field["finding"] == PART],
        "predicted_head": ["field", "measured by", *(fields[0]["predicted"] if fields else ()), f"{metric} of the field alone",
                           "association in training", "association in test"],
        "predicted": predicted,
        "controlled_head": ["field", metric, *(v for name in controls.values() for v in (name, f"Δ {name}"))],
        "controlled": controlled,
        "sites": [[site, *(line.get(k) for k in SITE), line.get("why", "")] for site, line in table["sites"].items()],
        "site_head": ["site", *SITE, ""],
    }  # fmt: skip


def _quality(found: dict[str, Any]) -> dict[str, Any]:
    columns = found["measures"], found["half"]
    rows = [[k, *(column[k] for column in columns), BETTER[m.better], m.about] for k, m in MEASURES.items()]
    return {"rows": rows, "estimates": [[k, v] for k, v in found["mutual_information"].items() if isinstance(v, dict)]}


def _cam(found: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of the two tables; their keys are the headings."""
    return {k: [list(line.values()) for line in found[k]] for k in ("in_masks", "check")}
