"""The rivals that every number stands beside, and what they say, computed once and kept.

A rival does not change from run to run: its features are kept in the cache of the store they are of, which may always be deleted.
"""

import hashlib
import json
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from medssl import catalog
from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder
from medssl.errors import Interrupted, UserError, nearest
from medssl.files import atomic
from medssl.runs.config import PretrainConfig
from medssl.runs.run_folder import Run
from medssl.scoring import features
from medssl.scoring.eval_splits import EvalSplits, load_splits
from medssl.scoring.features import FeatureSource
from medssl.scoring.targets import Subset
from medssl.store.store import Store

FROZEN = ("raw pixels", "PCA", "k-means patch bank", "random init")  # what gives features
SUPERVISED = "supervised"
BASELINES = (*FROZEN, SUPERVISED)
VERSION = 2  # of the rivals: part of their cache's key


def select_baselines(names: Iterable[str] | str | None, known: Iterable[str] = BASELINES) -> list[str]:
    """The asked for, in the order of `known`. Raises UserError for an unknown one."""
    asked = [names] if isinstance(names, str) else list(names or [])
    for name in asked:
        if name not in known:
            raise UserError(f"there is no baseline {name!r}.{nearest(name, known)}")
    return [name for name in known if name in asked]


class FeatureSources:
    """Sources of features: of a run, and of the rivals that are fitted on the training patients of one store."""

    def __init__(self, folder: Run, config: PretrainConfig, encoder: EncoderConfig, store: Store, device: str):
        self.folder, self.config, self.encoder, self.store, self.device = folder, config, encoder, store, device
        self.name = config.name

    @classmethod
    def of(
        cls, run: str | Path, store: str | Path | Store, target: str | Iterable[str], device: str, **asked: Any
    ) -> tuple["FeatureSources", EvalSplits]:
        """The entrants of a run, and what is asked of them; `asked` is as for `question.ask`.

        Raises UserError when the run is not finished, and as `ask` does.
        """
        device, folder = features.device_of(device), Run(Path(run))
        config, encoder = folder.finished(), load_encoder(folder.path)[1]
        splits = load_splits(folder, encoder, store, target, **asked)
        return cls(folder, config, encoder, splits.train.store, device), splits

    def of_run(self) -> FeatureSource:
        """The run's own features, kept in the run."""
        source, encoder = features.of_run(self.folder.path, self.device)
        key = ["run", encoder.weights, list(encoder.size), encoder.spacing, self.device]
        return lambda store, rows: kept(
            self.folder.path / "cache", [*key, *_which(store, rows)], lambda: source(store, rows)
        )

    def frozen(self, name: str) -> FeatureSource:
        """The features of one of FROZEN."""
        equalise = self.encoder.equalise  # baselines get the same values
        depends = [VERSION, name, self.store.fingerprint, self.device, equalise]
        edge = self.config.size[0]
        if name == "random init":
            settings = self.config.as_dict()
            depends += [{k: settings[k] for k in ("encoder", "size", "spacing", "seed")}]
            depends += [{"mean": self.encoder.mean, "std": self.encoder.std}]
        if name == "k-means patch bank":
            depends += [edge, catalog.load("method", "kmeans_bank")]

        def fitted() -> FeatureSource:
            if name == "raw pixels":
                return features.raw_pixels(equalise)
            if name == "PCA":
                return features.pca(self.store, equalise)
            if name == "random init":
                return features.untrained(self.config, self.encoder.input, self.device)
            with scratch() as work:
                return features.patch_bank(self.store, edge, equalise, 0, self.device, work)

        once: list[FeatureSource] = []

        def source(store: Store, rows: np.ndarray) -> np.ndarray:
            def compute() -> np.ndarray:
                if not once:
                    print(f"baseline: {name}", file=sys.stderr)
                    once.append(fitted())
                return once[0](store, rows)

            return kept(store.path / "cache", [*depends, *_which(store, rows)], compute)

        return source

    def all(self, names: Iterable[str]) -> Iterator[tuple[str, FeatureSource]]:
        """("run", its own features), then the frozen ones of `names`."""
        yield "run", self.of_run()
        for name in FROZEN:
            if name in names:
                yield name, self.frozen(name)

    def supervised(self, train: Subset, classes: int, tests: list[Subset]) -> list[np.ndarray]:
        """(N, classes) probabilities for each of `tests`: the run's own encoder, from scratch, at the run's own budget."""
        settings = self.config.as_dict()
        views = {k: settings[k] for k in ("encoder", "size", "spacing", "seed", "augment", "steps", "batch")}
        depends = [VERSION, SUPERVISED, train.store.fingerprint, self.device, views, classes]
        depends += [
            {k: getattr(self.encoder, k) for k in ("equalise", "mean", "std")},
            *_which(train.store, train.rows),
            train.y.tolist(),
        ]
        once: list[Callable[[Store, np.ndarray], np.ndarray]] = []

        def predict(test: Subset) -> np.ndarray:
            if not once:
                print(f"baseline: {SUPERVISED}", file=sys.stderr)
                with scratch() as work:
                    once.append(
                        features.supervised(
                            self.config,
                            self.encoder.input,
                            train.store,
                            train.rows,
                            train.y,
                            classes,
                            self.device,
                            work,
                        )
                    )
            return once[0](test.store, test.rows)

        return [
            kept(t.store.path / "cache", [*depends, *_which(t.store, t.rows)], lambda t=t: predict(t))  # type: ignore[misc]
            for t in tests
        ]


def _which(store: Store, rows: np.ndarray) -> list[str]:
    """Words for the scans and what is in them: their order counts."""
    said = "|".join(store.column("scan")[rows].tolist())
    return [hashlib.blake2b(said.encode(), digest_size=12).hexdigest(), store.fingerprint]


def kept(folder: Path, key: list[Any], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The array of that key from `folder`, else `compute()`, kept there where that can be written."""
    name = hashlib.blake2b(json.dumps(key, sort_keys=True).encode(), digest_size=12).hexdigest()
    path = folder / f"array-{name}.npy"
    with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):
        return np.load(path, allow_pickle=False)  # absent or damaged is the same: made anew
    try:
        found = compute()
    except Interrupted as e:  # its half-trained state is not worth keeping
        raise UserError("stopped; run the same command again", e.code) from e
    with suppress(UserError, OSError), atomic(path) as part, part.open("wb") as f:
        np.save(f, found)
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for what training leaves behind."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
