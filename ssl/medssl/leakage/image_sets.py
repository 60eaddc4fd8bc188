"""Sets of scans on the way to a score as plain arrays, and their pixels: read once, sketched where small, compared once."""

import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medssl.errors import UserError
from medssl.files import atomic
from medssl.leakage import small_images
from medssl.leakage.groups import is_near_duplicate

Strings = NDArray[np.str_]
Rows = NDArray[np.int64]

SMALL = 224  # pixels of the longest side below which a shift by two pixels is too much for the hash
TINY = 64  # pixels up to which noise and compression hide a copy from `similar`
CACHED = 512  # images in memory
VERSION = 1  # of `similar`: answers of another one are forgotten


@dataclass(frozen=True)
class ScanSet:
    """One set of scans on the way to a score, as plain arrays.

    Attributes:
        name: what it is called in sentences: "pretraining", "training", "validation", "test".
        key: id of the key that its pseudonyms were made with.
        patient, scan, hash, phash: (N,) str, as in a store's manifest.
        named: (N,) bool, whether the source says who the patient is.
        edge: (N,) int64, pixels of the image's longest side; 0 where the image cannot be read.
        image: row -> (H, W) in the unit range, of a volume the middle slice; None where that fails.
    """

    name: str
    key: str
    patient: Strings
    scan: Strings
    hash: Strings
    phash: Strings
    named: NDArray[np.bool_]
    edge: Rows
    image: Callable[[int], np.ndarray | None] | None = None

    def __len__(self) -> int:
        return len(self.hash)


class ImageComparer:
    """Pixels by content hash, read through whichever set can read them; remembers which pairs are alike.

    kept: a file, which may always be deleted, of what earlier comparisons found; `keep` adds those since then.
    """

    def __init__(self, sets: Iterable[ScanSet], kept: Path | None = None):
        self._at: dict[str, tuple[Callable[[int], np.ndarray | None], int]] = {}
        self._small: set[str] = set()
        for part in sets:
            if part.image is not None:
                for row, (content, edge) in enumerate(zip(part.hash.tolist(), part.edge.tolist(), strict=True)):
                    if edge:
                        self._at.setdefault(content, (part.image, row))
                    if 0 < edge < SMALL:
                        self._small.add(content)
        self._read = lru_cache(maxsize=CACHED)(self._fresh)
        self._kept, self._alike = kept, _remembered(kept)
        self._known = len(self._alike)
        self._sketches: dict[str, small_images.Sketch | None] = {}
        self._shifted: dict[str, NDArray[np.float32]] = {}

    def _fresh(self, content: str) -> np.ndarray | None:
        image, row = self._at.get(content, (None, 0))
        return None if image is None else image(row)

    def unreadable(self, hashes: Strings) -> int:
        """How many of these contents no set can read."""
        return sum(h not in self._at for h in hashes.tolist())

    def alike(self, a: str, b: str) -> bool:
        """Whether the images of two content hashes can be read and are `similar`."""
        pair = (a, b) if a < b else (b, a)
        if pair not in self._alike:
            x, y = map(self._read, pair)
            if x is None or y is None:
                return False
            self._alike[pair] = is_near_duplicate(x, y)
        return self._alike[pair]

    def keep(self) -> None:
        """Writes what was compared, where that can be written."""
        if self._kept is not None and len(self._alike) > self._known:
            pairs = np.array(sorted(self._alike), str).reshape(-1, 2)
            answers = np.array([self._alike[a, b] for a, b in pairs.tolist()], bool)
            with suppress(UserError, OSError), atomic(self._kept) as part, part.open("wb") as f:
                np.savez_compressed(f, version=VERSION, pairs=pairs, answers=answers)

    def outlines(self, hashes: Strings, shifted: bool = False) -> tuple[Rows, NDArray[np.float32]]:
        """Positions (S,) of the small images that can be read, and their outlines, (S, D) or at all shifts (S, 25, D)."""
        of = self._shifts if shifted else self._outline
        found = {i: of(h) for i, h in enumerate(hashes.tolist()) if self.sketch(h)}
        return np.array(list(found), np.int64), np.array(list(found.values()), np.float32)

    def sketch(self, content: str) -> small_images.Sketch | None:
        """None for an image that is large or cannot be read."""
        if content not in self._small:
            return None
        if content not in self._sketches:
            image = self._read(content)
            self._sketches[content] = None if image is None else small_images.Sketch.of(image, TINY)
        return self._sketches[content]

    def _outline(self, content: str) -> NDArray[np.float32]:
        found = self.sketch(content)
        assert found is not None
        return found.outline

    def _resampled(self, content: str) -> tuple[NDArray[np.float16], int]:
        found = self.sketch(content)
        assert found is not None
        assert found.resampled is not None
        return found.resampled, found.rings

    def _shifts(self, content: str) -> NDArray[np.float32]:
        if content not in self._shifted:
            image = self._read(content)
            assert image is not None  # it was read before
            self._shifted[content] = small_images.outline(small_images.shifted(image))
        return self._shifted[content]

    def is_tiny(self, content: str) -> bool:
        """Whether `weigh` can weigh it."""
        found = self.sketch(content)
        return found is not None and found.resampled is not None

    def weigh(self, a: Sequence[str], b: str) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
        """`small_images.evidence` that tiny image b shows the scan of each tiny image of `a`; rings of the poorest of them."""
        image, some, own = self._read(b), [self._resampled(h) for h in a], self._resampled(b)
        assert image is not None
        shift = (self._shifts(b) @ np.stack([self._outline(h) for h in a]).T).argmax(0)
        rings = np.minimum([r for _, r in some], own[1])
        return *small_images.evidence(np.stack([c for c, _ in some]), small_images.shifted(image)[shift], rings), int(
            rings.min()
        )


def _remembered(kept: Path | None) -> dict[tuple[str, str], bool]:
    """Absent, damaged and of another version are the same: nothing is known."""
    with suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        if kept is not None:
            with np.load(kept, allow_pickle=False) as f:
                if f["version"] == VERSION:
                    return {(a, b): bool(x) for (a, b), x in zip(f["pairs"].tolist(), f["answers"], strict=True)}
    return {}
