"""Run + labelled store -> a table: the encoder trained on few and on many labels, beside the same without pretraining."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import save_file
from torch import nn

from medssl import catalog
from medssl.encoders.handover import KEYS, load_encoder, save_encoder
from medssl.encoders.timm2d import at_hand
from medssl.errors import UserError
from medssl.files import atomic, write_json
from medssl.steps import features, readers
from medssl.steps.board import Board
from medssl.steps.pretrain import described, spec_of
from medssl.steps.question import Question
from medssl.steps.rivals import Entrants, chosen
from medssl.store.store import Store
from medssl.tasks.supervised import Supervised, kind_of
from medssl.train.optim import Optim

RIVALS = ("scratch", "linear probe", "random frozen", "ImageNet")
VERSION = 1  # of what a fit is: part of its folder's name


@dataclass(frozen=True)
class Row:
    """A line of the table: what it is called, the weights it starts from, and which of them are trained."""

    features: str
    reader: str
    start: Callable[[], nn.Module]
    blocks: int | None
    layer_decay: float


class Drawn(NamedTuple):
    """A budget in words, the seed that drew it, and the positions of its scans in training."""

    budget: str
    seed: int
    rows: np.ndarray


@dataclass(frozen=True)
class Fit:
    """What all fits of a table have in common. See `finetune`."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    views: dict[str, Any]
    device: str


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
    views: str | None = None,
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

    Each budget is drawn `draws` times from the training patients (`medssl.evals.draws`), and every row is trained on every
    draw, with the same steps, batch, rates and views. What counts is the encoder after the last step: nothing is chosen on
    validation patients, and nothing on test patients. Intervals are over test patients and draws; "minus run" is the paired
    difference of the first metric to the run's own row, over the same draws.

    Killed and started again, it goes on where it was. Each fit has a folder RUN/finetune/…; that of the run's first draw of
    the largest budget holds the fine-tuned encoder (`medssl.load_encoder`) and head.safetensors, whose scores are
    `features @ weight.T + bias`.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: the name of a label or fact; several are labels that are there or not, or for task=survival time and event.
        task: auto, classes, labels, ordinal, value or survival; see `medssl.tasks.supervised` for what each minimises.
        labels: budgets: "10 %" of the labelled training scans, 50 of them, or all.
        draws: how often each is drawn; of "all" the scans are the same, and their order and the head's start differ.
        blocks: train the last so many blocks of the encoder and keep the others; 0: the head alone; None: everything.
        layer_decay: rate of a block over that of the block above it; see `medssl.train.optim`. Scratch has 1.
        steps, batch, lr, weight_decay: of AdamW with a short warm-up and half a cosine. A budget of fewer scans than
            `batch` is a batch of its own.
        views: a recipe of configs/views; None: the run's own.
        rivals: which of RIVALS stand in the table: the run's own initial weights trained from scratch; a linear probe of the
            frozen encoder on the same draws, its penalty chosen on validation patients (not of survival); the head alone on the
            initial weights; ImageNet's weights fine-tuned, where timm has them on this machine.
        where, test_where, positive, test_store, allow_overlap: as for `medssl.probe`.
        save_every: steps between checkpoints.

    Raises UserError when pretraining has seen a test patient or test image, for labels that cannot be learnt or scored, for
    budgets that cannot hold every class, and for an encoder that the store does not fit or that has nothing to train.
    """
    if steps < 1 or batch < 2 or save_every < 1 or seed < 0:
        raise UserError("steps and save_every must be at least 1, batch at least 2, and seed 0 or more")
    entrants, question = Entrants.of(
        run, store, target, device, task=task, positive=positive, where=where, test_where=test_where, test_store=test_store,
        allow_overlap=allow_overlap,
    )  # fmt: skip
    resolved, path, names = entrants.resolved, entrants.folder.path, chosen(rivals, RIVALS)
    for part in (question.train, question.test):
        features.must_fit(entrants.card, part.store)
    recipe = spec_of("views", resolved["views"]) if views is None else catalog.spec("views", views)
    fit = Fit(steps, batch, lr, weight_decay, recipe, entrants.device)
    rows = _rows(entrants, names, blocks, layer_decay, question.flags)
    subsets = readers.budgets(question, labels, draws, seed)
    every = [np.arange(len(question.train))] * draws
    drawn = [Drawn(b, seed + i, at) for b, each in subsets.items() for i, at in enumerate(each or every)]
    _check(question, drawn)
    about = _about(question, entrants.card, fit, rows[0])
    home = path / "finetune" / _digest(about)
    write_json(home / "settings.json", about)
    largest = max(drawn, key=lambda draw: len(draw.rows))  # the first of them
    kept = home / _name(largest, rows[0])
    board = Board(
        "finetune", question, entrants.name, seed=seed, encoder=str(kept.relative_to(path)), settings=about["fit"]
    )
    for budget in subsets:
        for row in rows:
            each = []
            for draw in (d for d in drawn if d.budget == budget):
                print(f"fine-tuning: {budget} ({len(draw.rows)} scans), draw {draw.seed}, {row.features}, {row.reader}",
                      file=sys.stderr)  # fmt: skip
                folder = home / _name(draw, row)
                each.append(_fitted(folder, row, draw, question, entrants, fit, save_every, folder == kept))
            board.add(row.features, row.reader, each, budget)
    if "linear probe" in names and question.target.task != "survival":
        found = readers.linear(
            entrants.of_run(), question, [question.test], subsets=subsets, seed=seed, device=entrants.device
        )
        for budget, of_draws in found.items():
            p = [of_tests[0] for of_tests in of_draws]
            board.add("run, frozen", "linear", p * (draws // len(p)), budget)  # of all labels there is but one probe
    result = board.finish(path)
    print(f"fine-tuned encoder: {kept}")
    return result


def _name(draw: Drawn, row: Row) -> str:
    """Of the folder of a fit."""
    name = f"{draw.budget} {draw.seed} {row.features} {row.reader}"
    return name.replace("%", "percent").replace(",", "").replace(" ", "-")


def _rows(entrants: Entrants, rivals: list[str], blocks: int | None, layer_decay: float, flags: list[str]) -> list[Row]:
    """The lines of the table, the run's own first."""
    resolved, card, path = entrants.resolved, entrants.card, entrants.folder.path

    def pretrained() -> nn.Module:
        return load_encoder(path)[0]

    def initial() -> nn.Module:
        return features.fresh(resolved, card)

    if not pretrained().by_depth():  # type: ignore[operator]
        raise UserError(f"{card['name']} has no weights that labels could train; score it with medssl probe")
    rows = [Row("run", "fine-tuned", pretrained, blocks, layer_decay)]
    if "scratch" in rivals:
        rows.append(Row("random init", "end to end", initial, None, 1.0))
    if "random frozen" in rivals:
        rows.append(Row("random init, frozen", "head only", initial, 0, 1.0))
    if "ImageNet" in rivals:
        spec = spec_of("encoder", resolved["encoder"]) | {"pretrained": True}
        if len(card["size"]) == 2 and "pretrained" in resolved["encoder"] and at_hand(spec["model"]):
            rows.append(
                Row("ImageNet", "fine-tuned",
                    lambda: catalog.build(spec, channels=card["channels"], size=tuple(card["size"])), blocks, layer_decay)
            )  # fmt: skip
        else:
            flags.append(f"no row for ImageNet: its weights of {resolved['encoder']['name']} are not on this machine")
    return rows


def _check(question: Question, drawn: Iterable[Drawn]) -> None:
    """Draws from which nothing can be learnt."""
    for draw in drawn:
        y = question.train.y[draw.rows]
        if len(y) < 2:
            raise UserError(f"labels={draw.budget} is {len(y)} scan; a batch needs 2 or more")
        if question.target.task == "value" and not y.std():
            raise UserError(
                f"labels={draw.budget}: all {len(y)} scans have the same {question.target}; give more labels"
            )


def _about(question: Question, card: dict[str, Any], fit: Fit, row: Row) -> dict[str, Any]:
    """Everything that a fit depends on but its draw and its row."""
    asked = {k: v for k, v in question.described().items() if k not in ("flags", "test")}
    names = {"positive": list(question.target.positive), "weights": card["weights"]}
    views = described("views", fit.views) | {"_target_": fit.views["_target_"].rpartition(".")[2]}
    how = asdict(fit) | {"views": views, "blocks": row.blocks, "layer_decay": row.layer_decay}
    return {"version": VERSION, "question": asked | names, "fit": how}


def _digest(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=6).hexdigest()


def _fitted(
    folder: Path,
    row: Row,
    draw: Drawn,
    question: Question,
    entrants: Entrants,
    fit: Fit,
    save_every: int,
    keeps: bool,
) -> np.ndarray:
    """Predictions (N, …) for the test scans, by the fit in `folder`, which is gone on with or not done again."""
    done, test, card = folder / "test.npy", question.test, entrants.card
    if not done.exists() or (keeps and not (folder / "encoder.json").exists()):
        part = question.train.take(draw.rows)
        method = features.learn(
            row.start(), card, kind_of(question.target.task, part.y, question.target.width),
            part.store, part.rows, part.y, folder,
            views=fit.views, steps=fit.steps, batch=min(fit.batch, len(part)), seed=draw.seed, device=fit.device,
            optim=Optim(lr=fit.lr, weight_decay=fit.weight_decay, layer_decay=row.layer_decay), blocks=row.blocks,
            save_every=save_every,
        )  # fmt: skip
        p = features.predictor(method, card, fit.device)(test.store, test.rows)
        if keeps:
            _hand_over(folder, method, question, card, part.y)
        with atomic(done) as beside, beside.open("wb") as f:
            np.save(f, p)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    try:
        return np.load(done, allow_pickle=False)
    except (ValueError, EOFError, OSError) as e:
        raise UserError(f"{done} is damaged; delete it and run the same command again") from e


def _hand_over(folder: Path, method: Supervised, question: Question, card: dict[str, Any], y: np.ndarray) -> None:
    """The encoder's pair and its head, in `folder`."""
    weight, bias = method.linear()
    with atomic(folder / "head.safetensors") as part:
        save_file({"weight": weight.cpu().contiguous(), "bias": bias.cpu().contiguous()}, part)
    head: dict[str, Any] = {
        "target": str(question.target),
        "task": question.target.task,
        "classes": question.target.names,
    }
    if question.target.task == "value":
        head |= {"mean": float(y.mean()), "std": float(y.std())}  # of the target, which scores are in units of
    kept = {k: v for k, v in card.items() if k not in KEYS}
    trained = {"store": question.train.store.fingerprint, "scans": len(y), "from": card["weights"]}
    save_encoder(folder, method.encoder, kept | {"head": head, "fine_tuned": trained})
