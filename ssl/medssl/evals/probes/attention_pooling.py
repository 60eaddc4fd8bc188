"""Probes that pool several vectors by learned attention before a linear model: the positions of a scan, the scans of a patient.

attentive   positions of a scan's last feature map, or its tokens: one learned query per head attends to the vectors themselves,
            and pools its share of their columns (Psomas et al., 2025, https://arxiv.org/abs/2506.10178, "efficient probing")
mil         the scans of a patient, as a bag of instances: gated attention (Ilse et al., 2018,
            https://arxiv.org/abs/1802.04712, section 2.4), on frozen features without their embedding layer

The objective is C * sum of losses + |w|^2 / 2 over all weights but the intercepts, with the losses of a trained head
(`losses.target_losses`), minimised by L-BFGS from attention that is equal everywhere: there, a probe is the linear model on mean
vectors. It is not convex, so its minimum depends on the start: each penalty starts from the next stronger one, the strongest
from zero, and the gates of `mil` from random numbers of the seed. No other number is random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from torch import Tensor

from medssl.errors import UserError
from medssl.evals.metrics.metrics import Floats
from medssl.evals.probes.model_selection import PENALTIES, PenalisedModel, Probe, Rows, fit_probes
from medssl.evals.task_types.task_types import task_type
from medssl.losses.target_losses import TargetLoss

HEADS = 8  # queries of the attentive probe, fewer for fewer columns
GATES = 64  # width of the gated attention; Ilse et al. try 64, 128 and 256 on digits
ITERATIONS = 200  # of L-BFGS, for each penalty
NAMES = {"attentive": "attention over positions", "mil": "gated attention over a patient's scans"}

Weights = dict[str, Tensor]


def initial_weights(pooling: str, columns: int, outputs: int, seed: int) -> Weights:
    """Return the weights that training starts from, float64."""
    start = {"weight": torch.zeros(columns, outputs), "bias": torch.zeros(outputs)}
    if pooling == "attentive":
        start["query"] = torch.zeros(min(HEADS, columns), columns)
    else:
        random = torch.Generator().manual_seed(seed)
        for name in ("tanh", "gate"):
            start[name] = torch.randn(GATES, columns, generator=random) / columns**0.5
        start["attention"] = torch.zeros(GATES)
    return {k: v.double() for k, v in start.items()}


def pool(z_NTD: Tensor, there_NT: Tensor, weights: Weights) -> Tensor:
    """Return the pooled vectors (N, D) of z; vectors that are not `there` (bool) count for nothing."""
    hidden = ~there_NT[:, :, None]
    if "query" in weights:
        query = weights["query"]
        logits = z_NTD @ query.T / z_NTD.shape[2] ** 0.5
        attention = logits.masked_fill(hidden, -torch.inf).softmax(1)
        parts = z_NTD.tensor_split(len(query), 2)
        return torch.cat([(attention[:, None, :, h] @ part)[:, 0] for h, part in enumerate(parts)], 1)
    gated = torch.tanh(z_NTD @ weights["tanh"].T) * torch.sigmoid(z_NTD @ weights["gate"].T)
    attention = (gated @ weights["attention"])[:, :, None].masked_fill(hidden, -torch.inf).softmax(1)
    return (attention.mT @ z_NTD)[:, 0]


@dataclass(frozen=True)
class Fitted:
    """The fit on one set with one penalty: a `model_selection.Model`.

    weights float64, for vectors standardised as (x - mean) * scale, (D,). link: scores (N, J) -> predictions.
    """

    weights: Weights
    mean: Tensor
    scale: Tensor
    link: Callable[[Tensor], Tensor]
    converged: NDArray[np.bool_]
    device: str

    def linear(self, at: int = 0) -> None:
        """See `model_selection.Model`."""

    def predict(self, x: ArrayLike, at: int = 0) -> Floats:
        """Return predictions for x (N, T, D), nan where a scan or patient has fewer than T vectors."""
        dtype = torch.float32
        weights = {k: v.to(self.device, dtype) for k, v in self.weights.items()}
        found = []
        for part in torch.from_numpy(np.asarray(x, np.float32)).split(1024):
            pooled = pool(*prepared(part.to(self.device), self.mean, self.scale), weights)
            found.append(self.link((pooled @ weights["weight"] + weights["bias"]).double()).cpu())
        return torch.cat(found).numpy()


def prepared(x_NTD: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return standardised vectors, zero where there are none, and whether they are there (N, T)."""
    there = ~x_NTD[:, :, 0].isnan()
    return ((x_NTD - mean.to(x_NTD)) * scale.to(x_NTD)).nan_to_num(0), there


@dataclass(frozen=True)
class AttentionPath:
    """Fits of several sets of rows, for one penalty after another: a `model_selection.Path`.

    x (N, T, D) float32, nan where there are fewer vectors. loss: of y, as `TargetLoss`; one per set.
    """

    pooling: str
    x: NDArray[np.float32]
    y: NDArray[Any]
    sets: Sequence[Rows]
    losses: Sequence[TargetLoss]
    penalties: Sequence[float]
    seed: int
    device: str
    done: dict[tuple[int, float], Fitted] = field(default_factory=dict)

    def coarse(self, at: Sequence[int], C: float) -> list[Fitted]:
        """Return the fits of the sets at positions `at` with penalty C."""
        return [self._fit(s, C) for s in at]

    def exact(self, at: Sequence[int], C: Sequence[float]) -> list[Fitted]:
        """Return the fits of the sets at positions `at`, each with its own C."""
        return [self._fit(s, c) for s, c in zip(at, C, strict=True)]

    def _fit(self, s: int, C: float) -> Fitted:
        """Fit set `s`, from its fit with the next stronger penalty."""
        if (s, C) in self.done:
            return self.done[s, C]
        rows, loss = self.sets[s], self.losses[s]
        stronger = [c for c in self.penalties if c < C]
        x = torch.from_numpy(self.x[rows])
        if stronger:
            before = self._fit(s, max(stronger))
            start, mean, scale = before.weights, before.mean, before.scale
        else:
            start = initial_weights(self.pooling, x.shape[2], loss.outputs, self.seed)
            means = x.nanmean(1).double()
            mean, spread = means.mean(0), means.std(0, correction=0)
            scale = torch.where(spread > 1e-6 * spread.max(), 1 / spread.clamp(min=1e-30), 0.0)
        z, there = prepared(x.to(self.device), mean, scale)
        weights, converged = _minimise(z, there, torch.from_numpy(self.y[rows]).to(self.device), loss, start, C)
        found = Fitted(weights, mean, scale, loss.predict, np.array([converged]), self.device)
        self.done[s, C] = found
        return found


def _minimise(z: Tensor, there: Tensor, y: Tensor, loss: TargetLoss, start: Weights, C: float) -> tuple[Weights, bool]:
    """Return the weights at the minimum that L-BFGS finds from `start`, and whether it ended within ITERATIONS.

    Penalised weights are searched in units in which a strong penalty is no steeper than the loss of an intercept.
    """
    names, shapes = list(start), [v.shape for v in start.values()]
    sizes = [v.numel() for v in start.values()]
    small = min(1.0, (C * len(z)) ** 0.5)
    unit = torch.cat(
        [torch.full((n,), 1.0 if k == "bias" else small).double() for k, n in zip(names, sizes, strict=True)]
    )

    def objective(flat: Floats) -> tuple[float, Floats]:
        whole = (torch.from_numpy(flat) * unit).to(z.device, z.dtype).requires_grad_()
        weights = {k: v.view(shape) for k, v, shape in zip(names, whole.split(sizes), shapes, strict=True)}
        scores = pool(z, there, weights) @ weights["weight"] + weights["bias"]
        size = sum(v.square().sum() for k, v in weights.items() if k != "bias")
        value = loss.loss_of_known(scores, y) + size / (2 * C * len(z))
        (slope,) = torch.autograd.grad(value, whole)
        return float(value.detach()), (slope.double().cpu() * unit).numpy()

    first = torch.cat([v.flatten() for v in start.values()]) / unit
    found = minimize(
        objective,
        first.numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": ITERATIONS, "ftol": 1e-6, "gtol": 1e-6},
    )
    parts = (torch.from_numpy(found.x) * unit).split(sizes)
    weights = {k: v.view(shape).clone() for k, v, shape in zip(names, parts, shapes, strict=True)}
    return weights, found.status != 1  # 2: no better point within rounding


def attention_probes(
    pooling: str,
    train: tuple[NDArray[Any], NDArray[Any]],
    val: tuple[NDArray[Any], NDArray[Any]] | None,
    tests: Sequence[NDArray[Any]],
    *,
    task: str,
    width: int,
    subsets: Sequence[ArrayLike] | None = None,
    patient: ArrayLike | None = None,
    val_patient: ArrayLike | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
    device: str = "cpu",
) -> list[Probe]:
    """Fit a probe for each of `subsets`, select C on validation patients (`model_selection`), and predict `tests`.

    Args:
        pooling: attentive or mil.
        train, val, tests: x (N, T, D) float32, nan where there are fewer vectors, and y as the metrics of `task` take it. A row
            is a scan, for mil a patient.
        task: a task with a linear model. width: columns of a prediction.
        others: as for `linear.linear_probes`.

    Raises UserError for vectors that are not finite, for sets of one class, and if there are too few patients to hold any out.
    """
    of = task_type(task)
    x, y = train
    for part, which in ((x, "training"), *([(val[0], "validation")] if val else []), *((t, "test") for t in tests)):
        if np.isinf(part).any() or np.isnan(part[:, 0]).any():
            raise UserError(
                f"the {which} features are not finite; look for scans with extreme values, or pretrain again"
            )

    def path(sets: Sequence[Rows]) -> AttentionPath:
        for rows in sets:
            if not of.least_squares and of.ndim == 1 and len(np.unique(y[rows])) < 2:
                raise UserError(
                    f"cannot fit {NAMES[pooling]}: all {len(rows)} training rows have one class; label more"
                )
        losses = [of.target_loss(y[rows], width) for rows in sets]
        return AttentionPath(pooling, x, y, sets, losses, sorted(penalties), seed, device)

    model = PenalisedModel(
        NAMES[pooling],
        "squared error" if of.least_squares else "cross-entropy",
        task,
        path,
        lambda y_some, p, _: of.validation_loss(y_some, p),
        "patients" if pooling == "mil" else "scans",
    )
    return fit_probes(model, (x, y), val, tests, subsets, patient, val_patient, penalties, seed)
