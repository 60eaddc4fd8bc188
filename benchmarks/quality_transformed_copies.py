"""Share of transformed copies that the leak check finds, false pairs of two patients, and run time.

    python benchmarks/quality_transformed_copies.py --data ../shared/data --images 100

Chest X-rays of one third of the patients are the test, those of the others are pretraining. Recall: `--images` pretraining scans
are put into the test under other names, each transformed in one way, at 224 and 64 pixels against scans of the same size, and at
224 pixels against scans of 28. Sure: found with the certainty that refuses a score. False: test scans that are taken for copies,
also in sets in which all images look alike (middle slices of the hippocampus, digits). Seconds are of one process.
"""

import argparse
import csv
import gzip
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
import transformed_volumes
from PIL import Image, ImageDraw
from quality_duplicates import gray, jpeg, noisy, resized, unit
from quality_leaks import shrunk
from scipy.ndimage import rotate, shift

from medssl.leakage.equalised_grid import EqualisedGrid
from medssl.leakage.transformed_copies import agreeing_pairs
from medssl.leakage.transformed_duplicates import classify
from medssl.leakage.transformed_search import Transforms

Rng = np.random.Generator
TRANSFORMS = Transforms()


def scaled(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(
        np.asarray(Image.fromarray(np.ascontiguousarray(x)).resize(shape[::-1], Image.Resampling.BICUBIC)), 0, 1
    )


def cropped(x: np.ndarray, most: tuple[float, float, float, float]) -> np.ndarray:
    """Cut shares off top, bottom, left and right, and stretch the rest to the old size."""
    (h, w), (top, bottom, left, right) = x.shape, most
    return scaled(x[round(top * h) : h - round(bottom * h), round(left * w) : w - round(right * w)], x.shape)


def padded(x: np.ndarray, share: float, value: float) -> np.ndarray:
    by = [(max(1, round(share * n)),) * 2 for n in x.shape]
    return scaled(np.pad(x, by, constant_values=value), x.shape)


def covered(x: np.ndarray, top: float, left: float, value: float) -> np.ndarray:
    """Cover a square of a quarter of the image, whose corner is at a share of each axis."""
    x, (h, w) = x.copy(), x.shape
    down, right = round(top * h), round(left * w)
    x[down : down + h // 2, right : right + w // 2] = value
    return x


def annotated(x: np.ndarray, rng: Rng) -> np.ndarray:
    """Draw a frame, a line and two words, in white, at 224 pixels."""
    image = Image.fromarray(np.round(scaled(x, (224, 224)) * 255).astype(np.uint8))
    draw, (cx, cy) = ImageDraw.Draw(image), rng.uniform(60, 160, 2)
    draw.text((12, 8), "PORTABLE AP", fill=255)
    draw.text((160, 200), "L 12:30", fill=255)
    draw.rectangle([cx - 25, cy - 25, cx + 25, cy + 25], outline=255, width=2)
    draw.line([cx, cy, 200, 112], fill=255, width=2)
    return scaled(np.asarray(image, np.float32) / 255, x.shape)


def locally_equalised(x: np.ndarray, tiles: int, limit: float) -> np.ndarray:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld, Graphics Gems IV, 1994) with 256 levels."""
    levels = np.round(x * 255).astype(int)
    size = [-(-n // tiles) for n in x.shape]
    wide = np.pad(levels, [(0, s * tiles - n) for s, n in zip(size, x.shape, strict=True)], mode="reflect")
    maps = np.zeros((tiles, tiles, 256))
    for i in range(tiles):
        for j in range(tiles):
            tile = wide[i * size[0] : (i + 1) * size[0], j * size[1] : (j + 1) * size[1]]
            counts = np.bincount(tile.ravel(), minlength=256).astype(float)
            top = limit * tile.size / 256
            counts = np.minimum(counts, top) + np.maximum(counts - top, 0).sum() / 256
            maps[i, j] = np.cumsum(counts) / counts.sum()
    at = [np.clip((np.arange(n) + 0.5) / s - 0.5, 0, tiles - 1) for n, s in zip(x.shape, size, strict=True)]
    low = [np.minimum(a.astype(int), tiles - 2) for a in at]
    part = [(a - b)[:, None] if k == 0 else (a - b)[None] for k, (a, b) in enumerate(zip(at, low, strict=True))]
    out = np.zeros(x.shape)
    for down in (0, 1):
        for right in (0, 1):
            weight = (part[0] if down else 1 - part[0]) * (part[1] if right else 1 - part[1])
            out += weight * maps[(low[0] + down)[:, None], (low[1] + right)[None], levels]
    return out.astype(np.float32)


def windowed(x: np.ndarray) -> np.ndarray:
    low, high = np.percentile(x, (10, 85))
    return unit(x, low, high)


def turned(x: np.ndarray, degrees: float, rng: Rng) -> np.ndarray:
    return np.clip(rotate(x, degrees * rng.choice([-1, 1]), reshape=False, order=1), 0, 1)


def moved(x: np.ndarray, far: int, mode: str, rng: Rng) -> np.ndarray:
    return shift(x, rng.choice([-far, far], 2), order=0, mode=mode)


WAYS: dict[str, Callable[[np.ndarray, Rng], np.ndarray]] = {
    "mirrored": lambda x, rng: x[:, ::-1],
    "upside down": lambda x, rng: x[::-1],
    "turned by 90 degrees": lambda x, rng: np.rot90(x, rng.choice([1, 3])),
    "turned by 180 degrees": lambda x, rng: np.rot90(x, 2),
    "inverted": lambda x, rng: 1 - x,
    "mirrored and inverted": lambda x, rng: 1 - x[:, ::-1],
    "cropped by 2 % on each side": lambda x, rng: cropped(x, (0.02,) * 4),
    "cropped by 5 % on each side": lambda x, rng: cropped(x, (0.05,) * 4),
    "cropped by 10 % on each side": lambda x, rng: cropped(x, (0.1,) * 4),
    "cropped by 0 to 10 % on each side": lambda x, rng: cropped(x, tuple(rng.uniform(0, 0.1, 4))),
    "the central square of 4 to 3": lambda x, rng: cropped(x, (0, 0, 0.125, 0.125)),
    "the central square of 3 to 2": lambda x, rng: cropped(x, (0, 0, 1 / 6, 1 / 6)),
    "padded with black by 5 %": lambda x, rng: padded(x, 0.05, 0.0),
    "padded with black by 10 %": lambda x, rng: padded(x, 0.1, 0.0),
    "padded with grey by 10 %": lambda x, rng: padded(x, 0.1, 0.5),
    "padded with white by 2 %": lambda x, rng: padded(x, 0.02, 1.0),
    "a quadrant blacked": lambda x, rng: covered(x, *rng.choice([0, 0.5], 2), 0.0),
    "a quadrant white": lambda x, rng: covered(x, *rng.choice([0, 0.5], 2), 1.0),
    "a square of a quarter blacked anywhere": lambda x, rng: covered(x, *rng.uniform(0, 0.5, 2), 0.0),
    "shifted by 4 pixels, edge repeated": lambda x, rng: moved(x, 4, "nearest", rng),
    "shifted by 8 %, black": lambda x, rng: moved(x, round(0.08 * len(x)), "constant", rng),
    "shifted by 10 %, wrapped": lambda x, rng: moved(x, round(0.1 * len(x)), "grid-wrap", rng),
    "turned by 4 degrees": lambda x, rng: turned(x, 4, rng),
    "turned by 10 degrees": lambda x, rng: turned(x, 10, rng),
    "another window": lambda x, rng: windowed(x),
    "gamma 0.4": lambda x, rng: x**0.4,
    "gamma 2.5": lambda x, rng: x**2.5,
    "local equalisation, 4 x 4 tiles, limit 3": lambda x, rng: locally_equalised(x, 4, 3),
    "local equalisation, 8 x 8 tiles, limit 3": lambda x, rng: locally_equalised(x, 8, 3),
    "local equalisation, 8 x 8 tiles, no limit": lambda x, rng: locally_equalised(x, 8, 256),
    "annotated": annotated,
    "half size": lambda x, rng: resized(x, 0.5),
    "28 pixels": lambda x, rng: shrunk([x], 28)[0],
    "noise 5 %": lambda x, rng: noisy(x, 0.05, rng),
    "mirrored, cropped by 5 %, gamma 1.5, JPEG 75": lambda x, rng: jpeg(cropped(x[:, ::-1], (0.05,) * 4) ** 1.5, 75),
    "cropped by 5 %, local equalisation": lambda x, rng: locally_equalised(cropped(x, (0.05,) * 4), 4, 3),
}


def grids(images: list[np.ndarray]) -> list[EqualisedGrid | None]:
    return [EqualisedGrid.from_image(np.ascontiguousarray(x, np.float32)) for x in images]


def recall(name: str, seen: list[np.ndarray], originals: list[np.ndarray], source: np.ndarray) -> None:
    """Print the share of transformed originals that are found. source: their positions in `seen`."""
    rng = np.random.default_rng(0)
    print(
        f"\n{name}: {len(originals)} of {len(seen)} scans of pretraining in the test\n{'found, %':48s} sure  with perhaps"
    )
    old, ways = grids(seen), list(WAYS)
    described = [i for i, g in enumerate(old) if g is not None]
    copies = grids([change(x, rng) for change in WAYS.values() for x in originals])
    at = np.array([k for k, g in enumerate(copies) if g is not None], int)
    pairs = agreeing_pairs([copies[k] for k in at], [old[i] for i in described], TRANSFORMS, 0.5)
    best = np.zeros(len(copies), int)
    for q, i, kind in zip(at[pairs.query], pairs.image, classify(pairs), strict=True):
        if source[q % len(originals)] == described[i]:
            best[q] = {"near": 2, "maybe": 1, "": 0}[kind]
    for way, found in zip(ways, best.reshape(len(ways), -1), strict=True):
        print(f"{way:48s}{100 * np.mean(found == 2):6.1f}{100 * np.mean(found > 0):8.1f}", flush=True)


def false_pairs(name: str, seen: list[np.ndarray], test: list[np.ndarray]) -> None:
    """Print how many scans of a test without copies are taken for some, and the highest correlations."""
    old, new = ([g for g in grids(x) if g is not None] for x in (seen, test))
    if not old or not new:
        print(f"{name}: no image is large enough to be described", flush=True)
        return
    began = time.perf_counter(), time.process_time()
    pairs = agreeing_pairs(new, old, TRANSFORMS, 0.5)
    wall, work = time.perf_counter() - began[0], time.process_time() - began[1]
    kinds, compared = np.array(classify(pairs)), len(old) * len(new)
    sure, perhaps = (len(set(pairs.query[kinds == kind])) for kind in ("near", "maybe"))
    top = np.argsort(-pairs.score, kind="stable")[:8]
    share = (1 - pairs.score) / np.maximum(1 - pairs.runner_up, 1e-6)
    print(
        f"{name}: {len(new)} x {len(old)} ({len(test) + len(seen) - len(new) - len(old)} not described), {compared:,} pairs; "
        f"sure {sure} ({1e6 * sure / compared:.2f} per million), perhaps {perhaps} ({1e6 * perhaps / compared:.2f}); "
        f"search {wall:.0f} s ({work:.0f} s of processors); highest correlations (share of the runner-up's distance): "
        + ", ".join(f"{pairs.score[i]:.2f} ({share[i]:.2f})" for i in top),
        flush=True,
    )


def middles(folder: Path, axis: int) -> list[np.ndarray]:
    volumes = (np.asarray(nibabel.load(p).dataobj, np.float32) for p in sorted(folder.iterdir()))
    return [unit(v.take(v.shape[axis] // 2, axis), *np.percentile(v, (0.5, 99.5))) for v in volumes]


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--data", type=Path, required=True)
    args.add_argument("--images", type=int, default=100, help="scans put into the test, once for each way")
    args.add_argument("--tests", type=int, default=1000, help="test scans among which false pairs are counted, at most")
    args.add_argument("--scans", type=int, default=10_000, help="set size for run time; 0 for none")
    args.add_argument("--only", default="", help="recall, false or speed; of volumes: recall, false or slices")
    args.add_argument(
        "--sizes", nargs="+", default=["224:224", "64:64", "224:28", "28:28"], help="pixels of X-rays, test:pretraining"
    )
    args.add_argument("--xrays", action="store_true", help="no other images")
    args.add_argument("--volumes", action="store_true", help="volumes instead of X-rays, see transformed_volumes.py")
    args.add_argument("--sets", default="", help="only the sets of volumes whose names hold this word")
    given = args.parse_args()
    torch.set_num_threads(1)
    if given.volumes:
        transformed_volumes.measure(given.data, given.images, given.tests, given.only, given.sets)
        return
    images, patients = [], []
    for folder in (given.data / "cxr_guangzhou", given.data / "cxr_nih"):
        with (folder / "manifest.csv").open() as f:
            for row in csv.DictReader(f):
                images.append(unit(gray(folder / "images" / row["file"]), 0, 255))
                patients.append(f"{folder.name} {row['patient_id']}")
    rng = np.random.default_rng(0)
    names = rng.permutation(sorted(set(patients)))
    held = set(names[: len(names) // 3])
    seen = [x for x, p in zip(images, patients, strict=True) if p not in held]
    test = [x for x, p in zip(images, patients, strict=True) if p in held][: given.tests]
    source = rng.choice(len(seen), given.images, replace=False)
    originals = [seen[i] for i in source]
    sizes = [tuple(int(n) for n in pair.split(":")) for pair in given.sizes]
    for new, old in sizes:
        name = f"{new} pixels" if old == new else f"{new} pixels against {old}"
        if given.only in ("", "recall"):
            recall(name, shrunk(seen, old), shrunk(originals, new), source)
        if given.only in ("", "false"):
            false_pairs(f"X-rays, {name}", shrunk(seen, old), shrunk(test, new))
    if given.only in ("", "false") and not given.xrays:
        folder = given.data / "hippocampus" / "images"
        for axis in range(3):
            x = middles(folder, axis)
            false_pairs(f"hippocampus, axis {axis}", x[::2], x[1::2])
        raw = gzip.decompress((given.data / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())[16:]
        digits = [unit(x, 0, 255) for x in np.frombuffer(raw, np.uint8).reshape(-1, 28, 28)[:2500]]
        false_pairs("digits, 28 pixels", digits[:2000], digits[2000:])
        large = [resized(x, 4) for x in digits]
        false_pairs("digits, enlarged to 112 pixels", large[:2000], large[2000:])
    if given.only in ("", "speed") and given.scans:
        some = [images[i % len(images)] for i in range(given.scans)]
        began = time.perf_counter(), time.process_time()
        turned_some = [
            np.roll(x, i // len(images) * 37, 1) for i, x in enumerate(some)
        ]  # repeated ones are other images
        split = int(0.8 * given.scans)
        agreeing_pairs(grids(turned_some[split:]), grids(turned_some[:split]), TRANSFORMS, 0.72)
        wall, work = time.perf_counter() - began[0], time.process_time() - began[1]
        print(
            f"\n{given.scans:,} scans of 224 pixels, one fifth of them tests: {wall:.0f} s ({work:.0f} s of processors)",
            flush=True,
        )


if __name__ == "__main__":
    main()
