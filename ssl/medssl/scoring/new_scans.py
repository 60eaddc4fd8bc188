"""Scans that are in no store: read from files or given as arrays, and prepared as the store of an encoder's training was.

They pass through a temporary store, which is deleted again, so that an image gives the features that it has in a store.
"""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from medssl.encoders.config import EncoderConfig
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.ingestion.writer import StoreWriter
from medssl.readers import formats
from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.quiet import silenced
from medssl.readers.scan import Scan, Slice, Unreadable
from medssl.runs.run_folder import Run
from medssl.scoring.data_frame import data_frame
from medssl.scoring.features import from_encoder, resolve_device
from medssl.store.intensity_windows import INTENSITIES
from medssl.store.store import Store

DTYPES = ("uint8", "int16", "uint16", "float32")  # of stores


def read_files(paths: Sequence[str | Path]) -> Iterator[tuple[str, Scan | Unreadable]]:
    """Yield (path as given, with "#part" if a file has several, scan or why it cannot be read) of each scan in files.

    DICOM files are read as single images. Raises UserError for a path at which there is no file.
    """
    alias = Pseudonyms(secrets.token_bytes(32))
    for path in map(Path, paths):
        if path.is_dir():
            raise UserError(f"{path} is a folder; give files, or ingest it and use medssl embed")
        if not path.is_file():
            raise UserError(f"there is no file at {path}; check the path")
        try:
            with silenced(), disk_errors(path), path.open("rb") as stream:
                found = formats.read(stream, path.name, alias)
                if isinstance(found, Slice):
                    yield str(path), reader.single(found, stream)
                    continue
                for scan, name in found:
                    yield f"{path}{name.removeprefix(path.name)}", scan
        except Unreadable as e:
            yield str(path), e


def of_arrays(arrays: Sequence[Any], config: EncoderConfig, spacing: Sequence[float] | None) -> list[Scan]:
    """Return arrays (H, W), (D, H, W), or these with channels first, in the physical values of the encoder's modality, as scans.

    spacing: mm per voxel along each spatial axis, for all. Raises UserError for arrays of another number of axes or kind.
    """
    dims, out = len(config.size), []
    for i, given in enumerate(arrays):
        array = np.asarray(given)
        array = array[None] if array.ndim == dims else array
        if array.ndim != dims + 1 or not array.size:
            raise UserError(
                f"array {i} has shape {np.shape(given)}; the encoder takes {dims}D scans, with or without channels first"
            )
        if array.dtype.kind not in "uifb":
            raise UserError(f"array {i} has type {array.dtype}; give numbers")
        kept = array if array.dtype.name in DTYPES else array.astype(np.float32)
        mm = None if spacing is None else tuple(map(float, spacing))
        if mm is not None and len(mm) != dims:
            raise UserError(f"spacing has {len(mm)} numbers; give one for each of the {dims} spatial axes")
        out.append(Scan(kept, str(i), str(i), spacing=mm, modality=config.modality))
    return out


def misfit(scan: Scan, config: EncoderConfig) -> str:
    """Return why an encoder cannot take a scan, "" if it can."""
    has, takes = (len(scan.array), scan.array.ndim - 1), (config.channels, len(config.size))
    words = "{} channels in {}D".format
    return "" if has == takes else f"it has {words(*has)}, and the encoder takes {words(*takes)}"


@contextmanager
def temporary_store(scans: Sequence[Scan], config: EncoderConfig) -> Iterator[tuple[Store, np.ndarray]]:
    """Yield a store of the scans, windowed as those that the encoder was trained on, and the row of each scan.

    Raises UserError for an array without pixels or with values that are not finite.
    """
    intensity = next((name for name, words in INTENSITIES.items() if words == config.intensity), None)
    if intensity is None:
        raise UserError("the encoder does not say how its scans were windowed; pretrain again with this medssl")
    alias = Pseudonyms(secrets.token_bytes(32))
    ids = [alias.of("scan", str(i)) for i in range(len(scans))]
    with TemporaryDirectory(prefix="medssl-") as folder:
        with StoreWriter(Path(folder) / "store", alias, intensity) as writer:
            for i, (scan, name) in enumerate(zip(scans, ids, strict=True)):
                try:
                    who = alias.of("patient", str(i))
                    writer.add(
                        replace(scan, scan=name, patient=who, study=name, series=name, split="test", labels={}), str(i)
                    )
                except Unreadable as e:
                    raise UserError(f"scan {i} cannot be used: {e}") from e
            writer.finish()
        store = Store.open(Path(folder) / "store", quarantined=True)
        at = {name: row for row, name in enumerate(store.column("scan"))}
        yield store, np.array([at[name] for name in ids], np.int64)


class Encoder:
    """The encoder of a run, for scans that are in no store.

        medssl.Encoder("run/").transform(["new.png", "new.dcm"])      # a pandas DataFrame, a row for each scan

    Attributes:
        config: what the encoder expects; see `medssl.encoders.config.EncoderConfig`.
    """

    def __init__(self, run: str | Path, device: str = "auto"):
        """Raises UserError if the run is not finished, or for a device that is not there."""
        folder = Run(Path(run))
        folder.finished()
        self.device = resolve_device(device)
        self.network, self.config = load_encoder(folder.path)

    def transform(self, scans: Sequence[Any] | str | Path | np.ndarray, spacing: Sequence[float] | None = None) -> Any:
        """Return the features of new scans as a pandas DataFrame, indexed by path or number, with columns f0, f1, …

        Args:
            scans: paths of PNG, JPEG, TIFF, DICOM or NIfTI files; or arrays (H, W) or (D, H, W), or with channels first, in
                the physical values of the training scans (HU for CT).
            spacing: of arrays, in mm along each spatial axis.

        Raises UserError for a file that cannot be read, or a scan that the encoder does not take.
        """
        given: list[Any] = [scans] if isinstance(scans, str | Path) else list(scans)
        if not given:
            raise UserError("there are no scans; give paths or arrays")
        if isinstance(given[0], str | Path):
            read = list(read_files(given))
        else:
            read = [(str(i), scan) for i, scan in enumerate(of_arrays(given, self.config, spacing))]
        kept: list[Scan] = []
        for name, scan in read:
            why = str(scan) if isinstance(scan, Unreadable) else misfit(scan, self.config)
            if why or isinstance(scan, Unreadable):
                raise UserError(f"{name} cannot be embedded: {why}")
            kept.append(scan)
        return data_frame({"scan": [name for name, _ in read]}, self.features(kept))

    def features(self, scans: Sequence[Scan]) -> np.ndarray:
        """Return features (N, D) float32 of scans, in order."""
        with temporary_store(scans, self.config) as (store, rows):
            return from_encoder(self.network, self.config.input, self.device)(store, rows)
