"""PNG, JPEG and TIFF files to scans, with Pillow alone: it refuses bombs and damage where faster decoders crash.

Colour follows one table: palettes are expanded, alpha is dropped, CMYK becomes RGB, grey stored as colour becomes one
channel, 16-bit grey stays 16-bit, and what Pillow would cut or turn silently is refused or recorded. The resolution that
such files state (pHYs, DPI) is that of a printer or a screen: it is no spacing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.quiet import silenced
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.values import FEW, few_integers, is_label_name, lossless, one_channel

MAGIC = {"PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "TIFF": (b"II*\0", b"MM\0*")}
MOST_PIXELS = 1 << 27  # three times the largest radiograph; below Pillow's own limit, which stays as it is
ORIENTATION = 0x0112  # EXIF and TIFF
SUBFILE, PHOTOMETRIC, SAMPLE_FORMAT = 254, 262, 339  # TIFF 6.0
COPY_OF_ANOTHER = 0b101  # bits of SUBFILE: a reduced copy, a transparency mask
WHITE_IS_ZERO, SIGNED = 0, 2
# How a Pillow mode becomes an array; None where np.asarray is right. Modes that are missing are refused.
TABLE: dict[str, tuple[str | None, str]] = {
    "L": (None, ""),
    "I;16": (None, ""),
    "I;16L": (None, ""),
    "I;16B": (None, ""),
    "I;16N": (None, ""),
    "I": (None, ""),
    "F": (None, ""),
    "RGB": (None, ""),
    "1": ("L", "1 bit to 8"),
    "P": ("RGB", "palette to RGB"),
    "PA": ("RGB", "palette to RGB"),
    "LA": ("L", "alpha dropped"),
    "RGBA": ("RGB", "alpha dropped"),
    "CMYK": ("RGB", "CMYK to RGB"),
    "YCbCr": ("RGB", "YCbCr to RGB"),
}


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """The image as (1, H, W) or (3, H, W), upright; the pages of a TIFF file are `name#page/k`. No spacing is known.

    What looks like a label map is held.

    Raises:
        Unreadable: EMPTY, NOT_A_SCAN, BAD_HEADER, TRUNCATED, DECODE_FAILED, TOO_LARGE, UNSUPPORTED_PIXELS, NON_FINITE.
    """
    head = stream.read(8)
    kind = next((k for k, starts in MAGIC.items() if head.startswith(starts)), "")
    if not kind:
        raise Unreadable("NOT_A_SCAN" if head else "EMPTY", "neither PNG nor JPEG nor TIFF")
    with _guarded():
        pages = _pages(stream, kind)
    for k in pages:
        part = f"{name}#page/{k}" if len(pages) > 1 else name
        try:
            with _guarded():
                array, steps = _page(stream, kind, k)
        except Unreadable as why:
            yield why, part
            continue
        label = array.shape[0] == 1 and is_label_name(name) and few_integers(array, FEW)
        scan = Scan(
            array=array,
            scan=pseudonyms.of("scan", f"file|{part}"),
            patient=pseudonyms.of("patient", f"file|{name}"),
            patient_known=False,
            steps=tuple(steps),
            quarantined="label map" if label else "",
        )
        yield scan, part


@contextmanager
def _guarded() -> Iterator[None]:
    """Whatever Pillow raises about a damaged file, as Unreadable; nothing it says is printed."""
    try:
        with silenced():
            yield
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise Unreadable("TOO_LARGE", "the image has more pixels than any scan") from None
    except UnidentifiedImageError:
        raise Unreadable("BAD_HEADER", "the header of the image is damaged or incomplete") from None
    except Exception as e:  # the plugins let through whatever a broken file provokes
        if isinstance(e, EOFError) or "truncated" in str(e).lower():
            raise Unreadable("TRUNCATED", "the file ends inside the image") from None
        raise Unreadable("DECODE_FAILED", f"the image is damaged ({type(e).__name__})") from None


def _open(stream: BinaryIO, kind: str) -> Image.Image:
    stream.seek(0)
    return Image.open(stream, formats=(kind,))


def _pages(stream: BinaryIO, kind: str) -> list[int]:
    """The images of a file that are not copies of another. A JPEG's further pictures are previews of the first."""
    with _open(stream, kind) as opened:
        if kind == "PNG":
            if getattr(opened, "n_frames", 1) > 1:
                raise Unreadable("UNSUPPORTED_PIXELS", "an animation, not an image")
            opened.verify()  # checksums of all chunks, which decoding skips; the file must then be opened again
        if not isinstance(opened, TiffImageFile):
            return [0]
        return [k for k in range(opened.n_frames) if not _tag(opened, k, SUBFILE) & COPY_OF_ANOTHER]


def _tag(opened: TiffImageFile, page: int, number: int) -> int:
    """A number from the directory of a TIFF page, 0 when it is absent."""
    opened.seek(page)
    value = opened.tag_v2.get(number, 0)
    return int(value[0] if isinstance(value, tuple) else value)


def _page(stream: BinaryIO, kind: str, k: int) -> tuple[np.ndarray, list[str]]:
    """One image as (C, H, W), and what was done to it."""
    with _open(stream, kind) as opened:
        opened.seek(k)
        if opened.width * opened.height > MOST_PIXELS:
            raise Unreadable("TOO_LARGE", f"an image of {opened.width} x {opened.height} pixels")
        mode, raw = opened.mode, _raw_mode(opened)
        inverted = _checked(opened, kind, k, raw)
        steps = ["EXIF orientation"] if opened.getexif().get(ORIENTATION, 1) not in {0, 1} else []
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    if mode not in TABLE:
        raise Unreadable("UNSUPPORTED_PIXELS", f"images of mode {mode} are not read")
    target, step = TABLE[mode]
    array = np.asarray(upright if target is None else upright.convert(target))
    array = np.ascontiguousarray(np.moveaxis(array, -1, 0)) if array.ndim == 3 else array[None].copy()
    steps += [step] if step else []
    steps += ["16-bit colour to 8"] if ";16" in raw and array.shape[0] == 3 else []
    array, repaired = lossless(array)
    steps += repaired
    if inverted:
        array = np.iinfo(np.uint16).max - array
        steps.append("white is zero inverted")
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    return array, steps


def _raw_mode(opened: Image.Image) -> str:
    """How the pixels are stored, in Pillow's words ("RGB;16B"), "" where it does not say."""
    args = opened.tile[0].args if opened.tile else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _checked(opened: Image.Image, kind: str, k: int, raw: str) -> bool:
    """Refuses what Pillow would read wrongly; True when 16-bit values must be inverted, which it forgets.

    Raises:
        Unreadable: UNSUPPORTED_PIXELS.
    """
    if raw == "LA;16B":
        raise Unreadable("UNSUPPORTED_PIXELS", "16-bit grey with transparency")
    if opened.mode == "CMYK" and kind == "JPEG" and "adobe" not in opened.info:
        raise Unreadable("UNSUPPORTED_PIXELS", "a CMYK JPEG that does not say whether it is inverted")
    if not isinstance(opened, TiffImageFile):
        return False
    if opened.mode == "L" and _tag(opened, k, SAMPLE_FORMAT) == SIGNED:
        raise Unreadable("UNSUPPORTED_PIXELS", "signed 8-bit values")
    white = PHOTOMETRIC in opened.tag_v2 and _tag(opened, k, PHOTOMETRIC) == WHITE_IS_ZERO
    if white and opened.mode in {"I", "F"}:
        raise Unreadable("UNSUPPORTED_PIXELS", "floating point values where white is zero")
    return white and opened.mode.startswith("I;16")
