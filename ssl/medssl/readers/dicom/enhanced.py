"""Frames of an enhanced multi-frame object, as if each were a separate file (PS3.3 C.7.6.16).

A frame is described by its own functional groups, then the shared ones, then the top level of the header. Merged in that
order they form a header like that of a single image, so the same code reads both.
"""

from collections import defaultdict

import numpy as np

from medssl.readers.dicom.header import Header, tag_of
from medssl.readers.dicom.metadata import image_plane, numbers
from medssl.readers.scan import Slice

# The functional groups that are used. Others refer to other images or other people.
MACROS = tuple(
    """
    PixelMeasuresSequence FrameContentSequence PlanePositionSequence PlaneOrientationSequence
    PixelValueTransformationSequence FrameVOILUTSequence FrameAnatomySequence CardiacSynchronizationSequence
    MRImageFrameTypeSequence MRTimingAndRelatedParametersSequence MREchoSequence MRModifierSequence
    MRDiffusionSequence CTImageFrameTypeSequence CTAcquisitionTypeSequence CTReconstructionSequence
    CTXRayDetailsSequence PETFrameTypeSequence PETReconstructionSequence
    """.split()  # noqa: SIM905
)

# Keyword in single images -> keyword in functional groups, and its value representation.
SYNONYMS = {
    "ImageType": ("FrameType", "CS"),
    "EchoTime": ("EffectiveEchoTime", "FD"),
    "InversionTime": ("InversionTimes", "FD"),
    "TriggerTime": ("NominalCardiacTriggerDelayTime", "FD"),
    "TemporalPositionIdentifier": ("TemporalPositionIndex", "UL"),
    "AcquisitionNumber": ("FrameAcquisitionNumber", "US"),
    "ImageLaterality": ("FrameLaterality", "CS"),
}

# Frames that differ in one of these belong to different volumes. Rescale slopes may differ within a volume.
VOLUME_KEYS = tuple(
    """
    StackID ImageType ComplexImageComponent EchoTime InversionTime FlipAngle DiffusionBValue
    DiffusionDirectionality TemporalPositionIdentifier ConvolutionKernel ReconstructionDiameter
    """.split()  # noqa: SIM905
)


def is_enhanced(header: Header) -> bool:
    """Return whether the object has functional groups."""
    return "PerFrameFunctionalGroupsSequence" in header or "SharedFunctionalGroupsSequence" in header


def headers(header: Header, count: int) -> list[Header]:
    """Return a header for each of `count` frames.

    Raises:
        Unreadable: BAD_HEADER, TRUNCATED.
    """
    shared = _over(header, header.items("SharedFunctionalGroupsSequence")[:1])
    own = header.items("PerFrameFunctionalGroupsSequence")
    return [_over(shared, own[k : k + 1]) for k in range(count)]


def _over(header: Header, groups: list[Header]) -> Header:
    """Return `header` with its elements overridden by those of functional groups, which lie in the same bytes."""
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
    over = Header(header.data, elements, header.implicit, header.little)
    over.syntax, over.pixels, over.stream = header.syntax, header.pixels, header.stream
    return over


def slice_of(header: Header, k: int) -> Slice | None:
    """Return frame k as a slice, None if its position in the patient is unknown."""
    plane = image_plane(header)
    if plane is None:
        return None
    position, orientation, spacing = plane
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = float(np.linalg.norm(row)), float(np.linalg.norm(column))
    if max(abs(v - 1) for v in lengths) > 1e-3 or abs(row @ column) > 1e-3:
        return None
    return Slice(
        file=f"#{k}",
        uid=f"#{k}",
        key=key_of(header, orientation, spacing),
        position=position,
        orientation=(*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist()),
        spacing=spacing,
        order=(*((numbers(header, name) or (0.0,))[0] for name in ("TriggerTime", "AcquisitionNumber")), float(k)),
        frame={"k": k},
    )


def stacks(slices: list[Slice]) -> list[list[Slice]]:
    """Group frames of one volume, or of one volume at several times."""
    found: defaultdict[str, list[Slice]] = defaultdict(list)
    for s in slices:
        found[s.key].append(s)
    return list(found.values())


def key_of(header: Header, orientation: tuple[float, ...], spacing: tuple[float, ...]) -> str:
    """Return what all frames of one volume have in common. It may identify the patient and never leaves the reader."""
    directions = [
        tuple(round(v, 3) + 0.0 for v in numbers(item, "DiffusionGradientOrientation"))
        for item in header.items("DiffusionGradientDirectionSequence")[:1]
    ]
    rounded = tuple(round(v, 3) + 0.0 for v in orientation), tuple(round(v, 4) for v in spacing)
    return repr((*rounded, *(header.value(name) for name in VOLUME_KEYS), directions))
