"""The sections of a report about the results of `medssl audit`, `medssl quality` and `medssl cam`."""

import zipfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import UndefinedError
from markupsafe import Markup

from medssl.evals.explain.evidence import PART
from medssl.evals.label_free.quality import MEASURES
from medssl.reporting.messages import Messages, messages
from medssl.reporting.render import damaged, read_json, render
from medssl.reporting.sheets import cam_cells

BETTER = {1: "quality_higher", -1: "quality_lower"}
SITE = ("scans", "trained on all sites", "trained without it", "difference")
SITE_HEADS = ("audit_site", "scans_column", "audit_all_sites", "audit_without", "difference")


def audit_section(run: Path, t: Messages | None = None, said: Collection[str] = ()) -> Markup:
    """Return RUN/audit.json as HTML: for each target a verdict, a sentence per metadata field, and the numbers.

    Raises UserError if the file is damaged.
    """
    t = t or messages()
    return _section(
        run, "audit.json", t, said, lambda found: {"audits": [_audit(table, t) for table in found["tables"]]}
    )


def quality_section(run: Path, t: Messages | None = None, said: Collection[str] = ()) -> Markup:
    """Return RUN/quality.json as HTML: each label-free measure with its interval, on all and on half of the patients.

    Raises UserError if the file is damaged.
    """
    t = t or messages()
    return _section(run, "quality.json", t, said, lambda found: _quality(found, t))


def cam_section(run: Path, t: Messages | None = None, said: Collection[str] = ()) -> Markup:
    """Return RUN/cam.json and RUN/cam.npz as HTML: the maps of hits, misses and doubtful scans on the scans as stored, their
    share inside masks, and the randomisation check.

    Raises UserError if a file is damaged.
    """
    t, path = t or messages(), run / "cam.npz"
    try:
        pictures = dict(np.load(path, allow_pickle=False)) if path.exists() else {}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        raise damaged(path, e) from e
    return _section(run, "cam.json", t, said, lambda found: _cam(found, pictures, t), pictures=bool(pictures))


def _section(
    run: Path, file: str, t: Messages, said: Collection[str], prepare: Callable[[Any], dict[str, Any]], **values: Any
) -> Markup:
    """Fill the template named after `file` with its content and what `prepare` makes of it; `found` is None without it.

    said: warnings that stand on the page already and are not repeated.
    """
    path = run / file
    found = read_json(path)
    try:
        prepared = {} if found is None else prepare(found)
        return render(f"{path.stem}.html.j2", t=t, said=said, run=run.resolve().name, found=found, **values, **prepared)
    except (UndefinedError, LookupError, TypeError, ValueError, AttributeError) as e:
        raise damaged(path, e) from e


def _audit(table: dict[str, Any], t: Messages) -> dict[str, Any]:
    """Return the tables of one audit: how well each field is predicted, and what the score is without it."""
    fields = table["metadata"]
    metric = fields[0]["metric"] if fields else ""
    predicted = [
        [
            t.phrase(field["field"]),
            f"{next(iter(next(iter(field['predicted'].values()))))}, {t.phrase(field['association'])}",
            *(next(iter(scores.values())) for scores in field["predicted"].values()),
            *(field[k] for k in ("alone", "association_train", "association_test")),
        ]
        for field in fields
    ]
    controls = {"regressed_out": t("audit_regressed"), "within": t("audit_within"), "balanced": t("audit_balanced")}
    controlled = [
        [t.phrase(field["field"]), field["score"], *(v for k in controls for v in (field[k], field["differences"][k]))]
        for field in fields
    ]
    return {
        "table": table,
        "marked": [i for i, field in enumerate(fields) if field["finding"] == PART],
        "predicted_head": [
            t("audit_field"), t("audit_measured"), *map(t.phrase, fields[0]["predicted"] if fields else ()),
            t("audit_alone", metric=metric), t("audit_training"), t("audit_test"),
        ],
        "predicted": predicted,
        "controlled_head": [
            t("audit_field"), metric, *(v for name in controls.values() for v in (name, t("audit_change", name=name))),
        ],
        "controlled": controlled,
        "sites": [
            [site, *(line.get(k) for k in SITE), t.phrase(line.get("why", ""))] for site, line in table["sites"].items()
        ],
        "site_head": [*map(t, SITE_HEADS), ""],
    }  # fmt: skip


def _quality(found: dict[str, Any], t: Messages) -> dict[str, Any]:
    columns = found["measures"], found["half"]
    rows = [
        [k, *(column[k] for column in columns), t(BETTER[m.better]) if m.better else "", t.phrase(m.about)]
        for k, m in MEASURES.items()
    ]
    information = found["mutual_information"]
    return {"rows": rows, "estimates": [[k, v] for k, v in information.items() if isinstance(v, dict)]}


def _cam(found: dict[str, Any], pictures: dict[str, Any], t: Messages) -> dict[str, Any]:
    """Return the pictures by kind, and the heads and rows of the two tables."""
    tables = {}
    for k in ("in_masks", "check"):
        heads = [t.phrase(name) for name in (found[k][0] if found[k] else ())]
        rows = [[t.phrase(v) if isinstance(v, str) else v for v in line.values()] for line in found[k]]
        tables[k] = {"head": heads, "rows": rows}
    return tables | {"groups": cam_cells(found, pictures, t) if pictures else {}}
