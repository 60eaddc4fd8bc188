"""Objects that show themselves in a notebook: a store as a contact sheet, a run as curves, scores as a table with intervals."""

import base64
import io
from collections.abc import Callable
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from markupsafe import Markup

from medssl.errors import UserError
from medssl.reporting import plots
from medssl.reporting.clinical_use import meaning, subgroups
from medssl.reporting.conclusions import conclusions
from medssl.reporting.contact_sheet import contact_sheet
from medssl.reporting.embeddings import read_embeddings
from medssl.reporting.render import read_lines
from medssl.reporting.score_table import forest_style, score_table
from medssl.results import Result, ShownPath
from medssl.runs.config import PretrainConfig
from medssl.runs.run_folder import Run as RunFolder
from medssl.scoring.data_frame import data_frame
from medssl.scoring.score_table import read_tables
from medssl.store import store as stores
from medssl.store.dataset import ScanDataset
from medssl.store.splits import SPLITS

SHEETS = ((24, 192, 80), (24, 192, 50), (24, 96, 60), (12, 96, 50))
"""Scans of a store that are shown, pixels of each, and quality of the WebP: the first whose picture is small enough."""
MOST_BYTES = 100_000  # of a picture in a notebook, which keeps it in its file


class Store(stores.Store):
    """A store that a notebook shows; otherwise as `medssl.store.store.Store`."""

    def dataset(
        self, split: str | None = None, transform: Callable[[dict[str, Any]], Any] | None = None
    ) -> ScanDataset:
        """Return the scans, or those of a split, as a torch Dataset of dicts; see `medssl.store.dataset.ScanDataset`."""
        return ScanDataset(self, split, transform)

    def _repr_html_(self) -> str:
        counts = ", ".join(f"{len(self.rows(split)):,} {split}" for split in SPLITS)
        about = [f"{len(self):,} scans of {len(set(self.column('patient'))):,} patients: {counts}", *self.kinds]
        about += [f"labels: {', '.join(self.labels)}"] if self.labels else []
        return "<br>".join(map(escape, about)) + _picture(self._sheet(), "contact sheet, with row numbers", "webp")

    def _sheet(self) -> bytes:
        for scans, cell, quality in SHEETS:
            out = io.BytesIO()
            rows = self.rows()[:: max(1, len(self) // scans)][:scans]
            contact_sheet(self, rows, cell).save(out, "WEBP", quality=quality)
            if len(out.getvalue()) <= MOST_BYTES:
                break
        return out.getvalue()


class ScoreTable(Result):
    """A table of scores that a notebook shows with intervals and a forest plot; see RUN/scores.json for its keys."""

    def _repr_html_(self) -> str:
        return f"<style>{forest_style()}</style>{score_table(self)}{meaning(self)}{subgroups(self)}"


class EmbeddingsFile(ShownPath):
    """The path of an embeddings.parquet, which a notebook shows in a sentence."""

    def frame(self) -> Any:
        """Return it as a pandas DataFrame indexed by scan: patient, split, site, scanner, labels, then f0, f1, …"""
        table = pq.read_table(self)
        names = [n for n in table.column_names if n != "embedding"]
        flat = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        return data_frame({n.removeprefix("label:"): table[n].to_pylist() for n in names}, flat)

    def _repr_html_(self) -> str:
        about = pq.read_schema(self)
        rows = pq.read_metadata(self).num_rows
        names = ", ".join(n.removeprefix("label:") for n in about.names if n != "embedding")
        return f"<p>{rows:,} scans x {about.field('embedding').type.list_size} features, with {escape(names)}</p>"


class Run(ShownPath):
    """A run folder, which is its path, and which a notebook shows by its curves and scores."""

    @property
    def config(self) -> PretrainConfig:
        """The settings. Raises UserError if this is not a run folder."""
        return RunFolder(Path(self)).config()

    @property
    def scores(self) -> list[ScoreTable]:
        """The tables of scores kept in the run."""
        return [ScoreTable(table) for table in read_tables(self / "scores.json")]

    def embeddings(self, store: str | Path | stores.Store, where: str | None = None) -> Any:
        """Return the embeddings of a store's scans as a pandas DataFrame indexed by scan.

        Columns: patient, labels, site, scanner, split, then the features f0, f1, … They are read from embeddings.parquet, which
        `medssl.embed` writes. Raises UserError without it, without pandas, and if none is of a scan of the store.
        """
        scans = stores.Store.open(store, where)
        found = read_embeddings(Path(self), scans)
        here = found.row >= 0
        if not here.any():
            raise UserError(
                f"no embedding in {self} is of a scan of {scans.path}; embed these scans: "
                f"medssl embed run={self} store={scans.path}"
            )
        columns = {"scan": scans.column("scan")[found.row[here]], "patient": found.patient[here]}
        return data_frame(columns | {k: v[here] for k, v in found.columns.items()}, found.x[here])

    def _repr_html_(self) -> str:
        if not (self / "resolved.yaml").exists():
            return f"<p>{escape(str(self))}</p>"
        config, rows = self.config, read_lines(self / "metrics.jsonl")
        finished = "finished" if (self / "encoder.json").exists() else "not finished"
        done = rows[-1]["step"] if rows else 0
        about = f"{config.name}, seed {config.seed}: {finished}, step {done:,} of {config.steps:,}"
        said = "".join(f"<li>{escape(' '.join(conclusions(table)))}</li>" for table in self.scores)
        return f"<p>{escape(about)}</p>{_picture(plots.curves(rows), 'curves') if rows else ''}<ul>{said}</ul>"


def _picture(image: bytes, alt: str, kind: str = "png") -> Markup:
    source = base64.b64encode(image).decode()
    return Markup('<br><img alt="{}" style="max-width:100%" src="data:image/{};base64,{}">').format(alt, kind, source)


def shown(value: Any) -> Any:
    """Return what a command returned as an object that shows itself, where there is one."""
    if isinstance(value, stores.Store):
        out = Store.__new__(Store)
        out.__dict__.update(value.__dict__)
        return out
    if isinstance(value, Result) and "rows" in value and "command" in value:
        return ScoreTable(value, value.text)
    if isinstance(value, Path) and value.suffix == ".parquet":
        return EmbeddingsFile(value)
    if isinstance(value, Path) and (value / "resolved.yaml").exists():
        return Run(value)
    return value


def showing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return a command that returns objects which show themselves."""

    @wraps(command)
    def call(*args: Any, **kwargs: Any) -> Any:
        return shown(command(*args, **kwargs))

    return call
