"""DICOM files to scans. Only allow-listed facts leave a header; identifiers leave it as pseudonyms or not at all."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from operator import mul
from posixpath import dirname
from typing import Any, BinaryIO

import numpy as np

from medssl.readers.dicom import codecs, frames
from medssl.readers.dicom.codecs import Layout, Place
from medssl.readers.dicom.header import DEFLATED, Header, parse
from medssl.readers.dicom.luts import window
from medssl.readers.dicom.metadata import (
    identify,
    image_type,
    metadata_of,
    modality_of,
    numbers,
    quarantine_reason,
    scanner_of,
)
from medssl.readers.dicom.pixels import AIR, Pixels, arguments, smallest, to_values
from medssl.readers.dicom.series import canonical, spacing_of, stack_geometry
from medssl.readers.dicom.ultrasound import crop, ultrasound_crop
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable
from medssl.readers.values import one_channel

STACKED = {"CT", "MR", "PT"}  # modalities whose single images are slices of a volume
PROJECTIONS = {"CR", "DX", "MG", "RG", "IO", "PX", "XA", "RF"}  # whose window the machine has chosen for the picture
TILTED = 0.1  # degrees
# Prefixes of SOP classes without an image to learn from: reports, plans, waveforms, segmentations, documents.
NOT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("9.", "11.", "66", "67", "68", "88.", "104.", "481."))


def read(
    stream: BinaryIO, name: str, pseudonyms: Pseudonyms, file: str
) -> Slice | Iterator[tuple[Scan | Unreadable, str]]:
    """A slice of a volume, its pixels proved to be there but not decoded; else the images of the file.

    name: the file's path relative to its source. file: the pseudonym of the file, which becomes `Slice.file`.

    Raises:
        Unreadable: the codes of `header.parse`, `Layout.of`, `codecs.frames`, `pixels.arguments` and
            `pixels.to_values`, NOT_AN_IMAGE, NOT_DICOM, NO_PIXELS.
    """
    header = parse(stream)
    sop = header.word("SOPClassUID")
    if sop.startswith(NOT_IMAGES) or "DirectoryRecordSequence" in header:
        raise Unreadable("NOT_AN_IMAGE", "this kind of DICOM object has no image")
    if "Rows" not in header:
        raise Unreadable("NO_PIXELS" if sop else "NOT_DICOM", "the header describes no image")
    layout = Layout.of(header)
    groups = "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header
    if groups or layout.frames > 1 or "MOSAIC" in image_type(header):
        return frames.read(header, name, pseudonyms, file)
    modality = modality_of(header)
    place = codecs.frames(header.stream, header, layout)[0]
    how = arguments(header, layout, modality)
    uid = pseudonyms.of("scan", header.raw("SOPInstanceUID") or b"file|" + name.encode())
    about = {
        "modality": modality,
        "scanner": scanner_of(header),
        "metadata": metadata_of(header),
        "quarantined": quarantine_reason(header, modality),
        **identify(header, pseudonyms, name),
    }
    if modality in STACKED:
        found = _slice(header, name, pseudonyms, file=file, uid=uid, about=about)
        if found is not None:
            again = how["lut"] is not None or layout.syntax == DEFLATED
            found.frame.update({"parse": True} if again else {"layout": dict(vars(layout)), "place": place, **how})
            return found
    return iter([(_image(header, layout, place, how, uid, about), name)])


def _slice(header: Header, name: str, pseudonyms: Pseudonyms, **known: Any) -> Slice | None:
    """What grouping needs to know; None when the place in the patient is not known, though the pixels may be fine."""
    position, orientation, spacing = (
        numbers(header, k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        return None
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if min(spacing) <= 0 or max(abs(v - 1) for v in lengths) > 1e-3 or abs(sum(map(mul, row, column))) > 1e-3:
        return None
    # A trigger time is a phase of the heart only where there are several; elsewhere it is the time of the slice.
    beating = (numbers(header, "CardiacNumberOfImages") or (0.0,))[0] > 1
    time = numbers(header, "TemporalPositionIdentifier") or (numbers(header, "TriggerTime") if beating else ())
    return Slice(
        key=pseudonyms.of("group", repr(group_key(header, name, orientation, spacing))),
        position=position,
        orientation=(*(v / lengths[0] for v in row), *(v / lengths[1] for v in column)),
        spacing=spacing,
        order=tuple(
            next(iter(v), 0.0) for v in (time, *(numbers(header, k) for k in ("AcquisitionNumber", "InstanceNumber")))
        ),
        **known,
    )


def group_key(header: Header, name: str, orientation: tuple[float, ...], spacing: tuple[float, ...]) -> tuple[Any, ...]:
    """What slices of one volume share. Tube current and acquisition number differ inside volumes: neither is in it.

    UIDs may be empty or everywhere the same, so the patient is in it, and without a series the folder of the file.
    """
    words = (
        "IssuerOfPatientID",
        "PatientID",
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "FrameOfReferenceUID",
        "SOPClassUID",
        "PhotometricInterpretation",
        "ConvolutionKernel",
    )
    values = (
        "Rows",
        "Columns",
        "SamplesPerPixel",
        "EchoTime",
        "EchoNumbers",
        "DiffusionBValue",
        "DiffusionGradientOrientation",
        "FlipAngle",
        "InversionTime",
        "ReconstructionDiameter",
    )
    return (
        modality_of(header),
        "" if header.raw("SeriesInstanceUID") else dirname(name),
        *(header.raw(k) for k in words),
        header.raw("StackID"),
        *(numbers(header, k) for k in values),
        tuple(round(v, 3) + 0.0 for v in orientation),
        tuple(round(v, 4) for v in spacing),
        image_type(header)[:4],
    )


def _image(header: Header, layout: Layout, place: Place, how: dict[str, Any], uid: str, about: dict[str, Any]) -> Scan:
    """One image that stands alone, as (C, H, W)."""
    modality = about["modality"]
    pixels = to_values(*codecs.words(header.stream, layout, place), layout, **how)
    array, steps = assemble([pixels], modality)
    array = array[:, 0]
    spacing = numbers(header, "PixelSpacing") or numbers(header, "ImagerPixelSpacing")
    if modality == "US":
        box, scale = ultrasound_crop(header)
        spacing = scale or spacing
        if box is not None:
            array, steps = np.ascontiguousarray(crop(array, box)), (*steps, "crop to ultrasound region")
    seen = window(header) if modality in PROJECTIONS and layout.samples == 1 else None
    if seen is not None:
        low, high = seen if pixels.mirror is None else (pixels.mirror - seen[1], pixels.mirror - seen[0])
        about = about | {"metadata": about["metadata"] | {"voi_low": low, "voi_high": high}}
    known = len(spacing) == 2 and min(spacing) > 0
    return Scan(array=array, scan=uid, spacing=spacing if known else None, steps=steps, **about)


def decode(stream: BinaryIO, frame: dict[str, Any]) -> Pixels:
    """The pixels of a slice by its `Slice.frame`.

    Raises:
        Unreadable: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS, NON_FINITE; with frame["parse"] also as `read`.
    """
    stream, layout, place, how = _opened(stream, frame)
    return to_values(*codecs.words(stream, layout, place), layout, **how)


def digest(stream: BinaryIO, frame: dict[str, Any]) -> str:
    """Hash of a slice's stored values, to tell a copy from a repeat, also one in another transfer syntax.

    Raises:
        Unreadable: as `decode`.
    """
    stream, layout, place, _ = _opened(stream, frame)
    words, _ = codecs.words(stream, layout, place)
    return hashlib.blake2b(np.ascontiguousarray(words).data, digest_size=16).hexdigest()


def _opened(stream: BinaryIO, frame: dict[str, Any]) -> tuple[BinaryIO, Layout, Place, dict[str, Any]]:
    """Where to read, how it is laid out, where it is, and the arguments of `to_values`."""
    if "parse" in frame:
        header = parse(stream)
        layout = Layout.of(header)
        place = codecs.frames(header.stream, header, layout)[0]
        return header.stream, layout, place, arguments(header, layout, modality_of(header))
    how = {k: v for k, v in frame.items() if k not in {"layout", "place"}}
    return stream, Layout(**frame["layout"]), frame["place"], how


def single(s: Slice, stream: BinaryIO) -> Scan:
    """A slice without neighbours as an image (C, H, W).

    Raises:
        Unreadable: as `decode`.
    """
    array, steps = assemble([decode(stream, s.frame)], s.about["modality"])
    return Scan(array=array[:, 0], scan=s.uid, spacing=s.spacing, steps=steps, **s.about)


def volume(
    slices: list[Slice],
    open_slice: Callable[[Slice], BinaryIO],
    pseudonyms: Pseudonyms,
    beat: Callable[[int], None],
) -> Scan | list[tuple[int, Unreadable]]:
    """A sorted stack as (C, D, H, W), axes pointing to superior, anterior and right; or (index, why) of every slice
    that cannot be opened or decoded. `beat(k)` is called before slice k, `beat(len(slices))` before they are assembled.

    Raises:
        Unreadable: BAD_GEOMETRY, NO_PIXELS.
    """
    affine, tilt = stack_geometry(slices)
    pixels, failed = [], []
    for k, s in enumerate(slices):
        beat(k)
        try:
            with closing(open_slice(s)) as stream:
                pixels.append(_compact(decode(stream, s.frame)))
        except Unreadable as e:
            failed.append((k, e))
        except OSError as e:  # its words may quote the path
            failed.append((k, Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")))
    if failed:
        return failed
    beat(len(slices))
    about = slices[0].about | {
        "metadata": _shared(slices),
        "quarantined": next((h for s in slices if (h := s.about["quarantined"])), ""),
    }
    array, steps = assemble(pixels, about["modality"])
    array, affine = canonical(array, affine)
    if tilt > TILTED:
        about["metadata"]["tilt"] = round(tilt, 1)
    return Scan(
        array=array,
        scan=pseudonyms.of("scan", "volume|" + "|".join(sorted(s.uid for s in slices))),
        affine=affine,
        spacing=spacing_of(affine),
        steps=(*steps, "reorient to RAS"),
        **about,
    )


def _shared(slices: list[Slice]) -> dict[str, str | float]:
    """The facts that hold for every slice. One lossy slice makes a volume lossy."""
    all_facts = [s.about["metadata"] for s in slices]
    shared = {k: v for k, v in all_facts[0].items() if all(f.get(k) == v for f in all_facts)}
    return shared | ({"lossy": "yes"} if any("lossy" in f for f in all_facts) else {})


def _compact(p: Pixels) -> Pixels:
    """The same frame in few bytes: all frames of a volume are held at once."""
    dtype = smallest(p.values.min(), p.values.max(), p.preferred)
    return replace(p, values=p.values.astype(dtype, copy=False))


def assemble(frames: list[Pixels], modality: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Frames to (C, D, H, W) in one type, padding filled, grey written as colour reduced to one channel; and the steps.

    Raises:
        Unreadable: BAD_GEOMETRY when frames differ in size, NO_PIXELS when all is padding.
    """
    if len({f.values.shape for f in frames}) > 1:
        raise Unreadable("BAD_GEOMETRY", "the slices of a stack differ in size")
    low, high = min(f.values.min() for f in frames), max(f.values.max() for f in frames)
    preferred = next((f.preferred for f in frames if f.preferred.kind == "f"), frames[0].preferred)
    padded = any(f.padding is not None for f in frames)
    if padded and modality == "CT":
        low = min(low, AIR)
    shape = (frames[0].values.shape[0], len(frames), *frames[0].values.shape[1:])
    array = np.empty(shape, smallest(low, high, preferred))
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
