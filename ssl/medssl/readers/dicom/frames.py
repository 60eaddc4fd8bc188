"""DICOM files with several frames: enhanced volumes, Siemens mosaics, and runs of separate pictures.

`dicom`, which hands such files over, is imported where it is needed: it imports this module.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

import numpy as np

from medssl.readers.dicom import codecs, enhanced, mosaic, series
from medssl.readers.dicom.codecs import Layout, Place
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.luts import window
from medssl.readers.dicom.metadata import (
    identify,
    image_type,
    metadata_of,
    modality_of,
    numbers,
    quarantine_reason,
    scanner_of,
)
from medssl.readers.dicom.pixels import Pixels, arguments, smallest, to_values
from medssl.readers.dicom.ultrasound import crop, ultrasound_crop
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable

TILTED = 0.1  # degrees


def read(header: Header, name: str, pseudonyms: Pseudonyms, file: str) -> Iterator[tuple[Scan | Unreadable, str]]:
    """The images of one file: a volume per stack of an enhanced object or per mosaic, else a picture per frame.

    name: the file's path relative to its source; volumes of an enhanced object are called name#stack/0, pictures
    name#frame/0, an only picture or a mosaic plain name. file: pseudonym of the file.

    A frame or a stack that cannot be used is yielded as Unreadable in its place.

    Raises:
        Unreadable: what no frame survives: the codes of `codecs.Layout.of` and `codecs.frames`, BAD_HEADER, and for a
            mosaic BAD_GEOMETRY, TOO_FEW_SLICES, UNSUPPORTED_PIXELS, DECODE_FAILED.
    """
    frames = _Frames(header, name, pseudonyms)
    if "MOSAIC" in image_type(header):
        if len(frames.places) > 1:
            raise Unreadable("UNSUPPORTED_PIXELS", "several mosaics in one file are not read")
        yield frames.mosaic(), name
        return
    alone = set(range(len(frames.places)))
    if enhanced.is_enhanced(header):
        slices = [s for k in sorted(alone) if (s := enhanced.slice_of(frames.headers[k], k, file)) is not None]
        stacks = [s for s in enhanced.stacks(slices) if len({v.position for v in s}) > 1]
        alone -= {s.frame["k"] for stack in stacks for s in stack}
        yield from frames.volumes(stacks)
    for k in sorted(alone):
        part = f"#frame/{k}" if len(frames.places) > 1 else ""
        try:
            yield frames.picture(k, part), name + part
        except Unreadable as e:
            yield e, name + part


class _Frames:
    """One file, opened: where its frames lie and what each one's header says."""

    def __init__(self, header: Header, name: str, pseudonyms: Pseudonyms):
        self.header, self.name, self.pseudonyms = header, name, pseudonyms
        self.layout = Layout.of(header)
        self.stream: BinaryIO = header.stream
        self.places: list[Place] = codecs.frames(self.stream, header, self.layout)
        self.repaired = codecs.repaired(self.layout, self.places)
        self.modality = modality_of(header)
        self.headers = (
            enhanced.headers(header, len(self.places)) if enhanced.is_enhanced(header) else [header] * len(self.places)
        )

    def pixels(self, k: int) -> Pixels:
        """Frame k by its own slope and intercept, in few bytes: all frames of a volume are held at once."""
        words, steps = codecs.words(self.stream, self.layout, self.places[k])
        p = to_values(words, steps, self.layout, **arguments(self.headers[k], self.layout, self.modality))
        return replace(p, values=p.values.astype(smallest(p.values.min(), p.values.max(), p.preferred), copy=False))

    def digest(self, slices: list[Slice]) -> dict[str, str]:
        """Hash of the pixel bytes of frames, by Slice.file."""
        found = {}
        for s in slices:
            hashed = hashlib.blake2b(digest_size=16)
            for offset, length in self.places[s.frame["k"]]:
                self.stream.seek(offset)
                hashed.update(self.stream.read(length))
            found[s.file] = hashed.hexdigest()
        return found

    def picture(self, k: int, part: str) -> Scan:
        """Frame k as (C, H, W)."""
        from medssl.readers.dicom.reader import PROJECTIONS, assemble

        header, pixels, about = self.headers[k], self.pixels(k), self.about([k], part)
        array, steps = assemble([pixels], self.modality)
        array = array[:, 0]
        spacing = numbers(header, "PixelSpacing") or numbers(header, "ImagerPixelSpacing")
        if self.modality == "US":
            box, scale = ultrasound_crop(header)
            spacing = scale or spacing
            if box is not None:
                array, steps = crop(array, box), (*steps, "crop to ultrasound region")
        seen = window(header) if self.modality in PROJECTIONS and self.layout.samples == 1 else None
        if seen is not None:
            low, high = seen if pixels.mirror is None else (pixels.mirror - seen[1], pixels.mirror - seen[0])
            about["metadata"] |= {"voi_low": low, "voi_high": high}
        return Scan(
            array=np.ascontiguousarray(array),
            spacing=spacing if len(spacing) == 2 and min(spacing) > 0 else None,
            **about,
            steps=(*self.repaired, *steps),
        )

    def volumes(self, groups: list[list[Slice]]) -> Iterator[tuple[Scan | Unreadable, str]]:
        """Every group as the volumes that it falls into. A frame that cannot be decoded leaves a gap, as a lost file."""
        count = 0
        groups = list(groups)
        while groups:
            plan = series.plan(groups.pop(0), self.digest)
            for s, why in plan.rejected:
                yield why, f"{self.name}#frame/{s.frame['k']}"
            for stack, notes in zip(plan.stacks, plan.notes, strict=True):
                good, pixels = [], []
                for s in stack:
                    try:
                        pixels.append(self.pixels(s.frame["k"]))
                        good.append(s)
                    except Unreadable as e:
                        yield e, f"{self.name}#frame/{s.frame['k']}"
                if len(good) < len(stack):
                    groups += [good] if good else []
                    continue
                part = f"#stack/{count}"
                count += 1
                about = self.about([s.frame["k"] for s in stack], part)
                about["metadata"] |= notes
                try:
                    yield self.volume(stack, pixels, about), self.name + part
                except Unreadable as e:
                    yield e, self.name + part

    def volume(self, stack: list[Slice], pixels: list[Pixels], about: dict[str, Any]) -> Scan:
        """A sorted stack as (C, D, H, W), axes pointing to superior, anterior and right; one slice as (C, H, W)."""
        from medssl.readers.dicom.reader import assemble

        array, steps = assemble(pixels, self.modality)
        if len(stack) == 1:
            return Scan(array=array[:, 0], spacing=stack[0].spacing, **about, steps=(*self.repaired, *steps))
        affine, tilt = series.stack_geometry(stack)
        array, affine = series.canonical(array, affine)
        if tilt > TILTED:
            about["metadata"]["tilt"] = round(tilt, 1)
        return Scan(
            array=array,
            affine=affine,
            spacing=series.spacing_of(affine),
            **about,
            steps=(*self.repaired, *steps, "reorient to RAS"),
        )

    def mosaic(self) -> Scan:
        """The only frame as the volume whose slices are tiled into it."""
        corners, stack, (rows, columns) = mosaic.tiles_of(self.header)
        if len(stack) < series.FEWEST:
            raise Unreadable(
                "TOO_FEW_SLICES", f"{len(stack)} slices are no volume; at least {series.FEWEST} are needed"
            )
        whole = self.pixels(0)
        boxes = [(slice(y, y + rows), slice(x, x + columns)) for y, x in corners]
        tiles = [
            replace(
                whole,
                values=whole.values[:, *box],
                padding=None if whole.padding is None else whole.padding[box],
                steps=(*whole.steps, "cut mosaic"),
            )
            for box in boxes
        ]
        return self.volume(stack, tiles, self.about([0], ""))

    def about(self, frames: list[int], part: str) -> dict[str, Any]:
        """What a scan of these frames says besides its array: of the facts, those that hold for every frame."""
        uid = self.header.raw("SOPInstanceUID")
        facts = [metadata_of(self.headers[k]) for k in frames]
        return {
            "scan": self.pseudonyms.of("scan", uid + part.encode() if uid else f"file|{self.name}{part}"),
            "modality": self.modality,
            "scanner": scanner_of(self.header),
            "metadata": {k: v for k, v in facts[0].items() if all(f.get(k) == v for f in facts)},
            "quarantined": quarantine_reason(self.headers[frames[0]], self.modality),
            **identify(self.header, self.pseudonyms, self.name),
        }
