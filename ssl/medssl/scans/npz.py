"""MedMNIST archives (https://medmnist.com): arrays train_images, train_labels, val_…, test_… in one npz file."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from medssl.scans.alias import Alias
from medssl.scans.nifti import lossless
from medssl.scans.pixels import one_channel
from medssl.scans.scan import Scan, Unreadable

SPLITS = ("train", "val", "test")
DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError)  # what a broken archive raises


def images(path: Path, alias: Alias, relative: str) -> Iterator[tuple[Scan, str]]:
    """Every record with its name, `relative#train/12`. A record is its own patient, its split is the archive's.

    Raises:
        Unreadable: NOT_AN_IMAGE for another layout, TRUNCATED, UNSUPPORTED_PIXELS.
    """
    try:
        archive = np.load(path, allow_pickle=False)
    except DAMAGE:
        raise Unreadable("TRUNCATED", "the archive is damaged or incomplete") from None
    with archive:
        splits = [s for s in SPLITS if f"{s}_images" in archive.files]
        if not splits:
            raise Unreadable("NOT_AN_IMAGE", "the archive has no train_images, val_images or test_images")
        for split in splits:
            try:
                pixels = archive[f"{split}_images"]
                labels = archive[f"{split}_labels"] if f"{split}_labels" in archive.files else None
            except DAMAGE:
                raise Unreadable("TRUNCATED", f"the {split} part is damaged or incomplete") from None
            if pixels.ndim not in {3, 4, 5} or pixels.dtype.kind not in "iufb":
                raise Unreadable("UNSUPPORTED_PIXELS", f"{split}_images is no stack of images")
            if labels is not None and (len(labels) != len(pixels) or labels.dtype.kind not in "iub"):
                raise Unreadable("UNSUPPORTED_PIXELS", f"{split}_labels are not one row of integers per image")
            for i, record in enumerate(pixels):
                name = f"{relative}#{split}/{i}"
                yield _scan(record, None if labels is None else labels[i], split, alias, name), name


def _scan(record: np.ndarray, label: np.ndarray | None, split: str, alias: Alias, name: str) -> Scan:
    """record: (H, W), (H, W, 3), (D, H, W) or (D, H, W, 3)."""
    colour = record.ndim > 2 and record.shape[-1] == 3
    array = np.ascontiguousarray(np.moveaxis(record, -1, 0)) if colour else record[None]
    array, steps = lossless(array)
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    values = [] if label is None else [str(int(v)) for v in np.ravel(label)]
    return Scan(
        array=array,
        scan=alias.alias("scan", f"file|{name}"),
        patient=alias.alias("patient", f"file|{name}"),
        patient_known=False,
        labels={"label": values[0]} if len(values) == 1 else {f"label_{k}": v for k, v in enumerate(values)},
        split=split,
        steps=tuple(steps),
    )
