"""Frames of an enhanced multi-frame object, as if each were a separate file (PS3.3 C.7.6.16).

A frame is described by its own functional groups, then the shared ones, then the top level of the header. Merged in that
order they form a header like that of a single image, so the same code reads both.
"""

from dataclasses import replace

from medssl.readers.dicom.grouping import exact_groups
from medssl.readers.dicom.header import Header, tag_of
from medssl.readers.dicom.metadata import numbers
from medssl.readers.dicom.positions import coincident, told_apart_in_time
from medssl.readers.dicom.slices import slice_of
from medssl.readers.dicom.stack_geometry import height
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Slice

# The functional groups that are used. Others refer to other images or other people.
MACROS = tuple(
    """
    PixelMeasuresSequence FrameContentSequence PlanePositionSequence PlaneOrientationSequence
    PixelValueTransformationSequence FrameVOILUTSequence FrameAnatomySequence CardiacSynchronizationSequence
    MRImageFrameTypeSequence MRTimingAndRelatedParametersSequence MREchoSequence MRModifierSequence
    MRDiffusionSequence MRVelocityEncodingSequence MRArterialSpinLabelingSequence ContrastBolusUsageSequence
    CTImageFrameTypeSequence CTAcquisitionTypeSequence CTReconstructionSequence
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
            for part in (item, *item.items("DiffusionGradientDirectionSequence")[:1])
            for tag, (vr, at, length) in part.elements.items()
        }
        for classic, (keyword, vr) in SYNONYMS.items():
            if tag_of(keyword) in found:
                _, at, length = found[tag_of(keyword)]
                found[tag_of(classic)] = (vr, at, length)
        elements |= found
    over = Header(header.data, elements, header.implicit, header.little)
    over.syntax, over.pixels, over.stream = header.syntax, header.pixels, header.stream
    return over


def slices(frames: list[Header], name: str, pseudonyms: Pseudonyms) -> list[Slice]:
    """Return the frames whose position in the patient is known, as slices with `frame` = {"k": index}."""
    found = []
    for k, header in enumerate(frames):
        time, acquisition = ((numbers(header, key) or (0.0,))[0] for key in ("TriggerTime", "AcquisitionNumber"))
        more = (numbers(header, "TemporalPositionIdentifier"),)
        order = (time, acquisition, float(k + 1))
        s = slice_of(header, name, pseudonyms, order=order, more=more, file=f"#{k}", uid=f"#{k}", frame={"k": k})
        found += [] if s is None else [s]
    indices = {f"#{k}": numbers(header, "DimensionIndexValues") for k, header in enumerate(frames)}
    return [s for some in exact_groups(found) for s in _told_apart(some, indices)]


def _told_apart(slices: list[Slice], indices: dict[str, tuple[float, ...]]) -> list[Slice]:
    """Return the frames of one group; if only the order in the file tells apart those at one position, it is replaced.

    Frames at one position may stand in any order (PS3.3 C.7.6.17). What tells them apart is then an index among their
    Dimension Index Values, which becomes the first number of `Slice.order`.

    indices: Dimension Index Values of each frame, by `Slice.file`.
    """
    there = coincident(sorted(slices, key=height))
    lengths = {len(indices[s.file]) for s in slices}
    if all(map(told_apart_in_time, there)) or len(lengths) > 1:
        return slices
    varying = [d for d in range(lengths.pop()) if any(len({indices[s.file][d] for s in t}) > 1 for t in there)]
    content = {s.file: tuple(indices[s.file][d] for d in varying) for s in slices}
    if any(len({content[s.file] for s in t}) < len(t) for t in there):
        return slices
    every = sorted(set(content.values()))
    if len(every) > max(map(len, there)):  # numbered through all positions, as times may be: only their order counts
        ranks = {s.file: i for t in there for i, s in enumerate(sorted(t, key=lambda s: content[s.file]))}
    else:
        ranks = {f: every.index(value) for f, value in content.items()}
    return [replace(s, order=(float(ranks[s.file]), *s.order[1:])) for s in slices]
