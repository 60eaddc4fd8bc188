"""Scans of a set that are transformed copies of scans of earlier sets, with the limits above which a pair counts as one.

Limits were chosen on pairs of different patients (benchmarks/quality_transformed_copies.py).
"""

import hashlib
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache as cached
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic
from medssl.leakage.equalised_grid import EqualisedGrid
from medssl.leakage.image_sets import ImageComparer, ScanSet
from medssl.leakage.transformed_copies import AgreeingPairs, agreeing_pairs
from medssl.leakage.transformed_search import Transforms
from medssl.leakage.volume_copies import agreeing_volumes
from medssl.leakage.volume_grid import VolumeGrid
from medssl.leakage.volume_search import VolumeTransforms
from medssl.readers.phash import BLANK

VERSION = 6  # of everything that decides about a pair; cached results of other versions are ignored
# Least correlation of a copy if both images resolve 64 x 64 pixels, and if one does not; and largest share of what is left to a
# perfect correlation, relative to the runner-up: images of one organ are alike, and simple images more so.
NEAR_SHARP, NEAR_SMALL, NEAR_SHARE = 0.80, 0.88, 0.40
MAYBE_SHARP, MAYBE_SMALL, MAYBE_SHARE = 0.72, 0.84, 0.5
NEAR_VOLUME, MAYBE_VOLUME = 0.85, 0.80  # least correlation of volumes
COPIES_SHARP = 0.95  # correlation at 64 x 64 pixels that needs no runner-up: one set may hold many copies

MIN_EVIDENCE = 8.0  # of a copy, see `registration.agreement`; unrelated images of a few smooth blobs reached 7.2

LOOKED_FOR = (
    "copies of test images were looked for as they are, mirrored, turned by right angles or up to 10 degrees, inverted, with "
    "up to 10 % cut off, added or shifted, cut to their central square, with another contrast or a quarter covered; copies of "
    "volumes as a whole, mirrored, turned by right angles, inverted, cropped, padded, shifted, thinned out, with another spacing "
    "or contrast, or a slice of them as an image; copies of shapes without texture (most binary masks) only mirrored, turned by "
    "right angles, inverted, padded or with other grey values; not looked for: smaller parts, montages, warped or generated "
    "images, parts of a volume, neighbouring slices, slices along other directions than its axes, images of less than 24 pixels; "
    "not found in our tests: images equalised locally without limit whose originals have 28 pixels, and images of 64 pixels "
    "with strong noise"
)

Limit = float | NDArray[np.float64]


@dataclass(frozen=True)
class Transformed:
    """The transformed copies found in a set, by content hash.

    Attributes:
        copies: query -> image of an earlier set that it is a copy of -> "near" or "maybe".
        not_compared: the images of either side that are too small or have too little structure for that.
    """

    copies: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    not_compared: frozenset[str] = frozenset()


def find_transformed(
    seen: Sequence[ScanSet], test: ScanSet, images: ImageComparer, folder: Path | None = None
) -> Transformed:
    """Return which images of `test` are transformed copies of images in `seen`.

    Args:
        seen: the earlier sets.
        test: the set whose scans are searched for.
        images: reads the images.
        folder: where results are kept for later checks of the same images, if it can be written.
    """
    before = sorted({h for part in seen for h in _hashes(part) if images.is_readable(h)})
    known = set(before) - {str(test.hash[i]) for i in test.volumes if test.phash[i] == BLANK}
    queries = sorted({h for h in _hashes(test) if images.is_readable(h)} - known)
    if not before or not queries:
        return Transformed()
    names = hashlib.blake2b(f"{VERSION} {before} {queries}".encode(), digest_size=8).hexdigest()
    file = None if folder is None else folder / f"transformed_{names}.npz"
    found = _read(file)
    if found is None:
        found = _search(before, queries, images)
        _write(file, found)
    pairs, not_compared = found
    result: dict[str, dict[str, str]] = {}
    for query, image, kind in sorted(pairs):  # "near" counts more than "maybe", and comes after it
        result.setdefault(query, {})[image] = kind
    return Transformed(result, not_compared)


def _hashes(part: ScanSet) -> Iterable[str]:
    """Return the content hashes of images that are not blank, and of volumes: only their middle slice may be."""
    return {*part.hash[part.phash != BLANK].tolist(), *part.hash[list(part.volumes)].tolist()}


@dataclass(frozen=True)
class _Described:
    """The grids of a set, by content hash.

    Attributes:
        names: all of it.
        volumes: all volumes.
        solid: the volumes that are compared as a whole.
        flat: images, and of the other volumes the middle slice.
    """

    names: list[str]
    volumes: list[str]
    solid: dict[str, VolumeGrid]
    flat: dict[str, EqualisedGrid]

    @classmethod
    def of(cls, names: list[str], images: ImageComparer) -> "_Described":
        solid = {h: g for h in names if (g := images.volume_grid(h)) is not None}
        flat = {h: x for h in names if h not in solid and (x := images.grid(h)) is not None}
        return cls(names, [h for h in names if images.is_volume(h)], solid, flat)

    @property
    def left_out(self) -> set[str]:
        """Images and volumes without a grid."""
        return set(self.names) - set(self.solid) - set(self.flat)

    def images(self) -> dict[str, list[EqualisedGrid]]:
        """Return one grid of each image."""
        volumes = set(self.volumes)
        return {h: [g] for h, g in self.flat.items() if h not in volumes}

    def slices(self, images: ImageComparer) -> dict[str, list[EqualisedGrid]]:
        """Return the grids of all slices of each volume."""
        return {h: images.slices(h) for h in self.volumes}


def _search(
    before: list[str], queries: list[str], images: ImageComparer
) -> tuple[set[tuple[str, str, str]], frozenset[str]]:
    """Return (query, image, kind) of all pairs, and what is not compared.

    Volumes are compared as a whole. Images, and the middle slices of volumes too thin for that, are compared with images and
    with all slices of volumes. What has too little texture for that is compared pixel by pixel.
    """
    old, new = (_Described.of(names, images) for names in (before, queries))
    found: set[tuple[str, str, str]] = set()
    if new.flat:
        found |= _image_pairs(new.flat, old.images() | old.slices(images))
    if old.flat and new.volumes:
        found |= {(query, image, kind) for image, query, kind in _image_pairs(old.flat, new.slices(images))}
    if old.solid and new.solid:
        pairs = agreeing_volumes(list(new.solid.values()), list(old.solid.values()), _volume_transforms(), MAYBE_VOLUME)
        found |= _named(pairs, classify_volumes(pairs), new.solid, old.solid)
    left_out = old.left_out, new.left_out
    if all(left_out):
        found |= _equal_shapes(*left_out, images)
    return found, frozenset(left_out[0] | left_out[1])


def _equal_shapes(before: set[str], queries: set[str], images: ImageComparer) -> set[tuple[str, str, str]]:
    """Return (query, image, "near") of shapes without texture that are equal, see `plain_shapes`."""
    seen: defaultdict[str, list[str]] = defaultdict(list)
    for name in before:
        seen[images.shape_digest(name)].append(name)
    return {(q, name, "near") for q in queries if (key := images.shape_digest(q)) for name in seen.get(key, ())}


def _image_pairs(
    queries: Mapping[str, EqualisedGrid], scans: Mapping[str, list[EqualisedGrid]]
) -> set[tuple[str, str, str]]:
    """Return (query, scan, kind) of images and of scans, each described by the grids of all its images."""
    scans = {h: grids for h, grids in scans.items() if grids}
    if not scans:
        return set()
    grids = [g for some in scans.values() for g in some]
    scan = [k for k, some in enumerate(scans.values()) for _ in some]
    pairs = agreeing_pairs(list(queries.values()), grids, _transforms(), min(MAYBE_SHARP, MAYBE_SMALL), scan)
    return _named(pairs, classify(pairs), queries, scans)


def _named(
    pairs: AgreeingPairs, kinds: Iterable[str], queries: Iterable[str], scans: Iterable[str]
) -> set[tuple[str, str, str]]:
    names = list(queries), list(scans)
    of = zip(pairs.query.tolist(), pairs.image.tolist(), kinds, strict=True)
    return {(names[0][q], names[1][i], kind) for q, i, kind in of if kind}


@cached
def _transforms() -> Transforms:
    return Transforms()


@cached
def _volume_transforms() -> VolumeTransforms:
    return VolumeTransforms()


def classify(pairs: AgreeingPairs) -> list[str]:
    """Return for each pair of images "near" (a copy), "maybe" or ""."""
    near, maybe = (np.where(pairs.sharp, *least) for least in ((NEAR_SHARP, NEAR_SMALL), (MAYBE_SHARP, MAYBE_SMALL)))
    return _kinds(pairs, near, maybe, (pairs.score >= COPIES_SHARP) & pairs.sharp)


def classify_volumes(pairs: AgreeingPairs) -> list[str]:
    """Return for each pair of volumes "near" (a copy), "maybe" or ""."""
    return _kinds(pairs, NEAR_VOLUME, MAYBE_VOLUME, np.zeros(len(pairs.score), bool))


def _kinds(pairs: AgreeingPairs, near: Limit, maybe: Limit, certain: NDArray[np.bool_]) -> list[str]:
    """Return the kinds, given the least correlations, and which pairs need no runner-up."""
    share = (1 - pairs.score) / np.maximum(1 - pairs.runner_up, 1e-6)
    evident = pairs.evidence >= MIN_EVIDENCE
    kinds = [certain | ((pairs.score >= near) & (share <= NEAR_SHARE)), (pairs.score >= maybe) & (share <= MAYBE_SHARE)]
    return np.select([kind & evident for kind in kinds], ["near", "maybe"], "").tolist()


def _read(file: Path | None) -> tuple[set[tuple[str, str, str]], frozenset[str]] | None:
    """Return kept results of `_search`; None if the file is absent or damaged."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if file is not None:
            with np.load(file, allow_pickle=False) as f:
                return {(a, b, kind) for a, b, kind in f["found"].tolist()}, frozenset(f["not_compared"].tolist())
    return None


def _write(file: Path | None, found: tuple[set[tuple[str, str, str]], frozenset[str]]) -> None:
    pairs, not_compared = (np.array(sorted(x), str) for x in found)
    if file is not None:
        with suppress(UserError, OSError), atomic(file) as part, part.open("wb") as f:
            np.savez_compressed(f, found=pairs.reshape(-1, 3), not_compared=not_compared)
