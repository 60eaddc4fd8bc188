"""Share of planted copies that the leak check finds in a test set, false duplicates, and run time.

    python benchmarks/quality_leaks.py --source ../shared/data/cxr_guangzhou ../shared/data/cxr_nih \
        --npz ../shared/data/medmnist/pneumoniamnist_rebuilt.npz

--source: folders with manifest.csv (file, patient_id) and images/. Three quarters of the patients are for pretraining, the others
for the test. `--images` pretraining scans are added to the test under another patient's name, once for each way of degrading
them, at several sizes. Found: share of those copies that are counted, if all pixels can be read and if those of the pretraining
scans cannot. False: test scans counted as duplicates that are none, or of another scan, in every fold of the patients, also per
million pairs.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
import torch
from quality_duplicates import DEGRADE, gray, unit

from medssl.leakage.image_sets import ImageComparer, ScanSet
from medssl.leakage.leak_check import check_leaks
from medssl.leakage.near_duplicates import Duplicates, find_duplicates
from medssl.readers.phash import phash
from medssl.store.manifest_columns import content_hash

SIDES = (224, 112, 64, 28)
FOLDS = 4
READABLE = {"pixels": True, "hash alone": False}


def scan_set(name: str, images: list[np.ndarray], patients: list[str]) -> ScanSet:
    columns = [
        patients,
        [f"{name} {i}" for i in range(len(images))],
        [content_hash(x) for x in images],
        map(phash, images),
    ]
    patient, scan, content, bits = (np.array(list(c), str) for c in columns)
    side = np.array([max(x.shape) for x in images], np.int64)
    return ScanSet(name, "key", patient, scan, content, bits, np.ones(len(images), bool), side, images.__getitem__)


def subset(part: ScanSet, images: list[np.ndarray], at: np.ndarray, name: str, readable: bool = True) -> ScanSet:
    """Return the scans of a set at positions `at`."""
    columns = (c[at] for c in (part.patient, part.scan, part.hash, part.phash, part.patient_known))
    return ScanSet(name, "key", *columns, part.side[at] * readable, lambda i: images[at[i]])


def shrunk(images: list[np.ndarray], side: int) -> list[np.ndarray]:
    """Shrink images to at most `side` pixels, by area, in 8 bits."""
    out = []
    for x in images:
        if max(x.shape) > side:
            small = torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], (side, side), mode="area")
            x = (np.round(small[0, 0].numpy() * 255) / 255).astype(np.float32)
        out.append(x)
    return out


def measure(name: str, images: list[np.ndarray], patients: list[str], n: int) -> None:
    side = max(images[0].shape)
    rng = np.random.default_rng(0)
    fold = {p: i % FOLDS for i, p in enumerate(rng.permutation(sorted(set(patients))))}
    folds = np.array([fold[p] for p in patients])
    whole = scan_set("whole", images, patients)

    seen = np.flatnonzero(folds != 0)
    copied = rng.choice(seen, min(n, len(seen)), replace=False)
    degraded = [change(images[i], rng).astype(np.float32) for change in DEGRADE.values() for i in copied]
    test = scan_set("test", degraded, [f"other {i}" for i in range(len(degraded))])
    source = np.tile(copied, len(DEGRADE))
    comparer = ImageComparer([whole, test])  # remembers results
    results: dict[str, Duplicates] = {}
    for way, readable in READABLE.items():
        pretrained = subset(whole, images, seen, "pretraining", readable)
        results[way] = find_duplicates(pretrained, test, comparer if readable else ImageComparer([test]))
    print(
        f"\n{name}, {side} pixels: {len(copied)} of {len(seen)} pretraining scans in the test, degraded in {len(DEGRADE)} ways"
    )
    print(f"{'found, %':48s}" + "".join(f"{way:>16s}" for way in READABLE))
    for k, way in enumerate(DEGRADE):
        rows = range(k * len(copied), (k + 1) * len(copied))
        shares = [100 * np.mean([_correct(c, j, seen, source, whole) for j in rows]) for c in results.values()]
        print(f"{way:48s}" + "".join(f"{s:16.1f}" for s in shares), flush=True)

    false, certain, pairs = dict.fromkeys(READABLE, 0), dict.fromkeys(READABLE, 0), 0
    for k in range(FOLDS):
        a, b = np.flatnonzero(folds != k), np.flatnonzero(folds == k)
        pairs += len(a) * len(b)
        for way, readable in READABLE.items():
            pretrained, test = subset(whole, images, a, "pretraining", readable), subset(whole, images, b, "test")
            found = find_duplicates(pretrained, test, comparer if readable else ImageComparer([]))
            false[way] += len(found.near) + len(found.maybe)
            certain[way] += len(found.near)
    print(f"{f'false, of {pairs:,} pairs of two patients':48s}" + "".join(f"{n:16d}" for n in false.values()))
    print(f"{'of these certain':48s}" + "".join(f"{n:16d}" for n in certain.values()))
    print(f"{'false per million pairs':48s}" + "".join(f"{1e6 * n / pairs:16.2f}" for n in false.values()), flush=True)


def _correct(found: Duplicates, j: int, seen: np.ndarray, source: np.ndarray, whole: ScanSet) -> bool:
    """Return whether copy j is counted as one of its source, or of an exact copy of that."""
    at = found.exact.get(j, found.near.get(j, found.maybe.get(j)))
    return at is not None and whole.hash[seen[at]] == whole.hash[source[j]]


def own_splits(path: Path) -> None:
    """Print the duplicates in an archive's own splits."""
    with np.load(path, allow_pickle=False) as f:
        sets = []
        for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
            images = [unit(x, 0, 255) for x in f[f"{split}_images"]]
            sets.append(scan_set(name, images, [f"{split}{i}" for i in range(len(images))]))
    began = time.process_time()
    report = check_leaks(subset(sets[0], [], np.arange(len(sets[0])), "pretraining", False), *sets)
    print(f"\n{path.stem}, in {time.process_time() - began:.1f} s of one core")
    for pair in report.pairs:
        print(f"{pair.a} - {pair.b}: {pair.exact} exact, {pair.near} near, {pair.maybe} maybe")


def speed(n: int, side: int) -> None:
    """Time n unreadable pretraining scans, 0.7 n training, 0.1 n validation and 0.2 n test scans of noise, so without copies."""
    rng = np.random.default_rng(0)
    noise = rng.random((64, side, side), np.float32)

    def noise_set(name: str, m: int, readable: bool) -> ScanSet:
        bits = np.array([x.tobytes().hex() for x in rng.integers(0, 256, (m, 32), np.uint8)])
        names = np.array([f"{name}{i}" for i in range(m)])
        sides = np.full(m, side * readable)
        return ScanSet(
            name, "key", names, names, names, bits, np.ones(m, bool), sides, lambda i: np.roll(noise[i % 64], i, 0)
        )

    sets = [noise_set("pretraining", n, False)]
    sets += [noise_set(name, int(m * n), True) for name, m in (("training", 0.7), ("validation", 0.1), ("test", 0.2))]
    began = time.process_time()
    check_leaks(*sets)
    print(f"{n:,} scans of {side} pixels: {time.process_time() - began:.1f} s of one core", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", type=Path, nargs="*", default=[])
    args.add_argument("--npz", type=Path)
    args.add_argument("--images", type=int, default=200, help="scans copied into the test")
    args.add_argument("--scans", type=int, nargs="*", default=[10_000, 100_000], help="set sizes for run time")
    given = args.parse_args()
    images, patients = [], []
    for folder in given.source:
        with (folder / "manifest.csv").open() as f:
            for row in csv.DictReader(f):
                images.append(unit(gray(folder / "images" / row["file"]), 0, 255))
                patients.append(f"{folder.name} {row['patient_id']}")
    for side in SIDES if images else ():
        measure("X-rays", shrunk(images, side), patients, given.images)
    if given.npz:
        own_splits(given.npz)
        with np.load(given.npz, allow_pickle=False) as f:
            images = [unit(x, 0, 255) for s in ("train", "val", "test") for x in f[f"{s}_images"]]
        measure(given.npz.stem, images, [str(i) for i in range(len(images))], given.images)
    print()
    for n in given.scans:
        for side in (224, 28):
            speed(n, side)


if __name__ == "__main__":
    main()
