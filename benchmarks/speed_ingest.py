"""Time to read one CT slice of 512 x 512: medssl, pydicom and MONAI in the same run.

    python benchmarks/speed_ingest.py

`medssl` parses the header, extracts metadata and pseudonyms, validates lengths and decodes to Hounsfield units; pydicom's
`dcmread(...).pixel_array` gives stored values, and `apply_modality_lut` Hounsfield units in float64; MONAI's LoadImage
gives float32. The header is that of pydicom's CT_small.dcm, the pixels are random. The tools alternate, so that other load
on the machine affects all of them; the median round counts. One thread, files in the page cache.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_modality_lut

from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Slice

FILES, ROUNDS, SIZE = 20, 15, 512


def make(folder: Path) -> list[Path]:
    """Write 16-bit CT slices with a real header."""
    ds = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    ds.Rows = ds.Columns = SIZE
    rng = np.random.default_rng(0)
    paths = [folder / f"{k}.dcm" for k in range(FILES)]
    for k, path in enumerate(paths):
        ds.SOPInstanceUID = f"1.2.3.{k}"
        ds.PixelData = rng.integers(0, 4096, (SIZE, SIZE), np.int16).tobytes()
        ds.save_as(path)
    return paths


def tools(pseudonyms: Pseudonyms) -> dict[str, Callable[[Path], object]]:
    """Return tool name -> function that reads one file."""

    def ours(path: Path) -> object:
        with path.open("rb") as stream:
            found = reader.read(stream, path.name, pseudonyms)
            assert isinstance(found, Slice)
            return reader.decode(stream, found.frame)

    def header_only(path: Path) -> object:
        with path.open("rb") as stream:
            return reader.read(stream, path.name, pseudonyms)

    def hounsfield(path: Path) -> object:
        ds = pydicom.dcmread(path)
        return apply_modality_lut(ds.pixel_array, ds)

    others: dict[str, Callable[[Path], object]] = {}
    try:
        from monai.transforms import LoadImage
    except ImportError:
        print("MONAI is not installed")
    else:
        others["MONAI LoadImage"] = LoadImage(reader="PydicomReader", image_only=True)
    return {
        "medssl, HU": ours,
        "medssl, header only": header_only,
        "pydicom, stored": lambda path: pydicom.dcmread(path).pixel_array,
        "pydicom, HU": hounsfield,
        "pydicom, header only": lambda path: pydicom.dcmread(path, stop_before_pixels=True),
        **others,
    }


def main() -> None:
    print(f"{platform.machine()}, pydicom {pydicom.__version__}, numpy {np.__version__}")
    entries = tools(Pseudonyms(bytes(32)))
    times: dict[str, list[float]] = {name: [] for name in entries}
    with tempfile.TemporaryDirectory() as folder:
        paths = make(Path(folder))
        for _ in range(ROUNDS + 1):
            for name, read in entries.items():
                start = time.process_time()
                for path in paths:
                    read(path)
                times[name].append((time.process_time() - start) / FILES)
    reference = statistics.median(times["pydicom, stored"][1:])
    for name, rounds in times.items():  # the first round warms up
        median = statistics.median(rounds[1:])
        print(f"{name:22} {1e3 * median:7.2f} ms a slice   {reference / median:5.2f} x pydicom, stored")


if __name__ == "__main__":
    main()
