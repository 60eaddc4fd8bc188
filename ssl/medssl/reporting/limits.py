"""What a report does not show or check, by name."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medssl.reporting.messages import Messages
from medssl.reporting.render import read_json
from medssl.scoring.clinical import GROUPS
from medssl.store.store import Store

FEW = 2  # test patients that an interval needs
EXTERNAL = "all patients of "  # how a test on another store begins


def limits(run: Path, store: Store, tables: Sequence[Mapping[str, Any]], trust: float | None, t: Messages) -> list[str]:
    """Return a sentence for each thing that was not checked or that this report cannot show. trust: of the map, if drawn."""
    out = []
    sites = {site for site in store.column("site") if site}
    unknown = int((~np.asarray(store.column("patient_known"), bool)).sum())
    if tables and min(table["patients_test"] for table in tables) < FEW:
        out.append(t("limit_one_patient", n=min(table["patients_test"] for table in tables)))
    out += _audit(run, t)
    if len(sites) <= 1:
        out.append(t("limit_one_site"))
    if not any(table["test"].startswith(EXTERNAL) for table in tables):
        out.append(t("limit_external"))
    if not any(table.get("calibration") for table in tables):
        out.append(t("limit_calibration"))
    scored = {name for table in tables for name in table.get("subgroups") or ()}
    if missing := [t.phrase(name) for name in GROUPS if name not in scored]:
        out.append(t("limit_subgroups", groups=", ".join(missing)))
    cam = read_json(run / "cam.json")
    if cam is None:
        out.append(t("limit_cam"))
    elif not cam.get("trusted"):
        out.append(t("limit_cam_untrusted"))
    out.append(t("limit_embeddings") if trust is None else t("limit_tsne", trust=trust))
    if unknown:
        out.append(t("limit_unknown_patients", n=unknown))
    if any(table["flags"] for table in tables):
        out.append(t("limit_flags"))
    return [*out, *(t(f"limit_{name}") for name in ("seed", "frozen", "copies", "labels", "cause", "use"))]


def _audit(run: Path, t: Messages) -> list[str]:
    found = read_json(run / "audit.json")
    if found is None:
        return [t("limit_audit")]
    left = {name: why for table in found["tables"] for name, why in table.get("not_audited", {}).items()}
    fields = ", ".join(f"{t.phrase(name)} ({t.phrase(why)})" for name, why in left.items())
    return [t("limit_not_audited", fields=fields)] if left else []
