"""Frames of an enhanced object as if each were a file of its own (PS3.3 C.7.6.16, multi-frame functional groups).

What describes a frame stands in the frame's own item, else in the shared one, else at the top of the header. Laid over
each other they make a header like that of a single image, which everything that reads single images can read.
"""

from collections import defaultdict

import numpy as np

from medssl.readers.dicom.header import Header, tag_of
from medssl.readers.dicom.metadata import numbers
from medssl.readers.scan import Slice

# The functional groups that matter here. Others are left alone: they quote other images and other people.
MACROS = (
    "PixelMeasuresSequence",
    "FrameContentSequence",
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "FrameAnatomySequence",
    "CardiacSynchronizationSequence",
    "MRImageFrameTypeSequence",
    "MRTimingAndRelatedParametersSequence",
    "MREchoSequence",
    "MRModifierSequence",
    "MRDiffusionSequence",
    "CTImageFrameTypeSequence",
    "CTAcquisitionTypeSequence",
    "CTReconstructionSequence",
    "CTXRayDetailsSequence",
    "PETFrameTypeSequence",
    "PETReconstructionSequence",
)

# What single images call it -> what functional groups call it, and the representation there.
SYNONYMS = {
    "ImageType": ("FrameType", "CS"),
    "EchoTime": ("EffectiveEchoTime", "FD"),
    "InversionTime": ("InversionTimes", "FD"),
    "TriggerTime": ("NominalCardiacTriggerDelayTime", "FD"),
    "TemporalPositionIdentifier": ("TemporalPositionIndex", "UL"),
    "AcquisitionNumber": ("FrameAcquisitionNumber", "US"),
    "ImageLaterality": ("FrameLaterality", "CS"),
}

# Frames that differ in one of these belong to different volumes. Slopes may differ inside one.
APART = (
    "StackID",
    "ImageType",
    "ComplexImageComponent",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "DiffusionDirectionality",
    "TemporalPositionIdentifier",
    "ConvolutionKernel",
    "ReconstructionDiameter",
)


def is_enhanced(header: Header) -> bool:
    """Whether frames have a description of their own."""
    return "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header


def headers(header: Header, count: int) -> list[Header]:
    """A header for each of `count` frames.

    Raises:
        Unreadable: BAD_HEADER, TRUNCATED.
    """
    shared = _over(header, header.items("SharedFunctionalGroupsSequence")[:1])
    own = header.items("PerFrameFunctionalGroupsSequence")
    return [_over(shared, own[k : k + 1]) for k in range(count)]


def _over(header: Header, groups: list[Header]) -> Header:
    """`header` with the elements of functional groups laid over its own; both lie in the same bytes."""
    elements = dict(header.elements)
    for group in groups:
        found = {
            tag: (vr or "UN" if item.implicit and not header.implicit else vr, at, length)
            for macro in MACROS
            for item in group.items(macro)[:1]
            for tag, (vr, at, length) in item.elements.items()
        }
        for classic, (keyword, vr) in SYNONYMS.items():
            if tag_of(keyword) in found:
                _, at, length = found[tag_of(keyword)]
                found[tag_of(classic)] = (vr, at, length)
        elements |= found
    over = Header(header._data, elements, header.implicit, header.little)
    over.syntax, over.pixels, over.stream = header.syntax, header.pixels, header.stream
    return over


def slice_of(header: Header, k: int, file: str) -> Slice | None:
    """Frame k as a slice; None when its place in the patient is not known."""
    position, orientation, spacing = (
        numbers(header, name) for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        return None
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(v - 1) for v in lengths) > 1e-3 or abs(row @ column) > 1e-3:
        return None
    return Slice(
        file=f"{file}#{k}",
        uid=f"{file}#{k}",
        key=key_of(header, orientation, spacing),
        position=position,
        orientation=(*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist()),
        spacing=spacing,
        order=(*((numbers(header, name) or (0.0,))[0] for name in ("TriggerTime", "AcquisitionNumber")), float(k)),
        frame={"k": k},
    )


def stacks(slices: list[Slice]) -> list[list[Slice]]:
    """Frames of one volume, or of one volume at several times, together."""
    found: defaultdict[str, list[Slice]] = defaultdict(list)
    for s in slices:
        found[s.key].append(s)
    return list(found.values())


def key_of(header: Header, orientation: tuple[float, ...], spacing: tuple[float, ...]) -> str:
    """What the frames of one volume share: never leaves the reader."""
    directions = [
        tuple(round(v, 3) + 0.0 for v in numbers(item, "DiffusionGradientOrientation"))
        for item in header.items("DiffusionGradientDirectionSequence")[:1]
    ]
    rounded = tuple(round(v, 3) + 0.0 for v in orientation), tuple(round(v, 4) for v in spacing)
    return repr((*rounded, *(header.value(name) for name in APART), directions))
