"""Processor time to read a random slice and a random crop of a CT volume: this store, npy, .b2nd and .nii.gz in one run.

    python benchmarks/speed_store.py --data ../shared/data

The volume is 160 x 512 x 512 int16: real head CT slices from the folder --data (DICOM files of that size under dicom/),
interpolated along the axis, with the noise of one slice added; without --data, smooth shapes with such noise. Every read opens
its file again, as a shuffling loader does, and finds it in the page cache, so only processor time is measured. All formats read
the same boxes in turn; medians over many boxes, also as multiples of the npy memory map.
"""

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import blosc2
import nibabel
import numpy as np
import pydicom
from scipy.ndimage import gaussian_filter

from medssl.store.chunks import CODEC, pack, read_crop

SHAPE = (160, 512, 512)
BOXES = {"slice 224x224": (1, 224, 224), "crop 64x128x128": (64, 128, 128)}
B2ND = {"b2nd 64x128x128 / 16x32x32": ((64, 128, 128), (16, 32, 32)), "b2nd 8x64x64": ((8, 64, 64), (8, 64, 64))}
SLOW = "nii.gz"

Read = Callable[[tuple[int, ...], tuple[int, ...]], np.ndarray]


def real_slices(folder: Path) -> np.ndarray | None:
    """Return (N, 512, 512) float32 in HU, sorted along z, of the longest CT series found; None if there is none."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for path in sorted(folder.glob("dicom/**/*")):
        if path.is_file() and pydicom.misc.is_dicom(path):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.get("Modality") == "CT" and (header.get("Rows"), header.get("Columns")) == SHAPE[1:]:
                found.setdefault(header.SeriesInstanceUID, []).append(pydicom.dcmread(path))
    if not found:
        return None
    best = sorted(max(found.values(), key=len), key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([d.pixel_array.astype(np.float32) * d.RescaleSlope + d.RescaleIntercept for d in best])


def ct_like(data: Path | None) -> np.ndarray:
    """Return (160, 512, 512) int16."""
    rng = np.random.default_rng(0)
    slices = real_slices(data) if data else None
    if slices is None:
        print("no CT found: smooth shapes")
        blobs = gaussian_filter(rng.normal(0, 1, (40, 64, 64)).astype(np.float32), (2, 4, 4))
        slices = np.kron(np.where(blobs > 0, blobs * 2e4, -1000), np.ones((1, 8, 8), np.float32))
    out = np.empty(SHAPE, np.int16)
    for k, z in enumerate(np.linspace(0, len(slices) - 1.001, len(out))):
        i, part = int(z), z % 1
        mixed = (1 - part) * slices[i] + part * slices[i + 1]
        # interpolating two slices has averaged their noise
        noise = gaussian_filter(rng.normal(0, 1, SHAPE[1:]).astype(np.float32), 0.7)
        out[k] = np.clip(np.rint(mixed + (mixed > -900) * noise * (4 / noise.std())), -1024, 3071)
    return out


def formats(x: np.ndarray, folder: Path) -> dict[str, tuple[Path, float, Read]]:
    """Return name -> (file, processor seconds to write it, function that reads a box of it)."""
    out: dict[str, tuple[Path, float, Read]] = {}

    def add(name: str, suffix: str, write: Callable[[Path], object], read: Callable[[Path], Read]) -> None:
        path = folder / f"{len(out)}{suffix}"
        start = time.process_time()
        write(path)
        out[name] = path, time.process_time() - start, read(path)

    def box(start: tuple[int, ...], size: tuple[int, ...]) -> tuple[slice, ...]:
        return tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))

    def b2nd(path: Path) -> Read:
        dparams = blosc2.DParams(nthreads=1)
        return lambda start, size: blosc2.open(str(path), mode="r", dparams=dparams)[box(start, size)]

    def gz(path: Path) -> Read:
        return lambda start, size: np.asarray(nibabel.load(path).dataobj)[box(start[::-1], size[::-1])].T

    add(
        "npy memory map",
        ".npy",
        lambda p: np.save(p, x),
        lambda p: lambda start, size: np.array(np.load(p, mmap_mode="r")[box(start, size)]),
    )
    add(
        "medssl",
        ".vol",
        lambda p: p.write_bytes(pack(x[None])),
        lambda p: lambda start, size: read_crop(p, 0, 0, (1, *x.shape), x.dtype, start, size)[0],
    )
    cparams = {"typesize": 2, **{k: v for k, v in CODEC.items() if k != "blocksize"}}
    for name, (chunks, blocks) in B2ND.items():
        options = {"chunks": chunks, "blocks": blocks, "cparams": cparams}
        add(name, ".b2nd", lambda p, o=options: blosc2.asarray(x, urlpath=str(p), mode="w", **o), b2nd)
    add(SLOW, ".nii.gz", lambda p: nibabel.save(nibabel.Nifti1Image(x.T, np.eye(4)), p), gz)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with dicom/ in it")
    parser.add_argument("--boxes", type=int, default=101)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, blosc2 {blosc2.__version__}, numpy {np.__version__}")
    x = ct_like(args.data)
    rng = np.random.default_rng(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        entries = formats(x, Path(folder))
        spent: dict[tuple[str, str], list[float]] = {}
        for turn in range(args.boxes):
            for kind, size in BOXES.items():
                start = tuple(int(rng.integers(0, n - s + 1)) for n, s in zip(x.shape, size, strict=True))
                expected = x[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
                for name, (_, _, read) in entries.items():
                    if name == SLOW and turn >= 3:
                        continue
                    began = time.process_time()
                    got = read(start, size)
                    spent.setdefault((name, kind), []).append(time.process_time() - began)
                    assert np.array_equal(got, expected), name
        base = next(iter(entries))
        print(f"{'':30s}{'size':>6s}{'write':>8s}" + "".join(f"{k:>28s}" for k in BOXES))
        for name, (path, written, _) in entries.items():
            cells = ""
            for kind in BOXES:
                median = float(np.median(spent[name, kind]))
                cells += f"{1e3 * median:13.2f} ms = {median / np.median(spent[base, kind]):6.1f} x"
            print(f"{name:30s}{path.stat().st_size / x.nbytes:6.2f}{written:6.2f} s{cells}")


if __name__ == "__main__":
    main()
