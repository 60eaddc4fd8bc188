"""Recall and false pairs of the perceptual hash, and the share of good scans that get a quality flag.

    python benchmarks/quality_duplicates.py --data ../shared/data --images 300

Recall: every image is added a second time, degraded in one way. "searched" is the share of copies that `near_hash_pairs` returns,
"confirmed" the share that `is_near_duplicate` confirms, both with default limits. False pairs: among all pairs of X-rays of
different patients. Flags: share of scans with a flag, per collection; all scans are believed to be of good quality.
"""

import argparse
import csv
import io
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from PIL import Image
from scipy.ndimage import shift

from medssl.leakage.similarity import is_near_duplicate, near_hash_pairs
from medssl.readers.phash import hamming, packed, phash
from medssl.readers.quality_flags import flags

HU = (-1024.0, 1500.0)


def gray(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("L"))


def unit(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((x.astype(np.float32) - low) / max(high - low, 1e-9), 0, 1)


def window(x: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(x, (0.5, 99.5))
    return float(low), float(high)


def jpeg(x: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer), np.float32) / 255


def resized(x: np.ndarray, scale: float) -> np.ndarray:
    size = (round(x.shape[1] * scale), round(x.shape[0] * scale))
    return np.clip(np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)), 0, 1)


def moved(x: np.ndarray, far: int, rng: np.random.Generator) -> np.ndarray:
    """Shift by `far` pixels along one axis and by up to as many along the other."""
    by = rng.permutation([rng.choice([-far, far]), rng.integers(-far, far + 1)])
    return shift(x, by, order=0, mode="nearest")


def noisy(x: np.ndarray, sd: float, rng: np.random.Generator) -> np.ndarray:
    return np.clip(x + rng.normal(0, sd, x.shape).astype(np.float32), 0, 1)


DEGRADE: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "JPEG 75": lambda x, rng: jpeg(x, 75),
    "JPEG 40": lambda x, rng: jpeg(x, 40),
    "half size": lambda x, rng: resized(x, 0.5),
    "1.5 times the size": lambda x, rng: resized(x, 1.5),
    "10 % brighter": lambda x, rng: np.clip(x * 1.1, 0, 1),
    "10 % darker": lambda x, rng: x * 0.9,
    "gamma 0.7": lambda x, rng: x**0.7,
    "gamma 1.4": lambda x, rng: x**1.4,
    "noise 2 %": lambda x, rng: noisy(x, 0.02, rng),
    "noise 5 %": lambda x, rng: noisy(x, 0.05, rng),
    "shift 1 px": lambda x, rng: moved(x, 1, rng),
    "shift 2 px": lambda x, rng: moved(x, 2, rng),
    "shift 0-2, gamma 0.8-1.25, noise 2 %, JPEG 75": lambda x, rng: jpeg(
        noisy(moved(x, int(rng.integers(3)), rng) ** rng.uniform(0.8, 1.25), 0.02, rng), 75
    ),
}


def recall(name: str, images: list[np.ndarray]) -> None:
    print(f"\n{name}: {len(images)} images\n{'':48s} bits p50 p95 p99   <= 10   searched  confirmed")
    rng, hashes = np.random.default_rng(0), packed([phash(x) for x in images])
    for way, change in DEGRADE.items():
        copies = [change(x, rng).astype(np.float32) for x in images]
        theirs = packed([phash(x) for x in copies])
        bits = hamming(hashes, theirs)
        # pairwise: a search over all would pair rows with equal hashes only with the first of them
        both = [near_hash_pairs(np.stack([a, b])).size > 0 for a, b in zip(hashes, theirs, strict=True)]
        same = [hit and is_near_duplicate(x, y) for hit, x, y in zip(both, images, copies, strict=True)]
        p50, p95, p99 = np.percentile(bits, (50, 95, 99))
        print(
            f"{way:48s}      {p50:3.0f} {p95:3.0f} {p99:3.0f}  {100 * np.mean(bits <= 10):5.1f} %"
            f"    {100 * np.mean(both):5.1f} %    {100 * np.mean(same):5.1f} %",
            flush=True,
        )


def false_pairs(name: str, images: list[np.ndarray], patients: list[str]) -> None:
    who, hashes = np.array(patients), packed([phash(x) for x in images])
    other = sum(int((who[i + 1 :] != who[i]).sum()) for i in range(len(who)))
    for limit in (10, 40, 60):
        pairs = [(i, j) for i, j in near_hash_pairs(hashes, limit).tolist() if who[i] != who[j]]
        alike = sum(is_near_duplicate(images[i], images[j]) for i, j in pairs)
        print(
            f"{name}: {other:,} pairs of two patients; within {limit} bits {len(pairs)} ({1e6 * len(pairs) / other:.2f} per "
            f"million), confirmed {alike} ({1e6 * alike / other:.2f} per million)",
            flush=True,
        )


def neighbours(name: str, volumes: list[np.ndarray]) -> None:
    bits, alike = [], []
    for volume in volumes:
        hashes = packed([phash(x) for x in volume])
        bits += hamming(hashes[1:], hashes[:-1]).tolist()
        alike += [is_near_duplicate(x, y) for x, y in pairwise(volume)]
    print(
        f"{name}: {len(bits)} pairs of neighbour slices: bits min {min(bits)}, p5 {np.percentile(bits, 5):.0f}, median "
        f"{np.median(bits):.0f}; within 10 bits {np.sum(np.array(bits) <= 10)}, within 40 {np.sum(np.array(bits) <= 40)}, "
        f"similar {sum(alike)}"
    )


def flagged(name: str, scans: list[np.ndarray], modality: str, bounds: tuple[float, float] | None) -> None:
    found = Counter(f for x in scans for f in flags(x[None], *(bounds or window(x)), modality))
    shares = ", ".join(f"{f} {n} ({100 * n / len(scans):.1f} %)" for f, n in found.most_common()) or "no flag"
    print(f"{name}: {len(scans)} scans: {shares}", flush=True)


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--images", type=int, default=300, help="degraded X-rays of each hospital")
    given = args.parse_args()
    xrays, rng = {}, np.random.default_rng(0)
    for folder in ("cxr_guangzhou", "cxr_nih"):
        with (given.data / folder / "manifest.csv").open() as f:
            table = list(csv.DictReader(f))
        xrays[folder] = (
            [gray(given.data / folder / "images" / r["file"]) for r in table],
            [r["patient_id"] for r in table],
        )
    slices = [pydicom.dcmread(f) for f in (given.data / "dicom" / "ct_ge_variable_spacing_tilt").glob("*.dcm")]
    slices.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    ct = np.stack([d.pixel_array * float(d.RescaleSlope) + float(d.RescaleIntercept) for d in slices]).astype(np.int16)
    mr = []
    for path in sorted((given.data / "dicom").glob("dcm_qa_*/Ref/*.nii")):
        x = np.asarray(nibabel.load(path).dataobj)
        mr += [np.moveaxis(x, 2, 0)] if x.ndim == 3 and min(x.shape) > 8 else []
    crops = [np.asarray(nibabel.load(p).dataobj) for p in sorted((given.data / "hippocampus/images").glob("*.nii.gz"))]

    for folder, (images, _) in xrays.items():
        some = rng.permutation(len(images))[: given.images]
        recall(folder, [unit(images[i], 0, 255) for i in some])
    recall("CT slices", list(unit(ct, *HU)))
    recall("MR crops, middle slices of 50 pixels", [unit(x, *window(x))[len(x) // 2] for x in crops[: given.images]])
    print()
    for folder, (images, patients) in xrays.items():
        false_pairs(folder, [unit(x, 0, 255) for x in images], patients)
    false_pairs(
        "MR crops, middle slices",
        [unit(x, *window(x))[len(x) // 2] for x in crops],
        [str(i) for i in range(len(crops))],
    )
    print()
    neighbours("CT", [unit(ct, *HU)])
    neighbours("CT, window -160 to 240 HU", [unit(ct, -160, 240)])
    neighbours("MR", [unit(x, *window(x)) for x in mr])
    print()
    for folder, (images, _) in xrays.items():
        flagged(folder, images, "DX", (0, 255))
    flagged("CT slices", list(ct), "CT", HU)
    flagged("MR volumes", mr, "MR", None)
    flagged("MR crops (truly cut off)", crops, "MR", None)
    for name, modality in (("pneumoniamnist_rebuilt", "DX"), ("breastmnist", "US")):
        archive = np.load(given.data / "medmnist" / f"{name}.npz", allow_pickle=False)
        flagged(name, [x for s in ("train", "val", "test") for x in archive[f"{s}_images"]], modality, (0, 255))


if __name__ == "__main__":
    main()
