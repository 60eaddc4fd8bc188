"""DICOM headers and decoded frames to scans: one image, or a stack of slices as a volume."""

from dataclasses import replace
from typing import Any

import numpy as np

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.identity import identify
from medssl.readers.dicom.luts import window
from medssl.readers.dicom.metadata import common, metadata_of, modality_of, numbers, scanner_of
from medssl.readers.dicom.pixels import AIR, Pixels, smallest
from medssl.readers.dicom.quarantine import quarantine_reason
from medssl.readers.dicom.stack_geometry import stack_affine
from medssl.readers.dicom.ultrasound import ultrasound_crop
from medssl.readers.geometry import to_canonical, voxel_spacing
from medssl.readers.non_finite import FILLED
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable
from medssl.readers.values import one_channel

PROJECTIONS = {"CR", "DX", "MG", "RG", "IO", "PX", "XA", "RF"}  # modalities whose window is chosen for each image
MIN_TILT = 0.1  # degrees


def image_scan(header: Header, pixels: Pixels, about: dict[str, Any], repaired: tuple[str, ...] = ()) -> Scan:
    """Return one frame as a scan (C, H, W), cropped to the image region if it is ultrasound.

    about: the other fields of the scan. repaired: processing steps before decoding.

    Raises:
        Unreadable: NO_PIXELS, BAD_HEADER, TRUNCATED.
    """
    modality = about["modality"]
    array, steps = assemble([pixels], _hounsfield(about))
    array = array[:, 0]
    spacing = numbers(header, "PixelSpacing") or numbers(header, "ImagerPixelSpacing")
    if modality == "US":
        box, scale = ultrasound_crop(header)
        spacing = scale or spacing
        if box is not None:
            top, bottom, left, right = box
            array, steps = array[:, top:bottom, left:right], (*steps, "crop to ultrasound region")
    shown = window(header) if modality in PROJECTIONS and header.integer("SamplesPerPixel", 1) == 1 else None
    if shown is not None:
        low, high = shown if pixels.mirror is None else (pixels.mirror - shown[1], pixels.mirror - shown[0])
        about = about | {"metadata": about["metadata"] | {"voi_low": low, "voi_high": high}}
    valid = len(spacing) == 2 and min(spacing) > 0
    array = np.ascontiguousarray(array)
    return Scan(array=array, spacing=spacing if valid else None, steps=(*repaired, *steps), **about)


def stack_scan(stack: list[Slice], pixels: list[Pixels], about: dict[str, Any], repaired: tuple[str, ...] = ()) -> Scan:
    """Return a sorted stack as a scan (C, D, H, W) in canonical orientation, or a single slice as (C, H, W).

    Raises:
        Unreadable: BAD_GEOMETRY, NO_PIXELS.
    """
    array, steps = assemble(pixels, _hounsfield(about))
    steps = (*repaired, *steps)
    if len(stack) == 1:
        return Scan(array=array[:, 0], spacing=stack[0].spacing, steps=steps, **about)
    affine, tilt = stack_affine(stack)
    array, affine = to_canonical(array, affine)
    if tilt > MIN_TILT:
        about = about | {"metadata": about["metadata"] | {"tilt": round(tilt, 1)}}
    steps = (*steps, "reorient to RAS")
    return Scan(array=array, affine=affine, spacing=voxel_spacing(affine), steps=steps, **about)


def unplaced_scan(
    stack: list[Slice], pixels: list[Pixels], about: dict[str, Any], repaired: tuple[str, ...] = ()
) -> Scan:
    """Return a sorted stack of unknown position and orientation as a scan (C, D, H, W), as it was stored.

    Raises:
        Unreadable: BAD_GEOMETRY, NO_PIXELS.
    """
    array, steps = assemble(pixels, about["modality"])
    step = float(np.linalg.norm(np.subtract(stack[1].position, stack[0].position)))
    return Scan(array=array, spacing=(step, *stack[0].spacing), steps=(*repaired, *steps), **about)


def compact(pixels: Pixels) -> Pixels:
    """Return the frame in its smallest type, because all frames of a volume are in memory at once."""
    dtype = smallest(pixels.values.min(), pixels.values.max(), pixels.preferred)
    return replace(pixels, values=pixels.values.astype(dtype, copy=False))


def _hounsfield(about: dict[str, Any]) -> bool:
    """Return whether the values are Hounsfield units."""
    return about["modality"] == "CT" and "rescale_type" not in about["metadata"]


def assemble(frames: list[Pixels], hounsfield: bool) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return frames as one array (C, D, H, W) and the processing steps.

    Padding is replaced by air in Hounsfield units, otherwise by the darkest value. Grey stored as colour becomes one channel.

    Raises:
        Unreadable: BAD_GEOMETRY if frames differ in size, NO_PIXELS if everything is padding, NON_FINITE if no value of a
            frame between others, or of all frames, is finite.
    """
    if len({f.values.shape for f in frames}) > 1:
        raise Unreadable("BAD_GEOMETRY", "the slices of the stack differ in size")
    low, high = min(f.values.min() for f in frames), max(f.values.max() for f in frames)
    preferred = next((f.preferred for f in frames if f.preferred.kind == "f"), frames[0].preferred)
    padded = any(f.padding is not None for f in frames)
    if padded and hounsfield:
        low = min(low, AIR)
    array = np.stack([f.values for f in frames], axis=1, dtype=smallest(low, high, preferred), casting="unsafe")
    steps = list(dict.fromkeys(step for f in frames for step in f.steps))
    if padded:
        mask = np.stack([np.zeros(f.values.shape[1:], bool) if f.padding is None else f.padding for f in frames])
        there = np.flatnonzero(~mask.all((1, 2)))
        if not len(there) and FILLED not in steps:
            raise Unreadable("NO_PIXELS", "every pixel is padding")
        if FILLED in steps and (not len(there) or np.diff(there).max(initial=1) > 1):
            raise Unreadable("NON_FINITE", "no value of a frame is finite, and it does not lie beyond the organ")
        array[:, mask] = AIR if hounsfield else array[:, ~mask].min()
        steps.append("padding filled")
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    return array, tuple(steps)


def scan_fields(header: Header, frames: list[Header], name: str, pseudonyms: Pseudonyms) -> dict[str, Any]:
    """Return the fields of `Scan` that come from the header, except `scan`, with the metadata all frames share.

    frames: the header of each frame; [header] for a single image.
    """
    modality = modality_of(header)
    return {
        "modality": modality,
        "scanner": scanner_of(header),
        "metadata": common([metadata_of(frame) for frame in frames]),
        "quarantined": quarantine_reason(frames[0], modality),
        **identify(header, pseudonyms, name),
    }
