"""Stored words to stored values: which bits count, and with which sign (PS3.5 8.1.1, 8.2; PS3.3 C.7.6.3.1).

Native and run-length encoded words have unused bits, which are cut off. A codestream has none: its own precision says what
its samples are, and where they exceed Bits Stored either compression overshot or the header is wrong.
"""

from typing import NamedTuple

import numpy as np

from medssl.readers.dicom.codecs import Words
from medssl.readers.dicom.codestream import Codestream
from medssl.readers.dicom.layout import JPEG_2000, Layout

OVERSHOOT = 0.5  # share of the range of Bits Stored; lossy compression exceeds it by less
CLIPPED = "overshoot of lossy compression clipped"
BEYOND = "values beyond Bits Stored kept"
SIGN = "sign of the codestream replaced by the header's"


class Stored(NamedTuple):
    """The stored values of a frame, (smallest, largest) possible value, and the processing steps."""

    values: np.ndarray
    limits: tuple[int, int]
    steps: tuple[str, ...] = ()


def stored_values(words: Words, layout: Layout) -> Stored:
    """Return the stored values as integers of at least Bits Allocated.

    They are within `Layout.limits`, unless the codestream has more bits than Bits Stored and uses them: then they are what the
    codestream says if it is lossless, and clipped to the limits if it is lossy.
    """
    if words.stream is None:
        return Stored(_used_bits(words.array, layout), layout.limits)
    x, steps = _signed(words.array, words.stream, layout)
    low, high = layout.limits
    least, most = int(x.min()), int(x.max())
    if low <= least and most <= high:
        return Stored(x, layout.limits, steps)
    if words.stream.lossless or max(low - least, most - high) > OVERSHOOT * (high - low):
        bits, signed = words.stream.precision, layout.signed or least < 0
        limits = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        return Stored(x, limits, (*steps, BEYOND))
    return Stored(x.clip(low, high), layout.limits, (*steps, CLIPPED))


def whole_words(words: np.ndarray, layout: Layout) -> np.ndarray:
    """Return all bits of the words, at least Bits Allocated, with the sign of the header."""
    return _unsigned(words, layout).view(f"{'i' if layout.signed else 'u'}{max(words.itemsize, layout.allocated // 8)}")


def _unsigned(words: np.ndarray, layout: Layout) -> np.ndarray:
    if words.dtype.itemsize * 8 < layout.allocated:  # a codestream of fewer bits than the header allocates
        words = words.astype(f"{words.dtype.kind}{layout.allocated // 8}")
    return words.view(f"u{words.dtype.itemsize}")


def _used_bits(words: np.ndarray, layout: Layout) -> np.ndarray:
    """Return the Bits Stored bits below High Bit, two's complement if signed."""
    x = _unsigned(words, layout)
    low = layout.high + 1 - layout.stored
    return _low_bits(x >> low if low else x, layout.stored, layout.signed)


def _low_bits(x: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Return the lowest bits of unsigned integers, two's complement if signed."""
    width = x.dtype.itemsize * 8
    spare = width - bits
    if signed:
        return (x << spare).view(f"i{width // 8}") >> spare if spare else x.view(f"i{width // 8}")
    return x & x.dtype.type((1 << bits) - 1) if spare else x


def _signed(words: np.ndarray, stream: Codestream, layout: Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the samples of a codestream with the sign of the header, if both can be reconciled."""
    unsigned = _unsigned(words, layout)
    if words.dtype.kind == "i":
        samples = unsigned.view(f"i{unsigned.dtype.itemsize}")
        if layout.signed:
            return samples, ()
        if int(samples.min()) >= 0:
            return unsigned, (SIGN,)
        if stream.precision > layout.stored:  # the upper half of the range is not in use: these are below zero
            return samples, ()
        return _low_bits(unsigned, layout.stored, False), (SIGN,)
    steps = (SIGN,) if layout.signed and layout.syntax in JPEG_2000 else ()
    if not layout.signed:
        return unsigned, steps
    # Two's complement of all bits of the codestream or, if its upper bits were cleared, of Bits Stored.
    bits = max(stream.precision, layout.stored)
    most, end = int(unsigned.max()), 1 << layout.stored
    if bits > layout.stored and layout.limits[1] < most < (end if stream.lossless else end + end // 4):
        return _low_bits(np.minimum(unsigned, end - 1), layout.stored, True), steps
    return _low_bits(unsigned, bits, True), steps
