"""The image region of an ultrasound frame and its pixel spacing (PS3.3 C.8.5.5, US Region Calibration)."""

from medssl.readers.dicom.header import Header

# Region Spatial Format (C.8.5.5.1.1). Waveforms (4) and graphics (5) are not images.
TISSUE = 1
IMAGES = {TISSUE, 2, 3}  # two-dimensional, M-mode, spectral
CENTIMETRES = 3  # Physical Units (C.8.5.5.1.15)

Box = tuple[int, int, int, int]  # rows [top, bottom), columns [left, right)


def ultrasound_crop(header: Header) -> tuple[Box | None, tuple[float, float] | None]:
    """Return (box, spacing) of the frames of an ultrasound object; each is None if the header does not determine it.

    The box spans all image regions if they are of one kind; this removes the band at the top in which scanners write the
    patient's name. With several kinds (tissue above a spectrum) nothing is cropped. The spacing is mm between rows and
    between columns, if every tissue region has the same scale in centimetres.

    Raises:
        Unreadable: BAD_HEADER, TRUNCATED.
    """
    rows, columns = header.integer("Rows", 0), header.integer("Columns", 0)
    kinds, boxes, scales = set(), [], set()
    for region in header.items("SequenceOfUltrasoundRegions"):
        kind = region.integer("RegionSpatialFormat", 0)
        box = _box(region, rows, columns)
        if kind not in IMAGES or box is None:
            continue
        kinds.add(kind)
        boxes.append(box)
        scales.add(_scale(region))
    if len(kinds) != 1:
        return None, None
    top, bottom, left, right = zip(*boxes, strict=True)
    scale = scales.pop() if len(scales) == 1 and kinds == {TISSUE} else None
    return (min(top), max(bottom), min(left), max(right)), scale


def _box(region: Header, rows: int, columns: int) -> Box | None:
    """Return the box of a region. Both corners are inside it (C.8.5.5.1.2); some scanners write one pixel too many."""
    ends = [region.integer(f"RegionLocation{k}", -1) for k in ("MinY0", "MaxY1", "MinX0", "MaxX1")]
    top, bottom, left, right = ends[0], min(ends[1] + 1, rows), ends[2], min(ends[3] + 1, columns)
    return (top, bottom, left, right) if 0 <= top < bottom and 0 <= left < right else None


def _scale(region: Header) -> tuple[float, float] | None:
    """Return mm per pixel, (vertical, horizontal). The sign of a delta is only the direction of the axis."""
    units = [region.integer(f"PhysicalUnits{k}Direction", 0) for k in "YX"]
    deltas = [abs(d) for k in "YX" for d in region.numbers(f"PhysicalDelta{k}")[:1]]
    if units != [CENTIMETRES] * 2 or len(deltas) != 2 or min(deltas) <= 0:
        return None
    return round(10 * deltas[0], 9), round(10 * deltas[1], 9)
