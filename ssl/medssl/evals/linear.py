"""The linear probe: logistic regression on frozen features, one fit per penalty, the penalty chosen on validation data.

The objective is scikit-learn's, C * sum of cross-entropies + |w|^2 / 2 with a free intercept, divided by C * N. It does
not change when the features are rotated, so they are rotated to the eigenvectors of their covariance: at most
min(N, D) coordinates are left, and the Hessian at the prior is diagonal there. L-BFGS in units of that Hessian needs
tens of iterations where plain features need thousands.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import OptimizeResult, minimize
from scipy.special import expit, softmax
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics import Floats
from medssl.rng import generator

PENALTIES = tuple(10.0**e for e in range(-6, 4))  # C of scikit-learn, strongest penalty first
PATIENCE = 2  # weaker penalties in a row that made validation worse; the rest cost most and would only overfit more
TOLERANCE = 2e-4  # largest entry of the gradient, in units of the Hessian at the prior, over the objective
HELD_OUT = 0.2  # share of each class's training patients that choose the penalty when there is no validation set
EPS = np.finfo(np.float64).tiny  # the smallest probability that cross-entropy sees


@dataclass(frozen=True)
class Probe:
    """What `linear_probe` found.

    probabilities: one (N, classes) float64 per test set. C: scikit-learn's inverse penalty. loss: mean cross-entropy on
    validation in nats, at C. path: (C, validation loss) of every penalty tried. how: a sentence for the reader.
    """

    probabilities: list[Floats]
    C: float
    loss: float
    path: list[tuple[float, float]]
    how: str


@dataclass(frozen=True)
class Logistic:
    """A fitted model: logits = (x - mean) * scale @ weights + bias, weights (D, M), M = 1 for two present classes.

    `present` (M or 2 of them) are the classes seen in training; the others get probability 0. `converged` is False when
    the gradient tolerance was not met.
    """

    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    present: NDArray[np.int64]
    classes: int
    converged: bool

    def predict(self, x: ArrayLike) -> Floats:
        """(N, D) features -> (N, classes) probabilities, float64."""
        # scale is folded into the weights, so x is never copied to float64 more than once
        w = self.scale[:, None] * self.weights
        z = np.asarray(x, np.float64) @ w + (self.bias - self.mean @ w)
        p = np.zeros((len(z), self.classes))
        p[:, self.present] = np.concatenate([expit(-z), expit(z)], axis=1) if z.shape[1] == 1 else softmax(z, axis=1)
        return p


def linear_probe(
    train: tuple[ArrayLike, ArrayLike],
    val: tuple[ArrayLike, ArrayLike] | None,
    tests: Sequence[ArrayLike],
    *,
    classes: int,
    patient: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> Probe:
    """Fits on `train` (x (N, D), y (N,) in [0, classes)), chooses C on `val` by cross-entropy, predicts `tests`.

    Cross-entropy, not AUROC: on an easy validation set AUROC is 1 for every penalty. Without validation scans (None or
    empty) a keyed fifth of each class's training patients, at least one, chooses, and the winner is fitted on all of
    `train`; that needs `patient` (N,). Ties go to the stronger penalty. Raises UserError for features that are not
    finite, a single class, or too few patients to hold any out.
    """
    x, y = _features(train, "training", classes)
    penalties = sorted(penalties)
    given = val is not None and len(np.asarray(val[1])) > 0
    if val is not None and given:
        x_fit, y_fit = x, y
        x_val, y_val = _features(val, "validation", classes)
        where = f"{len(y_val)} validation scans"
    else:
        if patient is None:
            raise ValueError("without validation scans the patients of the training scans are needed")
        held = held_out(y, np.asarray(patient), seed)
        x_fit, y_fit, x_val, y_val = x[~held], y[~held], x[held], y[held]
        where = f"{held.sum()} scans of held-out training patients"
    path: list[tuple[float, float]] = []
    best = np.inf
    for C, tried in zip(penalties, fit(x_fit, y_fit, classes, penalties), strict=True):
        path.append((C, cross_entropy(y_val, tried.predict(x_val))))
        if path[-1][1] < best:
            best, chosen, model, since = path[-1][1], C, tried, 0
        elif (since := since + 1) == PATIENCE:
            break
    if not given:
        model = next(fit(x, y, classes, [chosen]))
    how = f"logistic regression, C = {chosen:g} by cross-entropy on {where}"
    if len(penalties) > 1 and chosen in {penalties[0], penalties[-1]}:
        how += ", at the end of the range tried"
    if not model.converged:
        how += ", not converged"
    probabilities = [model.predict(_finite(t, "test")) for t in tests]
    return Probe(probabilities, chosen, best, path, how)


def cross_entropy(y: NDArray[np.int64], p: Floats) -> float:
    """Mean of -log p[y], in nats."""
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], EPS)).mean())


def held_out(y: NDArray[np.int64], patient: NDArray[np.str_], seed: int) -> NDArray[np.bool_]:
    """A mask of scans: a fifth of the patients of each class, at least one where a class has two, chosen by `seed`.

    A patient with several classes counts for the highest. Depends on the set of patients, not on their order.
    """
    names, at = np.unique(patient.astype(str), return_inverse=True)
    label = np.zeros(len(names), np.int64)
    np.maximum.at(label, at, y)
    order = torch.randperm(len(names), generator=generator(seed, len(names))).numpy()
    held = np.zeros(len(names), np.bool_)
    for k in np.unique(label):
        members = order[label[order] == k]
        if len(members) > 1:
            held[members[: max(1, round(HELD_OUT * len(members)))]] = True
    if not held.any():
        raise UserError(
            "cannot choose the penalty of the linear probe: every class has one training patient; label more patients"
        )
    return held[at]


def fit(x: Floats, y: NDArray[np.int64], classes: int, penalties: Sequence[float]) -> Iterator[Logistic]:
    """One `Logistic` per C in `penalties`, each started from the one before; give them in rising order.

    Cost: an eigendecomposition of a matrix of min(N, D)^2, then two products with (N, min(N, D)) an iteration.
    """
    present, y = np.unique(y, return_inverse=True)
    if len(present) < 2:
        raise UserError(
            f"cannot fit a linear probe: all {len(y)} training scans have one class; label scans of another"
        )
    mean, scale = standardiser(x)
    a, variance, back = _rotate((x - mean) * scale)
    N, prior = len(a), np.bincount(y) / len(a)
    if len(present) == 2:  # one logit
        target, bias = torch.from_numpy(y[:, None].astype(np.float64)), np.log(prior[1:] / prior[:1])
        curve, turn = prior[1:] * prior[:1], np.eye(1)
    else:
        target, bias = torch.nn.functional.one_hot(torch.from_numpy(y)).double(), np.log(prior)
        curve, turn = np.linalg.eigh(np.diag(prior) - np.outer(prior, prior))
        curve = curve.clip(min=0)  # one is 0: adding a constant to every logit changes nothing
    weights = np.zeros((a.shape[1], len(bias)))
    for C in penalties:
        decay = 1 / (C * N)
        # Hessian at the prior ** -1/2 of each rotated weight, and of the intercepts in the last row
        unit = 1 / np.sqrt(np.vstack([np.outer(variance, curve) + decay, np.where(curve > 1e-12, curve, 1)]))
        v, converged = _minimise(a, target, decay, unit, turn, start=np.vstack([weights, bias]))
        weights, bias = v[:-1], v[-1]
        yield Logistic(mean, scale, back(weights), bias, present, classes, converged)


def _minimise(
    a: Tensor, target: Tensor, decay: float, unit: Floats, turn: Floats, start: Floats
) -> tuple[Floats, bool]:
    """The weights (r, M) and, in the last row, intercepts that minimise mean cross-entropy + decay / 2 * |weights|^2.

    a (N, r) coordinates, target (N, M) shares. Works on u, weights = (u * unit) @ turn.T, whose Hessian is near 1.
    Also says whether the gradient reached TOLERANCE.
    """
    gradient = np.full(unit.size, np.inf)

    def loss(u: Floats) -> tuple[float, Floats]:
        nonlocal gradient
        v = u.reshape(unit.shape) * unit @ turn.T
        z = a @ torch.from_numpy(v[:-1]) + torch.from_numpy(v[-1])
        if z.shape[1] == 1:
            data, p = torch.logaddexp(z, torch.zeros_like(z)).sum(), torch.sigmoid(z)
        else:
            data, p = torch.logsumexp(z, 1).sum(), torch.softmax(z, 1)
        residual = (p - target) / len(a)
        g = np.vstack([(a.T @ residual).numpy() + decay * v[:-1], residual.sum(0).numpy()])
        gradient = (g @ turn * unit).ravel()
        return float((data - (target * z).sum()) / len(a)) + decay / 2 * float((v[:-1] ** 2).sum()), gradient

    def done(intermediate_result: OptimizeResult) -> None:  # scipy goes by the name; the iterate was evaluated last
        if np.abs(gradient).max() <= TOLERANCE * intermediate_result.fun:
            raise StopIteration

    options = {"gtol": 0, "ftol": 0, "maxiter": 1000, "maxfun": 4000, "maxcor": 20}
    found = minimize(loss, (start @ turn / unit).ravel(), jac=True, method="L-BFGS-B", callback=done, options=options)
    value, gradient = loss(found.x)
    return found.x.reshape(unit.shape) * unit @ turn.T, bool(np.abs(gradient).max() <= TOLERANCE * value)


def standardiser(x: Floats) -> tuple[Floats, Floats]:
    """Mean and 1 / standard deviation of each column; 0 for a column that is constant up to float32 rounding."""
    mean, std = x.mean(0), x.std(0)
    alive = std > 1e-6 * np.abs(mean)
    return mean, np.divide(1, std, out=np.zeros_like(std), where=alive)


def _rotate(x: Floats) -> tuple[Tensor, Floats, Callable[[Floats], Floats]]:
    """x (N, D), centred -> its principal coordinates (N, r), their variances (r,), and the map of weights back to D."""
    N, D = x.shape
    t = torch.from_numpy(x)
    if D <= N:
        values, v = torch.linalg.eigh(t.T @ t)
        return t @ v, values.clamp(min=0).numpy() / N, lambda w: v.numpy() @ w
    values, u = torch.linalg.eigh(t @ t.T)
    kept = values > 1e-13 * values[-1]  # x is centred, so at least one is 0
    values, u = values[kept], u[:, kept]
    root = values.sqrt()
    return u * root, values.numpy() / N, lambda w: (t.T @ (u @ (torch.from_numpy(w) / root[:, None]))).numpy()


def _finite(x: ArrayLike, which: str) -> Floats:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(
            f"the {which} features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?"
        )
    return x


def _features(xy: tuple[ArrayLike, ArrayLike], which: str, classes: int) -> tuple[Floats, NDArray[np.int64]]:
    x, y = _finite(xy[0], which), np.asarray(xy[1])
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"needs one class in [0, {classes}) per {which} scan, got {y.shape} {y.dtype} for {x.shape}")
    return x, y.astype(np.int64)
