"""`medssl explore`: write one page with maps of embeddings to point at, which opens by a double click."""

from pathlib import Path

import numpy as np
import torch

from medssl.errors import UserError
from medssl.files import write_text
from medssl.progress import say
from medssl.reporting.embeddings import Embeddings, read_embeddings
from medssl.reporting.explorer import (
    Exploration,
    Map,
    Page,
    check_installed,
    columns_of,
    explorer_page,
    nearest_scans,
)
from medssl.reporting.faithfulness import faithfulness
from medssl.reporting.maps import NAMES, Points, align, check_points, choose_maps, lay_out
from medssl.reporting.thumbnails import thumbnails as draw_thumbnails
from medssl.rng import generator
from medssl.runs.run_folder import Run
from medssl.store.store import Store

POINTS = 50_000


def explore(
    run: str | Path,
    store: str | Path | Store,
    *,
    runs: list[str] | None = None,
    maps: list[str] | None = None,
    where: str | None = None,
    thumbnails: bool = True,
    points: int = POINTS,
    seed: int = 0,
    out: str | Path | None = None,
) -> Page:
    """Write RUN/explore.html (or `out`): one file without network addresses, and return its path. A notebook shows the page.

    It shows maps of the embeddings in RUN/embeddings.parquet, coloured by labels and metadata of the store, with how faithful
    each map is (`medssl.reporting.faithfulness`), the nearest scans of other patients by cosine distance of the
    features, and pictures. Ids in it are the store's pseudonyms.

    Args:
        run: a run folder with embeddings.
        store: the scans that were embedded.
        runs: other run folders with embeddings of these scans, for example of other seeds: a map of each, by the first of
            `maps`, laid over this run's by Procrustes.
        maps: of tsne, pca and umap; None: t-SNE, PCA, and UMAP where umap-learn is installed.
        where: filter expression selecting scans; see `medssl.store.query`.
        thumbnails: False writes no pixel into the file.
        points: of more scans than this a random sample is shown, which depends on `seed` alone.
        seed: for the maps and the sample.
        out: the file; None: RUN/explore.html.

    Raises UserError without embeddings, if none of them is of a scan of this store, if they cannot be laid out (fewer than
    10, not finite, all the same), and if pixels are missing.
    """
    check_installed()
    chosen = choose_maps(maps)
    if points < 10:
        raise UserError(f"points must be at least 10, got {points}")
    folder, scans = Path(run).expanduser(), Store.open(store, where)
    Run(folder).config()
    notes: list[str] = []
    embeddings, rows = _shown(folder, scans, points, seed, notes)
    x = embeddings.x[rows]
    check_points(x)
    patient = embeddings.patient[rows].astype(str)
    if len(set(patient)) == 1:
        notes.append("All scans are of one patient, so there are no neighbours of other patients.")
    columns, left_out = columns_of(scans, embeddings.row[rows])
    if not embeddings.labels:
        notes.append("The store has no labels; ingest with labels=TABLE.csv to colour by them.")
    if left_out:
        names = ", ".join(left_out)
        notes.append(f"Not shown, because nearly every scan has a value of its own: {names}.")
    laid = [lay_out(name, x, seed) for name in chosen]
    found = [
        Map(NAMES[name], xy, faithful) for name, xy, faithful in zip(chosen, laid, faithfulness(x, laid), strict=True)
    ]
    scan = scans.column("scan")[embeddings.row[rows]].astype(str)
    for other in runs or []:
        found.append(_other_map(Path(other).expanduser(), scans, scan, chosen[0], laid[0], seed))
    others, every = nearest_scans(x, patient)
    pictures = draw_thumbnails(scans, embeddings.row[rows]) if thumbnails else None
    for note in notes:
        say(note)
    page = explorer_page(
        Exploration(folder.resolve().name, scan, patient, columns, found, others, every, pictures, notes)
    )
    path = Page(out).expanduser() if out is not None else Page(folder / "explore.html")
    write_text(path, page)
    say(f"{len(rows):,} scans, {len(found)} maps: {path}; open it in a browser")
    return path


def _shown(folder: Path, scans: Store, points: int, seed: int, notes: list[str]) -> tuple[Embeddings, np.ndarray]:
    """Return the embeddings of a run, and the rows of them to show; says in `notes` what is not shown.

    Raises UserError if none is of a scan of the store.
    """
    embeddings = read_embeddings(folder, scans)
    here = np.flatnonzero(embeddings.row >= 0)
    if not len(here):
        raise UserError(
            f"no embedding in {folder} is of a scan of {scans.path}; embed these scans: "
            f"medssl embed run={folder} store={scans.path}"
        )
    if missing := len(scans) - len(here):
        notes.append(f"{missing:,} of the store's {len(scans):,} selected scans have no embedding and are not shown.")
    if len(here) > points:
        kept = torch.randperm(len(here), generator=generator(seed, len(here)))[:points].numpy()
        notes.append(f"A random sample of {points:,} of {len(here):,} scans is shown (seed {seed}).")
        here = here[np.sort(kept)]
    return embeddings, here


def _other_map(folder: Path, scans: Store, scan: np.ndarray, name: str, onto: Points, seed: int) -> Map:
    """Return the map of another run's embeddings of the scans with these pseudonyms, laid over `onto`.

    Raises UserError if it lacks one of them.
    """
    config = Run(folder).config()
    other = read_embeddings(folder, scans)
    ids = scans.column("scan")
    at = {ids[row]: i for i, row in enumerate(other.row) if row >= 0}
    lacking = sum(s not in at for s in scan)
    if lacking:
        raise UserError(
            f"{folder} has no embedding of {lacking:,} of the {len(scan):,} scans shown; embed the same scans: "
            f"medssl embed run={folder} store={scans.path}"
        )
    x = other.x[[at[s] for s in scan]]
    check_points(x)
    xy = lay_out(name, x, seed)
    named = f"{NAMES[name]} of {folder.resolve().name} ({config.name}, seed {config.seed})"
    return Map(named, align(xy, onto), faithfulness(x, [xy])[0])
