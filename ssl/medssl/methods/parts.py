"""Small parts that methods share: a projector, a teacher, batch statistics over all ranks."""

import copy
import math
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.errors import UserError, nearest
from medssl.methods.base import Batch
from medssl.objectives.ranks import world


def mlp(*dims: int) -> nn.Sequential:
    """Linear, BatchNorm, ReLU between every pair of `dims`, with a bare Linear last."""
    layers: list[nn.Module] = []
    for a, b in pairwise(dims[:-1]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))


def teacher_of(module: nn.Module) -> nn.Module:
    """A copy with the same weights and no gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, in place. Buffers are copied."""
    for old, new in zip(teacher.parameters(), student.parameters(), strict=True):
        old.lerp_(new, 1 - momentum)
    for kept, now in zip(teacher.buffers(), student.buffers(), strict=True):
        kept.copy_(now)


def layers_of(encoder: Any, method: str) -> list[tuple[int, ...]]:
    """Shapes, without the batch, of the input and of what each of `encoder.layers` gives. UserError without layers."""
    if not hasattr(encoder, "layers"):
        raise UserError(
            f"{method} needs an encoder made of layers, not {type(encoder).__name__}; use encoder=mlp or cnn"
        )
    h = torch.zeros(2, encoder.channels, *encoder.size)
    shapes = [tuple(h.shape[1:])]
    with torch.no_grad():
        for layer in encoder.layers:
            h = copy.deepcopy(layer)(h)  # a copy, so that no statistics move
            shapes.append(tuple(h.shape[1:]))
    return shapes


def flat(shape: tuple[int, ...]) -> int:
    """How many numbers an output of that shape has."""
    return math.prod(shape)


def rest_below(layers: nn.ModuleList, at: int, x: Tensor) -> Tensor:
    """What the layers below `at` say of x (B, C, *spatial): frozen, with the statistics that they have."""
    with torch.no_grad():
        for layer in layers[:at]:
            x = layer.eval()(x)
    return x


class Decoder(nn.Module):
    """One linear map from a layer's output back to its input: dense, or a convolution after nearest-neighbour upsampling."""

    def __init__(self, source: tuple[int, ...], target: tuple[int, ...]):
        super().__init__()
        if len(source) == 1:
            self.map: nn.Module = nn.Sequential(nn.Linear(source[0], math.prod(target)), nn.Unflatten(1, target))
        else:
            convolution = nn.Conv3d if len(source) == 4 else nn.Conv2d
            self.map = nn.Sequential(nn.Upsample(target[1:]), convolution(source[0], target[0], 3, padding=1))

    def forward(self, code: Tensor) -> Tensor:
        """(B, *source) -> (B, *target)."""
        return self.map(code)


class TiedDecoder(nn.Module):
    """The transposed weights of a fully connected layer, with a bias of its own."""

    def __init__(self, layer: nn.Module, target: tuple[int, ...]):
        super().__init__()
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        if len(linear) != 1:
            raise UserError("method.tied needs layers of one weight matrix; use encoder=mlp, or method.tied=false")
        self.of, self.target = linear, target  # a list, so that the layer stays the encoder's
        self.bias = nn.Parameter(torch.zeros(math.prod(target)))

    def forward(self, code: Tensor) -> Tensor:
        """(B, outputs) -> (B, *target)."""
        return F.linear(code, self.of[0].weight.T, self.bias).unflatten(1, self.target)


class RankBatchNorm(_BatchNorm):
    """Batch normalisation with the statistics of all ranks, on any device (torch's SyncBatchNorm needs CUDA).

    (B, C, *) -> the same shape, equal in value and gradient to one process on the whole batch.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        wide = x if x.dtype == torch.float64 else x.float()
        total = torch.cat([wide.sum(axes), wide.new_full((1,), wide.numel() / wide.shape[1])])
        total = dist_fn.all_reduce(total, op=dist.ReduceOp.SUM)
        n = total[-1].detach()
        mean = total[:-1] / n
        centred = wide - mean.view(shape)
        variance = dist_fn.all_reduce(centred.square().sum(axes), op=dist.ReduceOp.SUM) / n
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                m = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, m)
                self.running_var.lerp_(variance * n / (n - 1), m)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        y = centred * (variance.view(shape) + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        y = y.to(x.dtype)
        return self.act(self.drop(y)) if isinstance(self, BatchNormAct2d) else y


KNOWN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def share_batch_norm(module: nn.Module) -> nn.Module:
    """Make every batch normalisation in `module` a RankBatchNorm, in place; weights, buffers and names stay."""
    for m in module.modules():
        if isinstance(m, _BatchNorm) and type(m) not in KNOWN:
            raise UserError(
                f"{type(m).__name__} cannot share its statistics over processes; use devices=1 or another encoder"
            )
        if type(m) in KNOWN:
            m.__class__ = type(f"Rank{type(m).__name__}", (RankBatchNorm, type(m)), {})
    return module


POSITIVES = ("scan", "patient", "study", "label")


def target_of(positives: str, kind: Any) -> str:
    """What `method.target` must be for `groups_of`. Raises UserError for classes that nobody named, and other labels."""
    if positives not in POSITIVES:
        raise UserError(f"method.positives is {positives!r}.{nearest(positives, POSITIVES)}")
    if positives == "label" and kind is None:
        raise UserError("method.positives=label takes scans of one class; name the label column with target=…")
    if positives == "label" and kind.name != "classes":
        raise UserError(f"method.positives=label takes scans of one class, and target=… gives {kind.name}; use a class")
    return "" if positives == "scan" else positives


def groups_of(batch: Batch, positives: str, views: int) -> Tensor:
    """(views * B,) int64, view after view: rows of one number attract, whatever rank they are on.

    The scan itself, or its patient, study or class as batch["target"] has it; without one (-1) a scan is on its own.
    """
    scan = batch["key"].scan
    group = scan if positives == "scan" else torch.where(batch["target"] < 0, -1 - scan, batch["target"])
    return group.repeat(views)
