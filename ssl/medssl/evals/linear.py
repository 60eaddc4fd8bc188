"""The linear probe: logistic regression on frozen features, one fit per penalty, the penalty chosen on validation data.

The objective is scikit-learn's, C * sum of cross-entropies + |w|^2 / 2 with a free intercept, divided by C * N. It does
not change when the features are rotated, so they are rotated to the eigenvectors of their covariance: at most
min(N, D) coordinates are left, and the Hessian at the prior is diagonal there. L-BFGS in units of that Hessian needs
tens of iterations where plain features need thousands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logsumexp, softmax

from medssl.errors import UserError
from medssl.evals.metrics import Floats
from medssl.rng import generator

PENALTIES = tuple(10.0**e for e in range(-6, 4))  # C of scikit-learn, strongest penalty first
TOLERANCE = 1e-6  # largest entry of the gradient of the mean loss, in units of the Hessian at the prior
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
    """Fits on `train` (x (N, D), y (N,) in [0, classes)), chooses C on `val` by cross-entropy, predicts each of `tests`.

    Cross-entropy, not AUROC: on an easy validation set AUROC is 1 for every penalty. Without validation scans (None or
    empty) a keyed fifth of each class's training patients, at least one, chooses, and the winner is fitted on all of
    `train`; that needs `patient` (N,). Ties go to the stronger penalty. Raises UserError for features that are not
    finite, a single class, or too few patients to hold any out.
    """
    x, y = _features(train, "training", classes)
    penalties = sorted(penalties)
    if val is not None and len(np.asarray(val[1])):
        x_val, y_val = _features(val, "validation", classes)
        models = fit(x, y, classes, penalties)
        where = f"{len(y_val)} validation scans"
    else:
        if patient is None:
            raise ValueError("without validation scans the patients of the training scans are needed")
        held = held_out(y, np.asarray(patient), seed)
        x_val, y_val = x[held], y[held]
        models = fit(x[~held], y[~held], classes, penalties)
        where = f"{held.sum()} scans of held-out training patients"
    losses = [cross_entropy(y_val, m.predict(x_val)) for m in models]
    best = int(np.argmin(losses))
    model = models[best]
    if val is None or not len(np.asarray(val[1])):
        model = fit(x, y, classes, [penalties[best]])[0]
    how = f"logistic regression, C = {penalties[best]:g} by cross-entropy on {where}"
    if len(penalties) > 1 and best in {0, len(penalties) - 1}:
        how += ", at the end of the range tried"
    if not model.converged:
        how += ", not converged"
    probabilities = [model.predict(_finite(t, "test")) for t in tests]
    return Probe(probabilities, penalties[best], losses[best], list(zip(penalties, losses, strict=True)), how)


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


def fit(x: Floats, y: NDArray[np.int64], classes: int, penalties: Sequence[float]) -> list[Logistic]:
    """One `Logistic` per C in `penalties`, each started from the one before; give them in rising order.

    Cost: an eigendecomposition of a matrix of min(N, D)^2, then two products with (N, min(N, D)) an iteration.
    """
    present, y = np.unique(y, return_inverse=True)
    if len(present) < 2:
        raise UserError(f"cannot fit a linear probe: all {len(y)} training scans have one class; label scans of another")
    mean, scale = standardiser(x)
    x = (x - mean) * scale
    a, variance, back = _rotate(x)
    N, r = a.shape
    prior = np.bincount(y) / N
    if len(present) == 2:
        target, bias = y[:, None].astype(np.float64), np.log(prior[1:] / prior[:1])
        curve, q = prior[1:] * prior[:1], np.eye(1)
    else:
        target, bias = (y[:, None] == np.arange(len(present))).astype(np.float64), np.log(prior)
        curve, q = np.linalg.eigh(np.diag(prior) - np.outer(prior, prior))
        curve = curve.clip(min=0)  # one is 0: adding a constant to every logit changes nothing
    at, flat = np.float64(1) / np.sqrt(np.where(curve > 1e-12, curve, 1)), np.zeros((r, len(curve)))
    models = []
    weights = flat
    for C in penalties:
        decay = 1 / (C * N)
        # the step of each coordinate: Hessian at the prior ** -1/2, rows of `a` first, the intercept last
        step = np.vstack([1 / np.sqrt(np.outer(variance, curve) + decay), at])
        start = np.vstack([weights @ q, ((bias) @ q)]) / step

        def loss(u: Floats, step: Floats = step, decay: float = decay) -> tuple[float, Floats]:
            v = u.reshape(step.shape) * step @ q.T
            w, z = v[:-1], a @ v[:-1] + v[-1]
            if z.shape[1] == 1:
                data = np.logaddexp(0, z).sum() - (target * z).sum()
                residual = expit(z) - target
            else:
                total = logsumexp(z, axis=1, keepdims=True)
                data = total.sum() - (target * z).sum()
                residual = np.exp(z - total) - target
            g = np.vstack([a.T @ residual / N + decay * w, residual.mean(0)]) @ q * step
            return data / N + decay / 2 * (w**2).sum(), g.ravel()

        options = {"gtol": TOLERANCE, "ftol": 0, "maxiter": 5000, "maxfun": 20000, "maxcor": 20}
        found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
        v = found.x.reshape(step.shape) * step @ q.T
        weights, bias = v[:-1], v[-1]
        converged = bool(np.abs(found.jac).max() <= TOLERANCE)
        models.append(Logistic(mean, scale, back(weights), bias, present, classes, converged))
        if __debug__ and DEBUG: print(C, found.nfev, found.nit, found.fun, np.abs(found.jac).max(), found.message)
    return models
DEBUG=False

def standardiser(x: Floats) -> tuple[Floats, Floats]:
    """Mean and 1 / standard deviation of each column; 0 for a column that is constant up to float32 rounding."""
    mean, std = x.mean(0), x.std(0)
    alive = std > 1e-6 * np.abs(mean)
    return mean, np.divide(1, std, out=np.zeros_like(std), where=alive)


def _rotate(x: Floats):  # type: ignore
    """x (N, D), centred -> its principal coordinates (N, r), their variances (r,), and the map of weights back to D."""
    N, D = x.shape
    t = torch.from_numpy(x)
    if D <= N:
        values, v = torch.linalg.eigh(t.T @ t)
        return (t @ v).numpy(), values.clamp(min=0).numpy() / N, lambda w: v.numpy() @ w
    values, u = torch.linalg.eigh(t @ t.T)
    kept = values > 1e-13 * values[-1]  # x is centred, so at least one is 0
    values, u = values[kept], u[:, kept]
    root = values.sqrt()
    return (u * root).numpy(), values.numpy() / N, lambda w: x.T @ (u / root).numpy() @ w


def _finite(x: ArrayLike, which: str) -> Floats:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(f"the {which} features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?")
    return x


def _features(xy: tuple[ArrayLike, ArrayLike], which: str, classes: int) -> tuple[Floats, NDArray[np.int64]]:
    x, y = _finite(xy[0], which), np.asarray(xy[1])
    if y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= classes:
        raise ValueError(f"needs one class in [0, {classes}) per {which} scan, got {y.shape} {y.dtype} for {x.shape}")
    return x, y.astype(np.int64)
