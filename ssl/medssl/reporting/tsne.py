"""Deterministic t-SNE, new points in a finished map, and the share of neighbourhoods that it preserves."""

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE, TSNEEmbedding
from sklearn import manifold
from sklearn.decomposition import PCA

from medssl.errors import UserError
from medssl.progress import Progress
from medssl.rng import MASK, generator, seed_from

Floats = NDArray[np.floating]

FEWEST = 10  # with fewer points, neighbourhoods mean nothing
COMPONENTS = 50  # initial PCA: 30 in van der Maaten & Hinton, 2008, section 4.2; usually 50 in openTSNE and scanpy
PARALLEL = 1000  # with fewer points, threads cost more time than they save
EXAGGERATED, PLAIN = 250, 500  # iterations with and without early exaggeration, openTSNE's defaults


def tsne(
    x: Floats, *, seed: int = 0, perplexity: float = 30, max_points: int = 3000
) -> tuple[Floats, NDArray[np.int64]]:
    """Lay out the rows of x by t-SNE (van der Maaten and Hinton 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html).

    x (N, D) is reduced to 50 principal components; the layout starts from the first two (Kobak and Berens 2019,
    https://doi.org/10.1038/s41467-019-13056-x), which preserves global structure. Of more than `max_points` rows a
    random sample is laid out, and the perplexity is lowered to (n - 1) / 3 if n is small.

    Returns (xy (n, 2) float64, the ascending row numbers in x (n,) int64). The same x and seed give the same bits.
    Raises UserError for fewer than 10 rows, a value that is not finite, or rows that are all the same.
    """
    x = np.asarray(x)
    if x.ndim != 2 or len(x) < FEWEST or x.shape[1] < 2:
        shape = " x ".join(map(str, x.shape))
        raise UserError(f"t-SNE needs {FEWEST} or more embeddings of 2 or more numbers, got {shape}; embed more scans")
    if not np.isfinite(x).all():
        raise UserError(
            "t-SNE needs finite embeddings, but these contain NaN or infinity; embed again from a good checkpoint"
        )
    rows = np.sort(torch.randperm(len(x), generator=generator(seed, len(x)))[:max_points].numpy())
    points = x[rows].astype(np.float64)
    if np.ptp(points, axis=0).max() <= 1e-9 * max(1.0, np.abs(points).max()):
        raise UserError(
            "t-SNE needs different embeddings, but all of these are the same point: the encoder has collapsed"
        )
    return np.asarray(_fit(points, perplexity, _random(seed, len(x)))[1], np.float64), rows


def place(x: Floats, new: Floats, *, seed: int = 0, perplexity: float = 30) -> tuple[Floats, Floats]:
    """Lay out the rows of x (N, D) as `tsne` does, and place those of `new` (M, D) among them, which do not move.

    Each new point starts at the median of its 25 nearest points and is moved by 250 iterations, without regard to other new
    points (Policar, Strazar and Zupan 2023, https://doi.org/10.1007/s10994-021-06043-1).

    Returns (xy (N, 2), xy of the new (M, 2)), float64. Raises UserError as `tsne` does, for rows of either.
    """
    for rows in (x, new):
        if not np.isfinite(rows).all():
            raise UserError("t-SNE needs finite embeddings, but these contain NaN or infinity; embed again")
    if len(x) < FEWEST or not len(new) or x.shape[1] != new.shape[1]:
        raise UserError(
            f"a map of {len(x)} embeddings of {x.shape[1]} numbers cannot take {len(new)} of {new.shape[1]}; it needs "
            f"{FEWEST} or more embeddings, and new ones by the same encoder"
        )
    reduction, layout = _fit(np.asarray(x, np.float64), perplexity, _random(seed, len(x)))
    xy = np.array(layout, np.float64)
    k = min(25, len(x) - 1)
    points = reduction.transform(np.asarray(new, np.float64))
    placed = np.asarray(layout.transform(points, k=k, perplexity=min(5, k / 3), n_iter=250), np.float64)
    return xy, placed + (xy - np.asarray(layout, np.float64)).mean(0)  # openTSNE moves the map to the origin before


def _random(seed: int, n: int) -> int:
    return seed_from(seed, n) & MASK  # numpy's legacy seeds have 32 bits


def _fit(points: Floats, perplexity: float, random: int) -> tuple[PCA, TSNEEmbedding]:
    reduction = PCA(min(COMPONENTS, *points.shape), random_state=random)
    points = reduction.fit_transform(points)
    with Progress("t-SNE", total=EXAGGERATED + PLAIN, unit="iteration") as bar:

        def shown(*_: object) -> None:
            bar.update(50)

        return reduction, TSNE(
            perplexity=min(perplexity, (len(points) - 1) / 3),
            initialization="pca",
            neighbors="exact",
            early_exaggeration_iter=EXAGGERATED,
            n_iter=PLAIN,
            # the layout does not depend on the number of jobs
            n_jobs=-1 if len(points) >= PARALLEL else 1,
            callbacks=shown,
            callbacks_every_iters=50,
            random_state=random,
        ).fit(points)


def trustworthiness(x: Floats, xy: Floats, k: int = 10) -> float:
    """Return in [0, 1] how far the k neighbours in xy (n, 2) were neighbours in x (n, D); 1 means no false neighbour.

    Venna and Kaski 2001, equation 1, as in scikit-learn; Euclidean in both. k is lowered if n is small.
    """
    return float(manifold.trustworthiness(np.asarray(x), np.asarray(xy), n_neighbors=min(k, (len(xy) - 1) // 2)))
