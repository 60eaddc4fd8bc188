"""Store -> one .nii.gz file per volume, for viewers and for programs that want files."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import nibabel
import numpy as np

from medssl.errors import UserError
from medssl.files import atomic
from medssl.progress import track
from medssl.store.chunks import crc32
from medssl.store.store import Store

LEVEL = 4  # of gzip: larger saves little on scans and takes far longer
SQUARE = 1e-4  # cosine between axes up to which an affine is a rotation with spacings: a qform can say it
RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])


def nifti(store: str | Path | Store, out: str | Path, *, where: str | None = None) -> Path:
    """Writes every selected volume to `out`/PSEUDONYM.nii.gz and a table of them to `out`/index.csv; returns `out`.

    Voxels as stored, first axis left to right as NIfTI has it, world coordinates in RAS+ mm; headers hold numbers only.
    Scans in 2D that have no place in space are left out and counted. Files that are there already and hold the same are
    kept, so a stopped export goes on where it was.

    Args:
        store: a folder made by ingest, or a Store.
        out: the folder.
        where: which scans; see medssl.store.query.

    Raises:
        UserError: none of the selected scans is a volume, bytes are damaged, or the disk is full.
    """
    source, folder = Store.open(store, where=where), Path(out).expanduser()
    shapes, affines, spacings = (source.table[c].to_pylist() for c in ("shape", "affine", "spacing"))
    rows = [i for i in range(len(source)) if len(shapes[i]) == 4 or affines[i] is not None]
    if not rows:
        raise UserError(f"none of the {len(source):,} scans is a volume; for images there is: medssl png store=…")
    done: Counter[str] = Counter()
    columns = {c: source.column(c) for c in ("scan", "patient", "split", "modality")}
    labels = {f"label:{name}": source.column(f"label:{name}") for name in source.labels}
    lines = []
    for i in track(rows, "nifti", unit="scan"):
        path = folder / f"{columns['scan'][i]}.nii.gz"
        affine = None if affines[i] is None else np.reshape(affines[i], (4, 4))
        done[_write(path, encode(source[i], affine, spacings[i]))] += 1
        spacing = "" if spacings[i] is None else " ".join(f"{v:.6g}" for v in spacings[i])
        values = {k: v[i] for k, v in columns.items()} | {"spacing": spacing, "world": affine is not None}
        lines.append({"file": path.name} | values | {k: v[i] for k, v in labels.items()})
    write_index(folder / "index.csv", lines)
    skipped = f", {len(source) - len(rows):,} images in 2D without a place in space left out" * (
        len(rows) < len(source)
    )
    print(f"{done['new']:,} volumes written, {done['kept']:,} were there{skipped}: {folder}")
    return folder


def encode(array: np.ndarray, affine: np.ndarray | None, spacing: list[float] | None) -> bytes:
    """A NIfTI-1 file, not compressed.

    Args:
        array: (C, D, H, W) or (C, H, W); 3 channels of uint8 become RGB24, any other several a fifth dimension.
        affine: (4, 4) from (d, h, w) to RAS+ mm, or None: both codes are 0 then, and pixdim says the spacing.
        spacing: mm along d, h, w, or None.
    """
    array = array[:, None] if array.ndim == 3 else array
    channels, size = array.shape[0], array.shape[:0:-1]
    colour = channels == 3 and array.dtype == np.uint8
    header = nibabel.Nifti1Header(endianness="<")
    header.set_data_dtype(RGB if colour else array.dtype)
    header.set_data_shape(size if colour or channels == 1 else (*size, 1, channels))
    if affine is not None:
        ijk = affine[:, [2, 1, 0, 3]]
        zooms = np.linalg.norm(ijk[:3, :3], axis=0)
        header.set_zooms([*zooms, *header.get_zooms()[3:]])
        header.set_sform(ijk, code="scanner")
        if np.allclose((ijk[:3, :3] / zooms).T @ (ijk[:3, :3] / zooms), np.eye(3), rtol=0, atol=SQUARE):
            header.set_qform(ijk, code="scanner")
    elif spacing is not None:
        header.set_zooms([*spacing[::-1], *header.get_zooms()[3:]])
    known = affine is not None or spacing is not None
    header.set_xyzt_units("mm" if known else "unknown")
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 352
    voxels = np.moveaxis(array, 0, -1) if colour else array
    return b"".join((header.binaryblock, bytes(4), np.ascontiguousarray(voxels).data))


def write_index(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    """A table of what was exported, atomically; missing values are empty."""
    with atomic(path) as part, part.open("w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _write(path: Path, data: bytes) -> str:
    """ "kept" when the file there ends as this one would: gzip's last 8 bytes are the checksum and the size inside."""
    end = crc32(data).to_bytes(4, "little") + (len(data) % 2**32).to_bytes(4, "little")
    if path.exists():
        with path.open("rb") as f:
            f.seek(-min(8, path.stat().st_size), 2)
            if f.read() == end:
                return "kept"
    with atomic(path) as part:
        part.write_bytes(imagecodecs.gzip_encode(data, level=LEVEL))  # without a name and a time in it
    return "new"
