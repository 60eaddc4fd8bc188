"""How many directions do features use? Measures of their spectrum that need no label: RankMe, LiDAR, alpha-ReQ.

All of them depend on the number of scans N: a sample of N scans has no more than N - 1 directions, and its spectrum falls
faster than that of the population. Compare values at one N only.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_factor, cho_solve, eigvalsh

from medssl.evals.metrics.metrics import Floats

EPS = 1e-7  # added to each share: Garrido et al., 2023, for float32 features; Thilak et al., 2024, have the same
NOISE = 1e-12  # of the largest singular value: below it is rounding
FIRST, LAST, FEWEST = 10, 100, 10  # of the power law: eigenvalues fitted, and how few are too few


def rankme(x: ArrayLike) -> dict[str, float]:
    """RankMe of features (N, D): `raw` as published, `centred` after removing the mean, both `of` at most min(N - 1, D).

    Garrido et al., 2023 (https://arxiv.org/abs/2210.02885), eq. 1 and 2: exp(-sum p log p) with
    p = singular values / their sum + 1e-7. A common offset hides any number of directions from `raw`. Both grow with N
    until N is several times D, so compare them only at one N, and only within one method. Raises ValueError unless
    N >= 2, D >= 1 and all is finite.
    """
    x = finite(x, 2)
    return {"raw": _rank(x), "centred": _rank(x - x.mean(0)), "of": float(min(len(x) - 1, x.shape[1]))}


def _rank(x: Floats) -> float:
    s = np.linalg.svd(x, compute_uv=False).astype(np.float64)
    return _effective(s) if s[0] > NOISE else 0.0  # all rows are equal: no direction at all


def _effective(shares: Floats) -> float:
    p = shares / shares.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))


def lidar(views: ArrayLike, delta: float = 1e-4) -> float:
    """LiDAR of the features (N, V, D) of V >= 2 views of each of N > V scans: how many directions tell scans apart.

    Thilak et al., 2024 (https://arxiv.org/abs/2312.04000), section 4: the effective rank, as in `rankme`, of the D
    eigenvalues of W^-1/2 B W^-1/2. B is the covariance of the scans' mean features, W that of the views around their
    scan's mean, plus `delta` times the identity. The paper's delta is in units of the features; here features are first
    scaled to a mean variance of 1 over dimensions, so that it means the same for every encoder. A direction in which
    views never differ counts for nearly everything, so the value is nan unless N (V - 1) >= D. At most min(N - 1, D).

    Scans are the first axis and views the second. ValueError for other layouts as far as they can be told: V >= N.
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
    half = means.T / np.sqrt(N)  # (D, N), B is half @ half.T; the non-zero eigenvalues of either product are the same
    values = eigvalsh(half.T @ cho_solve(within, half))[::-1][:D].clip(min=0)
    return _effective(np.pad(values, (0, D - len(values))))


def alpha_req(x: ArrayLike) -> dict[str, float]:
    """The power law of the spectrum of features (N, D): eigenvalue i of their covariance falls like i^-`alpha`.

    Agrawal et al., 2022 (alpha-ReQ, https://openreview.net/forum?id=ii9X4vtZGTZ), with least squares of log eigenvalue
    on log i from eigenvalue 10 to 100, as the authors' code has it; `r2` of that fit and its range `first`, `last`. With
    fewer than 100 eigenvalues above rounding the range ends at the last of them; alpha and r2 are nan when that leaves
    fewer than 10. Where r2 is far from 1 there is no power law and alpha means nothing.
    """
    x = finite(x, 2)
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    there = int((s > max(s[0], NOISE) * 1e-7).sum())  # float32 features are right to about this
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
    """`x` as float64. ValueError unless it is finite and has so many axes, the first at least 2 long, no other empty."""
    x = np.asarray(x, np.float64)
    if x.ndim != axes or len(x) < 2 or not x.size or not np.isfinite(x).all():
        raise ValueError(f"needs finite features ({'N >= 2, V, D' if axes == 3 else 'N >= 2, D'}), got {x.shape}")
    return x
