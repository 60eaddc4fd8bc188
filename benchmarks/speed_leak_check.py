"""Time and memory of the leak check on large volumes, which it reads whole.

    python benchmarks/speed_leak_check.py --volumes 20

Synthetic CT volumes of 200 x 256 x 256 voxels (smooth shapes with noise, 16 bits), each of another patient, are ingested once.
Two thirds are pretraining and training, some validation, the rest the test; a third and all of them are checked, each in a
process of its own, so that growth of the memory with the number of volumes shows. With --thin, one volume of the test is a
stack of 5 slices: it is compared as an image, with every slice of the other volumes.
"""

import argparse
import dataclasses
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy.ndimage import zoom

import medssl
from medssl.leakage.leak_check import check_leaks, scan_set_from_store
from medssl.store.store import Store

SHAPE = (200, 256, 256)


def write(folder: Path, volumes: int, thin: int) -> None:
    """Write the volumes as NIfTI files; the last `thin` ones have 5 slices."""
    for i in range(volumes):
        rng = np.random.default_rng(i)
        shape = (5 if i >= volumes - thin else SHAPE[0], *SHAPE[1:])
        coarse = rng.normal(0, 1, (max(2, shape[0] // 10), 26, 26)).astype(np.float32)
        smooth = zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], order=1)
        hounsfield = np.where(smooth > -0.5, 150 * smooth, -1000) + rng.normal(0, 12, shape)
        image = nibabel.Nifti1Image(np.rint(hounsfield).clip(-1024, 2000).astype(np.int16).T, np.eye(4))
        nibabel.save(image, folder / f"p{i:04}.nii")


def megabytes(name: str) -> float:
    """Return the memory of this process now (VmRSS) or at most until now (VmHWM). Linux only."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def check(path: Path, volumes: int) -> str:
    """Check the last `volumes` scans of a store, and return a line about it."""
    torch.set_num_threads(1)
    store = Store.open(path)
    rows = np.argsort([-shape[1] for shape in store.column("shape")], kind="stable")[-volumes:]  # thin stacks are last
    ends = round(0.6 * volumes), round(0.7 * volumes)
    train, val, test = (
        scan_set_from_store(name, store, part)
        for name, part in zip(("training", "validation", "test"), np.split(rows, ends), strict=True)
    )
    before, began = megabytes("VmRSS"), (time.perf_counter(), time.process_time())
    report = check_leaks(dataclasses.replace(train, name="pretraining"), train, val, test)
    wall, work = time.perf_counter() - began[0], time.process_time() - began[1]
    return (
        f"{volumes} volumes ({len(test)} of them the test): {wall:.1f} s, {work:.1f} s of processors, {work / volumes:.2f} s a "
        f"volume; at most {megabytes('VmHWM') - before:.0f} MB above {before:.0f} MB before; "
        f"{'refused' if report.refusal else 'clean'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=20)
    parser.add_argument("--thin", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        (work / "scans").mkdir()
        write(work / "scans", given.volumes, int(given.thin))
        store = medssl.ingest(work / "scans", work / "store", intensity="ct", key=work / "key", workers=1)
        with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
            for volumes in (given.volumes // 3, given.volumes):
                print(pool.submit(check, store.path, volumes).result(), flush=True)


if __name__ == "__main__":
    main()
