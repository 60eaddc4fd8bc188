"""`medssl finetune`: train the encoder on label budgets, beside the same network without pretraining."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from medssl.commands.options import accepts
from medssl.errors import UserError, nearest
from medssl.files import digest, write_json
from medssl.results import Result
from medssl.runs.config import Choice
from medssl.scoring import probes
from medssl.scoring.baselines import FeatureSources, select_baselines
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.features import check_input
from medssl.scoring.finetuning import BASELINES, HEADS, FinetunedRow, Finetuning
from medssl.scoring.score_table import compute_scores, keep
from medssl.scoring.trained_rows import LabelDraw, fit_all, fit_folder, label_draws
from medssl.scoring.training import SCRATCH, TrainingSettings
from medssl.store.store import Store
from medssl.train.optim import Optim


@accepts(SplitOptions)
def finetune(
    run: str | Path,
    store: str | Path | Store,
    target: str | list[str],
    *,
    label_budgets: Iterable[str | int | float] = ("10 %", probes.ALL),
    draws: int = 3,
    blocks: int | None = None,
    head: str = "probe",
    layer_decay: float = 0.75,
    steps: int = 300,
    batch: int = 64,
    lr: float = 1e-4,
    head_lr: float = 1e-4,
    scratch_lr: float = SCRATCH.lr,
    weight_decay: float = SCRATCH.weight_decay,
    augment: str | None = None,
    baselines: Iterable[str] = BASELINES,
    save_every: int = 100,
    options: SplitOptions,
) -> Result:
    """Fine-tune the encoder of a run on label budgets; adds the table to RUN/scores.json and returns it.

    Each budget is drawn `draws` times from the training patients (`medssl.evals.stats.label_subsets`). All rows are
    trained on the same draws with the same batch size and augmentation, and the weights after the last step are scored.
    Intervals are over test patients and draws; "Δ vs run" is the paired difference of the first metric to the run's own
    row, over the same draws.

    The rivals are the run's initial weights trained from scratch, once for as many steps as the fine-tuned row and once for
    three times as many: without pretraining, its time could have gone into training on the labels.

    Fine-tuning is LP-FT (Kumar et al., 2022, https://arxiv.org/abs/2202.10054): it begins at the linear probe of the frozen
    features of the labelled scans, whose penalty validation patients choose as for `medssl probe`, and then trains the
    encoder slowly. Validation patients choose nothing else. From there on batch normalisation keeps the statistics of
    pretraining and trains its scale and offset: a batch of few labelled scans says less about the scans than all of those
    that pretraining saw. Networks from scratch, and those with head=random, use the statistics of the batch.

    A stopped command continues when run again. Each training run has a folder RUN/finetune/…. The folder of the run's
    own row for the first draw of the largest budget has the fine-tuned encoder (`medssl.load_encoder`) and
    head.safetensors, with outputs `features @ weight.T + bias`.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: see `medssl.probe`; time and event for task=survival.
        label_budgets: labelled training scans, as "10 %", 50 or "all".
        draws: how often each budget is drawn; draws of "all" differ in the order of the scans and the initial weights of
            heads at random.
        blocks: train only this many last blocks of the encoder; 0: only the head; None: everything.
        head: "probe" begins as above, with a Cox model for survival and for ordinal levels a logistic regression per level;
            "random" begins with a head at random.
        layer_decay: learning rate of a block relative to the next one (`medssl.train.optim`), of pretrained rows.
        steps, batch, weight_decay: for AdamW with a short warm-up and a half-cosine schedule. A budget of fewer scans
            than `batch` is one batch.
        lr: highest learning rate of the last block of a pretrained encoder.
        head_lr: the same of its head, on features standardised on the labelled scans.
        scratch_lr: the same of networks trained from scratch.
        augment: an augmentation recipe in configs/augment; None: the run's own.
        baselines: the members of BASELINES to include: the two rows from scratch; linear probes of
            the frozen encoder and of its frozen initial weights, on the same draws, with a penalty chosen on validation
            patients (not for survival); ImageNet weights, fine-tuned, if timm has them on this machine.
        save_every: steps between checkpoints.
        options: keyword arguments; see `medssl.scoring.eval_splits.SplitOptions`.

    Raises UserError if pretraining has seen a test patient or test image, for labels that cannot be learned or scored,
    for budgets too small for every class, and for an encoder that has no trainable weights or does not fit the store.
    """
    if steps < 1 or batch < 2 or save_every < 1:
        raise UserError("steps and save_every must be at least 1, and batch at least 2")
    for key, rate in {"lr": lr, "head_lr": head_lr, "scratch_lr": scratch_lr}.items():
        if rate <= 0:
            raise UserError(f"{key} must be positive, got {rate}")
    if head not in HEADS:
        raise UserError(f"head is {head!r}.{nearest(head, HEADS)}")
    optim = Optim(lr=head_lr, weight_decay=weight_decay, layer_decay=layer_decay, encoder_lr=lr)
    scratch, names = replace(SCRATCH, lr=scratch_lr, weight_decay=weight_decay), select_baselines(baselines, BASELINES)
    recipe = None if augment is None else Choice.of("augment", augment)
    sources, splits = FeatureSources.load(run, store, target, options)
    for subset in (splits.train, splits.test):
        check_input(sources.encoder.input, subset.store)
    settings = TrainingSettings(
        recipe or sources.config.augment, steps, batch, optim, options.seed, sources.device, save_every
    )
    finetuning = Finetuning(sources, splits, settings, scratch, blocks, head)
    trained = finetuning.rows(names)
    subsets = probes.draw_subsets(splits, label_budgets, draws, options.seed)
    drawn = label_draws(subsets, draws, options.seed)
    finetuning.check(drawn)
    about = finetuning.described()
    home = sources.path / "finetune" / digest(about)
    write_json(home / "settings.json", about)
    exported = fit_folder(home, trained[0], max(drawn, key=lambda draw: len(draw.rows)))

    def predict(folder: Path, row: FinetunedRow, draw: LabelDraw) -> list[np.ndarray]:
        return finetuning.predict(folder, row, draw, export=folder == exported)

    probed = finetuning.probed(names, subsets, draws)
    labelled = probes.describe_draws(splits, subsets, options.seed, trained=draws)
    rows = fit_all(home, "fine-tuning", trained, drawn, predict, labelled, exported) + probed
    rows.sort(key=lambda row: list(subsets).index(row.label_budget))
    scores = compute_scores(
        "finetune", splits, rows, sources.name, options.seed, label_budgets=probes.count_scans(subsets),
        encoder=str(exported.relative_to(sources.path)), settings=about["settings"],
        asked={"steps": steps, "batch": batch, "lr": lr, "head_lr": head_lr, "scratch_lr": scratch_lr, "head": head,
               "weight_decay": weight_decay, "layer_decay": layer_decay, "blocks": blocks,
               "augment": augment or "the run's own"},
    )  # fmt: skip
    return keep(sources.path, scores, partial(Result, {}, f"fine-tuned encoder: {exported}"))
