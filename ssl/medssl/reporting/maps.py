"""Maps of embeddings in the plane, by several methods and of several runs, laid over one another."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from medssl.errors import UserError, nearest
from medssl.reporting.tsne import tsne
from medssl.rng import MASK, seed_from

Points = NDArray[np.float64]
FEWEST = 10  # with fewer points there is no map to speak of
NAMES = {"tsne": "t-SNE", "pca": "PCA", "umap": "UMAP"}


def choose_maps(maps: Sequence[str] | None) -> list[str]:
    """Return the names of maps to draw; None: t-SNE, PCA, and UMAP where umap-learn is installed.

    Raises UserError for an unknown map, and for UMAP where it is not installed.
    """
    installed = find_spec("umap") is not None
    if maps is None:
        return [name for name in NAMES if name != "umap" or installed]
    chosen = list(dict.fromkeys(maps))
    for name in chosen:
        if name not in NAMES:
            raise UserError(f"there is no map {name!r}.{nearest(name, NAMES)}")
    if "umap" in chosen and not installed:
        raise UserError("maps has umap, which needs umap-learn: pip install 'medssl[umap]', or leave umap out")
    if not chosen:
        raise UserError(f"maps is empty; give at least one of {', '.join(NAMES)}")
    return chosen


def check_points(x: NDArray[Any]) -> None:
    """Raise UserError for features (N, D) of which no map can be made: too few, not finite, or all the same."""
    if len(x) < FEWEST or x.shape[1] < 2:
        raise UserError(
            f"a map needs {FEWEST} or more embeddings of 2 or more numbers, got {len(x)} of {x.shape[1]}; embed more scans"
        )
    bad = int((~np.isfinite(x).all(1)).sum())
    if bad:
        raise UserError(f"{bad} of {len(x)} embeddings hold NaN or infinity; embed again from a good checkpoint")
    if np.ptp(x, axis=0).max() <= 1e-9 * max(1.0, float(np.abs(x).max())):
        raise UserError("all embeddings are the same point: the encoder has collapsed; pretrain with other settings")


def lay_out(name: str, x: NDArray[Any], seed: int) -> Points:
    """Return the map `name` of x (N, D): (N, 2) float64, the same for the same x and seed."""
    return _WAYS[name](x, seed)


def _tsne(x: NDArray[Any], seed: int) -> Points:
    return np.asarray(tsne(x, seed=seed, max_points=len(x))[0], np.float64)


def _pca(x: NDArray[Any], seed: int) -> Points:
    return PCA(2, svd_solver="full").fit_transform(np.asarray(x, np.float64))


def _umap(x: NDArray[Any], seed: int) -> Points:
    threads = torch.get_num_threads()
    from umap import UMAP  # an extra, and takes seconds

    try:
        found = UMAP(random_state=seed_from(seed, len(x)) & MASK, n_jobs=1, n_neighbors=min(15, len(x) - 1))
        return np.asarray(found.fit_transform(x), np.float64)
    finally:
        torch.set_num_threads(threads)  # numba sets OpenMP's number of threads for the whole process


_WAYS: dict[str, Callable[[NDArray[Any], int], Points]] = {"tsne": _tsne, "pca": _pca, "umap": _umap}


def align(xy: Points, to: Points) -> Points:
    """Return xy (N, 2) moved, turned, mirrored and scaled as a whole onto `to` (N, 2), with least squares: Procrustes.

    The shape of the map stays the same: every distance is multiplied by one number. Rows correspond.
    """
    a, b = xy - xy.mean(0), to - to.mean(0)
    u, s, vt = np.linalg.svd(a.T @ b)
    scale = s.sum() / max(float((a**2).sum()), 1e-300)
    return scale * a @ (u @ vt) + to.mean(0)
