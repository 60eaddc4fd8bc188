"""DICOM files to scans. Only allow-listed metadata and pseudonyms leave the header."""

import hashlib
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from operator import mul
from posixpath import dirname
from typing import Any, BinaryIO

import numpy as np

from medssl.readers.dicom import codecs, frames
from medssl.readers.dicom.assemble import compact, image_scan, scan_fields, stack_scan
from medssl.readers.dicom.codecs import Place
from medssl.readers.dicom.enhanced import is_enhanced
from medssl.readers.dicom.header import DEFLATED, Header, parse
from medssl.readers.dicom.identity import identifier
from medssl.readers.dicom.layout import Layout
from medssl.readers.dicom.metadata import common, image_plane, image_type, modality_of, numbers
from medssl.readers.dicom.pixels import Pixels, arguments, to_values
from medssl.readers.dicom.stack_geometry import stack_affine
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable

STACKED = {"CT", "MR", "PT"}  # modalities whose single images are slices of a volume
# Elements that all slices of a volume share.
GROUP_WORDS = tuple(
    """
    IssuerOfPatientID PatientID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID SOPClassUID
    PhotometricInterpretation ConvolutionKernel StackID
    """.split()  # noqa: SIM905
)
GROUP_NUMBERS = tuple(
    """
    Rows Columns SamplesPerPixel EchoTime EchoNumbers DiffusionBValue DiffusionGradientOrientation FlipAngle InversionTime
    ReconstructionDiameter
    """.split()  # noqa: SIM905
)
# Prefixes of SOP classes without an image: waveforms, presentation states, segmentations, reports, documents, plans.
NOT_IMAGES = tuple(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("9.", "11.", "66", "67", "68", "88.", "104.", "481."))


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Slice | Iterator[tuple[Scan | Unreadable, str]]:
    """Return a slice of a volume, with the position of its pixels validated but not decoded, or the scans of the file.

    name: path of the file relative to the source.

    Raises:
        Unreadable: NOT_AN_IMAGE, NOT_DICOM, NO_PIXELS, and the codes of `header.parse`, `Layout.of`, `codecs.frames`,
            `pixels.arguments` and `pixels.to_values`.
    """
    header = parse(stream)
    sop = header.word("SOPClassUID")
    if sop.startswith(NOT_IMAGES) or "DirectoryRecordSequence" in header:
        raise Unreadable("NOT_AN_IMAGE", "this kind of DICOM object has no image")
    if "Rows" not in header:
        raise Unreadable("NO_PIXELS" if sop else "NOT_DICOM", "the header describes no image")
    layout = Layout.of(header)
    if is_enhanced(header) or layout.frames > 1 or "MOSAIC" in image_type(header):
        return frames.read(header, name, pseudonyms)
    modality = modality_of(header)
    place = codecs.frames(header.stream, header, layout)[0]
    how = arguments(header, layout, modality)
    uid = pseudonyms.of("scan", header.raw("SOPInstanceUID") or b"file|" + name.encode())
    about = scan_fields(header, [header], name, pseudonyms)
    if modality in STACKED:
        found = _slice(header, name, pseudonyms, uid, about)
        if found is not None:
            again = how["lut"] is not None or layout.syntax == DEFLATED
            found.frame.update({"parse": True} if again else {"layout": dict(vars(layout)), "place": place, **how})
            return found
    pixels = to_values(*codecs.words(header.stream, layout, place), layout, **how)
    return iter([(image_scan(header, pixels, about | {"scan": uid}), name)])


def _slice(header: Header, name: str, pseudonyms: Pseudonyms, uid: str, about: dict[str, Any]) -> Slice | None:
    """Return what is needed to group the slice, None if its position in the patient is unknown."""
    plane = image_plane(header)
    if plane is None:
        return None
    position, orientation, spacing = plane
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if max(abs(v - 1) for v in lengths) > 1e-3 or abs(sum(map(mul, row, column))) > 1e-3:
        return None
    # Trigger Time is a cardiac phase only if there are several; otherwise it is the acquisition time of the slice.
    cardiac = (numbers(header, "CardiacNumberOfImages") or (0.0,))[0] > 1
    time = numbers(header, "TemporalPositionIdentifier") or (numbers(header, "TriggerTime") if cardiac else ())
    return Slice(
        file=pseudonyms.of("path", name),
        uid=uid,
        key=pseudonyms.of("group", repr(group_key(header, name, orientation, spacing))),
        position=position,
        orientation=(*(v / lengths[0] for v in row), *(v / lengths[1] for v in column)),
        spacing=spacing,
        order=tuple(
            next(iter(v), 0.0) for v in (time, *(numbers(header, k) for k in ("AcquisitionNumber", "InstanceNumber")))
        ),
        about=about,
    )


def group_key(header: Header, name: str, orientation: tuple[float, ...], spacing: tuple[float, ...]) -> tuple[Any, ...]:
    """Return what all slices of one volume have in common.

    Tube current and acquisition number vary within volumes, so they are excluded. UIDs may be missing or all the same,
    so the key includes the patient, and the folder of the file if there is no Series Instance UID.
    """
    return (
        modality_of(header),
        "" if header.raw("SeriesInstanceUID") else dirname(name),
        *(identifier(header, k) for k in GROUP_WORDS),
        *(numbers(header, k) for k in GROUP_NUMBERS),
        tuple(round(v, 3) + 0.0 for v in orientation),
        tuple(round(v, 4) for v in spacing),
        image_type(header)[:4],
    )


def decode(stream: BinaryIO, frame: dict[str, Any]) -> Pixels:
    """Return the pixels of a slice, given its `Slice.frame`.

    Raises:
        Unreadable: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS, NON_FINITE; with frame["parse"] also those of `read`.
    """
    stream, layout, place, how = _opened(stream, frame)
    return to_values(*codecs.words(stream, layout, place), layout, **how)


def digest(stream: BinaryIO, frame: dict[str, Any]) -> str:
    """Return a hash of a slice's stored values, which is the same in every lossless transfer syntax.

    Raises:
        Unreadable: as `decode`.
    """
    stream, layout, place, _ = _opened(stream, frame)
    words, _ = codecs.words(stream, layout, place)
    return hashlib.blake2b(np.ascontiguousarray(words).data, digest_size=16).hexdigest()


def _opened(stream: BinaryIO, frame: dict[str, Any]) -> tuple[BinaryIO, Layout, Place, dict[str, Any]]:
    """Return (stream, layout, place of the frame, arguments of `to_values`)."""
    if "parse" in frame:
        header = parse(stream)
        layout = Layout.of(header)
        place = codecs.frames(header.stream, header, layout)[0]
        return header.stream, layout, place, arguments(header, layout, modality_of(header))
    how = {k: v for k, v in frame.items() if k not in {"layout", "place"}}
    return stream, Layout(**frame["layout"]), frame["place"], how


def single(s: Slice, stream: BinaryIO) -> Scan:
    """Return a slice that belongs to no volume as an image (C, H, W).

    Raises:
        Unreadable: as `decode`.
    """
    return stack_scan([s], [decode(stream, s.frame)], s.about | {"scan": s.uid})


def volume(
    slices: list[Slice],
    open_slice: Callable[[Slice], BinaryIO],
    pseudonyms: Pseudonyms,
    heartbeat: Callable[[int], None],
) -> Scan | list[tuple[int, Unreadable]]:
    """Return a sorted stack as (C, D, H, W) in canonical orientation, or (index, reason) of every unreadable slice.

    heartbeat: called with k before slice k is read, and with len(slices) before they are assembled.

    Raises:
        Unreadable: BAD_GEOMETRY, NO_PIXELS.
    """
    stack_affine(slices)  # refuse bad geometry before decoding
    pixels, failed = [], []
    for k, s in enumerate(slices):
        heartbeat(k)
        try:
            with closing(open_slice(s)) as stream:
                pixels.append(compact(decode(stream, s.frame)))
        except Unreadable as e:
            failed.append((k, e))
        except OSError as e:  # its message may contain the path
            failed.append((k, Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")))
    if failed:
        return failed
    heartbeat(len(slices))
    about = slices[0].about | {
        "scan": pseudonyms.of("scan", "volume|" + "|".join(sorted(s.uid for s in slices))),
        "metadata": _shared(slices),
        "quarantined": next((h for s in slices if (h := s.about["quarantined"])), ""),
    }
    return stack_scan(slices, pixels, about)


def _shared(slices: list[Slice]) -> dict[str, str | float]:
    """Return the metadata that all slices share. One lossy slice makes a volume lossy."""
    every = [s.about["metadata"] for s in slices]
    return common(every) | ({"lossy": "yes"} if any("lossy" in m for m in every) else {})
