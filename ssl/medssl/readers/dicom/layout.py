"""How a DICOM header says its pixels are laid out: PS3.3 C.7.6.3 and PS3.5 section 8, checked before they are used."""

import math
from dataclasses import dataclass

from medssl.readers.dicom.header import DEFLATED, Header
from medssl.readers.scan import Unreadable

MAX_PIXELS = 1 << 28  # per frame; a header that asks for more is lying
MAX_FRAMES = 1 << 20  # of compressed fragments in one file, too

JPEG = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70))
JPEG_LS = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (80, 81))
JPEG_2000 = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # 201 to 203: high throughput
RLE = "1.2.840.10008.1.2.5"
NATIVE = frozenset({"", DEFLATED, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
YBR_DECODED = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51))  # whose decoder has already made RGB of YBR
FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


@dataclass(frozen=True)
class Layout:
    """How the header says the pixels are laid out. Plain values: JSON by `dataclasses.asdict`, back by `Layout(**it)`.

    Attributes:
        frames: as declared; 1 when absent or 0.
        allocated: 1, 8, 16, 32 or, for floating point only, 64.
        little: byte order of native words.
        swapped: samples of 1 or 8 bits that were written as big-endian words of 16 bits.
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
        """The header's promises, checked against each other.

        Raises:
            Unreadable: NO_PIXELS, TOO_LARGE, BAD_HEADER, UNSUPPORTED_SYNTAX, UNSUPPORTED_PIXELS.
        """
        keyword = header.pixels[0] if header.pixels else "PixelData"
        allocated = FLOATS.get(keyword, header.integer("BitsAllocated", 0))
        stored = allocated if keyword in FLOATS else header.integer("BitsStored", allocated)
        layout = cls(
            rows=header.integer("Rows", 0),
            columns=header.integer("Columns", 0),
            samples=header.integer("SamplesPerPixel", 1),
            frames=max(header.integer("NumberOfFrames", 1), 1),
            allocated=16 if 8 < allocated < 16 else allocated,  # the lengths say whether it is so
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
        _check(layout)
        return layout

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows, columns) or (rows, columns, samples)."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def encapsulated(self) -> bool:
        """Whether the pixel data is compressed fragments."""
        return self.syntax not in NATIVE

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest stored value that Bits Stored and Pixel Representation allow."""
        return (-(1 << self.stored - 1), (1 << self.stored - 1) - 1) if self.signed else (0, (1 << self.stored) - 1)

    @property
    def length(self) -> int:
        """Bytes of a native frame."""
        if self.photometric == "YBR_FULL_422":
            return 2 * self.rows * self.columns  # PS3.3 C.7.6.3.1.2: Y Y Cb Cr for two pixels
        return -(-math.prod(self.shape) * self.allocated // 8)


def _vr(header: Header) -> bytes:
    """The value representation of the pixel data of an explicit file."""
    if header.pixels is None or header.implicit:
        return b""
    header.stream.seek(header.pixels[1] - 8)
    return header.stream.read(2)


def _check(layout: Layout) -> None:
    if layout.rows < 1 or layout.columns < 1:
        raise Unreadable("NO_PIXELS", "the header has no rows or no columns")
    if layout.rows * layout.columns > MAX_PIXELS or layout.frames > MAX_FRAMES:
        raise Unreadable("TOO_LARGE", f"the header asks for {layout.frames} x {layout.rows} x {layout.columns} pixels")
    if layout.syntax not in NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}:
        raise Unreadable("UNSUPPORTED_SYNTAX", "no decoder for this transfer syntax")
    if layout.keyword in FLOATS:
        if layout.samples != 1 or layout.encapsulated:
            raise Unreadable("UNSUPPORTED_PIXELS", "floating point pixels in colour or compressed are not read")
        return
    if layout.allocated not in {1, 8, 16, 32} or (layout.allocated == 1 and layout.encapsulated):
        raise Unreadable("UNSUPPORTED_PIXELS", f"{layout.allocated} bits allocated are not read")
    if not (1 <= layout.stored <= layout.allocated and layout.stored - 1 <= layout.high < layout.allocated):
        raise Unreadable("BAD_HEADER", "bits stored, high bit and bits allocated contradict each other")
    colour = layout.photometric.split("_")[0] in {"RGB", "YBR"}
    if layout.samples not in {1, 3} or (layout.samples == 3) != colour or "PARTIAL" in layout.photometric:
        raise Unreadable("UNSUPPORTED_PIXELS", "these samples with this photometric interpretation are not read")
    if layout.samples == 3 and (layout.allocated, layout.stored) != (8, 8):
        raise Unreadable(
            "UNSUPPORTED_PIXELS", f"colour with {layout.stored} of {layout.allocated} bits; 8 of 8 are read"
        )
    if layout.photometric == "YBR_FULL_422" and not layout.encapsulated and layout.columns % 2:
        raise Unreadable("UNSUPPORTED_PIXELS", "colour for every second of an odd number of columns")
