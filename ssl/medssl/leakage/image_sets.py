"""Sets of scans as plain arrays, and the comparison of their images: each image is read once, each pair compared once."""

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache as cached
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic
from medssl.leakage import small_images
from medssl.leakage.equalised_grid import EqualisedGrid
from medssl.leakage.plain_shapes import shape_digest
from medssl.leakage.similarity import is_near_duplicate
from medssl.leakage.volume_grid import VolumeGrid, slice_grids

Strings = NDArray[np.str_]
Rows = NDArray[np.int64]

SMALL = 224  # pixels of the longest side below which a shift by two pixels is too much for the hash
TINY = 64  # pixels up to which noise and compression hide a copy from `is_near_duplicate`
IMAGES_IN_MEMORY = 512
VERSION = 1  # version of `is_near_duplicate`; cached results of other versions are ignored


@dataclass(frozen=True)
class ScanSet:
    """One set of scans, as plain arrays.

    Attributes:
        name: as used in sentences: "pretraining", "training", "validation", "test".
        key: id of the key of its pseudonyms.
        patient, scan, hash, phash: (N,) str, as in a store's manifest.
        patient_known: (N,) bool, whether the source identifies the patient.
        side: (N,) int64, pixels of the image's longest side; 0 if the image cannot be read.
        image: row -> (H, W) in the unit range, the middle slice of a volume; None if it cannot be read.
        volumes: for rows that are volumes, a function that returns (D, H, W) in the unit range, None if it cannot be read.
    """

    name: str
    key: str
    patient: Strings
    scan: Strings
    hash: Strings
    phash: Strings
    patient_known: NDArray[np.bool_]
    side: Rows
    image: Callable[[int], np.ndarray | None] | None = None
    volumes: Mapping[int, Callable[[], np.ndarray | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.hash)


class ImageComparer:
    """Compares images by content hash, reading each through any set that can.

    Args:
        sets: the sets, in order of preference for reading.
        cache: file with the results of earlier comparisons, which `save` extends. It can be deleted at any time.

    Attributes:
        incomplete: whether an image or volume that a set should have could not be read, its bytes being missing or damaged.
    """

    def __init__(self, sets: Iterable[ScanSet], cache: Path | None = None):
        self.incomplete = False
        self._sources: dict[str, tuple[Callable[[int], np.ndarray | None], int]] = {}
        self._small: set[str] = set()
        self._volumes: dict[str, Callable[[], np.ndarray | None]] = {}
        for part in sets:
            for row, read in part.volumes.items():
                self._volumes.setdefault(str(part.hash[row]), read)
            if part.image is not None:
                for row, (content, side) in enumerate(zip(part.hash.tolist(), part.side.tolist(), strict=True)):
                    if side:
                        self._sources.setdefault(content, (part.image, row))
                    if 0 < side < SMALL:
                        self._small.add(content)
        self._read = lru_cache(maxsize=IMAGES_IN_MEMORY)(self._read_image)
        self._small_image = cached(self._describe)
        self._volume_grid = cached(self._describe_volume)
        self._shifted_descriptors = cached(self._describe_shifts)
        self._cache, self._results = cache, _read_results(cache)
        self._saved = len(self._results)

    def _read_image(self, content: str) -> np.ndarray | None:
        if content not in self._sources:
            return None
        image, row = self._sources[content]
        return self._noted(image(row))

    def _read_volume(self, content: str) -> np.ndarray | None:
        return self._noted(self._volumes[content]()) if content in self._volumes else None

    def _noted(self, array: np.ndarray | None) -> np.ndarray | None:
        self.incomplete |= array is None
        return array

    def is_readable(self, content: str) -> bool:
        """Return whether some set can read the image of a content hash."""
        return content in self._sources

    def read(self, content: str) -> np.ndarray | None:
        """Return the image (H, W) of a content hash, None if no set can read it."""
        return self._read(content)

    def grid(self, content: str) -> EqualisedGrid | None:
        """Return the grid of an image; None if it cannot be read or described."""
        image = self.read(content)
        return None if image is None else EqualisedGrid.from_image(image)

    def is_volume(self, content: str) -> bool:
        """Return whether a content hash is that of a volume that some set has."""
        return content in self._volumes

    def volume_grid(self, content: str) -> VolumeGrid | None:
        """Return the grid of a volume; None if it cannot be read, is too thin or has too little structure, and for an image."""
        return self._volume_grid(content)

    def _describe_volume(self, content: str) -> VolumeGrid | None:
        volume = self._read_volume(content)
        return None if volume is None else VolumeGrid.from_volume(volume)

    def shape_digest(self, content: str) -> str:
        """Return `plain_shapes.shape_digest` of an image or volume; "" if it cannot be read."""
        array = self._read_volume(content) if content in self._volumes else self.read(content)
        return "" if array is None else shape_digest(array)

    def slices(self, content: str) -> list[EqualisedGrid]:
        """Return the grids of a volume's slices, see `slice_grids`; none if it cannot be read."""
        volume = self._read_volume(content)
        return [] if volume is None else slice_grids(volume)

    def count_unreadable(self, hashes: Strings) -> int:
        """Return how many of the images no set can read."""
        return sum(h not in self._sources for h in hashes.tolist())

    def are_near_duplicates(self, a: str, b: str) -> bool:
        """Return whether the images of two content hashes can be read and are near-duplicates."""
        pair = (a, b) if a < b else (b, a)
        if pair not in self._results:
            x, y = map(self._read, pair)
            if x is None or y is None:
                return False
            self._results[pair] = is_near_duplicate(x, y)
        return self._results[pair]

    def save(self) -> None:
        """Save new results to the cache, if it can be written."""
        if self._cache is not None and len(self._results) > self._saved:
            pairs = np.array(sorted(self._results), str).reshape(-1, 2)
            answers = np.array([self._results[a, b] for a, b in pairs.tolist()], bool)
            with suppress(UserError, OSError), atomic(self._cache) as part, part.open("wb") as f:
                np.savez_compressed(f, version=VERSION, pairs=pairs, answers=answers)

    def descriptors(self, hashes: Strings, shifted: bool = False) -> tuple[Rows, NDArray[np.float32]]:
        """Return the positions (S,) of the small images that can be read, and their descriptors, (S, D).

        With `shifted` the descriptors are (S, 25, D), at all shifts.
        """
        found = {
            i: self._shifted_descriptors(h) if shifted else x.descriptor
            for i, h in enumerate(hashes.tolist())
            if (x := self._small_image(h))
        }
        return np.array(list(found), np.int64), np.array(list(found.values()), np.float32)

    def _describe(self, content: str) -> small_images.SmallImage | None:
        """Return None for an image that is large or cannot be read."""
        image = self._read(content) if content in self._small else None
        return None if image is None else small_images.SmallImage.from_image(image, TINY)

    def _describe_shifts(self, content: str) -> NDArray[np.float32]:
        image = self._read(content)
        assert image is not None  # it was read before
        return small_images.descriptor(small_images.shifted_grids(image))

    def has_likelihood(self, content: str) -> bool:
        """Return whether `log_likelihood_ratio` applies to an image."""
        found = self._small_image(content)
        return found is not None and found.grid is not None

    def log_likelihood_ratio(self, a: Sequence[str], b: str) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
        """Return log likelihood ratios (K,) that image b shows the scan of each image of `a`; correlations (K,); frequencies.

        b is compared at the shift where its descriptor fits best, up to the lowest resolved frequency of all these images.
        """
        image, known = self._read(b), [x for h in (*a, b) if (x := self._small_image(h)) is not None]
        grids = [x.grid for x in known[:-1] if x.grid is not None]
        assert image is not None
        assert len(grids) == len(a)
        shift = (self._shifted_descriptors(b) @ np.stack([x.descriptor for x in known[:-1]]).T).argmax(0)
        frequencies = np.minimum([x.frequencies for x in known[:-1]], known[-1].frequencies)
        b_grids = small_images.shifted_grids(image)[shift]
        return *small_images.log_likelihood_ratio(np.stack(grids), b_grids, frequencies), int(frequencies.min())


def _read_results(cache: Path | None) -> dict[tuple[str, str], bool]:
    """Return cached results; none if the file is absent, damaged or of another version."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if cache is not None:
            with np.load(cache, allow_pickle=False) as f:
                if f["version"] == VERSION:
                    return {(a, b): bool(x) for (a, b), x in zip(f["pairs"].tolist(), f["answers"], strict=True)}
    return {}
