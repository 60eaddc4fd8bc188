"""Lookup tables of a DICOM header: modality and VOI LUTs (PS3.3 C.11.1, C.11.2), palettes (C.7.6.3.1.5, C.7.9)."""

from dataclasses import dataclass

import numpy as np

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import numbers
from medssl.readers.scan import Unreadable

COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class Table:
    """A lookup table: inputs up to `first` give values[0], inputs beyond the end the last value. Outputs have `bits` bits."""

    values: np.ndarray
    first: int
    bits: int

    def __call__(self, stored: np.ndarray) -> np.ndarray:
        """Return the outputs for stored values."""
        first = self.first
        if first > 0x7FFF and stored.min() < 0:
            first -= 1 << 16  # written as unsigned although the pixels are signed
        return self.values[np.clip(stored.astype(np.int64) - first, 0, len(self.values) - 1)]


Palette = tuple[Table, Table, Table]  # red, green, blue


def modality_table(header: Header) -> Table | None:
    """Return the Modality LUT, which replaces slope and intercept, or None. Some writers leave an item empty.

    Raises:
        Unreadable: BAD_HEADER.
    """
    item = _filled(header, "ModalityLUTSequence")
    return None if item is None else lut(item)


def _filled(header: Header, sequence: str) -> Header | None:
    """Return the first item of a LUT Sequence that has data, or None."""
    return next((item for item in header.items(sequence) if item.raw("LUTData")), None)


def lut(item: Header) -> Table:
    """Return the table in an item of a Modality or VOI LUT Sequence.

    Raises:
        Unreadable: BAD_HEADER.
    """
    return _table(item, "LUTDescriptor", item.value("LUTData"))


def window(header: Header) -> tuple[float, float] | None:
    """Return [low, high] in modality values of the first VOI LUT or window (C.11.2), before any inversion.

    The display is black or white outside a window; for a VOI LUT, the constant ends are outside. None if there is no
    valid one.
    """
    try:
        item = _filled(header, "VOILUTSequence")
        if item is not None:
            table = lut(item)
            inside = np.flatnonzero((table.values != table.values[0]) & (table.values != table.values[-1]))
            first = table.first - (1 << 16 if table.first > 0x7FFF and header.integer("PixelRepresentation", 0) else 0)
            return (first + float(inside[0]) - 1, first + float(inside[-1]) + 1) if len(inside) else None
    except Unreadable:
        return None
    centre, width = (next(iter(numbers(header, k)), None) for k in ("WindowCenter", "WindowWidth"))
    linear = header.word("VOILUTFunction") in {"", "LINEAR"}
    if centre is None or width is None or width < (2 if linear else 1e-9):
        return None
    if linear:  # C.11.2.1.2.1: the ends of the ramp
        return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    return centre - width / 2, centre + width / 2


def palette(header: Header) -> Palette:
    """Return the palette, plain or segmented.

    Raises:
        Unreadable: BAD_HEADER.
    """
    red, green, blue = (_colour(header, colour) for colour in COLOURS)
    return red, green, blue


def _colour(header: Header, colour: str) -> Table:
    descriptor = f"{colour}PaletteColorLookupTableDescriptor"
    segmented = f"Segmented{colour}PaletteColorLookupTableData"
    if segmented not in header:
        return _table(header, descriptor, header.value(f"{colour}PaletteColorLookupTableData"), bytes_possible=True)
    _, _, bits = _descriptor(header, descriptor)
    dtype: np.dtype = np.dtype(np.uint8 if bits == 8 else "<u2" if header.little else ">u2")
    data = header.value(segmented)
    words = np.frombuffer(data[: len(data) // dtype.itemsize * dtype.itemsize], dtype).tolist()
    try:
        entries = _segments(words, bits)
    except IndexError:
        raise Unreadable("BAD_HEADER", "a segmented palette ends inside a segment") from None
    return _table(header, descriptor, np.array(entries, "<u2" if header.little else ">u2").tobytes())


def _descriptor(header: Header, keyword: str) -> tuple[int, int, int]:
    """Return (number of entries, first input, bits per output)."""
    found = header.numbers(keyword)
    if len(found) != 3 or not 1 <= found[2] <= 16:
        raise Unreadable("BAD_HEADER", f"{keyword} is not a valid descriptor of a lookup table")
    return int(found[0]) & 0xFFFF or 1 << 16, int(found[1]), int(found[2])


def eight_bits(rgb: np.ndarray, table: Palette) -> np.ndarray:
    """Return the outputs of a palette, (3, …), as uint8.

    Outputs of more than 8 bits are cut to the upper 8. Some writers say 16 bits but store 8 in the lower byte; others say
    8 bits but store 16: the largest entry of the three tables tells.
    """
    most = max(int(t.values.max()) for t in table)
    bits = 8 if most < 1 << 8 else max(16 if most >= 1 << t.bits else t.bits for t in table)
    return (rgb >> bits - 8).astype(np.uint8)


def _table(header: Header, keyword: str, data: bytes, bytes_possible: bool = False) -> Table:
    """Return a table. bytes_possible: whether entries of 8 bits may be packed although the descriptor says 16."""
    entries, first, bits = _descriptor(header, keyword)
    if (bits <= 8 or bytes_possible) and entries <= len(data) < 2 * entries:
        dtype: np.dtype = np.dtype(np.uint8)
    else:
        dtype = np.dtype("<u2" if header.little else ">u2")
    if len(data) < entries * dtype.itemsize:
        raise Unreadable("BAD_HEADER", "a lookup table is shorter than stated")
    return Table(np.frombuffer(data, dtype, entries).astype(np.int32), first, bits)


def _segments(words: list[int], bits: int) -> list[int]:
    """Expand discrete (0), linear (1) and indirect (2) segments (C.7.9.2).

    Raises:
        IndexError: a segment extends beyond the end.
        Unreadable: BAD_HEADER.
    """
    found: list[int] = []
    jobs = [(0, -1)]  # (next word, segments left to expand; -1: until the end)
    while jobs:
        at, left = jobs.pop()
        if left == 0 or at >= len(words) - 1:
            continue
        kind, length = words[at], words[at + 1]
        if len(found) + length > 1 << 16 or (kind == 2 and jobs):
            raise Unreadable("BAD_HEADER", "a segmented palette is too long")
        if kind == 0:
            if at + 2 + length > len(words):
                raise IndexError
            found += words[at + 2 : at + 2 + length]
            jobs.append((at + 2 + length, left - 1))
        elif kind == 1 and found:
            start, stop = found[-1], words[at + 2]
            found += [round(start + (stop - start) * k / length) for k in range(1, length + 1)]
            jobs.append((at + 3, left - 1))
        elif kind == 2:
            parts = 4 if bits == 8 else 2  # words that hold the 32 bits of a byte offset
            offset = sum(words[at + 2 + i] << (32 // parts) * i for i in range(parts))
            jobs += [(at + 2 + parts, left - 1), (offset // (1 if bits == 8 else 2), length)]
        else:
            raise Unreadable("BAD_HEADER", "a segmented palette has a segment of unknown type")
    return found
