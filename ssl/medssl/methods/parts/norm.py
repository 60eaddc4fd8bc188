"""Batch normalisation over the scans of all ranks, on any device."""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.errors import UserError
from medssl.losses.distributed import world_size


class GlobalBatchNorm(_BatchNorm):
    """Batch normalisation of (B, C, *) with the statistics of all ranks; torch's SyncBatchNorm needs CUDA.

    Values and gradients equal those of one process on the whole batch.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        wide = x if x.dtype == torch.float64 else x.float()
        total = torch.cat([wide.sum(axes), wide.new_full((1,), wide.numel() / wide.shape[1])])
        total = dist_fn.all_reduce(total, op=dist.ReduceOp.SUM)
        n = total[-1].detach().clamp(min=1)  # a pass without rows leaves no nan
        mean = total[:-1] / n
        centred = wide - mean.view(shape)
        variance = dist_fn.all_reduce(centred.square().sum(axes), op=dist.ReduceOp.SUM) / n
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                m = self.momentum if self.momentum is not None else 0.1
                self.running_mean.lerp_(mean, m)
                self.running_var.lerp_(variance * n / (n - 1).clamp(min=1), m)
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
        y = centred * (variance.view(shape) + self.eps).rsqrt()
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        y = y.to(x.dtype)
        return self.act(self.drop(y)) if isinstance(self, BatchNormAct2d) else y


class HeadNorm(nn.BatchNorm1d):
    """Batch normalisation (B, C) -> (B, C), by the running statistics where a pass has fewer than two rows to normalise."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


KNOWN = (HeadNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


def convert_batch_norm(module: nn.Module) -> nn.Module:
    """Turn every batch normalisation in `module` into a GlobalBatchNorm, in place; weights, buffers and names stay.

    Raises UserError for an unknown class of batch normalisation.
    """
    for m in module.modules():
        if isinstance(m, _BatchNorm) and type(m) not in KNOWN:
            raise UserError(f"{type(m).__name__} cannot share statistics; use devices=1 or another encoder")
        if type(m) in KNOWN:
            m.__class__ = type(f"Global{type(m).__name__}", (GlobalBatchNorm, type(m)), {})
    return module
