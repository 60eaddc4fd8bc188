"""DICOM files with several frames: enhanced volumes, nuclear medicine, mosaics, and sequences of separate images."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from medssl.readers.dicom import codecs, enhanced, grouping, mosaic, nuclear
from medssl.readers.dicom.assemble import compact, image_scan, scan_fields, stack_scan, unplaced_scan
from medssl.readers.dicom.checks import checked_layout
from medssl.readers.dicom.frame_places import Place, frame_places
from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import modality_of
from medssl.readers.dicom.pixels import Pixels, arguments, to_values
from medssl.readers.dicom.separations import MIN_SLICES
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable


def read(header: Header, name: str, pseudonyms: Pseudonyms) -> Iterator[tuple[Scan | Unreadable, str]]:
    """Yield the scans of one file: a volume per stack of an enhanced object or per mosaic, otherwise an image per frame.

    Volumes are named name#stack/0, images name#frame/0; a single image or a mosaic is plain name. The tiles of a mosaic too
    small for a volume are images name#tile/0. An unusable frame or stack is yielded as Unreadable.

    Raises:
        Unreadable: the codes of `checks.checked_layout` and `frame_places`, BAD_HEADER; for a mosaic also BAD_GEOMETRY,
            UNSUPPORTED_PIXELS, DECODE_FAILED.
    """
    frames = _Frames(header, name, pseudonyms)
    if mosaic.is_tiled(header):
        if len(frames.places) > 1:
            raise Unreadable("UNSUPPORTED_PIXELS", "several mosaics in one file are not supported")
        yield from frames.mosaic()
        return
    if enhanced.is_enhanced(header):
        slices, placed = enhanced.slices(frames.headers, name, pseudonyms), True
    else:
        found = nuclear.slices_of(header, len(frames.places))
        slices, placed = found.slices, found.placed
    alone = set(range(len(frames.places))) - {s.frame["k"] for s in slices}
    yield from frames.volumes(slices, placed, alone)
    for k in sorted(alone):
        part = f"#frame/{k}" if len(frames.places) > 1 else ""
        try:
            yield image_scan(frames.headers[k], frames.pixels(k), frames.about([k], part), frames.repaired), name + part
        except Unreadable as e:
            yield e, name + part


class _Frames:
    """An open file: the position and the header of each frame."""

    def __init__(self, header: Header, name: str, pseudonyms: Pseudonyms):
        self.header, self.name, self.pseudonyms = header, name, pseudonyms
        self.layout = checked_layout(header)
        self.stream: BinaryIO = header.stream
        self.places: list[Place] = frame_places(self.stream, header, self.layout)
        stated = self.layout.frames or 1
        self.repaired = () if len(self.places) == stated else ("number of frames corrected",)
        self.headers = (
            enhanced.headers(header, len(self.places)) if enhanced.is_enhanced(header) else [header] * len(self.places)
        )

    def pixels(self, k: int) -> Pixels:
        """Return frame k, with its own slope and intercept."""
        words = codecs.words(self.stream, self.layout, self.places[k])
        how = arguments(self.headers[k], self.layout, modality_of(self.header))
        return compact(to_values(words, self.layout, **how))

    def digest(self, slices: list[Slice]) -> dict[str, str]:
        """Return hashes of the pixel data of frames, by `Slice.file`."""
        found = {}
        for s in slices:
            hashed = hashlib.blake2b(digest_size=16)
            for offset, length in self.places[s.frame["k"]]:
                self.stream.seek(offset)
                hashed.update(self.stream.read(length))
            found[s.file] = hashed.hexdigest()
        return found

    def volumes(self, slices: list[Slice], placed: bool, alone: set[int]) -> Iterator[tuple[Scan | Unreadable, str]]:
        """Yield the volumes of frames. A frame that cannot be decoded leaves a gap, like a missing file.

        placed: whether position and orientation are known. alone: receives the frames that are single images.
        """
        count = 0
        by_key: defaultdict[str, list[Slice]] = defaultdict(list)
        for s in slices:
            by_key[s.key].append(s)
        groups = list(by_key.values())
        while groups:
            plan = grouping.divide(groups.pop(0), self.digest)
            for s, why in plan.rejected:
                yield why, f"{self.name}#frame/{s.frame['k']}"
            for stack, notes in zip(plan.stacks, plan.notes, strict=True):
                if len(stack) == 1:
                    alone.add(stack[0].frame["k"])
                    continue
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
                    yield (
                        (stack_scan if placed else unplaced_scan)(stack, pixels, about, self.repaired),
                        self.name + part,
                    )
                except Unreadable as e:
                    yield e, self.name + part

    def mosaic(self) -> Iterator[tuple[Scan | Unreadable, str]]:
        """Yield the only frame as the volume whose slices are tiled in it, or its tiles if they are too few."""
        corners, stack, (rows, columns) = mosaic.tiles_of(self.header)
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
        if len(stack) >= MIN_SLICES:
            yield stack_scan(stack, tiles, self.about([0], ""), self.repaired), self.name
            return
        for k, tile in enumerate(tiles):
            part = f"#tile/{k}" if len(tiles) > 1 else ""
            try:
                yield image_scan(self.header, tile, self.about([0], part), self.repaired), self.name + part
            except Unreadable as e:
                yield e, self.name + part

    def about(self, frames: list[int], part: str) -> dict[str, Any]:
        """Return the fields of a scan of these frames other than its array, with the metadata all of them share."""
        uid = self.header.raw("SOPInstanceUID")
        scan = self.pseudonyms.of("scan", uid + part.encode() if uid else f"file|{self.name}{part}")
        return scan_fields(self.header, [self.headers[k] for k in frames], self.name, self.pseudonyms) | {"scan": scan}
