"""Slices from the frames of a reconstructed nuclear medicine image (PS3.3 C.8.4.9 multi-frame, C.8.4.15 reconstruction)."""

from dataclasses import dataclass

import numpy as np

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import image_type, modality_of, numbers
from medssl.readers.dicom.stack_geometry import directions
from medssl.readers.scan import Slice, Unreadable

# Indices of each frame: frames that differ in one of these belong to different volumes.
VECTORS = tuple(
    """
    EnergyWindowVector DetectorVector PhaseVector RotationVector RRIntervalVector TimeSlotVector AngularViewVector
    TimeSliceVector
    """.split()  # noqa: SIM905
)
UNKNOWN = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0)  # an orientation in which a volume needs no reorientation


@dataclass(frozen=True)
class Frames:
    """Attributes:
    slices: one per frame, with `Slice.frame` = {"k": index}; [] unless the frames are the slices of volumes.
    placed: whether position and orientation are known; otherwise only the distances between slices are.
    """

    slices: list[Slice]
    placed: bool


def slices_of(header: Header, count: int) -> Frames:
    """Return the `count` frames of a reconstruction (Image Type value 3 is RECON TOMO or RECON GATED TOMO) as slices.

    Detector Information has the position and orientation of the first slice. Spacing Between Slices is signed: positive if
    the next slice lies along the cross product of rows and columns.
    """
    kind = image_type(header)[2:3]
    spacing, steps = numbers(header, "PixelSpacing"), numbers(header, "SpacingBetweenSlices")
    where = numbers(header, "SliceVector") or tuple(range(1, count + 1))
    if modality_of(header) != "NM" or not (kind and kind[0].startswith("RECON")):
        return Frames([], True)
    if len(spacing) != 2 or min(spacing) <= 0 or not steps or not steps[0] or len(where) != count:
        return Frames([], True)
    plane = _plane(header)
    position, orientation = plane or ((0.0, 0.0, 0.0), UNKNOWN)
    step = directions(orientation)[2] * (steps[0] if plane else abs(steps[0]))
    vectors = [v for name in VECTORS if len(v := numbers(header, name)) == count]
    slices = [
        Slice(
            file=f"#{k}",
            uid=f"#{k}",
            key=repr([v[k] for v in vectors]),
            position=tuple((np.array(position) + (where[k] - 1) * step).tolist()),
            orientation=orientation,
            spacing=spacing,
            order=(0.0, 0.0, float(k + 1)),
            frame={"k": k},
        )
        for k in range(count)
    ]
    return Frames(slices, plane is not None)


def _plane(header: Header) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return position and orientation of the first slice, None if they are missing or invalid."""
    try:
        detectors = header.items("DetectorInformationSequence")
        for item in [*detectors[:1], header]:
            position, orientation = (numbers(item, k) for k in ("ImagePositionPatient", "ImageOrientationPatient"))
            if (len(position), len(orientation)) == (3, 6):
                directions(orientation)
                return position, orientation
    except Unreadable:
        pass
    return None
