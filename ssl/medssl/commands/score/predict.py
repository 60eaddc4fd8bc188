"""`medssl predict`: predictions for new files, by the linear probe or the segmentation network kept in a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from medssl.errors import UserError
from medssl.evals.sliding_window import Grid
from medssl.files import atomic, write_csv
from medssl.progress import track
from medssl.readers.scan import Scan, Unreadable
from medssl.readers.walk import walk
from medssl.results import Result
from medssl.scoring.kept_probe import find_probe
from medssl.scoring.kept_segmentation import find_network
from medssl.scoring.new_scans import Encoder, misfit, read_files, temporary_store
from medssl.store.export import nifti_bytes

MASK = "mask"
GZIP_LEVEL = 4


def predict(
    run: str | Path,
    source: str | Path | Sequence[str],
    out: str | Path,
    *,
    target: str | None = None,
    device: str = "auto",
) -> Result:
    """Predict new files by the probe or the network that a run keeps, without a store; writes a table, and for masks NIfTI.

    Each scan is prepared as those that the encoder was trained on. Files that cannot be read or used are rows of the table
    too, with the problem.

    Args:
        run: a run folder scored by `medssl probe`, or for masks by `medssl segment`.
        source: files, or one folder of them. A DICOM file is one image: ingest a folder of slices instead.
        out: a .csv file: file, prediction, a probability for each class or finding, problem. For masks a folder, with
            NAME_mask.nii.gz and index.csv.
        target: the label whose probe is used; None: the only one kept. "mask" segments.
        device: auto, cpu or cuda.

    A probability is that of the model on the labels it was fitted on; it is no diagnosis, and it is not calibrated for another
    hospital.

    Raises UserError if the run keeps no such probe or network, or there is no file.
    """
    encoder = Encoder(run, device)
    folder, path = Path(run).expanduser(), Path(out).expanduser()
    segmenting = target == MASK
    probe = None if segmenting else find_probe(folder, target, encoder.config.weights)
    if not segmenting and path.suffix != ".csv":
        raise UserError(f"out={path} must be a .csv file")
    read = list(track(read_files(_files(source)), "read", unit="scan"))
    problems = [str(s) if isinstance(s, Unreadable) else misfit(s, encoder.config) for _, s in read]
    good = [s for (_, s), why in zip(read, problems, strict=True) if isinstance(s, Scan) and not why]
    if not good:
        raise UserError(f"none of the {len(read)} scans can be used; the first: {problems[0]}")
    if probe is None:
        found = _masks(folder, encoder, good, [n for (n, _), why in zip(read, problems, strict=True) if not why], path)
        table = path / "index.csv"
    else:
        found, table = _probabilities(probe.predict(encoder.features(good)), probe.names, probe.unit), path
    rows = iter(found)
    empty = dict.fromkeys(found[0], "")
    write_csv(
        table,
        [
            {"file": n} | (empty if why else next(rows)) | {"problem": why}
            for (n, _), why in zip(read, problems, strict=True)
        ],
    )
    bad = len(read) - len(good)
    text = f"{len(good):,} scans predicted" + f", {bad:,} with a problem" * bool(bad) + f": {table}"
    return Result({"out": str(table), "predicted": len(good), "problems": bad}, text)


def _files(source: str | Path | Sequence[str]) -> list[Path]:
    """Return the files. Raises UserError if there is none."""
    given = [source] if isinstance(source, str | Path) else list(source)
    if len(given) == 1 and Path(given[0]).is_dir():
        found = [Path(file.path) for file in walk(Path(given[0])) if not file.problem]
        if not found:
            raise UserError(f"source={given[0]} has no files")
        return found
    if not given:
        raise UserError("source is empty; give files, or a folder of them")
    return [Path(g).expanduser() for g in given]


def _probabilities(p: np.ndarray, names: Sequence[str], unit: str) -> list[dict[str, Any]]:
    """Return the cells of each scan: the class or findings predicted, and the probabilities; or the number."""
    if p.ndim == 1:
        return [{"prediction": f"{v:.6g}" + f" {unit}" * bool(unit)} for v in p]
    exclusive = np.allclose(p.sum(1), 1) and len(names) > 1
    out = []
    for each in p:
        said = (
            names[int(each.argmax())]
            if exclusive
            else "|".join(n for n, v in zip(names, each, strict=True) if v >= 0.5)
        )
        out.append({"prediction": said} | {f"p:{n}": f"{v:.6g}" for n, v in zip(names, each, strict=True)})
    return out


def _masks(run: Path, encoder: Encoder, scans: list[Scan], names: list[str], out: Path) -> list[dict[str, Any]]:
    """Write a mask for each scan on its own grid, with the values of the training masks; return the cells of the table."""
    method, labels, _ = find_network(run)
    method.to(encoder.device)
    values = np.array(labels, np.uint8)
    cells = []
    with temporary_store(scans, encoder.config) as (store, rows):
        grid = Grid(store, encoder.config.input, encoder.device)
        affines, spacings = store.column("affine"), store.column("spacing")
        for i, row in enumerate(track(rows.tolist(), "segment", unit="scan")):
            mask = values[grid.segment(lambda x: method.scores(x).softmax(1), row)]
            affine = None if affines[row] is None else np.reshape(affines[row], (4, 4))
            stem = Path(names[i]).name.removesuffix(".gz").rsplit(".", 1)[0]
            name = f"{i:04d}_{stem}_mask.nii.gz"
            with atomic(out / name) as part:
                part.write_bytes(
                    imagecodecs.gzip_encode(nifti_bytes(mask[None], affine, spacings[row]), level=GZIP_LEVEL)
                )
            cells.append({"mask": name} | {f"voxels:{v}": str(int((mask == v).sum())) for v in labels[1:]})
    return cells
