"""Networks trained on label subsets for score tables: each in its own folder, continued if stopped, trained only once."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from torch import nn

from medssl.errors import UserError
from medssl.files import atomic
from medssl.progress import say
from medssl.runs.predictions import PredictedRow
from medssl.scoring.probes import ALL, Subsets


@dataclass(frozen=True)
class TrainedRow:
    """A row of a table for which a network is trained.

    Attributes:
        source, probe: see `PredictedRow`.
        start: returns the encoder with the weights that training starts from.
    """

    source: str
    probe: str
    start: Callable[[], nn.Module]


class LabelDraw(NamedTuple):
    """The positions of the labelled training scans that `seed` drew for a budget."""

    budget: str
    seed: int
    rows: np.ndarray


AnyRow = TypeVar("AnyRow", bound=TrainedRow)


def label_draws(subsets: Subsets, draws: int, seed: int) -> list[LabelDraw]:
    """Return every draw of every budget with its seed. All draws of ALL have the same scans, and differ in their seed."""
    return [
        LabelDraw(budget, seed + i, rows)
        for budget, drawn in subsets.items()
        for i, rows in enumerate(drawn * (draws if budget == ALL else 1))
    ]


def fit_folder(home: Path, row: TrainedRow, draw: LabelDraw) -> Path:
    """Return the folder of one training run."""
    name = f"{draw.budget} {draw.seed} {row.source} {row.probe}"
    return home / name.replace("%", "percent").replace(",", "").replace(" ", "-")


def fit_all(
    home: Path,
    what: str,
    rows: Sequence[AnyRow],
    draws: Sequence[LabelDraw],
    predict: Callable[[Path, AnyRow, LabelDraw], np.ndarray],
    exported: Path | None = None,
) -> list[PredictedRow]:
    """Train every row on every draw, budget by budget, and return the predictions for the test scans.

    Args:
        home: the folder of this table's training runs. what: a word for progress notices.
        predict: trains in a folder and returns predictions (N, …).
        exported: a folder that must also have an exported encoder.
    """
    out = []
    for budget in dict.fromkeys(draw.budget for draw in draws):
        for row in rows:
            p = []
            for draw in (d for d in draws if d.budget == budget):
                say(f"{what}: {budget} ({len(draw.rows)} scans), draw {draw.seed}, {row.source}, {row.probe}")
                folder = fit_folder(home, row, draw)
                needed = ["test.npy", *(["encoder.json"] if folder == exported else [])]
                if not all((folder / name).exists() for name in needed):
                    found = predict(folder, row, draw)
                    with atomic(folder / "test.npy") as part, part.open("wb") as f:
                        np.save(f, found)
                p.append(_finished(folder))
            out.append(PredictedRow(row.source, row.probe, p, budget))
    return out


def _finished(folder: Path) -> np.ndarray:
    """Return the predictions in a folder, and delete its checkpoints."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    try:
        return np.load(folder / "test.npy", allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{folder / 'test.npy'} is damaged; delete it and run the same command again") from e
