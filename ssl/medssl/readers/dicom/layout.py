"""Pixel layout of a DICOM file according to its header (PS3.3 C.7.6.3, PS3.5 section 8). `checks` validates it."""

import math
from dataclasses import dataclass

from medssl.readers.dicom.header import DEFLATED, Header

JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # 201 to 203: high throughput
RLE = "1.2.840.10008.1.2.5"
NATIVE = frozenset({"", DEFLATED, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
YBR_DECODED = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51))  # decoded to RGB
FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


@dataclass(frozen=True)
class Layout:
    """Pixel layout in JSON-compatible values: `Layout(**vars(layout))` is a copy.

    Attributes:
        frames: as stated; 0 if absent.
        allocated: bits: 1, 8, 16, 32, or 64 for floating point only.
        little: whether native words are little-endian.
        swapped: whether samples of 1 or 8 bits were written as big-endian 16-bit words.
        keyword: PixelData, FloatPixelData or DoubleFloatPixelData.
    """

    rows: int
    columns: int
    samples: int
    frames: int
    allocated: int
    stored: int
    high: int
    signed: bool
    photometric: str
    planar: bool
    syntax: str
    little: bool
    swapped: bool
    keyword: str

    @classmethod
    def of(cls, header: Header) -> "Layout":
        """Return the layout as the header states it.

        Raises:
            Unreadable: BAD_HEADER if a value is not a number.
        """
        keyword = header.pixels[0] if header.pixels else "PixelData"
        allocated = FLOATS.get(keyword, header.integer("BitsAllocated", 0))
        stored = allocated if keyword in FLOATS else header.integer("BitsStored", allocated)
        return cls(
            rows=header.integer("Rows", 0),
            columns=header.integer("Columns", 0),
            samples=header.integer("SamplesPerPixel", 1),
            frames=max(header.integer("NumberOfFrames", 0), 0),
            allocated=16 if 8 < allocated < 16 else allocated,  # lengths are checked later
            stored=stored,
            high=stored - 1 if keyword in FLOATS else header.integer("HighBit", stored - 1),
            signed=header.integer("PixelRepresentation", 0) == 1,
            photometric=header.word("PhotometricInterpretation") or "MONOCHROME2",
            planar=header.integer("PlanarConfiguration", 0) == 1,
            syntax=header.syntax,
            little=header.little,
            swapped=allocated in {1, 8} and not header.little and _vr(header) == b"OW",
            keyword=keyword,
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a frame: (rows, columns) or (rows, columns, samples)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def encapsulated(self) -> bool:
        """Return whether the pixel data are compressed."""
        return self.syntax not in NATIVE

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest possible stored value (Bits Stored, Pixel Representation)."""
        return (-(1 << self.stored - 1), (1 << self.stored - 1) - 1) if self.signed else (0, (1 << self.stored) - 1)

    @property
    def length(self) -> int:
        """Bytes of a native frame."""
        if self.photometric == "YBR_FULL_422":
            return self.rows * self.columns * self.allocated // 4  # PS3.3 C.7.6.3.1.2: Y Y Cb Cr for two pixels
        return -(-math.prod(self.shape) * self.allocated // 8)


def _vr(header: Header) -> bytes:
    """Return the value representation of the pixel data, b"" if it is implicit."""
    if header.pixels is None or header.implicit:
        return b""
    header.stream.seek(header.pixels[1] - 8)
    return header.stream.read(2)
