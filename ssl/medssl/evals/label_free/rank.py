"""Label-free measures of the spectrum of features: RankMe, LiDAR, alpha-ReQ.

All depend on the number of scans N: a sample of N scans has at most N - 1 directions, and its spectrum decays faster than
that of the population. Compare values at one N only.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve, eigvalsh

from medssl.evals.metrics.metrics import Floats

EPS = 1e-7  # added to each share, as in Garrido et al., 2023, for float32 features, and Thilak et al., 2024
NOISE = 1e-12  # singular values below this are rounding
FIRST, LAST, FEWEST = 10, 100, 10  # eigenvalues in the power law fit, and their minimum number


def rankme(x: ArrayLike) -> dict[str, float]:
    """Return RankMe of features (N, D): `raw` as published, `centred` after removing the mean, and the maximum `of`.

    Garrido et al., 2023 (https://arxiv.org/abs/2210.02885), eq. 1 and 2: exp(-sum p log p) with
    p = singular values / their sum + 1e-7. An offset common to all features can hide any number of directions from `raw`.
    Both grow with N until N is several times D, so compare them at one N and within one method only. `of` is
    min(N - 1, D). Raises ValueError unless N >= 2, D >= 1 and all features are finite.
    """
    x = finite(x, 2)
    return {"raw": _rank(x), "centred": _rank(x - x.mean(0)), "of": float(min(len(x) - 1, x.shape[1]))}


def _rank(x: Floats) -> float:
    s = np.linalg.svd(x, compute_uv=False).astype(np.float64)
    # 0 if all rows are equal
    return _effective(s) if s[0] > NOISE else 0.0


def _effective(shares: Floats) -> float:
    p = shares / shares.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def lidar(views: ArrayLike, delta: float = 1e-4) -> float:
    """Return LiDAR of features (N, V, D) of V >= 2 views of each of N > V scans: directions that discriminate scans.

    Thilak et al., 2024 (https://arxiv.org/abs/2312.04000), section 4: the effective rank, as in `rankme`, of the D
    eigenvalues of W^-1/2 B W^-1/2. B is the covariance of the scans' mean features, W the covariance of the views around
    their scan's mean plus `delta` times the identity. The paper's delta is in units of the features; here features are first
    scaled to a mean variance of 1 over dimensions, so that delta is comparable across encoders. A direction without any
    variance between views dominates, so the value is nan unless N (V - 1) >= D. At most min(N - 1, D).

    Scans are the first axis and views the second. Raises ValueError for other layouts, where V >= N.
    """
    x = finite(views, 3)
    N, V, D = x.shape
    if V < 2 or N <= V:
        raise ValueError(f"needs (N scans, V views, D) with 2 <= V < N, got {x.shape}")
    x = x - x.mean((0, 1))
    variance = np.square(x).mean()
    if N * (V - 1) < D or variance <= NOISE**2:
        return np.nan
    x = x / np.sqrt(variance)
    means = x.mean(1)
    around = (x - means[:, None]).reshape(-1, D)
    within = cho_factor(around.T @ around / (N * V) + delta * np.eye(D))
    # B is half @ half.T; the non-zero eigenvalues of both products are the same
    half = means.T / np.sqrt(N)
    values = eigvalsh(half.T @ cho_solve(within, half))[::-1][:D].clip(min=0)
    return _effective(np.pad(values, (0, D - len(values))))


def alpha_req(x: ArrayLike) -> dict[str, float]:
    """Return the power law of the spectrum of features (N, D): eigenvalue i of their covariance decays as i^-`alpha`.

    Agrawal et al., 2022 (alpha-ReQ, https://openreview.net/forum?id=ii9X4vtZGTZ), by least squares of log eigenvalue on
    log i from eigenvalue 10 to 100, with equal weights, whereas the authors' code weights eigenvalue i by 1/i; `r2` of the
    fit and its range `first`, `last`. With fewer than
    100 eigenvalues above rounding, the range ends at the last of them; alpha and r2 are nan with fewer than 10. If r2 is far
    from 1, there is no power law and alpha is meaningless.
    """
    x = finite(x, 2)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    # the accuracy of float32 features
    there = int((s > max(s[0], NOISE) * 1e-7).sum())
    last = min(LAST, there)
    out = {"alpha": np.nan, "r2": np.nan, "first": float(FIRST), "last": float(last)}
    if last - FIRST + 1 < FEWEST:
        return out
    i = np.log(np.arange(FIRST, last + 1))
    y = 2 * np.log(s[FIRST - 1 : last])
    i0, y0 = i - i.mean(), y - y.mean()
    slope = (i0 @ y0) / (i0 @ i0)
    return out | {"alpha": float(-slope), "r2": float(1 - np.square(y0 - slope * i0).sum() / (y0 @ y0))}


def finite(x: ArrayLike, axes: int) -> Floats:
    """Return x as float64. Raises ValueError unless it is finite with `axes` axes, the first at least 2 long, none empty."""
    x = np.asarray(x, np.float64)
    if x.ndim != axes or len(x) < 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"needs finite features ({'N >= 2, V, D' if axes == 3 else 'N >= 2, D'}), got {x.shape}")
    return x
