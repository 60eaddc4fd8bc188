"""t-SNE as a function of the embedding and a seed, with the share of neighbourhoods it kept."""

import numpy as np
import torch
from numpy.typing import NDArray
from openTSNE import TSNE
from sklearn import manifold
from sklearn.decomposition import PCA

from medssl.errors import UserError
from medssl.progress import Progress
from medssl.rng import MASK, generator, seed_from

Floats = NDArray[np.floating]

FEWEST = 10  # points below which neighbourhoods mean nothing
COMPONENTS = 50  # PCA first: van der Maaten and Hinton 2008, section 4.2, kept 30; openTSNE's and scanpy's custom is 50
PARALLEL = 1000  # points from which a step is long enough for threads to pay for waiting on each other
EXAGGERATED, PLAIN = 250, 500  # iterations with and without early exaggeration, openTSNE's defaults


def tsne(
    x: Floats, *, seed: int = 0, perplexity: float = 30, max_points: int = 3000
) -> tuple[Floats, NDArray[np.int64]]:
    """t-SNE of the rows of x (van der Maaten and Hinton 2008, https://www.jmlr.org/papers/v9/vandermaaten08a.html).

    x (N, D) is reduced to 50 principal components; the layout starts from the first two (Kobak and Berens 2019,
    https://doi.org/10.1038/s41467-019-13056-x), so global structure is not left to chance. More than `max_points` rows
    are thinned to a keyed sample, and the perplexity is lowered to (n - 1) / 3 where n is small.

    Returns (xy (n, 2) float64, rows (n,) int64, ascending: which rows of x they are). Same x and seed, same bits.
    Raises UserError for fewer than 10 rows, a value that is not finite, or rows that are all the same.
    """
    x = np.asarray(x)
    if x.ndim != 2 or len(x) < FEWEST or x.shape[1] < 2:
        shape = " x ".join(map(str, x.shape))
        raise UserError(f"t-SNE needs {FEWEST} or more embeddings of 2 or more numbers, got {shape}; embed more scans")
    if not np.isfinite(x).all():
        raise UserError("t-SNE needs finite embeddings, these hold NaN or infinity; embed again from a good checkpoint")
    rows = np.sort(torch.randperm(len(x), generator=generator(seed, len(x)))[:max_points].numpy())
    points = x[rows].astype(np.float64)
    if np.ptp(points, axis=0).max() <= 1e-9 * max(1.0, np.abs(points).max()):
        raise UserError("all embeddings are the same point, so there is nothing to lay out; the encoder has collapsed")
    random = seed_from(seed, len(x)) & MASK  # numpy's legacy seeds have 32 bits
    points = PCA(min(COMPONENTS, *points.shape), random_state=random).fit_transform(points)
    with Progress("t-SNE", total=EXAGGERATED + PLAIN, unit="iteration") as bar:

        def shown(*_: object) -> None:
            bar.update(50)

        layout = TSNE(
            perplexity=min(perplexity, (len(points) - 1) / 3),
            initialization="pca",
            neighbors="exact",
            early_exaggeration_iter=EXAGGERATED,
            n_iter=PLAIN,
            n_jobs=-1 if len(points) >= PARALLEL else 1,  # the layout does not depend on it
            callbacks=shown,
            callbacks_every_iters=50,
            random_state=random,
        ).fit(points)
    return np.asarray(layout, np.float64), rows


def trustworthiness(x: Floats, xy: Floats, k: int = 10) -> float:
    """Share in [0, 1] of each point's k neighbours in xy (n, 2) that were near in x (n, D): 1 means no false neighbour.

    Venna and Kaski 2001, equation 1, as in scikit-learn; k is lowered where n is small. Euclidean in both.
    """
    return float(manifold.trustworthiness(np.asarray(x), np.asarray(xy), n_neighbors=min(k, (len(xy) - 1) // 2)))
