"""Readers of MNIST's four idx.gz files, for the other benchmarks."""

import gzip
from pathlib import Path

import numpy as np


def part(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, 28, 28) uint8 and labels (N,) int64 of "train" or "t10k", in the files' order."""
    with gzip.open(folder / f"{name}-images-idx3-ubyte.gz") as f:
        images = np.frombuffer(bytearray(f.read()), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz") as f:
        return images, np.frombuffer(f.read(), np.uint8, offset=8).astype(np.int64)


def archive(folder: Path, path: Path, train: int, val: int) -> Path:
    """Write an npz for `medssl ingest`: the first `train` images, the last `val` of the 60,000, and all test images."""
    images, labels = part(folder, "train")
    ends = slice(0, train), slice(len(images) - val, None)
    parts = [(images[e], labels[e]) for e in ends] + [part(folder, "t10k")]
    arrays = {
        f"{split}_{kind}": array
        for split, found in zip(("train", "val", "test"), parts, strict=True)
        for kind, array in zip(("images", "labels"), found, strict=True)
    }
    np.savez(path, **arrays)
    return path
