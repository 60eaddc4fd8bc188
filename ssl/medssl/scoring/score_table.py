"""Score tables: computed from predictions, rendered as text, and kept in RUN/scores.json and RUN/predictions."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medssl.errors import UserError
from medssl.evals.metrics.metrics import AUPRC
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import Cell, text_table
from medssl.evals.task_types.task_types import task_type
from medssl.files import write_json
from medssl.leakage.transformed_duplicates import LOOKED_FOR
from medssl.results import Result
from medssl.runs.predictions import (
    RUN,
    RUN_ENCODER,
    RUN_FROZEN,
    PredictedRow,
    PredictedScans,
    Predictions,
    identity,
)
from medssl.scoring.eval_splits import EvalSplits, marked
from medssl.scoring.targets import Subset

KEPT = ("command", "target", "task", "classes", "test", "train_store", "test_store", "asked", "flags", "overlap")
"""What is kept of a table with its predictions."""

CHECKED = (
    "The test images were compared with those of pretraining and training; `medssl report` says which copies are found."
)
Scores = Callable[[PredictedRow], dict[str, Score]]


@dataclass(frozen=True)
class Row:
    """One row of a score table.

    Attributes:
        source, probe, label_budget, drawn: see `PredictedRow`. features: the name of the source in tables.
        draws: how often the labels were drawn.
        scores: by name; the first is the main one.
        difference: the main score minus that of the run's own row, paired; None for the run itself.
        more: further JSON values, which are not printed.
    """

    source: str
    features: str
    probe: str
    label_budget: str
    drawn: str
    draws: int
    scores: dict[str, Score]
    difference: Score | None
    more: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as in scores.json."""
        scores = {name: score.as_dict() for name, score in self.scores.items()}
        difference = self.difference.as_dict() if self.difference else None
        described = {k: getattr(self, k) for k in ("source", "features", "probe", "label_budget", "drawn", "draws")}
        return described | {"scores": scores, "difference": difference} | self.more


@dataclass(frozen=True)
class ScoreTable:
    """The scores of one command on one test set.

    Attributes:
        about: the target, the data and the settings, as JSON values; optionally `notes`, lines below the heading, and
            `label_budgets`, the labelled scans of each draw.
        rows: in the order of printing.
        predictions: the predictions that the scores were computed from.
    """

    about: dict[str, Any]
    rows: list[Row]
    predictions: Predictions

    def as_dict(self) -> dict[str, Any]:
        """JSON values, as in scores.json."""
        return self.about | {"predictions": self.predictions.file, "rows": [row.as_dict() for row in self.rows]}

    def __str__(self) -> str:
        names = list(self.rows[0].scores)
        budgets = {row.label_budget for row in self.rows} != {"all"}
        columns = ["features", "probe", *(["label budget"] if budgets else []), *names, f"Δ {names[0]} vs run"]
        lines: list[dict[str, Cell]] = []
        for row in self.rows:
            features = marked(row.features, row.source, self.about["overlap"])
            lines.append({"features": features, "probe": row.probe, "label budget": self._budget(row), **row.scores})
            lines[-1][columns[-1]] = row.difference
        return f"{heading(self.about)}\n{text_table(lines, columns)}"

    def _budget(self, row: Row) -> str:
        """Return "all", or the budget with its numbers of scans and draws."""
        if row.draws == 1 and row.label_budget == "all":
            return "all"
        scans = self.about.get("label_budgets", {}).get(row.label_budget)
        size = f" ({' to '.join(str(n) for n in sorted({min(scans), max(scans)}))} scans)" if scans else ""
        return f"{row.label_budget}{size}, {row.draws} draw{'s'[: row.draws > 1]}"


def compute_scores(
    command: str,
    splits: EvalSplits,
    rows: Sequence[PredictedRow],
    name: str,
    seed: int,
    *,
    asked: Mapping[str, Any] | None = None,
    test: Subset | None = None,
    task: str | None = None,
    scores: Scores | None = None,
    more: Callable[[PredictedRow], dict[str, Any]] = lambda row: {},
    **about: Any,
) -> ScoreTable:
    """Score predictions for the test scans, with paired differences to the run's own rows.

    Args:
        command: the command they come from.
        splits: the target and its scans.
        rows: predictions; those of RUN come first.
        name: the run's name in tables.
        seed: seed of resamples of patients.
        asked: settings of the command that change its predictions; tables are compared only if these are the same.
        test: the scans predicted, if not all of `splits.test`.
        task: the type of the predictions, if not the target's: `per_case` for one number per scan.
        scores: computes the scores of a row, if not all metrics of the task; differences are of the task's first metric.
        more: further JSON values of a row.
        about: further JSON values of the table.
    """
    test = splits.test if test is None else test
    task = task or splits.target.task
    metrics = task_type(task).metrics

    def shown(row: PredictedRow) -> str:
        own = {RUN: name, RUN_FROZEN: f"{name}, frozen", RUN_ENCODER: f"{name}, encoder alone"}
        return own.get(row.source, row.source)

    splits.flags += [
        f"{shown(row)}, {row.probe}, label budget {row.label_budget}: a fit did not converge, so the score may be too low"
        for row in rows
        if not row.converged
    ]
    described = describe_table(command, splits, test, task, asked) | about

    def all_metrics(row: PredictedRow) -> dict[str, Score]:
        options = {"draws": len(row.p), "seed": seed}
        return {m.name: score_seeds(m, test.y, row.p, test.patient, **options) for m in metrics}

    def scored(row: PredictedRow) -> Row:
        own = own_row(row, rows)
        difference = None
        if own is not None:
            difference = difference_seeds(metrics[0], test.y, row.p, own.p, test.patient, draws=len(row.p), seed=seed)
        found = (scores or all_metrics)(row)
        fits = {"fits": row.fits} if row.fits else {}
        budget = (row.label_budget, row.drawn)
        return Row(row.source, shown(row), row.probe, *budget, len(row.p), found, difference, fits | more(row))

    val = splits.val
    validation = PredictedScans(val.column("scan"), val.patient, val.y) if any(row.val for row in rows) else None
    kept = {k: described[k] for k in KEPT}
    predictions = Predictions(kept, test.column("scan"), test.patient, test.y, list(rows), validation)
    return ScoreTable(described, [scored(row) for row in rows], predictions)


def describe_table(
    command: str,
    splits: EvalSplits,
    test: Subset | None = None,
    task: str | None = None,
    asked: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the JSON values that every table has; see `compute_scores`."""
    test, task = splits.test if test is None else test, task or splits.target.task
    metric = task_type(task).metrics[0]
    described = {"command": command, "leak_check": LOOKED_FOR} | splits.described()
    described |= {"task": task, "n_test": len(test), "patients_test": test.patients}
    described["asked"] = splits.asked(test) | {"task": task} | dict(asked or {})
    return described | {"metric": metric.name, "sign": metric.sign}


def own_row(row: PredictedRow, rows: Sequence[PredictedRow]) -> PredictedRow | None:
    """Return the run's row that `row` is compared with: the one with the same probe and budget, else the same budget."""
    if row.source == RUN:
        return None
    own = [r for r in rows if r.source == RUN and r.label_budget == row.label_budget and len(r.p) == len(row.p)]
    return next((r for r in own if r.probe == row.probe), own[0] if own else None)


def keep(run: Path, scores: ScoreTable, *sections: Callable[[], Result]) -> Result:
    """Write the predictions to RUN/predictions and the table to RUN/scores.json, then add the sections; return all.

    The table is written before the sections are computed, so that a failure of one costs no score.
    """
    scores.predictions.write(run)
    result = Result(scores.as_dict(), str(scores))
    save_table(run / "scores.json", result)
    for section in sections:
        result += section()
    if sections:
        save_table(run / "scores.json", result)
    return result


def heading(about: dict[str, Any]) -> str:
    """Return the lines above a table: target, data, warnings and notes."""
    classes = f" ({', '.join(about['classes'])})" if about["classes"] else ""
    two = AUPRC in task_type(about["task"]).metrics and len(about["classes"]) == 2
    lines = [
        f"{about['target']}{classes}: trained on {about['n_train']} scans of {about['patients_train']} patients, "
        f"tested on {about['n_test']} scans of {about['patients_test']} patients ({about['test']})"
        + (f"; AUPRC is for {about['classes'][1]!r}" if two else "")
    ]
    flags = (f"! {flag}" for flag in about["flags"])
    return "\n".join([*lines, *flags, *about.get("notes", []), CHECKED])


def read_tables(path: Path) -> list[dict[str, Any]]:
    """Return the tables in a scores.json or audit.json; none if it does not exist.

    Raises UserError for a file that is damaged or was written by an earlier version.
    """
    try:
        tables = json.loads(path.read_text("utf-8"))["tables"] if path.exists() else []
        earlier = any("asked" not in t for t in tables)
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{path} is damaged; delete it and score again") from e
    if earlier:
        raise UserError(f"{path} was written by an earlier medssl; delete it and score again")
    return tables


def save_table(path: Path, result: dict[str, Any]) -> None:
    """Add a table to a file, in place of an older one with the same `identity`."""
    tables = read_tables(path)
    try:
        others = [t for t in tables if identity(t) != identity(result)]
    except (KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; delete it and score again") from e
    write_json(path, {"tables": [*others, result]})
