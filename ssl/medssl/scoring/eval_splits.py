"""What is asked of an encoder: on which scans, with which truth, and whether the answer could be believed."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medssl.encoders.config import EncoderConfig
from medssl.errors import UserError
from medssl.leakage.leak_check import check_leaks, read_pretrained_on, scan_set_from_store
from medssl.runs.run_folder import Run
from medssl.scoring.targets import Subset, Target, resolve_target
from medssl.store.store import Store


@dataclass
class EvalSplits:
    """Training, validation and test scans of one target, which share no patient, and what a reader must know of them.

    Attributes:
        test_name: "held-out patients", or whose patients the test is made of.
        flags: sentences that stand over every number.
    """

    target: Target
    train: Subset
    val: Subset
    test: Subset
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


def load_splits(
    folder: Run,
    encoder: EncoderConfig,
    store: str | Path | Store,
    target: str | Iterable[str],
    *,
    task: str = "auto",
    positive: Iterable[str] | str | None = None,
    where: str | None = None,
    test_where: str | None = None,
    test_store: str | Path | Store | None = None,
    allow_overlap: bool = False,
) -> EvalSplits:
    """The question that a scoring command puts to the run in `folder`, whose encoder config is `encoder`.

    Raises UserError when pretraining or training has seen a test patient or test image (with `allow_overlap` what pretraining has
    seen is not refused but marked), and for truth that cannot be scored.
    """
    home = Store.open(store, where)
    away = Store.open(test_store, test_where) if test_store is not None else home
    wanted = resolve_target(home, home.rows("train"), target, task, positive)
    train, val = (Subset.of(wanted, home, home.rows(split)) for split in ("train", "val"))
    test = Subset.of(wanted, away, away.rows("test" if test_store is None else None))
    name = "held-out patients" if test_store is None else f"all patients of {away.path.name}"
    splits = EvalSplits(wanted, train, val, test, name)
    splits.flags = guarded(folder, encoder, splits, allow_overlap)
    _check(splits)
    return splits


def _check(splits: EvalSplits) -> None:
    """A test that leaves the score undefined is refused."""
    test, target = splits.test, splits.target
    if not len(test):
        raise UserError(f"no test scan of {test.store.path} has the label {str(target)!r}")
    splits.flags += target.kind.check_splits(splits.train.y, test.y, str(target), target.names)


def guarded(folder: Run, encoder: EncoderConfig, splits: EvalSplits, allow_overlap: bool) -> list[str]:
    """Refuses a test that pretraining, training or validation has seen; returns what else a reader must know.

    Patients, equal images and near copies are looked for over the whole chain (`medssl.leakage.leak_check`); the pixels of the
    pretraining scans are read where their store is still at hand. A patient in training and test is refused in any case.
    """
    train, test = splits.train, splits.test
    before = read_pretrained_on(folder.path / "pretrained_on.parquet", encoder.key_id, _pretraining_store(folder))
    home, val, away = (
        scan_set_from_store(name, part.store, part.rows)
        for name, part in (("training", train), ("validation", splits.val), ("test", test))
    )
    report = check_leaks(before, home, val, away, cache=test.store.path / "cache" / "alike.npz")
    if report.refusal and not allow_overlap:
        raise UserError(
            f"{report.refusal}: scores would be too high. Test on other patients, or mark every number: allow_overlap=true"
        )
    if shared := report["training", "test"].shared_patients:
        raise UserError(f"{shared} patients are in training and in test; ingest again with one split per patient")
    flags = report.warnings()
    for part, what in ((splits.val, "validation"), (test, "test")):
        if part.unknown:
            flags.append(f"{part.unknown} {what} scans left out: their class is not in training")
    if test.missing:
        flags.append(f"{test.missing} test scans have no {str(splits.target)!r}")
    return flags


def _pretraining_store(folder: Run) -> Store | None:
    """Where the run says it is, and as it was."""
    config = folder.config()
    with suppress(UserError):
        store = Store.open(config.store, config.where)
        return store if store.fingerprint == config.fingerprint else None
    return None
