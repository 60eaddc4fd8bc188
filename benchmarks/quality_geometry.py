"""Positions of the slices of real DICOM series: medssl compared with dcm2niix, SimpleITK, MONAI and dicom2nifti.

    python benchmarks/quality_geometry.py DICOM_FOLDER

Every folder below DICOM_FOLDER with DICOM files is one series; each tool gets a copy of it. Two measures:

1. Ground truth from the headers: each source slice is searched in the tool's volumes by its pixels (values after the
   rescale, with any flip or order of axes). The world coordinates of its corner pixels must agree with Image Position,
   Image Orientation and Pixel Spacing. `wrong` counts slices that are more than 0.1 mm off, without an error; `dropped`
   counts slices in no volume. Mosaics have no such ground truth.
2. Agreement with dcm2niix: volumes in canonical orientation with equal voxels (to 1e-3) and corners within 0.05 mm.

dcm2niix is used if it is on the PATH, the others if they can be imported. Volumes resampled by dcm2niix (`_Eq`, `_Tilt`)
are ignored. Slices refused with a reason count as dropped, and so do single images, which are in the store but not in a
volume. Times are from one run; those of dcm2niix include starting a process, those of medssl starting its workers for
every folder, and writing and exporting a store.
"""

import argparse
import importlib
import itertools
import logging
import shutil
import subprocess
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom

MISPLACED, CORNER = 0.1, 0.05  # mm
AIR = -1024  # HU; replaces padding of CT for the comparison
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

Volume = tuple[np.ndarray, np.ndarray]  # three axes in any order; (4, 4) from its indices to RAS+ mm


@dataclass(frozen=True)
class Truth:
    """A slice according to its header: values (rows, columns) and three corners, (row, column) -> RAS+ mm."""

    values: np.ndarray
    corners: dict[tuple[int, int], np.ndarray]


def comparable(values: np.ndarray) -> np.ndarray:
    """Return values for comparison: colour (last axis of 3, or a record) as one integer, padding of CT as air."""
    if values.dtype.names:
        values = np.stack([values[c] for c in values.dtype.names], -1)
    if values.shape[-1:] == (3,) and values.dtype == np.uint8:
        return (values @ np.array([1, 256, 65536])).astype(np.float64)
    return np.maximum(values.astype(np.float64), AIR)


def truths(folder: Path) -> list[Truth]:
    """Return the slices of a folder that have a position."""
    found = []
    for path in sorted(folder.iterdir()):
        ds = pydicom.dcmread(path)
        if (
            "MOSAIC" in ds.get("ImageType", ())
            or "ImagePositionPatient" not in ds
            or int(ds.get("NumberOfFrames", 1)) > 1
        ):
            continue
        values = ds.pixel_array
        if values.ndim == 2:
            values = values * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        row, column = np.split(np.array(ds.ImageOrientationPatient, float), 2)
        down, right = (float(v) for v in ds.PixelSpacing)
        position = np.array(ds.ImagePositionPatient, float)
        ends = ((0, 0), (0, ds.Columns - 1), (ds.Rows - 1, ds.Columns - 1))
        corners = {(r, c): RAS[:3, :3] @ (position + r * down * column + c * right * row) for r, c in ends}
        found.append(Truth(comparable(values), corners))
    return found


def places(truth: Truth, volumes: list[Volume]) -> Iterator[float]:
    """Yield the error in mm of the worst corner, for every place in the volumes with the pixels of the slice."""
    for array, affine in volumes:
        for axis, flips in itertools.product(range(3), itertools.product((1, -1), repeat=2)):
            for order in ((0, 1), (1, 0)):
                rest = [a for a in range(3) if a != axis]
                view = array.transpose(axis, rest[order[0]], rest[order[1]])[:, :: flips[0], :: flips[1]]
                if view.shape[1:] != truth.values.shape:
                    continue
                few = np.isclose(view[:, ::17, ::13], truth.values[::17, ::13], rtol=1e-6, atol=1e-3).all((1, 2))
                for k in np.flatnonzero(few):
                    if not np.allclose(view[k], truth.values, rtol=1e-6, atol=1e-3):
                        continue
                    errors = []
                    for corner, where in truth.corners.items():
                        index = np.zeros(3)
                        index[axis] = k
                        for i in (0, 1):
                            n = truth.values.shape[i]
                            index[rest[order[i]]] = corner[i] if flips[i] == 1 else n - 1 - corner[i]
                        errors.append(float(np.linalg.norm(affine[:3, :3] @ index + affine[:3, 3] - where)))
                    yield max(errors)


def canonical(volume: Volume) -> Volume:
    """Reorient a volume so that its axes point to right, anterior and superior."""
    array, affine = volume
    turn = nibabel.orientations.io_orientation(affine)
    turned = affine @ nibabel.orientations.inv_ornt_aff(turn, array.shape)
    return nibabel.orientations.apply_orientation(array, turn), turned


def agreeing(volumes: list[Volume], reference: list[Volume]) -> int:
    """Return how many volumes of the reference are among `volumes`, each used once."""
    left, count = [canonical(v) for v in volumes if abs(np.linalg.det(v[1])) > 1e-6], 0
    for array, affine in map(canonical, reference):
        ends = np.array([(*i, 1) for i in itertools.product(*((0, n - 1) for n in array.shape))]).T
        for i, (other, where) in enumerate(left):
            same = other.shape == array.shape and np.allclose(other, array, rtol=1e-6, atol=1e-3)
            if same and np.linalg.norm(((where - affine) @ ends)[:3], axis=0).max() < CORNER:
                left.pop(i)
                count += 1
                break
    return count


def load(folder: Path) -> list[Volume]:
    """Return all volumes of the NIfTI files of a folder; 4D and 5D files have several."""
    volumes = []
    for path in sorted([*folder.rglob("*.nii"), *folder.rglob("*.nii.gz")]):
        if any(mark in path.name for mark in ("_Eq", "_Tilt", "_ROI")):
            continue
        image = nibabel.load(path)
        if image.header["sform_code"] == image.header["qform_code"] == 0:
            continue
        array = comparable(np.asarray(image.dataobj))
        array = array.reshape(*(*array.shape, 1, 1)[:3], -1)
        volumes += [(array[..., t], image.affine) for t in range(array.shape[3])]
    return volumes


# ---- the tools; arguments: a folder of DICOM files, and an output folder


def run_medssl(folder: Path, out: Path) -> list[Volume]:
    from medssl.commands.data.ingest import ingest
    from medssl.commands.data.nifti import nifti

    store = ingest(folder, out / "store", key=out / "key", workers=1)
    nifti(store, out / "nifti")
    return load(out / "nifti")


def run_dcm2niix(folder: Path, out: Path) -> list[Volume]:
    done = subprocess.run(
        ["dcm2niix", "-z", "n", "-b", "n", "-f", "%s_%d_%e", "-o", str(out), str(folder)],
        capture_output=True,
        check=False,
    )
    volumes = load(out)
    if done.returncode and not volumes:
        raise RuntimeError(f"exit {done.returncode}")
    return volumes


def run_simpleitk(folder: Path, out: Path) -> list[Volume]:
    import SimpleITK

    volumes = []
    for uid in SimpleITK.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        reader = SimpleITK.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
        image = reader.Execute()
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        volumes.append((comparable(SimpleITK.GetArrayFromImage(image)).transpose(2, 1, 0), RAS @ affine))
    return volumes


def run_monai(folder: Path, out: Path) -> list[Volume]:
    from monai.data import PydicomReader

    reader = PydicomReader()
    array, meta = reader.get_data(reader.read(str(folder)))
    array = np.asarray(array)
    array = comparable(array.astype(np.uint8) if array.ndim == 4 and array.shape[-1] == 3 else array)
    array = array.reshape(*(*array.shape, 1, 1)[:3], -1)
    return [(array[..., t], np.asarray(meta["affine"])) for t in range(array.shape[3])]


def run_dicom2nifti(folder: Path, out: Path) -> list[Volume]:
    from dicom2nifti.convert_dir import convert_directory

    convert_directory(str(folder), str(out), compression=False, reorient=False)
    return load(out)


def imported(name: str) -> bool:
    """Return whether a module can be imported, and import it, so that this is not part of the time."""
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


TOOLS: dict[str, tuple[Callable[[Path, Path], list[Volume]], Callable[[], Any]]] = {
    "dcm2niix": (run_dcm2niix, lambda: shutil.which("dcm2niix")),  # first, because the others are compared with it
    "medssl": (run_medssl, lambda: True),
    "SimpleITK": (run_simpleitk, lambda: imported("SimpleITK")),
    "MONAI": (run_monai, lambda: imported("monai.data")),
    "dicom2nifti": (run_dicom2nifti, lambda: imported("dicom2nifti.convert_dir")),
}


def is_dicom(path: Path) -> bool:
    """Return whether a file is a DICOM image according to pydicom."""
    try:
        return "Rows" in pydicom.dcmread(path, stop_before_pixels=True)
    except (pydicom.errors.InvalidDicomError, OSError, ValueError):
        return False


def score(name: str, folder: Path, total: Counter[tuple[str, str]]) -> None:
    """Print one line per tool for one series folder."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "in"
        source.mkdir()
        for path in folder.iterdir():
            if path.is_file() and is_dicom(path):
                shutil.copy(path, source / path.name)
        slices = truths(source)
        made: dict[str, list[Volume]] = {}
        errors: defaultdict[str, str] = defaultdict(str)
        for tool, (run, present) in TOOLS.items():
            if not present():
                continue
            out = Path(scratch) / tool
            out.mkdir()
            start = time.perf_counter()
            try:
                with redirect_stdout(StringIO()), warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made[tool] = run(source, out)
            except Exception as e:  # any failure of a tool counts
                made[tool], errors[tool] = [], type(e).__name__
            seconds = time.perf_counter() - start
            near = [min(places(truth, made[tool]), default=np.inf) for truth in slices]
            found = [e for e in near if np.isfinite(e)]
            counts = {
                "slices": len(slices),
                "right": sum(e <= MISPLACED for e in found),
                "wrong": sum(e > MISPLACED for e in found),
                "dropped": len(near) - len(found),
                "volumes": len(made[tool]),
                "agree": agreeing(made[tool], made.get("dcm2niix", [])),
                "failed": bool(errors[tool]) or not made[tool],
            }
            total.update({(tool, k): int(v) for k, v in counts.items()} | {(tool, "ms"): round(1000 * seconds)})
            worst = f"{max(found):8.2f}" if found else "       -"
            what = errors[tool] or ("" if made[tool] else "no volume")
            print(
                f"{name[-44:]:44} {tool:12} {counts['right']:4}/{len(slices):<4} {counts['wrong']:5}"
                f" {counts['dropped']:7} {worst} {len(made[tool]):7} {seconds:7.2f} {what}",
                flush=True,
            )


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("folder", type=Path)
    root = args.parse_args().folder
    logging.disable()
    absent = [tool for tool, (_, present) in TOOLS.items() if not present()]
    print(f"absent: {', '.join(absent) or 'none'}")
    print(f"{'series':44} {'tool':12} {'right':>9} wrong dropped  max mm volumes seconds")
    total: Counter[tuple[str, str]] = Counter()
    for folder in sorted({p.parent for p in root.rglob("*") if p.is_file() and is_dicom(p)}):
        score(folder.relative_to(root).as_posix(), folder, total)
    print(f"\n{'tool':12} slices right wrong dropped  volumes  as dcm2niix  folders without a volume  seconds")
    for tool in (t for t in TOOLS if t not in absent):
        c = {key: n for (name, key), n in total.items() if name == tool}
        print(
            f"{tool:12} {c['slices']:6} {c['right']:5} {c['wrong']:5} {c['dropped']:7} {c['volumes']:8}"
            f" {c['agree']:6}/{total[('dcm2niix', 'volumes')]:<5} {c['failed']:18} {c['ms'] / 1000:15.1f}"
        )


if __name__ == "__main__":
    main()
