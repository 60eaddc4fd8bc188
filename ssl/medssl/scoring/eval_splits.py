"""Leak-checked training, validation and test scans for one target."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medssl.encoders.config import EncoderConfig
from medssl.errors import UserError
from medssl.evals.task_types.task_types import task_type
from medssl.leakage.leak_check import check_leaks, read_pretrained_on, scan_set_from_store
from medssl.runs.predictions import RUN, RUN_ENCODER, RUN_FROZEN
from medssl.runs.run_folder import Run
from medssl.scoring.features import resolve_device
from medssl.scoring.site_confounding import describe_site_confounding
from medssl.scoring.targets import Subset, Target, resolve_target, value_notes
from medssl.store.query import select
from medssl.store.store import Store


@dataclass(frozen=True)
class SplitOptions:
    """Options that the scoring commands share. Construction raises UserError for values that cannot work.

    Attributes:
        task: auto, classification, multilabel, ordinal, regression or survival; see `medssl.evals.task_types`.
        positive: values of the label that count as positive, all others being negative; None keeps all classes. Values are
            compared as in `medssl.store.label_values`: 1, 1.0 and true are one value, and case is ignored.
        unknown: values of the label that say nothing, such as -1 for uncertain; their scans are left out, and counted.
        where: filter expression selecting scans of the store; see `medssl.store.query`.
        test_store: a store of another hospital; all its labelled scans become the test set.
        test_where: filter expression selecting scans of the test set: of `test_store`, else of the store's test patients.
        allow_overlap: score even if pretraining has seen test patients or images; every number is then marked.
        seed: for the bootstrap, label draws, inner splits and training.
        device: auto, cpu or cuda.
    """

    task: str = "auto"
    positive: str | Iterable[str] | None = None
    unknown: str | Iterable[str] | None = None
    where: str | None = None
    test_where: str | None = None
    test_store: str | Path | Store | None = None
    allow_overlap: bool = False
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"seed must be 0 or more, got {self.seed}")
        if self.task != "auto":
            task_type(self.task)
        resolve_device(self.device)


class Stores(NamedTuple):
    """The store to train on, the store to test on, the rows of its test scans, and a name for the test set."""

    home: Store
    away: Store
    test_rows: np.ndarray
    test_name: str

    @classmethod
    def open(cls, store: str | Path | Store, options: SplitOptions) -> "Stores":
        """Open both stores; without `test_store` the test set is the store's held-out patients."""
        home = Store.open(store, options.where)
        rows, where = home.rows("test"), options.test_where
        try:
            if options.test_store is not None:
                away = Store.open(options.test_store, where)
            elif where is not None:
                rows = rows[np.isin(rows, select(home.table, where))]
        except UserError as e:
            raise UserError(f"test_{e}" if str(e).startswith("where=") else str(e)) from e
        if options.test_store is None:
            if where is not None and not len(rows):
                raise UserError(f"test_where={where} selects no test scan of {home.path}")
            return cls(home, home, rows, "held-out patients")
        return cls(home, away, away.rows(), f"all patients of {away.path.name}")


@dataclass
class EvalSplits:
    """Training, validation and test scans for one target. They share no patient.

    Attributes:
        test_name: "held-out patients", or the store that all test patients come from.
        flags: warnings that are shown above every table.
        overlap: the sets, such as pretraining, that certainly share scans or patients with the test set: empty unless
            allow_overlap.
    """

    target: Target
    train: Subset
    val: Subset
    test: Subset
    test_name: str
    flags: list[str] = field(default_factory=list)
    overlap: list[str] = field(default_factory=list)

    @classmethod
    def checked(
        cls, run: Run, encoder: EncoderConfig, target: Target, subsets: tuple[Subset, ...], name: str, overlap: bool
    ) -> "EvalSplits":
        """Return training, validation and test `subsets` after the leak check; see `check_overlap`."""
        train, val, test = subsets
        splits = cls(target, train, val, test, name)
        splits.flags = check_overlap(run, encoder, splits, overlap)
        return splits

    @property
    def predicted(self) -> list[Subset]:
        """The scans that probes predict: test, and validation if there are any."""
        return [self.test, *([self.val] if len(self.val) else [])]

    def described(self) -> dict[str, Any]:
        """Return the JSON values for a score table."""
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
            "overlap": self.overlap,
        }

    def asked(self, test: Subset) -> dict[str, Any]:
        """Return, as JSON values, the data that two tables must share to answer the same question on the scans `test`."""
        parts = {"training": self.train, "validation": self.val, "test": test}
        return {"classes": list(self.target.names)} | {f"{k} scans": part.described() for k, part in parts.items()}


def load_splits(
    run: Run, encoder: EncoderConfig, store: str | Path | Store, target: str | Iterable[str], options: SplitOptions
) -> EvalSplits:
    """Return the splits on which the encoder of a run is scored.

    Raises UserError if pretraining, training or validation has seen a test patient or test image (with `allow_overlap`,
    what pretraining has seen is flagged instead), and for targets that cannot be scored.
    """
    home, away, test_rows, name = Stores.open(store, options)
    resolved = resolve_target(home, home.rows("train"), target, options.task, options.positive, options.unknown)
    train, val = (Subset.of(resolved, home, home.rows(split)) for split in ("train", "val"))
    test = Subset.of(resolved, away, test_rows)
    splits = EvalSplits.checked(run, encoder, resolved, (train, val, test), name, options.allow_overlap)
    notes = value_notes(resolved, train, home.rows("train"), away, test_rows)
    if not len(test):
        raise UserError("; ".join([f"no test scan of {away.path} has a known label {str(resolved)!r}", *notes]))
    splits.flags += notes
    splits.flags += resolved.kind.check_splits(train.y, test.y, str(resolved), resolved.names)
    splits.flags += describe_site_confounding(resolved, train, test, options.seed)
    return splits


def load_unlabelled_splits(
    run: Run, encoder: EncoderConfig, store: str | Path | Store, options: SplitOptions
) -> EvalSplits:
    """Return the test scans of a store without a target; there are no training and validation scans.

    Raises UserError as `load_splits` does.
    """
    home, away, test_rows, name = Stores.open(store, options)
    if not len(test_rows):
        raise UserError(f"{away.path} has no test patients; ingest more scans, or give test_store=STORE")
    nothing = Subset(home, test_rows[:0], np.zeros(0), 0, 0)
    subsets = (nothing, nothing, Subset(away, test_rows, np.zeros(len(test_rows)), 0, 0))
    return EvalSplits.checked(run, encoder, Target((), "per_case", ()), subsets, name, options.allow_overlap)


def check_overlap(run: Run, encoder: EncoderConfig, splits: EvalSplits, allow_overlap: bool) -> list[str]:
    """Refuse a test set that pretraining, training or validation has seen, and return warnings about the data.

    Shared patients, equal images and copies are detected (`medssl.leakage.leak_check`); those within the test set make their
    patients count as one. Pretraining scans whose pixels are in no store at hand are compared by hash. A patient in both training
    and test is always refused.
    """
    train, test = splits.train, splits.test
    pretrained_on = run.path / "pretrained_on.parquet"
    before = read_pretrained_on(pretrained_on, encoder.key_id, _stores_with_pretraining_scans(run, splits))
    home, val, away = (
        scan_set_from_store(name, part.store, part.rows)
        for name, part in (("training", train), ("validation", splits.val), ("test", test))
    )
    report = check_leaks(before, home, val, away, cache=test.store.path / "cache")
    certain = [pair.a for pair in report.pairs if pair.b == "test" and pair.a != "test" and pair.refuses]
    splits.overlap = certain or ([before.name] if report.refusal else [])
    splits.test = replace(test, tied=report.repeats)
    if report.refusal and not allow_overlap:
        raise UserError(
            f"{report.refusal}: scores would be too high. Test on other patients, or mark every number: allow_overlap=true"
        )
    if shared := report["training", "test"].shared_patients:
        raise UserError(f"{shared} patients are in training and in test; ingest again with one split per patient")
    flags = report.warnings() + _unlisted_origins(encoder)
    for part, name in ((splits.val, "validation"), (test, "test")):
        if part.unknown:
            flags.append(f"{part.unknown} {name} scans left out: their class is not in training")
    if test.missing:
        flags.append(f"{test.missing} test scans have no {str(splits.target)!r}")
    return flags


def _unlisted_origins(encoder: EncoderConfig) -> list[str]:
    """Return a line for each origin of the weights whose patients cannot be compared with the test patients."""
    lines, queue = [], [encoder.init, encoder.teacher]
    while queue:
        if (origin := queue.pop(0)) is None:
            continue
        queue += [origin.get("init"), origin.get("teacher")]
        if "file" in origin:
            lines.append(
                f"training started from the weights {origin['file']}, whose training scans are not listed: if test patients "
                "are among them, scores are too high"
            )
        elif origin["key_id"] != encoder.key_id:
            lines.append(
                f"the encoder has also learned from scans that a {origin['method']} run saw under another key: shared images "
                "are found, shared patients are not"
            )
    return lines


def marked(name: str, source: str, overlap: Sequence[str]) -> str:
    """Return a row's name, with " (!)" if its features or labels come from scans that overlap with the test set.

    overlap: see `EvalSplits`. Overlap with pretraining concerns the run's own rows only.
    """
    concerned = set(overlap) - (set() if source in (RUN, RUN_ENCODER, RUN_FROZEN) else {"pretraining"})
    return f"{name} (!)" if concerned else name


def _stores_with_pretraining_scans(run: Run, splits: EvalSplits) -> list[Store]:
    """Return the stores at hand that may hold pretraining scans: those of the splits, and what is at pretraining's old path."""
    stores = [splits.train.store, splits.test.store]
    with suppress(UserError):
        stores.append(Store.open(run.config().store))
    return stores
