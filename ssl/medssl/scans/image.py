"""PNG and JPEG files to scans, with Pillow alone: it refuses bombs and damaged files where faster decoders crash."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from medssl.scans.alias import Alias
from medssl.scans.dicom import quiet
from medssl.scans.pixels import one_channel
from medssl.scans.scan import Scan, Unreadable

GREY: dict[str, type[np.uint8] | type[np.uint16]] = {
    "L": np.uint8,
    "LA": np.uint8,
    "1": np.uint8,
    "I;16": np.uint16,
    "I;16B": np.uint16,
    "I": np.uint16,
}


def image(path: Path, alias: Alias, relative: str) -> Scan:
    """A file as (1, H, W) or (3, H, W), uint8 or uint16, turned upright, without alpha. The file is its own patient.

    Raises:
        Unreadable: EMPTY, NOT_AN_IMAGE, TRUNCATED, TOO_LARGE, MULTI_FRAME_UNSUPPORTED, UNSUPPORTED_PIXELS.
    """
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=("PNG", "JPEG")) as check:
                if getattr(check, "n_frames", 1) > 1:
                    raise Unreadable("MULTI_FRAME_UNSUPPORTED", "more than one frame in one file is not read yet")
                check.verify()  # checksums; leaves the file unusable
            with Image.open(path, formats=("PNG", "JPEG")) as opened:
                opened.load()
                array, steps = _array(opened)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Unreadable("TOO_LARGE", "the image has more pixels than Pillow allows") from None
    except UnidentifiedImageError:
        raise Unreadable("NOT_AN_IMAGE", "neither PNG nor JPEG") from None
    except (OSError, SyntaxError, ValueError, EOFError) as e:
        raise Unreadable("TRUNCATED", f"the file is damaged or incomplete ({type(e).__name__})") from None
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    return Scan(
        array=array,
        scan=alias.alias("scan", f"file|{relative}"),
        patient=alias.alias("patient", f"file|{relative}"),
        patient_known=False,
        steps=tuple(steps),
    )


def _array(opened: Image.Image) -> tuple[np.ndarray, list[str]]:
    steps = []
    upright = ImageOps.exif_transpose(opened)
    if upright.size != opened.size or opened.getexif().get(0x0112, 1) != 1:
        steps.append("EXIF orientation")
    mode = upright.mode
    if mode == "P":
        upright = upright.convert("RGB")
        steps.append("palette to RGB")
    elif mode == "LA":
        upright = upright.getchannel("L")
        steps.append("alpha dropped")
    elif mode == "RGBA":
        upright = upright.convert("RGB")
        steps.append("alpha dropped")
    elif mode == "1":
        upright = upright.convert("L")
    elif mode != "RGB" and mode not in GREY:
        raise Unreadable("UNSUPPORTED_PIXELS", f"images of mode {mode} are not read")
    array = np.asarray(upright)
    if mode in GREY:
        if array.min() < 0 or array.max() > np.iinfo(GREY[mode]).max:
            raise Unreadable("UNSUPPORTED_PIXELS", "more than 16 bits in a grey image")
        return array.astype(GREY[mode])[None], steps
    return np.ascontiguousarray(np.moveaxis(array, -1, 0)), steps
