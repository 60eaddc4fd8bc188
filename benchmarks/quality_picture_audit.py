"""What the audit sees in pictures: coin-flip labels with something planted in the scans of one class.

    python benchmarks/quality_picture_audit.py --images FOLDER_OF_PNG

Each cohort has scans of different patients, labels from coin flips, and one thing planted in 90 % of the positive scans and
10 % of the others: a mark in a corner, a word at the upper edge, a frame, noise, JPEG compression, blur, or a larger picture.
The table counts the cohorts in which the audit of pictures (`medssl.scoring.picture_audit`) reports anything, and, without
anything planted, the false alarms.
"""

import argparse
import csv
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("CI", "1")  # quiet

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

import medssl
from medssl.scoring.baselines import FeatureSources
from medssl.scoring.eval_splits import SplitOptions
from medssl.scoring.picture_audit import audit_pictures
from medssl.synthetic.shortcut_mark import plant

SIZE, SHARES = 96, (0.5, 0.1, 0.4)
Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def mark(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(plant(np.asarray(image), 230, "top right"))


def word(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    image = image.copy()
    ImageDraw.Draw(image).text((SIZE // 2 - 20, 2), "PORTABLE", fill=220)
    return image


def frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image).copy()
    pixels[:, -4:] = 0
    return Image.fromarray(pixels)


def noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray((np.asarray(image) + 6 * rng.normal(size=(SIZE, SIZE))).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=30)
    return Image.open(buffer).convert("L")


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(0.8))


def larger(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return image.resize((SIZE + 16, SIZE + 16), Image.Resampling.BICUBIC)


PLANTED: dict[str, Change | None] = {
    "nothing": None, "mark in a corner": mark, "word at the edge": word, "black frame": frame, "noise": noise,
    "JPEG, quality 30": jpeg, "blur": blur, "larger picture": larger,
}  # fmt: skip


def audited(images: list[Path], folder: Path, change: Change | None, seed: int) -> list[str]:
    """Return the groups that are reported for one cohort."""
    rng = np.random.default_rng(seed)
    (folder / "scans").mkdir()
    chosen = rng.choice(len(images), len(images), replace=False)
    split = np.repeat(["train", "val", "test"], (np.array(SHARES) * len(images)).astype(int))
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", "lesion"))
        for i, part in zip(chosen, split, strict=False):
            positive = rng.random() < 0.5
            image = Image.open(images[i]).convert("L").resize((SIZE, SIZE))
            if change is not None and rng.random() < (0.9 if positive else 0.1):
                image = change(image, rng)
            image.save(folder / f"scans/{i:05}.png")
            writer.writerow((f"{i:05}.png", f"P{i:05}", part, "yes" if positive else "no"))
    store = medssl.ingest(
        folder / "scans",
        folder / "store",
        labels=folder / "table.csv",
        targets=["lesion"],
        key=folder / "key",
        workers=1,
    )
    small = {"encoder": "cnn", "encoder_options": {"widths": [8]}, "size": 16, "steps": 1, "batch": 16}
    run = medssl.pretrain(store, folder / "run", monitor_every=0, **small)
    sources, splits = FeatureSources.load(run, store, "lesion", SplitOptions(allow_overlap=True, device="cpu"))
    return audit_pictures(splits, seed, sources.device)["picture_alarms"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cohorts", type=int, default=10)
    parser.add_argument("--scans", type=int, default=400)
    given = parser.parse_args()
    images = sorted(given.images.rglob("*.png"))[: given.scans]
    print(
        f"{len(images)} scans in each of {given.cohorts} cohorts\n\n| planted | cohorts reported | by |\n| --- | --- | --- |"
    )
    for name, change in PLANTED.items():
        by: Counter[str] = Counter()
        reported = 0
        for seed in range(given.cohorts):
            with tempfile.TemporaryDirectory() as folder:
                found = audited(images, Path(folder), change, seed)
            reported += bool(found)
            by.update(found)
        print(f"| {name} | {reported} | {', '.join(f'{k} {n}' for k, n in by.most_common())} |", flush=True)


if __name__ == "__main__":
    main()
