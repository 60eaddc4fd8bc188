"""A store of discs of three sizes and two intensities, with a label of every kind of task."""

import numpy as np
from PIL import Image

import medssl
import tiny

TARGETS = {
    "classification": "bright",
    "classification of three": "level",
    "multilabel": ["bright", "large"],
    "ordinal": "level",
    "regression": "width",
    "survival": ["days", "died"],
}


def ingest(folder, splits=("train", "train", "test")):
    """Return a store of 90 scans of 20 pixels, three in a row in each of `splits`, which repeat."""
    (folder / "scans").mkdir()
    lines = ["file,bright,large,level,width,days,died,split"]
    for i in range(90):
        level, bright = i % 3, i // 3 % 2
        random = np.random.default_rng(i)
        y, x = np.mgrid[:20, :20] - 9.5 - random.uniform(-3, 3, (2, 1, 1))
        picture = 40 + 60 * (1 + bright) * (y**2 + x**2 < (3 + 2 * level) ** 2)
        noise = np.kron(random.integers(0, 60, (5, 5)), np.ones((4, 4), int))  # coarse, or they are near duplicates
        Image.fromarray((picture + noise).astype(np.uint8)).save(folder / "scans" / f"{i}.png")
        split = splits[i % (3 * len(splits)) // 3]
        said = ("yes" if bright else "no") if i % 7 else ""
        width, days, died = 10 + 4.5 * level + i / 100, 30 - 9 * level + i / 100, int(i % 5 > 0)
        lines.append(f"{i}.png,{said},{int(level == 2)},{level},{width},{days},{died},{split}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "labels.csv", key=tiny.secret(folder / "key"),
        targets=["bright", "large", "level", "width", "days", "died"],
    )  # fmt: skip


def pretrain(store, out, **options):
    """Return a short run on the store, of a cnn that takes scans of 16 pixels."""
    small = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "steps": 2, "batch": 32}
    return medssl.pretrain(store, out, monitor_every=0, **small | options)
