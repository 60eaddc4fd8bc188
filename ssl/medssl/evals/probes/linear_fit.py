"""Linear models on frozen features: every penalty for every set of labelled scans, fitted together.

The objective is C * sum of losses + |w|^2 / 2 with free intercepts, as in scikit-learn, on features standardised on the set's
own scans. The losses by task:

    classification  cross-entropy: logistic regression for two classes, softmax for more
    multilabel      a logistic regression for each finding, on the scans where it is known
    ordinal         proportional odds (`linear_losses.Logistic`)
    regression      half the squared error: ridge regression with alpha = 1 / C, in closed form

All but the last are solved to a proven gap (`newton.GAP`) of the objective. For survival see `cox`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Floats
from medssl.evals.probes.linear_designs import Batch, Design, pad, stacks
from medssl.evals.probes.linear_losses import Logistic, Loss, Softmax, contrasts
from medssl.evals.probes.newton import GAP, minimise
from medssl.evals.task_types.base import LinearTarget, TaskType
from medssl.evals.task_types.task_types import task_type

COARSE = 1e-3  # relative gap of the models that are only compared by their validation loss


@dataclass(frozen=True)
class LinearModels:
    """The models of one set of scans, one per penalty.

    mean, scale (D,): the scores of a scan are (x - mean) * scale @ weights + bias, with weights (P, D, M) and bias (P, J).
    M = J = 1 for two classes and for regression; M = J = number of classes present for more classes; M = J = number of
    findings for multilabel; M = 1 and J = levels present - 1 for ordinal, with scores that are logits of exceeding each level.
    link: scores -> predictions. gap (P,): an upper bound on the objective minus its minimum, relative to it, the largest over
    findings; converged (P,) bool.
    """

    link: Callable[[Floats], Floats]
    mean: Floats
    scale: Floats
    weights: Floats
    bias: Floats
    gap: Floats
    converged: NDArray[np.bool_]

    def predict(self, x: ArrayLike, at: int = 0) -> Floats:
        """Return predictions for features (N, D) with penalty number `at`, as the task's metrics take them."""
        w, bias = self._of_features(at)
        return self.link(np.asarray(x, np.float64) @ w + bias)

    def linear(self, at: int = 0) -> tuple[Floats, Floats]:
        """Return weight (J, D) and bias (J,) of the scores of features as they are: x @ weight.T + bias, before `link`."""
        w, bias = self._of_features(at)
        return np.broadcast_to(w.T, (len(bias), len(w))), bias

    def _of_features(self, at: int) -> tuple[Floats, Floats]:
        """Return weights (D, M) and bias (J,) with mean and scale folded in, so that x is not copied."""
        w = self.scale[:, None] * self.weights[at]
        return w, self.bias[at] - self.mean @ w


def fit_linear(
    x: ArrayLike,
    y: ArrayLike,
    subsets: Sequence[ArrayLike],
    penalties: ArrayLike,
    *,
    task: str = "classification",
    classes: int | None = None,
    device: str = "cpu",
) -> list[LinearModels]:
    """Fit every set of rows with every penalty; return one `LinearModels` per set, in order.

    Args:
        x: (N, D) features.
        y: (N,) or (N, labels), as the metrics of `task` take it.
        subsets: rows of each set; equal sets are fitted once.
        penalties: C, (P,) for all sets, or (sets, P).
        classes: number of classes or levels; needed for these tasks.
        device: device of the computation, in float64.

    Cost: an eigendecomposition of min(n, D)^2 numbers per set, then two products with the set's features for each step of
    conjugate gradients, shared by all penalties and findings. Sets of similar size take their steps together.
    Raises UserError for features that are constant or not finite, and for sets without a second class.
    """
    x, y, classes = checked((x, y), "training", task_type(task), classes)
    path = LinearPath(x, y, subsets, task=task, classes=classes, device=device)
    return path.exact(range(len(subsets)), list(valid_penalties(penalties, len(subsets))))


class LinearPath:
    """Linear models of several sets of scans, for one penalty after another or several at once; equal sets are fitted once.

    `coarse` fits in float32 to a gap of COARSE, each penalty starting at the model of the last one. That is enough to compare
    penalties by their validation loss; `exact` then fits the chosen ones. Ridge regression is exact in both.
    """

    def __init__(
        self, x: Floats, y: NDArray[Any], subsets: Sequence[ArrayLike], *, task: str, classes: int, device: str = "cpu",
        blocks: Sequence[int] = (),
    ):  # fmt: skip
        """x (N, D), y, classes: as returned by `checked`. subsets: rows of each set. blocks: see `standardiser`."""
        self.kind = task_type(task)
        sets = [np.asarray(rows, np.int64) for rows in subsets]
        distinct = {rows.tobytes(): i for i, rows in reversed(list(enumerate(sets)))}
        self.first = [distinct[rows.tobytes()] for rows in sets]
        self.designs = {i: _design(x[sets[i]], device, blocks) for i in sorted(set(self.first))}
        self.targets = {i: self.kind.encode(y[sets[i]], classes) for i in self.designs}
        self.solutions: dict[int, dict[float, Tensor]] = {i: {} for i in self.designs}

    def coarse(self, at: Sequence[int], C: float) -> list[LinearModels]:
        """Return the models of the sets with positions `at`, with the inverse penalty C."""
        return self._fit(at, [C] * len(at), COARSE, torch.float32)

    def exact(self, at: Sequence[int], C: Sequence[ArrayLike]) -> list[LinearModels]:
        """Return the models of the sets with positions `at`, each with its own C, a number or several.

        With one number the fit starts at the last coarse model, if there is one.
        """
        return self._fit(at, C, GAP, torch.float64)

    def _fit(
        self, at: Sequence[int], C: Sequence[ArrayLike], tolerance: float, dtype: torch.dtype
    ) -> list[LinearModels]:
        asked = [(self.first[i], tuple(np.atleast_1d(c).tolist())) for i, c in zip(at, C, strict=True)]
        order = sorted(set(asked))
        sizes = [(len(self.designs[i].a), self.designs[i].a.shape[1]) for i, _ in order]
        kinds = [(t.outputs, t.start.shape[1]) for t in (self.targets[i] for i, _ in order)]
        found: dict[tuple[int, tuple[float, ...]], LinearModels] = {}
        for stack in stacks(sizes, kinds):
            some = [order[k] for k in stack]
            designs, targets = [self.designs[i] for i, _ in some], [self.targets[i] for i, _ in some]
            penalties = valid_penalties([c for _, c in some], len(some))
            if self.kind.least_squares:
                found |= dict(zip(some, _ridge(designs, targets, penalties), strict=True))
                continue
            started = [self._nearest(i, c[0]) if len(c) == 1 else None for i, c in some]
            models, solutions = _solve([d.to(dtype) for d in designs], targets, penalties, tolerance, started)
            found |= dict(zip(some, models, strict=True))
            for (i, c), solution in zip(some, solutions, strict=True):
                if len(c) == 1:
                    self.solutions[i][c[0]] = solution
        return [found[each] for each in asked]

    def _nearest(self, i: int, C: float) -> Tensor | None:
        """Return the solution of set i at C or, without one, at the weakest penalty solved."""
        solved = self.solutions[i]
        return solved.get(C, solved[max(solved)] if solved else None)


def valid_penalties(penalties: ArrayLike, sets: int) -> Floats:
    """Return C (sets, P) of penalties (P,) or (sets, P). Raises ValueError unless all are finite and above 0."""
    given = np.asarray(penalties, np.float64)
    if not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"penalties must be finite and above 0, got {given.min()} to {given.max()}")
    return np.broadcast_to(given, (sets, given.shape[-1]))


def _design(x: Floats, device: str, blocks: Sequence[int] = ()) -> Design:
    design = Design.of(x, device, blocks)
    if not design.scale.any():
        raise UserError(f"the features of the {len(x)} training scans are constant; has the encoder collapsed?")
    return design


def _solve(
    designs: list[Design],
    targets: list[LinearTarget],
    C: Floats,
    tolerance: float = GAP,
    started: Sequence[Tensor | None] = (),
) -> tuple[list[LinearModels], list[Tensor]]:
    """Solve one batch: the sets of a stack, times their findings, times their penalties C (sets, P), in the designs' dtype.

    Also return the coordinates of each set's solution, to be passed as `started` for another penalty.
    """
    a, P, T, M = designs[0].a, C.shape[1], len(targets[0].known), targets[0].outputs

    def stacked(parts: list[Tensor]) -> Tensor:
        """Return the parts padded, with each finding repeated for each penalty."""
        out = pad(parts).to(a.device, a.dtype)
        return out if T == 1 else out.repeat_interleave(P, 2)

    target, weight = stacked([t.target for t in targets]), stacked([t.weight for t in targets])
    start = torch.stack([t.start for t in targets]).to(a.device, a.dtype).repeat_interleave(P, 1)
    if M > 1:
        basis = contrasts(M + 1).to(a.device, a.dtype)
        data: Loss = Softmax(target, weight, basis)
        start = start @ basis.T
    else:
        inner = [t.between for t in targets if t.between is not None]
        data = Logistic(target, weight, torch.stack(inner).to(a.device, a.dtype) if inner else None)
    batch = Batch(pad([d.a for d in designs]), data, T * P, M, start.shape[-1])
    known = np.stack([t.known for t in targets])  # (S, T)
    decay = torch.from_numpy(1 / (known[:, :, None] * C[:, None])).flatten().to(a.device, a.dtype)
    x0 = torch.zeros(len(decay), batch.size, device=a.device, dtype=a.dtype)
    x0[:, batch.size - batch.intercepts :] = start.flatten(0, 1)
    for s, solution in enumerate(started):
        if solution is not None:
            x0[s * P * T : (s + 1) * P * T] = _widened(solution.to(a.device, a.dtype), batch)
    best = minimise(batch, x0, decay, batch.intercepts, tolerance)
    weights, bias = batch.split(best.x)  # (S, r, C, M), (S, C, J)
    gap = best.gap.view(-1, T, P).amax(1).double().cpu().numpy()
    converged = best.converged.view(-1, T, P).all(1).cpu().numpy()
    found, solutions = [], []
    for s, (design, t) in enumerate(zip(designs, targets, strict=True)):
        r = design.a.shape[1]
        solutions.append(torch.cat([weights[s, :r].transpose(0, 1).flatten(1), bias[s]], 1))
        w = torch.einsum("dr,rcm->cdm", design.back, weights[s, :r]).double()
        b = bias[s].double()
        if M > 1:
            w, b = w @ basis.double(), b @ basis.double()
        if T > 1:
            w, b = (v[..., 0].unflatten(0, (T, P)).transpose(0, 1) for v in (w, b))
            w = w.transpose(1, 2)
        model = LinearModels(
            t.predict, design.mean, design.scale, w.cpu().numpy(), b.cpu().numpy(), gap[s], converged[s]
        )
        found.append(model)
    return found, solutions


def _widened(x: Tensor, batch: Batch) -> Tensor:
    """Return coordinates (C, d) of a set with zero weights for the coordinates that a wider stack pads it with."""
    missing = batch.size - x.shape[1]
    inner = x.shape[1] - batch.intercepts
    return torch.cat([x[:, :inner], x.new_zeros(len(x), missing), x[:, inner:]], 1)


def _ridge(designs: list[Design], targets: list[LinearTarget], C: Floats) -> list[LinearModels]:
    """Solve in closed form, as the covariance is diagonal in the coordinates of a `Design`."""
    found = []
    for design, t, c in zip(designs, targets, C, strict=True):
        a, y, alpha = design.a, t.target[:, 0].to(design.a.device), torch.from_numpy(1 / c).to(design.a.device)
        w = design.back @ ((a.T @ (y - y.mean())) / ((a * a).sum(0)[:, None] + alpha))  # (D, P)
        bias = np.full((len(c), 1), float(y.mean()))
        exact, done = np.zeros(len(c)), np.ones(len(c), np.bool_)
        found.append(
            LinearModels(t.predict, design.mean, design.scale, w.T[..., None].cpu().numpy(), bias, exact, done)
        )
    return found


def checked(
    xy: tuple[ArrayLike, ArrayLike], which: str, task: TaskType, classes: int | None
) -> tuple[Floats, NDArray[Any], int]:
    """Return features (N, D) and labels as numbers, and the number of classes, findings or levels.

    Raises UserError for features that are not finite and for labels that are missing, ValueError for the wrong shape.
    """
    x, y = finite(xy[0], which), np.asarray(xy[1])
    if not task.linear_model:
        raise ValueError(f"there is no linear probe for {task.name}")
    if y.shape[:1] != x.shape[:1] or y.ndim != task.ndim:
        raise ValueError(f"needs labels of every {which} scan for {task.name}, got {y.shape} for {x.shape}")
    if y.dtype == object or not np.issubdtype(y.dtype, np.integer):
        y = y.astype(np.float64)
    return x, *task.linear_y(y, which, classes)


def finite(x: ArrayLike, which: str) -> Floats:
    """Return features as float64 (N, D). Raises UserError unless they are finite."""
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UserError(
            f"the {which} features {x.shape} must be finite and (scans, dim); was the encoder's loss finite?"
        )
    return x
