"""The table of a scoring command: every row with its intervals, its difference to the run, and what it predicted."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.evals.task_types.task_types import task_type
from medssl.files import write_json
from medssl.runs.predictions import Predictions, TableRow
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.targets import Subset

SAME = (
    "command",
    "target",
    "task",
    "classes",
    "train_store",
    "test_store",
)  # what makes two tables answers to one question


class ScoreTable:
    """Collects predictions for the test scans of one question; `finish` scores, prints, remembers and keeps them.

    name: what the run's own features are called in print. test: the scans that predictions are of, if not all of the question's.
    task: of the predictions, if not the question's: `per_case` for a number per scan. about: what else the table says of itself.
    """

    def __init__(
        self,
        command: str,
        splits: EvalSplits,
        name: str,
        *,
        test: Subset | None = None,
        task: str | None = None,
        seed: int = 0,
        **about: Any,
    ):
        self.splits, self.name, self.seed = splits, name, seed
        self.test = splits.test if test is None else test
        self.about = {"command": command} | splits.described() | about
        self.about["task"] = task or splits.target.task
        self.about["n_test"], self.about["patients_test"] = len(self.test), self.test.patients
        self.metrics = task_type(self.about["task"]).metrics
        self.about |= {"metric": self.metrics[0].name, "sign": self.metrics[0].sign}
        self.entries: list[TableRow] = []

    def add(self, features: str, reader: str, p: np.ndarray | list[np.ndarray], labels: str = "all") -> None:
        """What a reader made of some features: one array, or one for each draw of the labels."""
        self.entries.append(TableRow(features, reader, p if isinstance(p, list) else [p], labels))

    def finish(self, run: Path) -> dict[str, Any]:
        """`score` and `keep`."""
        result = self.score()
        self.keep(run, result)
        return result

    def keep(self, run: Path, result: dict[str, Any]) -> None:
        """Put the table into RUN/scores.json, and its predictions into RUN/predictions."""
        save_table(run / "scores.json", result)
        self.predictions().write(run)

    def score(self) -> dict[str, Any]:
        """The table as a dict; printed."""
        y, patient = self.test.y, self.test.patient
        main = self.metrics[0]
        budgets = list(dict.fromkeys(e.labels for e in self.entries))
        lines: list[dict[str, str | Score | None]] = []
        rows: list[dict[str, Any]] = []
        for e in self.entries:
            mine = {m.name: score_seeds(m, y, e.p, patient, draws=len(e.p), seed=self.seed) for m in self.metrics}
            rival = self._rival(e)
            minus = (
                None
                if rival is None
                else difference_seeds(main, y, e.p, rival.p, patient, draws=len(e.p), seed=self.seed)
            )
            shown = self.name if e.features == "run" else e.features
            times = "" if len(e.p) == 1 and e.labels == "all" else f", {len(e.p)} draw{'s'[: len(e.p) > 1]}"
            drawn = {"labels": e.labels + times} if len(budgets) > 1 else {}
            lines.append({"features": shown, "reader": e.reader, **drawn, **mine, f"{main.name} minus run": minus})
            rows.append(
                {"features": shown, "reader": e.reader, "labels": e.labels, "draws": len(e.p)}
                | {"scores": {k: s.as_dict() for k, s in mine.items()}, "minus_run": minus.as_dict() if minus else None}
            )
        result = self.about | {"rows": rows}
        print(headline(result))
        print(text_table(lines, ["features", "reader", *(["labels"] if len(budgets) > 1 else []), *(m.name for m in self.metrics),
                            f"{main.name} minus run"]))  # fmt: skip
        return result

    def predictions(self) -> Predictions:
        """What was predicted, to be kept."""
        kept = {k: self.about[k] for k in ("command", "target", "task", "classes", "test_store", "test", "train_store")}
        return Predictions(kept, self.test.column("scan"), self.test.patient, self.test.y, self.entries)

    def _rival(self, entry: TableRow) -> TableRow | None:
        """The run's own row that a row stands against: of the same reader and budget, else of the first reader."""
        if entry.features == "run":
            return None
        own = [e for e in self.entries if e.features == "run" and e.labels == entry.labels and len(e.p) == len(entry.p)]
        return next((e for e in own if e.reader == entry.reader), own[0] if own else None)


def headline(result: dict[str, Any]) -> str:
    """What the table is about."""
    classes = f" ({', '.join(result['classes'])})" if result["classes"] else ""
    two = result["task"] == "classification" and len(result["classes"]) == 2
    lines = [
        f"{result['target']}{classes}: trained on {result['n_train']} scans of {result['patients_train']} patients, "
        f"tested on {result['n_test']} scans of {result['patients_test']} patients ({result['test']})"
        + (f"; AUPRC is of {result['classes'][1]!r}" if two else "")
    ]
    return "\n".join([*lines, *(f"! {flag}" for flag in result["flags"])])


def save_table(path: Path, result: dict[str, Any]) -> None:
    """Add the table, in place of an older one of the same question."""
    try:
        tables = json.loads(path.read_text())["tables"] if path.exists() else []
        tables = [t for t in tables if any(t[k] != result[k] for k in SAME)]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; delete it and score again") from e
    write_json(path, {"tables": [*tables, result]})
