"""Write the volumes of a store as NIfTI files."""

from pathlib import Path

import imagecodecs
import numpy as np

from medssl.errors import UserError
from medssl.files import atomic, write_csv
from medssl.progress import track
from medssl.results import Result
from medssl.store.chunks import crc32
from medssl.store.export import index_rows, nifti_bytes
from medssl.store.store import Store

GZIP_LEVEL = 4  # higher levels save little on scans and take far longer


def nifti(store: str | Path | Store, out: str | Path, *, where: str | None = None) -> Result:
    """Write every selected volume to `out`/PSEUDONYM.nii.gz, and a table of them to `out`/index.csv.

    The voxels are as stored, with the first axis from left to right as NIfTI has it and world coordinates in RAS+ mm.
    Headers hold numbers only. 2D scans without a position in space are skipped and counted. Existing files with the same
    content are kept, so a stopped export continues.

    Args:
        store: a folder made by ingest, or a Store.
        out: the folder.
        where: filter expression selecting scans; see `medssl.store.query`.

    Returns:
        {"out", "written", "kept", "left_out"}.

    Raises:
        UserError: none of the selected scans is a volume, bytes are damaged, or the disk is full.
    """
    source, folder = Store.open(store, where=where), Path(out).expanduser()
    shapes, affines, spacings = (source.table[c].to_pylist() for c in ("shape", "affine", "spacing"))
    rows = [i for i in range(len(source)) if len(shapes[i]) == 4 or affines[i] is not None]
    if not rows:
        raise UserError(f"none of the {len(source):,} scans is a volume; for images use: medssl png store=…")
    identifiers, labels = index_rows(source)
    kept = 0
    index = []
    for i in track(rows, "nifti", unit="scan"):
        path = folder / f"{identifiers[i]['scan']}.nii.gz"
        affine = None if affines[i] is None else np.reshape(affines[i], (4, 4))
        data = nifti_bytes(source[i], affine, spacings[i])
        if _holds(path, data):
            kept += 1
        else:
            with atomic(path) as part:
                part.write_bytes(imagecodecs.gzip_encode(data, level=GZIP_LEVEL))  # without name and time
        spacing = "" if spacings[i] is None else " ".join(f"{v:.6g}" for v in spacings[i])
        geometry = {"spacing": spacing, "world": affine is not None}
        index.append({"file": path.name} | identifiers[i] | geometry | labels[i])
    write_csv(folder / "index.csv", index)
    left_out = len(source) - len(rows)
    text = f"{len(rows) - kept:,} volumes written, {kept:,} were there"
    text += f", {left_out:,} images in 2D without a position in space left out" * bool(left_out) + f": {folder}"
    return Result({"out": str(folder), "written": len(rows) - kept, "kept": kept, "left_out": left_out}, text)


def _holds(path: Path, data: bytes) -> bool:
    """Return whether a gzip file has this content, by its last 8 bytes: the checksum and the size of the content."""
    if not path.exists():
        return False
    with path.open("rb") as f:
        f.seek(-min(8, path.stat().st_size), 2)
        return f.read() == crc32(data).to_bytes(4, "little") + (len(data) % 2**32).to_bytes(4, "little")
