"""`medssl segment`: fine-tune the encoder to segment on label budgets, beside the same network without pretraining."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medssl.commands.options import accepts
from medssl.errors import UserError
from medssl.evals.stats.score import Score
from medssl.files import digest, write_json
from medssl.results import Result
from medssl.runs.config import Choice, default_augment
from medssl.runs.predictions import PredictedRow
from medssl.scoring import probes
from medssl.scoring.baselines import FeatureSources, select_baselines
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.score_table import compute_scores, keep
from medssl.scoring.segmentation import BASELINES, Segmentation, dice_rows, load_mask_splits, measured_scores
from medssl.scoring.trained_rows import fit_all, label_draws
from medssl.scoring.training import TrainingSettings
from medssl.store.store import Store
from medssl.train.optim import Optim

CROP = 0.8  # share of a scan that a crop keeps, by default; see benchmarks/results/quality_segmentation.md
WIDTH = 8  # channels of the decoder's finest level, where neither the call nor the run gives it


@accepts(SplitOptions, omit=("task", "positive", "unknown"))
def segment(
    run: str | Path,
    store: str | Path | Store,
    *,
    label_budgets: Iterable[str | int | float] = ("10 %", probes.ALL),
    draws: int = 1,
    steps: int = 600,
    batch: int = 2,
    lr: float = 5e-3,
    weight_decay: float = 1e-2,
    width: int | None = None,
    augment: str | None = None,
    tolerance: float = 1.0,
    baselines: Iterable[str] = BASELINES,
    save_every: int = 50,
    options: SplitOptions,
) -> Result:
    """Train a decoder on the encoder of a run to segment; adds the table to RUN/scores.json and returns it.

    A run with a pretrained decoder starts from both, and its encoder with a new decoder is a row of its own.

    All rows are trained on the same masks with the same decoder, steps, batch size and augmentation, and the weights
    after the last step are scored. Budgets are masks of randomly drawn training patients, smaller ones within larger
    ones. Test scans are segmented on the run's grid, through sliding windows where that is smaller, and
    scored on their own grid: Dice, the 95th percentile of surface distances (HD95), surface Dice and volume error. Each
    scan's score is the mean over classes; intervals are over test patients and draws. "Δ Dice vs run" is the paired
    difference to the run's own row.

    A stopped command continues when run again.

    Args:
        run: a finished run folder.
        store: scans with masks; see `medssl.ingestion.mask_pairing`.
        label_budgets: training scans with masks, as "10 %", 5 or "all".
        draws: how often each budget is drawn.
        steps, batch, lr, weight_decay: for AdamW with a short warm-up and a half-cosine schedule.
        width: channels of the decoder's finest level; None: as in the run's decoder, or 8 without one.
        augment: an augmentation recipe in configs/augment; None: by the store's modality, with crops of at least CROP of the
            scan, since test scans are shown whole. Masks move with their images.
        tolerance: mm (pixels where no spacing is known) within which a surface counts as correct.
        baselines: the members of BASELINES to include: the run's initial weights trained from scratch, with the steps of the
            run's row and with LONGER times as many; a decoder on the frozen encoder; one on the frozen initial weights;
            probes of every pixel's features without a decoder, linear and kNN, of the run and of the initial weights.
        save_every: steps between checkpoints.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError if no scan has a mask, if pretraining has seen a test patient or test image, and for an encoder that
    has no feature maps or does not fit the store, or whose decoder has another width.
    """
    if min(draws, steps, batch, save_every, 1 if width is None else width) < 1 or tolerance < 0:
        raise UserError("draws, steps, batch, width and save_every must be at least 1, and tolerance 0 or more")
    home, seed = Store.open(store, options.where), options.seed
    sources = FeatureSources(run, home, options.device)
    width = _width(sources, width)
    splits, labels = load_mask_splits(sources, home, options)
    whole = {} if augment else {"crop": {"scale": [CROP, 1.0]}}
    recipe = Choice.of("augment", augment or default_augment(home), whole)
    optim = Optim(lr=lr, weight_decay=weight_decay)
    settings = TrainingSettings(recipe, steps, batch, optim, seed, sources.device, save_every)
    segmentation = Segmentation(sources, splits, settings, labels, width, tolerance)
    rows = segmentation.rows(select_baselines(baselines, BASELINES))
    subsets = probes.draw_subsets(splits, label_budgets, draws, seed)
    about = segmentation.described()
    folder = sources.path / "segment" / digest(about)
    write_json(folder / "settings.json", about)
    labelled = probes.describe_draws(splits, subsets, seed, trained=draws)
    measured = fit_all(folder, "segment", rows, label_draws(subsets, draws, seed), segmentation.predict, labelled)
    by_key = {row.key: row.p for row in measured}
    test = splits.test

    def scores(row: PredictedRow) -> dict[str, Score]:
        return measured_scores(by_key[row.key], test, seed)

    def by_class(row: PredictedRow) -> dict[str, Any]:
        found = {name: measured_scores(by_key[row.key], test, seed, k) for k, name in enumerate(splits.target.names)}
        return {"by_class": {name: {m: s.as_dict() for m, s in each.items()} for name, each in found.items()}}

    unit = "mm" if all(s is not None for s in test.store.column("spacing")[test.rows]) else "pixels"
    table = compute_scores(
        "segment", splits, dice_rows(measured), sources.name, seed, scores=scores, more=by_class,
        label_budgets=probes.count_scans(subsets), steps=steps, batch=batch, tolerance=tolerance, unit=unit,
        asked={"steps": steps, "batch": batch, "lr": lr, "weight_decay": weight_decay, "width": width,
               "augment": augment or recipe.as_dict(), "tolerance": tolerance},
        notes=[f"HD95 in {unit}; surface Dice at {tolerance:g} {unit}; {steps} steps of {batch}"],
    )  # fmt: skip
    return keep(sources.path, table)


def _width(sources: FeatureSources, width: int | None) -> int:
    """Return the width of the decoder. Raises UserError if the run has a decoder of another width."""
    pretrained = (sources.encoder.decoder or {}).get("width")
    if pretrained is not None and width not in (None, pretrained):
        raise UserError(
            f"width={width}, and the pretrained decoder of {sources.path} has {pretrained}; leave width out"
        )
    return width or pretrained or WIDTH
