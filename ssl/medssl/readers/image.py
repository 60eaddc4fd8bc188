"""PNG, JPEG and TIFF files to scans, with Pillow, which refuses damaged files that crash faster decoders.

Palettes are expanded except in label maps, alpha is dropped, CMYK becomes RGB, grey stored as colour becomes one channel,
and 16-bit grey stays 16-bit. Where Pillow would silently lose or misread data, the file is refused or the change is recorded. The
resolution in such files (pHYs, DPI) is for printing, so there is no spacing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from medssl.readers.label_maps import as_label_map, has_label_colours
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.quiet import silenced
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.values import FEW, lossless, one_channel

MAGIC = {"PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "TIFF": (b"II*\0", b"MM\0*")}
MAX_PIXELS = 1 << 27  # three times the largest radiograph
MAX_BYTES = 1 << 33  # of a volume, as in NIfTI files
ORIENTATION = 0x0112  # EXIF and TIFF
SUBFILE, PHOTOMETRIC, DESCRIPTION, SAMPLE_FORMAT = 254, 262, 270, 339  # TIFF 6.0
DERIVED = 0b101  # bits of SUBFILE: reduced copy, transparency mask
WHITE_IS_ZERO, SIGNED = 0, 2
# Pillow mode -> mode to convert to (None: as is) and the processing step. Other modes are refused.
MODES: dict[str, tuple[str | None, str]] = {
    **dict.fromkeys(("L", "I;16", "I;16L", "I;16B", "I;16N", "I", "F", "RGB"), (None, "")),
    **dict.fromkeys(("P", "PA"), ("RGB", "palette to RGB")),
    "1": ("L", "1 bit to 8"),
    "LA": ("L", "alpha dropped"),
    "RGBA": ("RGB", "alpha dropped"),
    "CMYK": ("RGB", "CMYK to RGB"),
    "YCbCr": ("RGB", "YCbCr to RGB"),
}


def is_image(head: bytes) -> bool:
    """Return whether the first bytes of a file are PNG, JPEG or TIFF."""
    return _kind(head) != ""


def _kind(head: bytes) -> str:
    return next((k for k, starts in MAGIC.items() if head.startswith(starts)), "")


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """Yield the image as (1, H, W) or (3, H, W), upright; the pages of a TIFF file are `name#page/k`.

    A TIFF file in which ImageJ has noted that its pages are slices is one volume, (1, D, H, W) or (3, D, H, W). Probable label
    maps are quarantined. Masks of two levels that JPEG compression or smoothing has blurred are 0 and 255 again.

    Raises:
        Unreadable: EMPTY, NOT_A_SCAN, BAD_HEADER, TRUNCATED, DECODE_FAILED, TOO_LARGE, UNSUPPORTED_PIXELS, NON_FINITE.
    """
    head = stream.read(8)
    kind = _kind(head)
    if not kind:
        raise Unreadable("NOT_A_SCAN" if head else "EMPTY", "not PNG, JPEG or TIFF")
    with _guarded():
        pages = _pages(stream, kind)
        slices = _slices(stream, kind, pages)
    for k in pages[:1] if slices else pages:
        part = f"{name}#page/{k}" if len(pages) > 1 and not slices else name
        try:
            with _guarded():
                array, steps = _stack(stream, kind, pages, name) if slices else _page(stream, kind, k, name)
        except Unreadable as why:
            yield why, part
            continue
        labels = as_label_map(array, name, FEW, lossy=kind == "JPEG")
        if labels is not None and labels is not array:
            array, steps = labels, [*steps, "labels restored"]
        scan = Scan(
            array=array,
            scan=pseudonyms.of("scan", f"file|{part}"),
            patient=pseudonyms.of("patient", f"file|{name}"),
            patient_known=False,
            steps=tuple(steps),
            quarantined="label map" if labels is not None or has_label_colours(array, name) else "",
        )
        yield scan, part


@contextmanager
def _guarded() -> Iterator[None]:
    """Turn Pillow's errors about damaged files into Unreadable, and suppress its messages.

    Pillow's own limit on pixels would refuse an image without its size; `_page` has a lower one.
    """
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with silenced():
            yield
    except (Unreadable, MemoryError):
        raise
    except UnidentifiedImageError:
        raise Unreadable("BAD_HEADER", "the header of the image is damaged or incomplete") from None
    except Exception as e:  # plugins raise various errors on damaged files
        if isinstance(e, EOFError) or "truncated" in str(e).lower():
            raise Unreadable("TRUNCATED", "the file ends inside the image") from None
        raise Unreadable("DECODE_FAILED", f"the image is damaged ({type(e).__name__})") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _open(stream: BinaryIO, kind: str) -> Image.Image:
    stream.seek(0)
    return Image.open(stream, formats=(kind,))


def _pages(stream: BinaryIO, kind: str) -> list[int]:
    """Return the indices of the images of a file, without reduced copies. Only the first image of a JPEG counts."""
    with _open(stream, kind) as opened:
        if kind == "PNG":
            if getattr(opened, "n_frames", 1) > 1:
                raise Unreadable("UNSUPPORTED_PIXELS", "an animation; export its frames as PNG files")
            opened.verify()  # checks all checksums, which decoding skips; the file must be reopened afterwards
        if not isinstance(opened, TiffImageFile):
            return [0]
        return [k for k in range(opened.n_frames) if not _tag(opened, k, SUBFILE) & DERIVED]


def _slices(stream: BinaryIO, kind: str, pages: list[int]) -> bool:
    """Return whether the pages of a file are the slices of a volume, according to ImageJ's description of it.

    Raises:
        Unreadable: UNSUPPORTED_PIXELS if there are more slices than pages: ImageJ lists only the first of a very large stack.
    """
    with _open(stream, kind) as opened:
        text = opened.tag_v2.get(DESCRIPTION, "") if isinstance(opened, TiffImageFile) else ""
    if not str(text).startswith("ImageJ="):
        return False
    fields = dict(line.split("=", 1) for line in str(text).splitlines() if "=" in line)
    images, slices, channels, frames = (
        int(found) if (found := fields.get(k, "1").strip()).isascii() and found.isdigit() else 1
        for k in ("images", "slices", "channels", "frames")
    )
    if images > len(pages):
        what = f"an ImageJ stack of {images} images, of which the file lists {len(pages)}; save it as NIfTI"
        raise Unreadable("UNSUPPORTED_PIXELS", what)
    return len(pages) > 1 and slices == len(pages) and channels == frames == 1


def _stack(stream: BinaryIO, kind: str, pages: list[int], name: str) -> tuple[np.ndarray, list[str]]:
    """Return the pages as one volume (C, D, H, W), and the processing steps of any of them."""
    found: list[np.ndarray] = []
    steps: dict[str, None] = {}
    for k in pages:
        array, done = _page(stream, kind, k, name)
        if found and (array.shape, array.dtype) != (found[0].shape, found[0].dtype):
            raise Unreadable("UNSUPPORTED_PIXELS", "the slices of the stack differ in size or type")
        if array.nbytes * len(pages) > MAX_BYTES:
            raise Unreadable("TOO_LARGE", f"{array.nbytes * len(pages):,} bytes; at most {MAX_BYTES:,} are read")
        found.append(array)
        steps |= dict.fromkeys(done)
    return np.stack(found, 1), list(steps)


def _tag(opened: TiffImageFile, page: int, number: int) -> int:
    """Return an integer tag of a TIFF page, 0 if it is absent."""
    opened.seek(page)
    value = opened.tag_v2.get(number, 0)
    return int(value[0] if isinstance(value, tuple) else value)


def _page(stream: BinaryIO, kind: str, k: int, name: str) -> tuple[np.ndarray, list[str]]:
    """Return one image as (C, H, W) and the processing steps. The colours of a label map's palette are for display only."""
    with _open(stream, kind) as opened:
        opened.seek(k)
        if opened.width * opened.height > MAX_PIXELS:
            size = f"{opened.width:,} x {opened.height:,}"
            raise Unreadable("TOO_LARGE", f"{size} pixels; images of at most {MAX_PIXELS:,} pixels are read")
        mode, raw = opened.mode, _raw_mode(opened)
        inverted = _checked(opened, kind, k, raw)
        steps = ["EXIF orientation"] if opened.getexif().get(ORIENTATION, 1) not in {0, 1} else []
        opened.load()
        upright = ImageOps.exif_transpose(opened)
    if mode not in MODES:
        raise Unreadable("UNSUPPORTED_PIXELS", f"images of mode {mode} are not supported")
    target, step = MODES[mode]
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
    elif mode == "P" and as_label_map(indices := np.array(upright)[None], name, FEW) is not None:
        return indices, [s if s != step else "palette indices" for s in steps]
    return array, steps


def _raw_mode(opened: Image.Image) -> str:
    """Return Pillow's name for the pixel encoding ("RGB;16B"), "" if there is none."""
    args = opened.tile[0].args if opened.tile else ""  # type: ignore[attr-defined]
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _checked(opened: Image.Image, kind: str, k: int, raw: str) -> bool:
    """Refuse what Pillow reads wrongly; return True if 16-bit values must still be inverted, which Pillow does not do.

    Raises:
        Unreadable: UNSUPPORTED_PIXELS.
    """
    if raw == "LA;16B":
        raise Unreadable("UNSUPPORTED_PIXELS", "16-bit grey with transparency")
    if opened.mode == "CMYK" and kind == "JPEG" and "adobe" not in opened.info:
        raise Unreadable("UNSUPPORTED_PIXELS", "a CMYK JPEG that does not state whether it is inverted")
    if not isinstance(opened, TiffImageFile):
        return False
    if opened.mode == "L" and _tag(opened, k, SAMPLE_FORMAT) == SIGNED:
        raise Unreadable("UNSUPPORTED_PIXELS", "signed 8-bit values")
    white = PHOTOMETRIC in opened.tag_v2 and _tag(opened, k, PHOTOMETRIC) == WHITE_IS_ZERO
    if white and opened.mode in {"I", "F"}:
        raise Unreadable("UNSUPPORTED_PIXELS", "floating point values where white is zero")
    return white and opened.mode.startswith("I;16")
