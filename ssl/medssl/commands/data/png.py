"""Write the images and slices of a store as 8-bit PNG files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medssl.errors import UserError, nearest
from medssl.files import atomic, write_csv
from medssl.progress import track
from medssl.results import Result
from medssl.store.export import index_rows, window_loss
from medssl.store.intensity_windows import CT_WINDOWS, to_uint8
from medssl.store.store import Store


def png(
    store: str | Path | Store, out: str | Path, *, window: str = "auto", slices: str = "all", where: str | None = None
) -> Result:
    """Write `out`/PSEUDONYM.png per image, `out`/PSEUDONYM_0012.png per slice of a volume, and a table to `out`/index.csv.

    The table holds identifiers and labels; level and width of the window (DICOM's VOI LINEAR); clipped, the share of pixels
    outside the window; and rms_loss, the root mean square error of the others in stored units. The files hold pixels only.

    Args:
        store: a folder made by ingest, or a Store.
        out: the folder.
        window: a name in `intensity_windows.CT_WINDOWS`, for CT, or "auto": each scan's own window.
        slices: slices of a volume along its first axis: "all", "middle", or a number of evenly spaced ones.
        where: filter expression selecting scans; see `medssl.store.query`.

    Returns:
        {"out", "images", "clipped"}, with the mean share of clipped pixels.

    Raises:
        UserError: an unknown window, an invalid number of slices, a window in HU for scans other than CT, images neither
            grey nor RGB, damaged bytes, or a full disk.
    """
    source, folder = Store.open(store, where=where), Path(out).expanduser()
    _check(source, window)
    identifiers, labels = index_rows(source)
    low, high, shapes = source.column("low"), source.column("high"), source.column("shape")
    selected = [_selected(slices, shape[1]) if len(shape) == 4 else None for shape in shapes]
    index = []
    for i in track(range(len(source)), "png", unit="scan"):
        # to_uint8 maps level - 0.5 - (width - 1) / 2 to 0 and level - 0.5 + (width - 1) / 2 to 255
        level, width = CT_WINDOWS.get(window, ((low[i] + high[i] + 1) / 2, high[i] - low[i] + 1))
        for k, image in _images(source, i, selected[i]):
            path = folder / f"{identifiers[i]['scan']}{'' if k is None else f'_{k:04d}'}.png"
            small = to_uint8(image, level, width)
            with atomic(path) as part:
                Image.fromarray(small[0] if len(small) == 1 else np.moveaxis(small, 0, -1)).save(part, "PNG")
            clipped, loss = window_loss(image, small, level, width)
            shown = {"slice": k, "window": window, "level": f"{level:.10g}", "width": f"{width:.10g}"}
            losses = {"clipped": f"{clipped:.6g}", "rms_loss": f"{loss:.6g}"}
            index.append({"file": path.name} | identifiers[i] | shown | losses | labels[i])
    write_csv(folder / "index.csv", index)
    share = float(np.mean([float(row["clipped"]) for row in index]))
    text = f"{len(index):,} images of {len(source):,} scans, {share:.1%} of their pixels outside the window: {folder}"
    return Result({"out": str(folder), "images": len(index), "clipped": share}, text)


def _check(store: Store, window: str) -> None:
    if window not in {"auto", *CT_WINDOWS}:
        raise UserError(f"window={window} does not exist.{nearest(window, ['auto', *CT_WINDOWS])}")
    other = sum(m != "CT" for m in store.value_modalities)
    in_hu = " and rescale_type is None" if "fact:rescale_type" in store.table.column_names else ""
    if window != "auto" and other:
        raise UserError(
            f"window={window} is in Hounsfield units, and {other:,} of {len(store):,} scans are not CT in these units; "
            f"use window=auto, or add where='modality == \"CT\"{in_hu}'"
        )
    odd = sum(shape[0] not in (1, 3) for shape in store.column("shape"))
    if odd:
        raise UserError(f"{odd:,} scans are neither grey nor RGB; leave them out with where='channels == 1'")


def _selected(slices: str, n: int) -> list[int]:
    if slices == "all":
        return list(range(n))
    if slices == "middle":
        return [n // 2]
    if not slices.isdecimal() or int(slices) < 1:
        raise UserError(f"slices={slices} is not possible; it must be all, middle or a number")
    count = min(int(slices), n)
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]


def _images(store: Store, row: int, slices: list[int] | None) -> Iterator[tuple[int | None, np.ndarray]]:
    """Yield (slice or None, (C, H, W)). A single slice of a volume is read without the rest."""
    if slices is None:
        yield None, store[row]
        return
    _, depth, *size = store.table["shape"][row].as_py()
    whole = store[row] if len(slices) == depth else None
    for k in slices:
        yield k, whole[:, k] if whole is not None else store.crop(row, (k, 0, 0), (1, *size))[:, 0]
