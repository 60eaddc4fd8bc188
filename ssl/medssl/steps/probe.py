"""Run + labelled store -> a table: linear probe and kNN of the encoder and of baselines, with intervals."""

import hashlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from medssl import catalog
from medssl.errors import Stopped, UserError, nearest
from medssl.evals.bootstrap import difference, scores
from medssl.evals.compare import table
from medssl.evals.knn import knn_probe
from medssl.evals.linear import linear_probe
from medssl.evals.metrics import ACCURACY, AUPRC, AUROC, BALANCED_ACCURACY, ECE
from medssl.evals.score import Score
from medssl.files import atomic, write_json
from medssl.steps import features
from medssl.steps.run import Run
from medssl.store.splits import leaks
from medssl.store.store import Store

METRICS = (AUROC, AUPRC, ACCURACY, BALANCED_ACCURACY, ECE)
BASELINES = ("raw pixels", "PCA", "k-means patch bank", "random init", "supervised")
MOST_CLASSES = 50
VERSION = 1  # of the baselines: part of their cache's key
Readings = dict[str, np.ndarray]  # reader -> (test scans, classes) probabilities


class Labelled:
    """The scans of a store that have the target, with their class."""

    def __init__(self, store: Store, target: str, positive: Iterable[str] | None, rows: np.ndarray):
        if target not in store.labels:
            raise UserError(f"{store.path} has no label {target!r}.{nearest(target, store.labels or ['none at all'])}")
        raw = store.column(f"label:{target}")
        wanted = {str(p).casefold() for p in positive} if positive else None
        self.positive = " or ".join(sorted(map(str, positive))) if positive else ""
        if wanted:
            name = self.positive
            raw = np.array(
                [None if v is None else name if v.casefold() in wanted else f"not {name}" for v in raw], object
            )
        self.store, self.rows = store, np.array([r for r in rows if raw[r] is not None], np.int64)
        self.value = [str(v) for v in raw[self.rows]]
        self.missing = len(rows) - len(self.rows)
        self.patient = store.column("patient")[self.rows].astype(str)
        self.hash = store.column("hash")[self.rows].astype(str)

    def of_classes(self, classes: list[str]) -> np.ndarray:
        """(N,) class indices; -1 where the class is not among `classes`."""
        place = {c: i for i, c in enumerate(classes)}
        return np.array([place.get(v, -1) for v in self.value], np.int64)

    def keep(self, mask: np.ndarray) -> None:
        """Drop the scans that are not in `mask` (N,)."""
        self.rows, self.patient, self.hash = self.rows[mask], self.patient[mask], self.hash[mask]
        self.value = [v for v, m in zip(self.value, mask, strict=True) if m]


def probe(
    run: str | Path,
    store: str | Path | Store,
    target: str,
    *,
    where: str | None = None,
    test_where: str | None = None,
    positive: Iterable[str] | None = None,
    test_store: str | Path | Store | None = None,
    baselines: Iterable[str] = BASELINES,
    k: int = 20,
    allow_overlap: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Score the frozen encoder of a run; prints a table, adds it to RUN/scores.json and returns it.

    Classifiers are fitted on the store's training patients, the probe's penalty is chosen on its validation patients, and
    the scores are of its test patients. Intervals are 95 % bootstrap intervals over patients; "minus run" is the paired
    difference in AUROC to the run's row.

    Args:
        run: a finished run folder.
        store: a labelled store.
        target: the name of a label.
        where, test_where: which scans of the two stores; see `medssl.store.where`.
        positive: values of it that count as the positive class, all others being negative (case is ignored).
        test_store: another store, of another hospital say: all its labelled scans become the test.
        baselines: which of BASELINES stand in the table.
        k: neighbours of the kNN.
        allow_overlap: score although the encoder has seen test patients or images; every number is then marked.
        device: auto, cpu or cuda.

    Raises UserError when pretraining has seen a test patient or test image, and for labels that cannot be scored.
    """
    device = features.device_of(device)
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    positive, baselines = _words(positive), _words(baselines) or []
    folder = Run(Path(run))
    resolved = folder.finished()
    train_store = Store.open(store, where)
    other = Store.open(test_store, test_where) if test_store is not None else train_store
    for name in baselines:
        if name not in BASELINES:
            raise UserError(f"there is no baseline {name!r}.{nearest(name, BASELINES)}")
    train, val = (Labelled(train_store, target, positive, train_store.rows(s)) for s in ("train", "val"))
    test = Labelled(other, target, positive, other.rows("test" if test_store is None else None))
    if positive and train.positive not in train.value:
        there = sorted({v for v in train_store.column(f"label:{target}") if v is not None})
        raise UserError(f"no training scan has {target}={train.positive}.{nearest(positive[0], there)}")
    classes = sorted(set(train.value), key=_as_number)
    if positive and len(classes) == 2:  # the second class is the one that scores are of
        classes = [f"not {train.positive}", train.positive]
    if not 2 <= len(classes) <= MOST_CLASSES:
        raise UserError(
            f"label {target!r} has {len(classes)} classes among training patients; it needs 2 to {MOST_CLASSES}"
        )
    of_run, card = features.of_run(folder.path, device)
    flags = _flags(folder, card, train, test, allow_overlap)
    for part, what in ((val, "validation"), (test, "test")):
        known = part.of_classes(classes) >= 0
        if not known.all():
            flags.append(f"{(~known).sum()} {what} scans left out: their class is not in training")
            part.keep(known)
    if test.missing:
        flags.append(f"{test.missing} test scans have no {target!r}")
    if not len(test.rows):
        raise UserError(f"no test scan of {other.path} has the label {target!r}")
    if set(np.bincount(test.of_classes(classes), minlength=len(classes))) & {0}:
        raise UserError(f"a class of {target!r} ({', '.join(classes)}) has no test scan; AUROC would be undefined")

    name = f"{resolved['method']['name']} {resolved['encoder']['name']}"
    y, y_val, y_test = (part.of_classes(classes) for part in (train, val, test))

    def read(source: features.Source) -> Readings:
        x, x_test = source(train.store, train.rows), source(test.store, test.rows)
        chooses = (source(val.store, val.rows), y_val) if len(val.rows) else None
        fitted = linear_probe((x, y), chooses, [x_test], classes=len(classes), patient=train.patient, seed=seed)
        near = knn_probe(x, y, train.patient, x_test, test.patient, len(classes), k=min(k, len(x)))
        return {"linear": fitted.probabilities[0], "kNN": near}

    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        encoder = {key: resolved[key] for key in ("encoder", "size", "spacing", "seed")}
        encoder |= {key: card[key] for key in ("mean", "std")}
        views = {key: resolved[key] for key in ("views", "steps", "batch")}
        sources: dict[str, tuple[Any, Callable[[], Readings]]] = {
            "raw pixels": ({}, lambda: read(features.raw_pixels)),
            "PCA": ({}, lambda: read(features.pca(train_store))),
            "k-means patch bank": (
                {"size": resolved["size"][0], "bank": catalog.load("method", "kmeans_bank")},
                lambda: read(features.patch_bank(train_store, resolved["size"][0], 0, device, work / "bank")),
            ),
            "random init": (encoder, lambda: read(features.untrained(resolved, card, device))),
            "supervised": (
                encoder | views,
                lambda: {
                    "end to end": features.supervised(
                        resolved, card, train_store, train.rows, y, len(classes), device, work / "supervised"
                    )(other, test.rows)
                },
            ),
        }
        common = [VERSION, device, train_store.fingerprint, other.fingerprint, target, sorted(positive or []), k, seed]
        common += [len(test.rows)]
        readings = {name: read(of_run)}
        for baseline in (b for b in BASELINES if b in set(baselines)):
            depends, compute = sources[baseline]
            print(f"baseline: {baseline}", file=sys.stderr)
            try:
                readings[baseline] = _cached(train_store, [baseline, depends, *common], compute)
            except Stopped as e:  # its half-trained state is not worth keeping
                raise UserError("stopped; run the same command again", e.code) from e

    rows: list[dict[str, Any]] = []
    lines: list[dict[str, str | Score | None]] = []
    for source, by_reader in readings.items():
        for reader, p in by_reader.items():
            rival = readings[name]["linear" if reader == "end to end" else reader]
            minus = None if source == name else difference(AUROC, y_test, p, rival, test.patient, seed=seed)
            mine = scores(METRICS, y_test, p, test.patient, seed=seed)
            lines.append({"features": source, "reader": reader, **mine, "AUROC minus run": minus})
            as_dicts = {metric: s.as_dict() for metric, s in mine.items()}
            apart = minus.as_dict() if minus else None
            rows.append({"features": source, "reader": reader, "scores": as_dicts, "minus_run": apart})
    result = {
        "target": target,
        "classes": classes,
        "train_store": train_store.fingerprint,
        "test_store": other.fingerprint,
        "test": "held-out patients" if test_store is None else f"all patients of {other.path.name}",
        "n_train": len(train.rows),
        "patients_train": len(set(train.patient)),
        "n_test": len(test.rows),
        "patients_test": len(set(test.patient)),
        "flags": flags,
        "rows": rows,
    }
    _remember(folder.path / "scores.json", result)
    print(headline(result))
    print(table(lines, ["features", "reader", *(m.name for m in METRICS), "AUROC minus run"]))
    return result


def headline(result: dict[str, Any]) -> str:
    """What the table is about."""
    lines = [
        f"{result['target']} ({', '.join(result['classes'])}): trained on {result['n_train']} scans of "
        f"{result['patients_train']} patients, tested on {result['n_test']} scans of {result['patients_test']} patients "
        f"({result['test']})" + (f"; AUPRC is of {result['classes'][1]!r}" if len(result["classes"]) == 2 else "")
    ]
    return "\n".join([*lines, *(f"! {flag}" for flag in result["flags"])])


def _flags(folder: Run, card: dict[str, Any], train: Labelled, test: Labelled, allow_overlap: bool) -> list[str]:
    """Refuses a test that pretraining has seen; says what else a reader must know."""
    flags = []
    try:
        seen = pq.read_table(folder.path / "pretrained_on.parquet").to_pydict()
    except (OSError, pa.ArrowException) as e:
        raise UserError(f"{folder.path / 'pretrained_on.parquet'} is missing or damaged; pretrain again") from e
    if card.get("key_id") != test.store.info["key_id"]:
        flags.append("the test store was made with another key: shared images are found, shared patients are not")
    overlap = leaks(seen["patient"], seen["hash"], test.patient, test.hash)
    if overlap:
        words = f"pretraining has seen {overlap.patients} of the test patients and {overlap.scans} of the test images"
        if not allow_overlap:
            raise UserError(
                f"{words}: scores would be too high. Test on other patients, or mark every number: allow_overlap=true"
            )
        flags.append(words)
    shared = leaks(train.patient, train.hash, test.patient, test.hash)
    if shared.patients:
        raise UserError(
            f"{shared.patients} patients are in training and in test; ingest again with one split per patient"
        )
    if shared.scans:
        flags.append(f"{shared.scans} test images are exact copies of training images")
    return flags


def _cached(store: Store, key: list[Any], compute: Callable[[], Readings]) -> Readings:
    """Baselines do not change from run to run: their probabilities are kept with the store's other derived data."""
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    path = store.path / "cache" / f"baseline-{name}.npz"
    with suppress(OSError, ValueError, zipfile.BadZipFile), np.load(path, allow_pickle=False) as f:
        return dict(f)  # absent or damaged is the same: made anew
    readings = compute()
    with suppress(UserError, OSError), atomic(path) as part, part.open("wb") as f:
        np.savez(f, **readings)  # type: ignore[arg-type]
    return readings


def _remember(path: Path, result: dict[str, Any]) -> None:
    """Add the table, in place of an older one of the same question."""
    same = ("target", "classes", "train_store", "test_store")
    try:
        tables = json.loads(path.read_text())["tables"] if path.exists() else []
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged; delete it and probe again") from e
    tables = [t for t in tables if any(t[k] != result[k] for k in same)]
    write_json(path, {"tables": [*tables, result]})


def _words(given: Iterable[str] | None) -> list[str] | None:
    """A lone word is a list of one."""
    return [given] if isinstance(given, str) else None if given is None else [str(word) for word in given]


def _as_number(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
