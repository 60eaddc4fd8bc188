"""DICOM files to scans. Only allow-listed metadata and pseudonyms leave the header."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, BinaryIO

import numpy as np

from medssl.readers.dicom import codecs, frames
from medssl.readers.dicom.assemble import compact, image_scan, scan_fields, stack_scan
from medssl.readers.dicom.checks import check_image, checked_layout
from medssl.readers.dicom.enhanced import headers, is_enhanced
from medssl.readers.dicom.frame_places import Place, frame_places
from medssl.readers.dicom.header import Header, parse
from medssl.readers.dicom.layout import Layout
from medssl.readers.dicom.metadata import common, modality_of
from medssl.readers.dicom.mosaic import is_tiled
from medssl.readers.dicom.pixels import Pixels, arguments, to_values
from medssl.readers.dicom.slices import STACKED, order_of, slice_of
from medssl.readers.dicom.stack_geometry import stack_affine
from medssl.readers.dicom.stored_values import stored_values
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable


def read(stream: BinaryIO, name: str, pseudonyms: Pseudonyms) -> Slice | Iterator[tuple[Scan | Unreadable, str]]:
    """Return a slice of a volume, with the position of its pixels validated but not decoded, or the scans of the file.

    name: path of the file relative to the source.

    Raises:
        Unreadable: the codes of `header.parse`, `checks.check_image`, `checks.checked_layout`, `frame_places`,
            `pixels.arguments` and `pixels.to_values`.
    """
    header = parse(stream)
    check_image(header)
    layout = checked_layout(header)
    if layout.frames > 1 or is_tiled(header):
        return frames.read(header, name, pseudonyms)
    places = frame_places(header.stream, header, layout)
    if len(places) > 1 or (is_enhanced(header) and modality_of(header) not in STACKED):
        return frames.read(header, name, pseudonyms)
    place, frame = places[0], _frame(header)
    modality = modality_of(header)
    how = arguments(frame, layout, modality)
    uid = pseudonyms.of("scan", header.raw("SOPInstanceUID") or b"file|" + name.encode())
    about = scan_fields(header, [frame], name, pseudonyms)
    if modality in STACKED:
        again = how["lut"] is not None or header.stream is not stream  # deflated or gzipped
        where = {"parse": True} if again else {"layout": dict(vars(layout)), "place": place, **how}
        file = pseudonyms.of("path", name)
        found = slice_of(frame, name, pseudonyms, order=order_of(frame), file=file, uid=uid, about=about, frame=where)
        if found is not None:
            return found
    pixels = to_values(codecs.words(header.stream, layout, place), layout, **how)
    return iter([(image_scan(frame, pixels, about | {"scan": uid}), name)])


def decode(stream: BinaryIO, frame: dict[str, Any]) -> Pixels:
    """Return the pixels of a slice, given its `Slice.frame`.

    Raises:
        Unreadable: TRUNCATED, DECODE_FAILED, UNSUPPORTED_PIXELS, NON_FINITE; with frame["parse"] also those of `read`.
    """
    stream, layout, place, how = _opened(stream, frame)
    return to_values(codecs.words(stream, layout, place), layout, **how)


def digest(stream: BinaryIO, frame: dict[str, Any]) -> str:
    """Return a hash of a slice's stored values, which is the same in every lossless transfer syntax.

    Raises:
        Unreadable: as `decode`.
    """
    stream, layout, place, _ = _opened(stream, frame)
    words = codecs.words(stream, layout, place)
    values = words.array if words.array.dtype.kind == "f" else stored_values(words, layout).values
    return hashlib.blake2b(np.ascontiguousarray(values).data, digest_size=16).hexdigest()


def _frame(header: Header) -> Header:
    """Return the header of the only frame, with the functional groups of an enhanced object merged in."""
    return headers(header, 1)[0] if is_enhanced(header) else header


def _opened(stream: BinaryIO, frame: dict[str, Any]) -> tuple[BinaryIO, Layout, Place, dict[str, Any]]:
    """Return (stream, layout, place of the frame, arguments of `to_values`)."""
    if "parse" in frame:
        header = _frame(parse(stream))
        layout = checked_layout(header)
        place = frame_places(header.stream, header, layout)[0]
        return header.stream, layout, place, arguments(header, layout, modality_of(header))
    how = {k: v for k, v in frame.items() if k not in {"layout", "place"}}
    return stream, Layout(**frame["layout"]), frame["place"], how


def single(s: Slice, stream: BinaryIO) -> Scan:
    """Return a slice that belongs to no volume as an image (C, H, W).

    Raises:
        Unreadable: as `decode`.
    """
    return stack_scan([s], [decode(stream, s.frame)], s.about | {"scan": s.uid})


def volume(
    slices: list[Slice],
    open_slice: Callable[[Slice], BinaryIO],
    pseudonyms: Pseudonyms,
    heartbeat: Callable[[int], None],
) -> Scan | list[tuple[int, Unreadable]]:
    """Return a sorted stack as (C, D, H, W) in canonical orientation, or (index, reason) of every unreadable slice.

    heartbeat: called with k before slice k is read, and with len(slices) before they are assembled.

    Raises:
        Unreadable: BAD_GEOMETRY, NO_PIXELS.
    """
    stack_affine(slices)  # refuse bad geometry before decoding
    pixels, failed = [], []
    for k, s in enumerate(slices):
        heartbeat(k)
        try:
            with closing(open_slice(s)) as stream:
                pixels.append(compact(decode(stream, s.frame)))
        except Unreadable as e:
            failed.append((k, e))
        except OSError as e:  # its message may contain the path
            failed.append((k, Unreadable("CANNOT_OPEN", f"the file cannot be read ({type(e).__name__})")))
    if failed:
        return failed
    heartbeat(len(slices))
    about = slices[0].about | {
        "scan": pseudonyms.of("scan", "volume|" + "|".join(sorted(s.uid for s in slices))),
        "metadata": _shared(slices),
        "quarantined": next((h for s in slices if (h := s.about["quarantined"])), ""),
    }
    return stack_scan(slices, pixels, about)


def _shared(slices: list[Slice]) -> dict[str, str | float]:
    """Return the metadata that all slices share."""
    return common([s.about["metadata"] for s in slices])
