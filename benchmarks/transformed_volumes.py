"""Recall and false pairs of transformed copies of volumes, part of quality_transformed_copies.py (--volumes).

Every second volume is the test, the others are pretraining. Recall: volumes of pretraining are put into the test, each
transformed in one way, and slices of them as 8-bit images. False: test volumes, and their slices as images, that are taken for
copies of other patients' volumes.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
from quality_duplicates import unit
from scipy.ndimage import shift, zoom

import medssl
from medssl.leakage.equalised_grid import EqualisedGrid
from medssl.leakage.transformed_copies import AgreeingPairs, agreeing_pairs
from medssl.leakage.transformed_duplicates import classify, classify_volumes
from medssl.leakage.transformed_search import Transforms
from medssl.leakage.volume_copies import agreeing_volumes
from medssl.leakage.volume_grid import VolumeGrid, slice_grids
from medssl.leakage.volume_search import VolumeTransforms

Rng = np.random.Generator


def cut(x: np.ndarray, share: Callable[[], float]) -> np.ndarray:
    """Cut a share off both ends of each axis."""
    ends = [(round(share() * n), n - round(share() * n)) for n in x.shape]
    return x[tuple(slice(*e) for e in ends)]


def framed(x: np.ndarray, share: float, value: float) -> np.ndarray:
    return np.pad(x, [(max(1, round(share * n)),) * 2 for n in x.shape], constant_values=value)


def thinned(x: np.ndarray, step: int, axis: int, rng: Rng) -> np.ndarray:
    return np.moveaxis(np.moveaxis(x, axis, 0)[rng.integers(step) :: step], 0, axis)


def windowed(x: np.ndarray) -> np.ndarray:
    return unit(x, *np.percentile(x, (10, 85)))


WAYS: dict[str, Callable[[np.ndarray, Rng], np.ndarray]] = {
    "mirrored along one axis": lambda x, rng: np.flip(x, int(rng.integers(3))),
    "mirrored along all axes": lambda x, rng: np.flip(x),
    "turned by 90 degrees about any axis": lambda x, rng: np.rot90(
        x, rng.choice([1, 3]), tuple(rng.permutation(3)[:2])
    ),
    "inverted": lambda x, rng: 1 - x,
    "another window": lambda x, rng: windowed(x),
    "gamma 2.5": lambda x, rng: x**2.5,
    "cropped by 2 % at each end": lambda x, rng: cut(x, lambda: 0.02),
    "cropped by 5 % at each end": lambda x, rng: cut(x, lambda: 0.05),
    "cropped by 10 % at each end": lambda x, rng: cut(x, lambda: 0.1),
    "cropped by 0 to 10 % at each end": lambda x, rng: cut(x, lambda: rng.uniform(0, 0.1)),
    "padded with black by 2 %": lambda x, rng: framed(x, 0.02, 0.0),
    "padded with black by 10 %": lambda x, rng: framed(x, 0.1, 0.0),
    "padded with grey by 5 %": lambda x, rng: framed(x, 0.05, 0.5),
    "every second slice of the first axis": lambda x, rng: thinned(x, 2, 0, rng),
    "every third slice of the first axis": lambda x, rng: thinned(x, 3, 0, rng),
    "every third slice of any axis": lambda x, rng: thinned(x, 3, int(rng.integers(3)), rng),
    "shifted by 1 to 3 slices, wrapped": lambda x, rng: np.roll(x, rng.choice([-3, -2, -1, 1, 2, 3]), 0),
    "shifted by 1 to 3 voxels in all axes, black": lambda x, rng: shift(
        x, rng.choice([-3, -2, -1, 1, 2, 3], 3), order=0
    ),
    "resampled to 1.7 x 1.25 x 0.8 of the spacing": lambda x, rng: np.clip(zoom(x, (0.6, 0.8, 1.25), order=1), 0, 1),
    "turned, inverted, cropped by 5 %, every second": lambda x, rng: thinned(
        cut(1 - np.rot90(x, 1, (1, 2)), lambda: 0.05), 2, 0, rng
    ),
}


def as_png(x: np.ndarray) -> EqualisedGrid | None:
    return EqualisedGrid.from_image(np.round(x * 255).astype(np.float32) / 255)


def outcome(pairs: AgreeingPairs, kinds: list[str], count: int, truth: np.ndarray) -> str:
    """Return the shares of `count` queries found, sure and with perhaps. truth: (Q,), the right scan of each compared query."""
    right = {k: set() for k in ("near", "maybe")}
    for query, scan, kind in zip(pairs.query.tolist(), pairs.image.tolist(), kinds, strict=True):
        if kind and truth[query] == scan:
            right[kind].add(query)
    sure, perhaps = len(right["near"]), len(right["near"] | right["maybe"])
    return f"{100 * sure / count:6.1f}{100 * perhaps / count:8.1f}"


def false(pairs: AgreeingPairs, kinds: list[str], queries: int, scans: int) -> str:
    """Return how many queries are taken for copies, and the pairs that come closest to it."""
    chosen, compared = np.array(kinds, str), queries * scans
    sure, perhaps = (len(set(pairs.query[chosen == kind].tolist())) for kind in ("near", "maybe"))
    share = (1 - pairs.score) / np.maximum(1 - pairs.runner_up, 1e-6)
    top = np.argsort(-pairs.score, kind="stable")[:6]
    return (
        f"{queries} x {scans}, {compared:,} pairs; sure {sure} ({1e6 * sure / compared:.2f} per million), perhaps {perhaps} "
        f"({1e6 * perhaps / compared:.2f}); highest correlations (share of the runner-up's distance): "
        + ", ".join(f"{pairs.score[i]:.2f} ({share[i]:.2f})" for i in top)
    )


class Volumes:
    """Volumes (D, H, W) in the unit range of a set, half of them pretraining.

    Args:
        name: of the set.
        volumes: all of it, each of another patient.
        tests: volumes among which false pairs are counted, at most.
    """

    def __init__(self, name: str, volumes: list[np.ndarray], tests: int):
        grids = [(x, g) for x in volumes if (g := VolumeGrid.from_volume(x)) is not None]
        print(f"\n{name}: {len(grids)} of {len(volumes)} volumes described")
        self.seen, self.test = grids[::2], grids[1::2][:tests]
        self.transforms = VolumeTransforms()

    def recall(self, count: int) -> None:
        """Print the share of transformed volumes of pretraining that are found."""
        rng = np.random.default_rng(0)
        source = rng.choice(len(self.seen), min(count, len(self.seen)), replace=False)
        print(f"{f'{len(source)} of {len(self.seen)}; found, %':48s} sure  with perhaps")
        for way, change in WAYS.items():
            copies = [VolumeGrid.from_volume(np.ascontiguousarray(change(self.seen[i][0], rng))) for i in source]
            kept = [k for k, g in enumerate(copies) if g is not None]
            if not kept:
                print(f"{way:48s}none of the copies is described")
                continue
            pairs = agreeing_volumes([copies[k] for k in kept], [g for _, g in self.seen], self.transforms, 0.5)
            print(f"{way:48s}{outcome(pairs, classify_volumes(pairs), len(source), source[kept])}", flush=True)

    def false_pairs(self) -> None:
        """Print how many test volumes are taken for copies."""
        began = time.process_time()
        pairs = agreeing_volumes([g for _, g in self.test], [g for _, g in self.seen], self.transforms, 0.5)
        text = false(pairs, classify_volumes(pairs), len(self.test), len(self.seen))
        print(f"volumes: {text}; {time.process_time() - began:.0f} s of processors", flush=True)

    def slices(self, count: int) -> None:
        """Print recall of single slices as images, and false pairs of images and volumes of other patients."""
        rng, images = np.random.default_rng(0), Transforms()
        described = [slice_grids(x) for x, _ in self.seen]
        grids, scan = [g for some in described for g in some], [k for k, some in enumerate(described) for _ in some]
        for axis in range(3):
            copies, truth, asked = [], [], 0
            for i in rng.choice(len(self.seen), count):
                x = self.seen[i][0]
                k = int(rng.integers(x.shape[axis]))
                plane = x.take(k, axis)
                asked += plane.std() > 0.01
                if plane.std() > 0.01 and (g := as_png(plane)) is not None:
                    copies.append(g)
                    truth.append(i)
            pairs = agreeing_pairs(copies, grids, images, 0.5, scan)
            way = f"any slice of axis {axis} as an image ({len(copies)} of {asked} described)"
            print(f"{way:60s}{outcome(pairs, classify(pairs), asked, np.array(truth))}", flush=True)
        middles = [as_png(x.take(x.shape[axis] * 2 // 5, axis)) for x, _ in self.test for axis in range(3)]
        others = [g for g in middles if g is not None]
        pairs = agreeing_pairs(others, grids, images, 0.5, scan)
        print(f"slices as images and volumes: {false(pairs, classify(pairs), len(others), len(self.seen))}", flush=True)


def dicom_volumes(folder: Path) -> list[np.ndarray]:
    """Return the distinct CT and MR volumes with at least 14 slices among DICOM files, in the unit range.

    Volumes that the check finds to be one are taken once: the set is for recall only.
    """
    with tempfile.TemporaryDirectory() as work:
        store = medssl.ingest(folder, Path(work) / "store", key=Path(work) / "key", workers=1)
        shapes = store.column("shape")
        rows = [i for i, shape in enumerate(shapes) if len(shape) == 4 and shape[0] == 1 and min(shape[1:]) >= 14]
        volumes = [np.asarray(store[i][0], np.float32) for i in rows]
    volumes = [unit(x, *np.percentile(x, (0.5, 99.5))) for x in volumes]
    transforms, distinct, grids = VolumeTransforms(), [], []
    for x in volumes:
        grid = VolumeGrid.from_volume(x)
        if grid is None:
            continue
        if not (grids and any(classify_volumes(agreeing_volumes([grid], grids, transforms, 0.5)))):
            distinct.append(x)
            grids.append(grid)
    return distinct


def hippocampus(data: Path) -> list[np.ndarray]:
    files = sorted((data / "hippocampus" / "images").iterdir())
    volumes = [np.asarray(nibabel.load(p).dataobj, np.float32).transpose(2, 1, 0) for p in files]
    return [unit(x, *np.percentile(x, (0.5, 99.5))) for x in volumes]


def masks(data: Path, size: str) -> list[np.ndarray]:
    with np.load(data / "medmnist" / f"adrenalmnist3d{size}.npz") as f:
        values = np.concatenate([f["train_images"], f["test_images"]])
    return list((values / 255).astype(np.float32))


def synthetic_ct(count: int = 12) -> list[np.ndarray]:
    """Return CT volumes of 100 x 128 x 128 voxels with smooth shapes and noise, in the unit range of a body window."""
    out = []
    for i in range(count):
        rng = np.random.default_rng(i)
        smooth = zoom(rng.normal(0, 1, (10, 13, 13)).astype(np.float32), (10, 128 / 13, 128 / 13), order=1)
        out.append(unit(np.where(smooth > -0.5, 150 * smooth, -1000) + rng.normal(0, 12, smooth.shape), -1000, 1000))
    return out


def measure(data: Path, count: int, tests: int, only: str, sets_named: str) -> None:
    """Print all of it, for the sets in `data` whose names hold a word. only: recall, false, slices, or "" for all."""
    makers: dict[str, Callable[[], list[np.ndarray]]] = {
        "hippocampus, MR": lambda: hippocampus(data),
        "adrenal masks, 28 voxels": lambda: masks(data, ""),
        "adrenal masks, 64 voxels": lambda: masks(data, "_64"),
        "DICOM, distinct volumes": lambda: dicom_volumes(data / "dicom"),
        "synthetic CT": synthetic_ct,
    }
    for name, make in makers.items():
        if sets_named not in name:
            continue
        part = Volumes(name, make(), tests)
        if only in ("", "false"):
            part.false_pairs()
        if only in ("", "recall"):
            part.recall(count)
        if only in ("", "slices") and name.startswith("hippocampus"):
            part.slices(count)
