"""Store -> 8-bit PNG files. What the 8 bits have cost is in the table beside them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from medssl.commands.data.nifti import write_index
from medssl.errors import UserError, nearest
from medssl.files import atomic
from medssl.progress import track
from medssl.store.intensity import CT_WINDOWS, to_uint8
from medssl.store.store import Store


def png(
    store: str | Path | Store, out: str | Path, *, window: str = "auto", slices: str = "all", where: str | None = None
) -> Path:
    """Writes `out`/PSEUDONYM.png per image, `out`/PSEUDONYM_0012.png per slice of a volume, and `out`/index.csv; returns `out`.

    Columns of the table: what the file shows; level and width of the window (DICOM's VOI LINEAR); clipped, the share of
    pixels outside the window; rms_loss, the root mean square error of the others in stored units. Files hold pixels only.

    Args:
        store: a folder made by ingest, or a Store.
        out: the folder.
        window: a name in `intensity.WINDOWS`, for CT, or "auto": low to high of each scan in the manifest.
        slices: of a volume, along its first axis: "all", "middle" or a number of them, evenly spread.
        where: which scans; see medssl.store.query.

    Raises:
        UserError: an unknown window or number of slices, a window in HU for scans that are not CT, images that are
            neither grey nor RGB, damaged bytes, or a full disk.
    """
    source, folder = Store.open(store, where=where), Path(out).expanduser()
    _check(source, window)
    columns = {c: source.column(c) for c in ("scan", "patient", "split", "modality")}
    labels = {f"label:{name}": source.column(f"label:{name}") for name in source.labels}
    low, high, shapes = source.column("low"), source.column("high"), source.column("shape")
    wanted = [_wanted(slices, shape[1]) if len(shape) == 4 else None for shape in shapes]
    lines = []
    for i in track(range(len(source)), "png", unit="scan"):
        # to8's formula takes level - 0.5 - (width - 1) / 2 to 0 and level - 0.5 + (width - 1) / 2 to 255
        level, width = CT_WINDOWS.get(window, ((low[i] + high[i] + 1) / 2, high[i] - low[i] + 1))
        for k, image in _images(source, i, shapes[i], wanted[i]):
            path = folder / f"{columns['scan'][i]}{'' if k is None else f'_{k:04d}'}.png"
            small = to_uint8(image, level, width)
            with atomic(path) as part:
                Image.fromarray(small[0] if len(small) == 1 else np.moveaxis(small, 0, -1)).save(part, "PNG")
            clipped, loss = cost(image, small, level, width)
            lines.append(
                {"file": path.name}
                | {name: values[i] for name, values in columns.items()}
                | {"slice": k, "window": window, "level": f"{level:.10g}", "width": f"{width:.10g}"}
                | {"clipped": f"{clipped:.6g}", "rms_loss": f"{loss:.6g}"}
                | {name: values[i] for name, values in labels.items()}
            )
    write_index(folder / "index.csv", lines)
    share = np.mean([float(line["clipped"]) for line in lines])
    print(f"{len(lines):,} images of {len(source):,} scans, {share:.1%} of their pixels outside the window: {folder}")
    return folder


def cost(image: np.ndarray, small: np.ndarray, level: float, width: float) -> tuple[float, float]:
    """(share of the pixels outside the window, RMS error of the others when `small` is turned back into stored units)."""
    first = level - 0.5 - (width - 1) / 2
    inside = (image >= first) & (image <= first + width - 1)
    back = small[inside].astype(np.float64) / 255 * (width - 1) + first
    loss = np.sqrt(np.mean((image[inside] - back) ** 2)) if back.size else 0.0
    return 1 - back.size / image.size, float(loss)


def _check(store: Store, window: str) -> None:
    if window not in {"auto", *CT_WINDOWS}:
        raise UserError(f"window={window} does not exist.{nearest(window, ['auto', *CT_WINDOWS])}")
    other = np.count_nonzero(store.column("modality") != "CT")
    if window != "auto" and other:
        raise UserError(
            f"window={window} is in Hounsfield units, and {other:,} of {len(store):,} scans are not CT; "
            "use window=auto, or add where='modality == \"CT\"'"
        )
    odd = sum(shape[0] not in (1, 3) for shape in store.column("shape"))
    if odd:
        raise UserError(f"{odd:,} scans are neither grey nor RGB; leave them out with where='channels == 1'")


def _wanted(slices: str, n: int) -> list[int]:
    if slices == "all":
        return list(range(n))
    if slices == "middle":
        return [n // 2]
    if not slices.isdecimal() or int(slices) < 1:
        raise UserError(f"slices={slices} is not possible; it is all, middle or how many")
    count = min(int(slices), n)
    return [(2 * k + 1) * n // (2 * count) for k in range(count)]


def _images(
    store: Store, row: int, shape: tuple[int, ...], wanted: list[int] | None
) -> Iterator[tuple[int | None, np.ndarray]]:
    """(slice or None, (C, H, W)). Few slices of a volume are read alone."""
    if wanted is None:
        yield None, store[row]
        return
    whole = store[row] if len(wanted) == shape[1] else None
    for k in wanted:
        yield k, whole[:, k] if whole is not None else store.crop(row, (k, 0, 0), (1, *shape[2:]))[:, 0]
