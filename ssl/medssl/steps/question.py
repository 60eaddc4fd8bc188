"""What is asked of an encoder: on which scans, with which truth, and whether the answer could be believed."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl.errors import UserError
from medssl.steps.run import Run
from medssl.steps.truth import Part, Target, target_of
from medssl.store.splits import leaks
from medssl.store.store import Store


@dataclass
class Question:
    """Training, validation and test scans of one target, which share no patient, and what a reader must know of them.

    Attributes:
        test_name: "held-out patients", or whose patients the test is made of.
        flags: sentences that stand over every number.
    """

    target: Target
    train: Part
    val: Part
    test: Part
    test_name: str = "held-out patients"
    flags: list[str] = field(default_factory=list)

    def described(self) -> dict[str, Any]:
        """What a table says of itself."""
        return {
            "target": str(self.target),
            "task": self.target.task,
            "classes": list(self.target.names),
            "train_store": self.train.store.fingerprint,
            "test_store": self.test.store.fingerprint,
            "test": self.test_name,
            "n_train": len(self.train),
            "patients_train": self.train.patients,
            "n_test": len(self.test),
            "patients_test": self.test.patients,
            "flags": self.flags,
        }


def ask(
    folder: Run,
    card: dict[str, Any],
    store: str | Path | Store,
    target: str | Iterable[str],
    *,
    task: str = "auto",
    positive: Iterable[str] | str | None = None,
    where: str | None = None,
    test_where: str | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
) -> Question:
    """The question that a scoring command puts to the run in `folder`, whose encoder.json is `card`.

    Raises UserError when pretraining or training has seen a test patient or test image (with `allow_overlap` what pretraining has
    seen is not refused but marked), and for truth that cannot be scored.
    """
    home = Store.open(store, where)
    away = Store.open(test_store, test_where) if test_store is not None else home
    wanted = target_of(home, home.rows("train"), target, task, positive)
    train, val = (Part.of(wanted, home, home.rows(split)) for split in ("train", "val"))
    test = Part.of(wanted, away, away.rows("test" if test_store is None else None))
    name = "held-out patients" if test_store is None else f"all patients of {away.path.name}"
    question = Question(wanted, train, val, test, name)
    question.flags = _flags(folder, card, question, allow_overlap)
    _check(question)
    return question


def _check(question: Question) -> None:
    """A test that leaves the score undefined is refused."""
    test, target = question.test, question.target
    if not len(test):
        raise UserError(f"no test scan of {test.store.path} has the label {str(target)!r}")
    if target.task == "classes" and 0 in np.bincount(test.y, minlength=target.width):
        raise UserError(
            f"a class of {str(target)!r} ({', '.join(target.names)}) has no test scan; AUROC would be undefined"
        )
    if target.task == "labels":
        alone = [n for n, y in zip(target.names, test.y.T, strict=True) if len(set(y[~np.isnan(y)])) < 2]
        if len(alone) == target.width:
            raise UserError(f"none of {', '.join(target.names)} is there in some test scans and not in others")
        if alone:
            question.flags.append(f"not scored, since all test scans agree: {', '.join(alone)}")
    if target.task == "survival" and not question.train.y[:, 1].any():
        raise UserError(f"the event {target.columns[1]} came to no training patient; nothing can be fitted")


def _flags(folder: Run, card: dict[str, Any], question: Question, allow_overlap: bool) -> list[str]:
    """Refuses a test that pretraining or training has seen; says what else a reader must know."""
    flags, train, test = [], question.train, question.test
    try:
        seen = pq.read_table(folder.path / "pretrained_on.parquet").to_pydict()
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{folder.path / 'pretrained_on.parquet'} is missing or damaged; pretrain again") from e
    if card.get("key_id") != test.store.info["key_id"]:
        flags.append("the test store was made with another key: shared images are found, shared patients are not")
    overlap = leaks(seen["patient"], seen["hash"], test.patient, test.column("hash"))
    if overlap:
        words = f"pretraining has seen {overlap.patients} of the test patients and {overlap.scans} of the test images"
        if not allow_overlap:
            raise UserError(
                f"{words}: scores would be too high. Test on other patients, or mark every number: allow_overlap=true"
            )
        flags.append(words)
    shared = leaks(train.patient, train.column("hash"), test.patient, test.column("hash"))
    if shared.patients:
        raise UserError(
            f"{shared.patients} patients are in training and in test; ingest again with one split per patient"
        )
    if shared.scans:
        flags.append(f"{shared.scans} test images are exact copies of training images")
    for part, what in ((question.val, "validation"), (test, "test")):
        if part.unknown:
            flags.append(f"{part.unknown} {what} scans left out: their class is not in training")
    if test.missing:
        flags.append(f"{test.missing} test scans have no {str(question.target)!r}")
    return flags
