"""Where the image lies in an ultrasound frame, and how large its pixels are (PS3.3 C.8.5.5, the region calibration)."""

import numpy as np

from medssl.readers.dicom.header import Header

# Region Spatial Format: what kind of picture a region is (C.8.5.5.1.1). Waveforms (4) and graphics (5) are none.
TISSUE = 1
PICTURES = {TISSUE, 2, 3}  # two-dimensional, M-mode, spectral
CENTIMETRES = 3  # Physical Units (C.8.5.5.1.15)

Box = tuple[int, int, int, int]  # rows [top, bottom), columns [left, right)


def ultrasound_crop(header: Header) -> tuple[Box | None, tuple[float, float] | None]:
    """(box, spacing) of the frames of an ultrasound object; each is None when the header does not settle it.

    The box spans all regions that are pictures, when they are of one kind: it leaves out the band at the top where
    machines write the patient's name. With several kinds (tissue above a spectrum) nothing is cut off. spacing is mm
    between rows and between columns, when every tissue region has the same scale in centimetres; a box may be
    cut off without a spacing being known, but spacing is only given with a box of tissue.

    For every ultrasound image, single or multi-frame: `crop(array, box)` cuts, the spacing goes into the scan, the
    step is "crop to ultrasound region".

    Raises:
        Unreadable: BAD_HEADER, TRUNCATED.
    """
    rows, columns = header.integer("Rows", 0), header.integer("Columns", 0)
    kinds, boxes, scales = set(), [], set()
    for region in header.items("SequenceOfUltrasoundRegions"):
        kind = region.integer("RegionSpatialFormat", 0)
        box = _box(region, rows, columns)
        if kind not in PICTURES or box is None:
            continue
        kinds.add(kind)
        boxes.append(box)
        scales.add(_scale(region))
    if len(kinds) != 1:
        return None, None
    top, bottom, left, right = zip(*boxes, strict=True)
    scale = scales.pop() if len(scales) == 1 and kinds == {TISSUE} else None
    return (min(top), max(bottom), min(left), max(right)), scale


def crop(array: np.ndarray, box: Box) -> np.ndarray:
    """The box of an array (..., H, W)."""
    top, bottom, left, right = box
    return array[..., top:bottom, left:right]


def _box(region: Header, rows: int, columns: int) -> Box | None:
    """Both corners are inside the region (C.8.5.5.1.2); some machines write one more than there is."""
    ends = [region.integer(f"RegionLocation{k}", -1) for k in ("MinY0", "MaxY1", "MinX0", "MaxX1")]
    top, bottom, left, right = ends[0], min(ends[1] + 1, rows), ends[2], min(ends[3] + 1, columns)
    return (top, bottom, left, right) if 0 <= top < bottom and 0 <= left < right else None


def _scale(region: Header) -> tuple[float, float] | None:
    """mm per pixel, (vertical, horizontal). A negative delta only says which way an axis points."""
    units = [region.integer(f"PhysicalUnits{k}Direction", 0) for k in "YX"]
    deltas = [abs(d) for k in "YX" for d in region.numbers(f"PhysicalDelta{k}")[:1]]
    if units != [CENTIMETRES] * 2 or len(deltas) != 2 or min(deltas) <= 0:
        return None
    return round(10 * deltas[0], 9), round(10 * deltas[1], 9)
