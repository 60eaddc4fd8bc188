"""Run -> report.html, one file that opens anywhere."""

from pathlib import Path

import numpy as np
import torch

from medssl import catalog
from medssl.errors import UserError
from medssl.report.html import write_report
from medssl.steps.pretrain import without_name
from medssl.steps.run import Run
from medssl.store.store import Store
from medssl.views.stream import RawScans, make_views

SHOWN = 4  # scans whose views are shown


def report(run: str | Path, *, store: str | Path | None = None, out: str | Path | None = None) -> Path:
    """Write RUN/report.html (or `out`) from what the run folder holds; returns its path.

    `store` is needed only when the store is no longer where the run was trained on it. Sections whose input is missing
    say which command makes it. Raises UserError when the store is not the one of the run.
    """
    folder = Run(Path(run))
    resolved = folder.resolved()
    scans = Store.open(store or resolved["store"])
    if scans.fingerprint != resolved["fingerprint"]:
        raise UserError(f"{scans.path} is not the store this run was trained on; give that one as store=")
    path = write_report(folder.path, scans, out=Path(out) if out else None, views=_views(resolved, scans))
    print(f"report: {path}")
    return path


def _views(resolved: dict, store: Store) -> list[tuple[str, np.ndarray]]:  # type: ignore[type-arg]
    """A few training scans, each as it is and as the method saw it in the first epoch."""
    size = tuple(resolved["size"])
    canvas = store.canvas(size, resolved["spacing"])
    rows = store.rows("train")[:SHOWN]
    raw = RawScans(canvas).__getitems__([(int(r), 0) for r in rows])
    shown = []
    for name, spec in (("scan", catalog.spec("views", "plain")), ("view", without_name(resolved["views"]))):
        with torch.no_grad():
            views, _ = make_views(raw, catalog.build(spec, size=size), 1 if name == "scan" else 2, resolved["seed"], 0.0, 1.0)
        shown += [(f"{name} {v}" if name == "view" else name, view) for v, view in enumerate(views, 1)]
    return [(f"{name} of scan {i + 1}", view[i, 0].numpy()) for i in range(len(rows)) for name, view in shown]
