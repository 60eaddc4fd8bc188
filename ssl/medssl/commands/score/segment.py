"""Run + store with masks -> a table: the encoder fine-tuned to segment, from few and from many masks, beside its rivals."""

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.metrics.segmentation import MEASURES
from medssl.evals.stats import label_subsets as budgets
from medssl.evals.stats.bootstrap import difference_seeds, score_seeds
from medssl.evals.stats.score import Score
from medssl.evals.stats.text_table import text_table
from medssl.files import write_json
from medssl.runs.config import Choice, PretrainConfig, default_augment
from medssl.runs.run_folder import Run
from medssl.scoring import features
from medssl.scoring.baselines import select_baselines
from medssl.scoring.eval_splits import EvalSplits, guarded
from medssl.scoring.score_table import ScoreTable, headline
from medssl.scoring.segmentation_models import RIVALS, Fit, lines, measured
from medssl.scoring.targets import Subset, Target
from medssl.store.masks import mask_labels
from medssl.store.store import Store
from medssl.tasks.segment import Segment

SHOWN = MEASURES[:3]  # of the table; the volume error is in scores.json
VERSION = 1  # of what a fit is: part of its folder's name


def segment(
    run: str | Path,
    store: str | Path | Store,
    *,
    labels: Iterable[str | int | float] = ("10 %", "all"),
    draws: int = 1,
    steps: int = 300,
    batch: int = 4,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    width: int = 16,
    recipe: str | None = None,
    tolerance: float = 1.0,
    rivals: Iterable[str] = RIVALS,
    where: str | None = None,
    test_where: str | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
    save_every: int = 50,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Train a decoder on the encoder of a run to segment; prints a table, adds it to RUN/scores.json and returns it.

    Every row is trained on the same masks, with the same decoder, steps, batch and views, and what counts is the network
    after the last step. The masks of a budget are those of a draw of training patients, a smaller one within the larger. Test
    scans are segmented on the run's grid (through windows where that is smaller) and scored on their own: Dice, the 95th
    percentile of surface distances (HD95) and the surface Dice, of each case the mean over its classes, with intervals over
    test patients (and draws); "minus run" is the paired difference in Dice to the run's own row.

    Killed and started again, it goes on where it was.

    Args:
        run: a finished run folder.
        store: scans with masks; see `medssl.ingestion.mask_pairing`.
        labels: budgets: "10 %" of the training scans with masks, 5 of them, or all.
        draws: how often each budget is drawn.
        steps, batch, lr, weight_decay: of AdamW with a short warm-up and half a cosine.
        width: channels of the decoder's finest level.
        recipe: of configs/augment; None is that of the store's modality. Masks move with their images.
        tolerance: mm (pixels where no spacing is known) within which a surface counts as right.
        rivals: which of RIVALS stand in the table: the run's initial weights trained from scratch; a decoder on the frozen
            encoder; the same on the frozen initial weights; probes of every pixel's features without a decoder, linear
            and kNN, of the run and of the initial weights.
        where, test_where, test_store, allow_overlap: as for `medssl.probe`.
        save_every: steps between checkpoints.

    Raises UserError when no scan has a mask, when pretraining has seen a test patient or test image, and for an encoder
    that has no feature maps or does not fit the store.
    """
    if draws < 1 or steps < 1 or batch < 1 or save_every < 1 or width < 1 or seed < 0 or tolerance < 0:
        raise UserError(
            "draws, steps, batch, width and save_every must be at least 1, and seed and tolerance 0 or more"
        )
    given = [labels] if isinstance(labels, str) else list(labels)
    wanted = list(dict.fromkeys(budgets.parse_budget(b) for b in given))
    device, folder = features.device_of(device), Run(Path(run))
    config = folder.finished()
    encoder, exported = load_encoder(folder.path)
    home = Store.open(store, where)
    away = Store.open(test_store, test_where) if test_store is not None else home
    for scans in (home, away):
        features.must_fit(exported.input, scans)
    splits, classes = _ask(folder, exported, home, away, allow_overlap)
    fit = Fit(
        classes,
        steps,
        batch,
        lr,
        weight_decay,
        width,
        Choice.of("augment", recipe or default_augment(home)),
        tolerance,
        save_every,
        seed,
        device,
    )
    Segment(encoder, len(classes), width)  # an encoder that cannot is refused before anything is trained
    rows = lines(folder.path, config, exported, select_baselines(rivals, RIVALS))
    part = splits.train
    drawn = budgets.draw_label_subsets(part.y, part.patient, wanted, range(seed, seed + draws), task="regression")
    about = _about(splits, exported, fit)
    work = folder.path / "segment" / _digest(about)
    write_json(work / "settings.json", about)
    found: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for draw in drawn:
        for row in rows:
            words = f"{draw.budget} {draw.seed} {row.features} {row.reader}"
            print(f"segment: {draw.budget} ({len(draw.rows)} scans), draw {draw.seed}, {row.features}, {row.reader}",
                  file=sys.stderr)  # fmt: skip
            name = words.replace(" ", "-").replace("%", "percent").replace(",", "")
            one = measured(work / name, row, part.take(draw.rows), splits.test, draw.seed, exported.input, fit)
            found.setdefault((row.features, row.reader, str(draw.budget)), []).append(one)
    return _finish(folder, config, splits, fit, found, {str(d.budget): len(d.rows) for d in drawn})


def _ask(
    folder: Run, encoder: EncoderConfig, home: Store, away: Store, allow_overlap: bool
) -> tuple[EvalSplits, tuple[int, ...]]:
    """The scans with masks, and the labels of the training masks; refuses a test that pretraining has seen."""
    train, val = (_part(home, home.rows(split)) for split in ("train", "val"))
    test = _part(away, away.rows("test" if away is home else None))
    for part, what in ((train, "training"), (test, "test")):
        if not len(part):
            raise UserError(
                f"no {what} scan of {part.store.path} has a mask; ingest images and masks together (see masks= there)"
            )
    classes = mask_labels(home, train.rows)
    if len(classes) < 2:
        raise UserError(f"the training masks of {home.path} hold nothing but background")
    target = Target(("mask",), "per_case", tuple(map(str, classes[1:])))
    name = "held-out patients" if away is home else f"all patients of {away.path.name}"
    splits = EvalSplits(target, train, val, test, name)
    splits.flags = guarded(folder, encoder, splits, allow_overlap)
    if unseen := sorted(set(mask_labels(away, test.rows)) - set(classes)):
        splits.flags.append(f"labels {', '.join(map(str, unseen))} are in test masks only, and count as background")
    return splits, classes


def _part(store: Store, rows: np.ndarray) -> Subset:
    """The scans with masks; y is the number of voxels that are not background."""
    with_mask = rows[store.column("mask")[rows] != ""]
    masks = (store.mask(row) for row in with_mask.tolist())
    y = np.array([0 if mask is None else np.count_nonzero(mask) for mask in masks], np.float64)
    return Subset(store, with_mask, y, len(rows) - len(with_mask), 0)


def _about(splits: EvalSplits, encoder: EncoderConfig, fit: Fit) -> dict[str, Any]:
    """Everything that a line depends on but its draw and its row."""
    asked = {k: v for k, v in splits.described().items() if k not in ("flags", "test")}
    how = {k: v for k, v in vars(fit).items() if k not in ("save_every", "seed", "augment")}
    return {
        "version": VERSION,
        "question": asked,
        "weights": encoder.weights,
        "fit": how | {"augment": fit.augment.as_dict()},
    }


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def _finish(
    folder: Run,
    config: PretrainConfig,
    splits: EvalSplits,
    fit: Fit,
    found: dict[tuple[str, str, str], list[np.ndarray]],
    scans: dict[str, int],
) -> dict[str, Any]:
    """Scores, prints, remembers and keeps what was measured."""
    test = splits.test
    y, patient = test.y, test.patient
    unit = "mm" if all(s is not None for s in test.store.column("spacing")[test.rows]) else "pixels"
    name = config.name
    board = ScoreTable(
        "segment", splits, name, seed=fit.seed, steps=fit.steps, batch=fit.batch, tolerance=fit.tolerance
    )
    board.about |= {"metric": MEASURES[0], "unit": unit}

    def mean(each: list[np.ndarray], measure: str, k: int | None = None) -> Score:
        """Over cases of the mean over classes, or of one class."""
        of_cases = [_of_case(m, MEASURES.index(measure), k) for m in each]
        return score_seeds(MEAN, y, of_cases, patient, draws=len(each), seed=fit.seed)

    shown: list[dict[str, str | Score | None]] = []
    rows: list[dict[str, Any]] = []
    for (what, reader, labels), each in found.items():
        own = found["run", reader if ("run", reader, labels) in found else "fine-tuned", labels]
        dice, rival = ([_of_case(m, 0) for m in some] for some in (each, own))
        minus = None
        if own is not each:
            minus = difference_seeds(MEAN, y, dice, rival, patient, draws=len(dice), seed=fit.seed)
        mine = {measure: mean(each, measure) for measure in MEASURES}
        called = name if what == "run" else what.replace("run", name)
        drawn = f"{labels} ({scans[labels]} scans)" + (f", {len(each)} draws" if len(each) > 1 else "")
        cells = {m: mine[m] for m in SHOWN}
        shown.append({"features": called, "reader": reader, "masks": drawn, **cells, "Dice minus run": minus})
        by_class = {
            label: {m: mean(each, m, k).as_dict() for m in MEASURES} for k, label in enumerate(splits.target.names)
        }
        row = {"features": called, "reader": reader, "labels": labels, "draws": len(each), "by_class": by_class}
        scored = {measure: s.as_dict() for measure, s in mine.items()}
        rows.append(row | {"scores": scored, "minus_run": minus.as_dict() if minus else None})
        board.add(what, reader, dice, labels)
    result = board.about | {"rows": rows}
    board.keep(folder.path, result)
    print(headline(result))
    print(f"HD95 in {unit}; surface Dice at {fit.tolerance:g} {unit}; {fit.steps} steps of {fit.batch}")
    print(text_table(shown, ["features", "reader", "masks", *SHOWN, "Dice minus run"]))
    return result


def _of_case(measured: np.ndarray, at: int, k: int | None = None) -> np.ndarray:
    """(N,) one measure of every case: the mean over classes, or that of one."""
    return measured[:, :, at].mean(1) if k is None else measured[:, k, at]
