"""Features of a run and of the baselines that it is compared with; computed once and cached.

A baseline is the same for every run, so its features are cached in the store they are computed from. A cache may always
be deleted.
"""

import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from medssl import catalog
from medssl.encoders.export import load_encoder
from medssl.errors import Interrupted, UserError, nearest
from medssl.files import atomic, digest
from medssl.progress import say
from medssl.runs.predictions import RUN
from medssl.runs.run_folder import Run
from medssl.scoring import features
from medssl.scoring.eval_splits import EvalSplits, SplitOptions, load_splits
from medssl.scoring.features import ENCODER_FEATURES, POOLED, FeatureSource, MapFeatures, SideBySide
from medssl.scoring.training import (
    LONGER,
    SCRATCH,
    TrainingSettings,
    end_to_end,
    patch_bank,
    predictor,
    train_supervised,
)
from medssl.store.store import Store


class Baseline(StrEnum):
    """Names of baselines, as in `baselines=` and in tables."""

    RAW_PIXELS = "raw pixels"
    PCA = "PCA"
    PATCH_BANK = "k-means patch bank"
    PATCH_PYRAMID = "k-means patch pyramid"
    RANDOM_INIT = "random init"
    SUPERVISED = "supervised"
    SUPERVISED_LONGER = f"supervised {LONGER}x"
    IMAGENET = "ImageNet"


RANDOM_INIT_FROZEN = f"{Baseline.RANDOM_INIT}, frozen"
FROZEN = (Baseline.RAW_PIXELS, Baseline.PCA, Baseline.PATCH_BANK, Baseline.PATCH_PYRAMID, Baseline.RANDOM_INIT)
"""Baselines with features."""
SUPERVISED = {Baseline.SUPERVISED: 1, Baseline.SUPERVISED_LONGER: LONGER}
"""Baselines trained on the labels, and how many times the run's steps each is trained for."""
BASELINES = (*FROZEN, *SUPERVISED)
DEFAULT_FROZEN = tuple(name for name in FROZEN if name != Baseline.PATCH_PYRAMID)
DEFAULT_BASELINES = (*DEFAULT_FROZEN, *SUPERVISED)
BANKS = {Baseline.PATCH_BANK: "patch_bank", Baseline.PATCH_PYRAMID: "patch_pyramid"}  # their names in configs/encoder
BESIDE = {"bank": Baseline.PATCH_BANK, "pyramid": Baseline.PATCH_PYRAMID, "pixels": Baseline.RAW_PIXELS}
"""Baselines whose features may stand beside those of a run, by their names in `features=`."""
VERSION = 2  # version of the baselines, part of their cache key


def select_baselines(names: Iterable[str] | str | None, known: Sequence[str] = BASELINES) -> list[str]:
    """Return the requested names in the order of `known`. Raises UserError for an unknown one."""
    requested = [names] if isinstance(names, str) else list(names or [])
    for name in requested:
        if name not in known:
            raise UserError(f"there is no baseline {name!r}.{nearest(name, known)}")
    return [str(name) for name in known if name in requested]


class FeatureSources:
    """Features of a run, and of baselines fitted on the training patients of one store.

    Attributes:
        run: the run folder. config: its settings. encoder: config of its encoder.
        store: where baselines are fitted. device: cpu or cuda.
    """

    def __init__(self, run: str | Path, store: Store, device: str = "auto"):
        """Raises UserError if the run is not finished."""
        self.device, self.run, self.store = features.resolve_device(device), Run(Path(run)), store
        self.config, self.encoder = self.run.finished(), load_encoder(self.run.path)[1]
        self.path, self.name = self.run.path, self.config.name

    @classmethod
    def load(
        cls, run: str | Path, store: str | Path | Store, target: str | Iterable[str], options: SplitOptions
    ) -> tuple["FeatureSources", EvalSplits]:
        """Return the feature sources of a run and the splits to score them on.

        Raises UserError as `load_splits` does, and if scores cannot be kept in the run.
        """
        home = Store.open(store, options.where)
        sources = cls(run, home, options.device)
        sources.run.check_writable()
        return sources, load_splits(sources.run, sources.encoder, home, target, options)

    def pretrained(self) -> nn.Module:
        """Return the run's encoder."""
        return load_encoder(self.path)[0]

    def initial(self) -> nn.Module:
        """Return the run's encoder with its initial random weights."""
        return features.initial_encoder(self.config, self.encoder.input)

    def all(self, baselines: Iterable[str], more: Iterable[str] | str = ()) -> Iterator[tuple[str, FeatureSource]]:
        """Yield RUN with the run's features, then `more` features of the run, then each of `baselines` that has features.

        more: names joined by "+", of ENCODER_FEATURES and BESIDE: "stages", "pooled+pyramid".
        Raises UserError for an unknown name.
        """
        yield RUN, self.of_run()
        for features_name in [more] if isinstance(more, str) else more:
            yield f"{RUN}, {features_name}", self.side_by_side(features_name)
        for name in FROZEN:
            if name in baselines:
                yield str(name), self.frozen(name)

    def positions(self, baselines: Iterable[str]) -> Iterator[tuple[str, FeatureSource]]:
        """Yield the same as `all` for vectors at the positions of feature maps (`features.from_maps`), where there are any."""
        encoder = self.encoder
        key = [RUN, encoder.weights, list(encoder.size), encoder.spacing, self.device, "positions"]

        def load() -> FeatureSource:
            return features.from_maps(self.pretrained(), encoder.input, self.device)

        yield RUN, _cached_source(lambda store: self.path / "cache", key, load)
        if Baseline.RANDOM_INIT in baselines:
            yield (
                str(Baseline.RANDOM_INIT),
                lambda store, rows: features.from_maps(self.initial(), encoder.input, self.device)(store, rows),
            )

    def side_by_side(self, names: str) -> FeatureSource:
        """Return the features named in `names`, see `all`."""
        known = (*ENCODER_FEATURES, *BESIDE)
        parts = [part.strip() for part in names.split("+")]
        for part in parts:
            if part not in known:
                raise UserError(f"features={names!r}: there are no features {part!r}.{nearest(part, known)}")
        return SideBySide(
            tuple(self.frozen(BESIDE[part]) if part in BESIDE else self.of_run(part) for part in dict.fromkeys(parts))
        )

    def of_run(self, which: str = POOLED) -> FeatureSource:
        """Return one of ENCODER_FEATURES of the run, cached in the run."""
        encoder = self.encoder
        key = [RUN, encoder.weights, list(encoder.size), encoder.spacing, self.device]
        key += [] if which == POOLED else [which]

        def load() -> FeatureSource:
            model = self.pretrained()
            model = model if which == POOLED else MapFeatures(model, which)
            return features.from_encoder(model, encoder.input, self.device)

        return _cached_source(lambda store: self.path / "cache", key, load)

    def frozen(self, name: str) -> FeatureSource:
        """Return the features of one of FROZEN."""
        encoder, edge, settings = self.encoder, self.config.size[0], self.config.as_dict()
        depends: list[Any] = [VERSION, name, self.store.fingerprint, self.device, encoder.equalise]
        if name == Baseline.RANDOM_INIT:
            depends += [{k: settings[k] for k in ("encoder", "size", "spacing", "seed")}, encoder.mean, encoder.std]
        if name in BANKS:
            depends += [edge, catalog.load("method", "kmeans_bank"), catalog.load("encoder", BANKS[Baseline(name)])]

        def fit() -> FeatureSource:
            say(f"baseline: {name}")
            if name == Baseline.RAW_PIXELS:
                return features.raw_pixels(encoder.equalise)
            if name == Baseline.PCA:
                return features.pca(self.store, encoder.equalise)
            if name == Baseline.RANDOM_INIT:
                return features.from_encoder(self.initial(), encoder.input, self.device)
            with tempfile.TemporaryDirectory() as work:
                return patch_bank(Path(work), self.store, edge, encoder.equalise, self.device, BANKS[Baseline(name)])

        return _cached_source(_cache_of, depends, fit)

    def supervised(self, baselines: Iterable[str], splits: EvalSplits) -> Iterator[tuple[str, FeatureSource]]:
        """Yield the probe, as in tables, and the predictions of those of SUPERVISED that are in `baselines`.

        Nothing for targets other than one class per scan.
        """
        for name, times in SUPERVISED.items():
            if name in baselines and splits.target.has_classes:
                yield end_to_end(times), self._supervised(name, splits, times * self.config.steps)

    def _supervised(self, name: str, splits: EvalSplits, steps: int) -> FeatureSource:
        """Return predictions of the run's encoder trained from scratch on the labels, with the run's augmentation."""
        train, target, config, encoder = splits.train, splits.target, self.config, self.encoder
        settings = config.as_dict()
        depends: list[Any] = [VERSION, Baseline.SUPERVISED, train.store.fingerprint, self.device, target.width]
        depends += [{k: settings[k] for k in ("encoder", "size", "spacing", "seed", "augment", "batch")}]
        depends += [steps, asdict(SCRATCH)]
        depends += [encoder.equalise, encoder.mean, encoder.std, *_described(train.store, train.rows), train.y.tolist()]

        def fit() -> FeatureSource:
            say(f"baseline: {name}")
            how = TrainingSettings(config.augment, steps, config.batch, SCRATCH, config.seed, self.device)
            loss = target.kind.target_loss(train.y, target.width)
            with tempfile.TemporaryDirectory() as work:
                method = train_supervised(Path(work), self.initial(), encoder.input, loss, train, how)
            return predictor(method, encoder.input, self.device)

        return _cached_source(_cache_of, depends, fit)


def cached(folder: Path, key: Sequence[Any], compute: Callable[[], np.ndarray]) -> np.ndarray:
    """Return the array kept in `folder` under `key`, else compute it, and keep it if the folder can be written."""
    path = folder / f"array-{digest(key, 12)}.npy"
    with suppress(OSError, ValueError, EOFError, zipfile.BadZipFile):  # a damaged file is recomputed
        return np.load(path, allow_pickle=False)
    try:
        found = compute()
    except Interrupted as e:  # its half-trained state is not worth keeping
        raise UserError("stopped; run the same command again", e.code) from e
    with suppress(UserError, OSError), atomic(path) as part, part.open("wb") as f:
        np.save(f, found)
    return found


def _cached_source(
    folder: Callable[[Store], Path], depends: Sequence[Any], fit: Callable[[], FeatureSource]
) -> FeatureSource:
    """Return a source that is fitted at most once, when an array is not cached yet."""
    fitted = cache(fit)

    def source(store: Store, rows: np.ndarray) -> np.ndarray:
        return cached(folder(store), [*depends, *_described(store, rows)], lambda: fitted()(store, rows))

    return source


def _cache_of(store: Store) -> Path:
    return store.path / "cache"


def _described(store: Store, rows: np.ndarray) -> list[str]:
    """Return digests of the scans, in this order, and of their content."""
    return [digest(store.column("scan")[rows].tolist(), 12), store.fingerprint]
