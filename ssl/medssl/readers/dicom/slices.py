"""A DICOM header to a `Slice`: where the image lies, what it shares with its neighbours, and what may tell them apart."""

import math
from functools import lru_cache, partial
from operator import mul
from posixpath import dirname
from typing import Any

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.identity import identifier
from medssl.readers.dicom.metadata import image_plane, image_type, modality_of, numbers
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Slice

STACKED = {"CT", "MR", "PT", ""}  # modalities whose single images are slices of a volume, if they have a position
# Elements that are equal in all slices of a volume. Tube current and acquisition number vary within volumes.
SHARED_WORDS = tuple(
    """
    IssuerOfPatientID PatientID StudyInstanceUID SOPClassUID PhotometricInterpretation ConvolutionKernel
    ComplexImageComponent DiffusionDirectionality ASLContext ContrastBolusAgentAdministered
    """.split()  # noqa: SIM905
)
SHARED_NUMBERS = ("Rows", "Columns", "SamplesPerPixel")
# Numbers that differ between echoes, b-values and other contrasts, but also by rounding, or by slice within a volume.
CONTRAST = tuple(
    """
    EchoTime EchoNumbers DiffusionBValue DiffusionGradientOrientation FlipAngle InversionTime ReconstructionDiameter
    VelocityEncodingDirection VelocityEncodingMinimumValue VelocityEncodingMaximumValue
    """.split()  # noqa: SIM905
)
UNIT = 1e-3  # how far direction cosines may be from orthogonal unit vectors


def slice_of(
    header: Header,
    name: str,
    pseudonyms: Pseudonyms,
    *,
    order: tuple[float, ...],
    more: tuple[Any, ...] = (),
    **fields: Any,
) -> Slice | None:
    """Return what is needed to group the image, None if its position in the patient is unknown.

    header: of a single image, or of one frame as if it were a single image (`enhanced.headers`).
    name: path of the file. order: as in `Slice`. more: what else all slices of a volume share. fields: the others
    of `Slice`.
    """
    plane = image_plane(header)
    if plane is None:
        return None
    position, orientation, spacing = plane
    row, column = orientation[:3], orientation[3:]
    lengths = math.hypot(*row), math.hypot(*column)
    if max(abs(v - 1) for v in lengths) > UNIT or abs(sum(map(mul, row, column))) > UNIT:
        return None
    ids = partial(_pseudonym, pseudonyms)
    return Slice(
        key=ids("group", repr((*group_key(header, name), *more))),
        position=position,
        orientation=(*(v / lengths[0] for v in row), *(v / lengths[1] for v in column)),
        spacing=spacing,
        order=order,
        series=fields.get("about", {}).get("series") or ids("series", header.raw("SeriesInstanceUID")),
        series_number=ids("series number", header.raw("SeriesNumber")),
        frame_of_reference=ids("frame of reference", header.raw("FrameOfReferenceUID")),
        stack=ids("stack", header.raw("StackID")),
        contrast=tuple(numbers(header, k) for k in CONTRAST),
        **fields,
    )


@lru_cache(maxsize=64)  # neighbouring files have the same
def _pseudonym(pseudonyms: Pseudonyms, kind: str, value: str | bytes) -> str:
    return pseudonyms.of(kind, value) if value else ""


def group_key(header: Header, name: str) -> tuple[Any, ...]:
    """Return what all slices of one volume have in common. It may identify the patient and never leaves the reader.

    UIDs may be missing or all the same, so the key includes the patient, and the folder of a file without a series. The
    series is not part of it, because some software gives each file its own; without a study, nothing else ties files.
    """
    series, study = header.raw("SeriesInstanceUID"), header.raw("StudyInstanceUID")
    return (
        modality_of(header),
        "" if series else dirname(name),
        b"" if study else series,
        *(identifier(header, k) for k in SHARED_WORDS),
        *(numbers(header, k) for k in SHARED_NUMBERS),
        image_type(header)[:4],
    )


def order_of(header: Header) -> tuple[float, float, float]:
    """Return (temporal position, acquisition number, instance number) of a single image."""
    # Trigger Time is a cardiac phase only if there are several; otherwise it is the acquisition time of the slice.
    cardiac = (numbers(header, "CardiacNumberOfImages") or (0.0,))[0] > 1
    time = numbers(header, "TemporalPositionIdentifier") or (numbers(header, "TriggerTime") if cardiac else ())
    found = (time, numbers(header, "AcquisitionNumber"), numbers(header, "InstanceNumber"))
    return found[0][0] if time else 0.0, found[1][0] if found[1] else 0.0, found[2][0] if found[2] else 0.0
