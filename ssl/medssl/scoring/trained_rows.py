"""Networks trained on label subsets for score tables: each in its own folder, continued if stopped, trained only once."""

import shutil
from collections.abc import Callable, Mapping, Sequence
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


PREDICTED = ("test.npy", "val.npy")
"""Files with the predictions of one training run, in the order of `EvalSplits.predicted`."""

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
    predict: Callable[[Path, AnyRow, LabelDraw], list[np.ndarray]],
    labelled: Mapping[str, str],
    exported: Path | None = None,
) -> list[PredictedRow]:
    """Train every row on every draw, budget by budget, and return the predictions for the test and validation scans.

    Args:
        home: the folder of this table's training runs. what: a word for progress notices.
        predict: trains in a folder and returns predictions (N, …) for the test scans, and for the validation scans if they
            are predicted.
        labelled: budget -> `PredictedRow.drawn`.
        exported: a folder that must also have an exported encoder.
    """
    out = []
    for budget in dict.fromkeys(draw.budget for draw in draws):
        for row in rows:
            p: list[list[np.ndarray]] = []
            for draw in (d for d in draws if d.budget == budget):
                say(f"{what}: {budget} ({len(draw.rows)} scans), draw {draw.seed}, {row.source}, {row.probe}")
                folder = fit_folder(home, row, draw)
                needed = ["test.npy", *(["encoder.json"] if folder == exported else [])]
                if not all((folder / name).exists() for name in needed):
                    # the test scans last: a folder with test.npy is complete
                    for name, found in reversed(list(zip(PREDICTED, predict(folder, row, draw), strict=False))):
                        with atomic(folder / name) as part, part.open("wb") as f:
                            np.save(f, found)
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
                p.append([_read(folder / name) for name in PREDICTED if (folder / name).exists()])
            test, *val = map(list, zip(*p, strict=True))
            out.append(PredictedRow(row.source, row.probe, test, budget, labelled[budget], *val))
    return out


def _read(path: Path) -> np.ndarray:
    """Return the predictions in a file."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{path} is damaged; delete it and run the same command again") from e
