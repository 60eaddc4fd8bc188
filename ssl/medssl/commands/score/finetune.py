"""Run + labelled store -> a table: the encoder trained on few and on many labels, beside the same without pretraining."""

import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medssl import catalog
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder
from medssl.encoders.timm2d import weights_available
from medssl.errors import UserError
from medssl.files import write_json
from medssl.runs.config import Choice
from medssl.scoring import features, probes
from medssl.scoring.baselines import FeatureSources, select_baselines
from medssl.scoring.eval_splits import EvalSplits
from medssl.scoring.finetune_runs import FinetuneRow, FinetuneRuns, FinetuneSettings, LabelSubset
from medssl.scoring.score_table import ScoreTable
from medssl.store.store import Store
from medssl.train.optim import Optim

RIVALS = ("scratch", "linear probe", "random frozen", "ImageNet")
VERSION = 1  # of what a fit is: part of its folder's name


def finetune(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    task: str = "auto",
    labels: Iterable[str | int | float] = ("10 %", "all"),
    draws: int = 3,
    blocks: int | None = None,
    layer_decay: float = 0.75,
    steps: int = 300,
    batch: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 1e-2,
    recipe: str | None = None,
    rivals: Iterable[str] = RIVALS,
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
    save_every: int = 100,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Fine-tune the encoder of a run on budgets of labels; prints a table, adds it to RUN/scores.json and returns it.

    Each budget is drawn `draws` times from the training patients (`medssl.evals.stats.label_subsets`), and what is trained
    is trained on
    every draw with the same steps, batch, rates and views. What counts is the encoder after the last step: no step is chosen
    on validation patients, and nothing on test patients. Intervals are over test patients and draws; "minus run" is the
    paired difference of the first metric to the run's own row, over the same draws.

    Killed and started again, it goes on where it was. Each fit has a folder RUN/finetune/…; that of the run's first draw of
    the largest budget holds the fine-tuned encoder (`medssl.load_encoder`) and head.safetensors, whose scores are
    `features @ weight.T + bias`.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: the name of a label or fact; several are labels that are there or not, or for task=survival time and event.
        task: auto, classification, multilabel, ordinal, regression or survival; see `medssl.losses.target_losses` for
            the loss of each.
        labels: budgets: "10 %" of the labelled training scans, 50 of them, or all.
        draws: how often each is drawn; of "all" the scans are the same, and their order and the head's start differ.
        blocks: train the last so many blocks of the encoder and keep the others; 0: the head alone; None: everything.
        layer_decay: rate of a block over that of the block above it; see `medssl.train.optim`. Scratch has 1.
        steps, batch, lr, weight_decay: of AdamW with a short warm-up and half a cosine. A budget of fewer scans than
            `batch` is a batch of its own.
        recipe: of views, in configs/augment; None: the run's own.
        rivals: which of RIVALS stand in the table: the run's own initial weights trained from scratch; linear probes of the
            frozen encoder and of the frozen initial weights, fitted on the same draws to the end, the penalty chosen on
            validation patients (not of survival); ImageNet's weights fine-tuned, where timm has them on this machine.
        where, test_where, positive, test_store, allow_overlap: as for `medssl.probe`.
        save_every: steps between checkpoints.

    Raises UserError when pretraining has seen a test patient or test image, for labels that cannot be learnt or scored, for
    budgets that cannot hold every class, and for an encoder that the store does not fit or that has nothing to train.
    """
    if steps < 1 or batch < 2 or save_every < 1 or seed < 0:
        raise UserError("steps and save_every must be at least 1, batch at least 2, and seed 0 or more")
    optim, names = Optim(lr=lr, weight_decay=weight_decay, layer_decay=layer_decay), select_baselines(rivals, RIVALS)
    views = None if recipe is None else Choice.of("augment", recipe)
    sources, splits = FeatureSources.of(
        run, store, target, device, task=task, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    path = sources.folder.path
    for part in (splits.train, splits.test):
        features.must_fit(sources.encoder.input, part.store)
    fit = FinetuneSettings(steps, batch, views or sources.config.augment, sources.device)
    rows = _rows(sources, names, optim, blocks, splits.flags)
    subsets = probes.budgets(splits, labels, draws, seed)
    every = [np.arange(len(splits.train))] * draws
    drawn = [LabelSubset(b, seed + i, at) for b, each in subsets.items() for i, at in enumerate(each or every)]
    _check(splits, drawn)
    about = _about(splits, sources.encoder, fit, rows[0])
    fits = FinetuneRuns(path / "finetune" / _digest(about), splits, sources.encoder, fit, save_every)
    write_json(fits.home / "settings.json", about)
    largest = max(drawn, key=lambda draw: len(draw.rows))  # the first of them
    kept = fits.folder(rows[0], largest)
    encoder, settings = str(kept.relative_to(path)), about["fit"]
    board = ScoreTable("finetune", splits, sources.name, seed=seed, encoder=encoder, settings=settings)
    frozen = _probes(sources, splits, names, subsets, seed)
    for budget in subsets:
        for row in rows:
            each = []
            for draw in (d for d in drawn if d.budget == budget):
                print(
                    f"fine-tuning: {budget} ({len(draw.rows)} scans), draw {draw.seed}, {row.features}", file=sys.stderr
                )
                each.append(fits.predict(row, draw, keep=fits.folder(row, draw) == kept))
            board.add(row.features, row.reader, each, budget)
        for shown, found in frozen.items():
            board.add(
                shown, "linear", found[budget] * (draws // len(found[budget])), budget
            )  # of "all" there is but one
    result = board.finish(path)
    print(f"fine-tuned encoder: {kept}")
    return result


def _probes(
    sources: FeatureSources, splits: EvalSplits, names: list[str], subsets: probes.Subsets, seed: int
) -> dict[str, dict[str, list[np.ndarray]]]:
    """What the features are called -> budget -> predictions of each draw."""
    frozen = {}
    if splits.target.kind.linear_model:
        if "linear probe" in names:
            frozen["run, frozen"] = sources.of_run()
        if "random frozen" in names:
            frozen["random init, frozen"] = sources.frozen("random init")
    out = {}
    for shown, source in frozen.items():
        found = probes.linear(source, splits, [splits.test], subsets=subsets, seed=seed, device=sources.device)
        out[shown] = {budget: [tests[0] for tests in of_draws] for budget, of_draws in found.items()}
    return out


def _rows(
    sources: FeatureSources, rivals: list[str], optim: Optim, blocks: int | None, flags: list[str]
) -> list[FinetuneRow]:
    """The lines of the table, the run's own first."""
    config, encoder, path = sources.config, sources.encoder, sources.folder.path

    def pretrained() -> nn.Module:
        return load_encoder(path)[0]

    def initial() -> nn.Module:
        return features.fresh(config, encoder.input)

    if not pretrained().by_depth():  # type: ignore[operator]
        raise UserError(f"{encoder.name} has no weights that labels could train; score it with medssl probe")
    rows = [FinetuneRow("run", "fine-tuned", pretrained, optim, blocks)]
    if "scratch" in rivals:
        rows.append(FinetuneRow("random init", "end to end", initial, replace(optim, layer_decay=1.0), None))
    if "ImageNet" in rivals:
        spec = config.encoder.spec("encoder") | {"pretrained": True}
        if len(encoder.size) == 2 and "pretrained" in config.encoder.options and weights_available(spec["model"]):

            def imagenet() -> nn.Module:
                return catalog.build(spec, channels=encoder.channels, size=encoder.size)

            rows.append(FinetuneRow("ImageNet", "fine-tuned", imagenet, optim, blocks))
        else:
            flags.append(f"no row for ImageNet: its weights of {config.encoder.name} are not on this machine")
    return rows


def _check(splits: EvalSplits, drawn: Iterable[LabelSubset]) -> None:
    """Draws from which nothing can be learnt."""
    for draw in drawn:
        y = splits.train.y[draw.rows]
        if len(y) < 2:
            raise UserError(f"labels={draw.budget} is {len(y)} scan; a batch needs 2 or more")
        if splits.target.task == "regression" and not y.std():
            raise UserError(f"labels={draw.budget}: all {len(y)} scans have the same {splits.target}; give more labels")


def _about(splits: EvalSplits, encoder: EncoderConfig, fit: FinetuneSettings, row: FinetuneRow) -> dict[str, Any]:
    """Everything that a fit depends on but its draw and its row."""
    asked = {k: v for k, v in splits.described().items() if k not in ("flags", "test")}
    names = {"positive": list(splits.target.positive), "weights": encoder.weights}
    how = asdict(fit) | {"augment": fit.augment.as_dict(), "blocks": row.blocks, "optim": asdict(row.optim)}
    return {"version": VERSION, "question": asked | names, "fit": how}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()
