"""DICOM files to scans. Only allow-listed facts leave a header; identifiers leave it as pseudonyms or not at all."""

import hashlib
import logging
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset

from medssl.scans.alias import Alias
from medssl.scans.header import facts_of, image_type, modality_of, numbers, raw, scanner_of
from medssl.scans.pixels import AIR, Pixels, one_channel, read_pixels, smallest
from medssl.scans.scan import Scan, Unreadable
from medssl.scans.series import Slice, canonical, geometry, spacing_of

STACKED = {"CT", "MR", "PT"}  # modalities whose single images are slices of a volume
DEFLATED = b"1.2.840.10008.1.2.1.99"
PLACEHOLDERS = {"", "ANON", "ANONYMOUS", "ANONYMIZED", "0", "UNKNOWN", "NONE"}
# Prefixes of SOP classes without an image to learn from: reports, plans, waveforms, segmentations, documents.
NOT_IMAGES = (
    "1.2.840.10008.1.3.10",
    *(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("9.", "11.", "66", "88.", "104.", "481.")),
)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Dataset, BinaryIO]]:
    """The header of `path`, and a stream that stands at its pixel data. Nothing a library says about it is printed.

    Raises:
        Unreadable: EMPTY, TRUNCATED, BAD_HEADER, NOT_DICOM, NO_PIXELS, UNSUPPORTED_SYNTAX, NOT_AN_IMAGE.
    """
    with path.open("rb") as stream:
        start = stream.read(2048)
        if not start:
            raise Unreadable("EMPTY", "the file has no bytes")
        if DEFLATED in start:
            raise Unreadable("UNSUPPORTED_SYNTAX", "deflated files are not read: they may inflate without limit")
        stream.seek(0)
        with quiet():
            try:
                ds = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            except (EOFError, OSError):
                raise Unreadable("TRUNCATED", "the file ends inside the header") from None
            except Exception as e:
                raise Unreadable("BAD_HEADER", f"the header cannot be parsed ({type(e).__name__})") from None
            sop = str(ds.get("SOPClassUID", "") or "")
            if any(sop.startswith(prefix) for prefix in NOT_IMAGES):
                raise Unreadable("NOT_AN_IMAGE", "this kind of DICOM object has no image")
            if "Rows" not in ds:
                raise Unreadable("NO_PIXELS" if sop else "NOT_DICOM", "the header describes no image")
            yield ds, stream


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what readers warn about and log: their words quote the header."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global", "PIL")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def look(path: Path) -> Slice | None:
    """What grouping needs to know, if this file is a slice of a volume; None for an image that stands alone."""
    with opened(path) as (ds, _):
        kind = image_type(ds)
        if "MOSAIC" in kind:
            raise Unreadable("MOSAIC_UNSUPPORTED", "slices tiled into one image are not read yet")
        if modality_of(ds) not in STACKED or (numbers(ds, "NumberOfFrames") or (1.0,))[0] > 1:
            return None
        position, orientation = (numbers(ds, k) for k in ("ImagePositionPatient", "ImageOrientationPatient"))
        spacing = numbers(ds, "PixelSpacing")
        if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
            return None
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        lengths = np.linalg.norm(row), np.linalg.norm(column)
        if min(spacing) <= 0 or max(abs(v - 1) for v in lengths) > 1e-3 or abs(row @ column) > 1e-3:
            return None  # pixels are fine, the place is not known
        return Slice(
            path=path,
            uid=raw(ds, "SOPInstanceUID"),
            key=group_key(ds, orientation, spacing, kind),
            position=position,
            orientation=(*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist()),
            spacing=spacing,
            order=tuple(
                (numbers(ds, k) or (0.0,))[0]
                for k in ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
            ),
        )


def group_key(
    ds: Dataset, orientation: tuple[float, ...], spacing: tuple[float, ...], kind: tuple[str, ...]
) -> tuple[Hashable, ...]:
    """What slices of one volume share. Tube current and acquisition number differ inside volumes: neither is in it."""
    return (
        raw(ds, "StudyInstanceUID"),
        raw(ds, "SeriesInstanceUID"),
        modality_of(ds),
        *(int(v) for k in ("Rows", "Columns", "SamplesPerPixel") for v in numbers(ds, k)[:1]),
        str(ds.get("PhotometricInterpretation", "")),
        tuple(round(v, 3) + 0.0 for v in orientation),
        tuple(round(v, 4) for v in spacing),
        kind[:4],
        *(
            numbers(ds, k)
            for k in (
                "EchoTime",
                "EchoNumbers",
                "DiffusionBValue",
                "FlipAngle",
                "InversionTime",
                "ReconstructionDiameter",
            )
        ),
        str(ds.get("ConvolutionKernel", "")),
    )


def image(path: Path, alias: Alias, relative: str) -> Scan:
    """One file that stands alone, as (C, H, W)."""
    with opened(path) as (ds, stream):
        modality = modality_of(ds)
        if "MOSAIC" in image_type(ds):
            raise Unreadable("MOSAIC_UNSUPPORTED", "slices tiled into one image are not read yet")
        frame = read_pixels(ds, stream, modality)
        array, steps = assemble([frame], modality)
        spacing = numbers(ds, "PixelSpacing") or numbers(ds, "ImagerPixelSpacing")
        known = len(spacing) == 2 and min(spacing) > 0
        ids = identify(ds, alias, relative)
        return Scan(
            array=array[:, 0],
            scan=alias.alias("scan", raw(ds, "SOPInstanceUID") or b"file|" + relative.encode()),
            spacing=spacing if known else None,
            modality=modality,
            scanner=scanner_of(ds),
            facts=facts_of(ds),
            steps=steps,
            **ids,  # type: ignore[arg-type]
        )


def volume(stack: list[Slice], repeat: int, alias: Alias, relative: str) -> Scan:
    """A sorted stack as (C, D, H, W), axes pointing to superior, anterior and right."""
    affine, tilt = geometry(stack)
    with opened(stack[0].path) as (ds, _):
        modality, ids, facts, scanner = modality_of(ds), identify(ds, alias, relative), facts_of(ds), scanner_of(ds)
    frames = []
    for s in stack:
        with opened(s.path) as (ds, stream):
            frames.append(_compact(read_pixels(ds, stream, modality)))
    array, steps = assemble(frames, modality)
    array, affine = canonical(array, affine)
    if tilt > 0.1:
        facts["tilt"] = round(tilt, 1)
    return Scan(
        array=array,
        scan=alias.alias("scan", f"{stack[0].key!r}|{repeat}"),
        affine=affine,
        spacing=spacing_of(affine),
        modality=modality,
        scanner=scanner,
        facts=facts,
        steps=(*steps, "reorient to RAS"),
        **ids,  # type: ignore[arg-type]
    )


def _compact(p: Pixels) -> Pixels:
    """The same frame in few bytes: all frames of a volume are held at once."""
    return Pixels(
        p.values.astype(smallest(p.values.min(), p.values.max(), p.preferred)), p.preferred, p.padding, p.steps
    )


def assemble(frames: list[Pixels], modality: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Frames to (C, D, H, W) in one type, padding filled, grey written as colour reduced to one channel."""
    if len({f.values.shape for f in frames}) > 1:
        raise Unreadable("BAD_GEOMETRY", "the slices of a stack differ in size")
    low, high = min(f.values.min() for f in frames), max(f.values.max() for f in frames)
    preferred = next((f.preferred for f in frames if f.preferred.kind == "f"), frames[0].preferred)
    padded = any(f.padding is not None for f in frames)
    if padded and modality == "CT":
        low = min(low, AIR)
    array = np.empty(
        (frames[0].values.shape[0], len(frames), *frames[0].values.shape[1:]), smallest(low, high, preferred)
    )
    for d, f in enumerate(frames):
        array[:, d] = f.values
    steps = list(dict.fromkeys(step for f in frames for step in f.steps))
    if padded:
        _fill(array, frames, modality)
        steps.append("padding filled")
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    return array, tuple(steps)


def _fill(array: np.ndarray, frames: list[Pixels], modality: str) -> None:
    """Padding becomes air in CT, else the darkest real value."""
    mask = np.stack([np.zeros(f.values.shape[1:], bool) if f.padding is None else f.padding for f in frames])
    if mask.all():
        raise Unreadable("NO_PIXELS", "every pixel is padding")
    array[:, mask] = AIR if modality == "CT" else array[:, ~mask].min()


def pixel_digest(s: Slice) -> bytes:
    """Hash of everything from the pixel data on, to tell a copy from a repeat."""
    with opened(s.path) as (_, stream):
        return hashlib.blake2b(stream.read(), digest_size=16).digest()


def identify(ds: Dataset, alias: Alias, relative: str) -> dict[str, str | bool]:
    """Pseudonyms of patient, study and series. Without a patient id the study, or else the file, stands in for it."""
    issuer, patient = raw(ds, "IssuerOfPatientID"), raw(ds, "PatientID")
    study, series = raw(ds, "StudyInstanceUID"), raw(ds, "SeriesInstanceUID")
    known = patient.decode("latin-1").strip().upper() not in PLACEHOLDERS
    stand_in = b"study|" + study if study else b"file|" + relative.encode()
    return {
        "patient": alias.alias("patient", issuer + b"|" + patient if known else stand_in),
        "patient_known": known,
        "study": alias.alias("study", study) if study else "",
        "series": alias.alias("series", series) if series else "",
    }
