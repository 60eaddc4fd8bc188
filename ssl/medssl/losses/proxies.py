"""Losses with a learned vector per class, the modules of pytorch-metric-learning that have parameters."""

from torch import Tensor, nn

from medssl.losses.distributed import full_precision, gather_rows


@full_precision
def proxy_loss(z_ND: Tensor, class_N: Tensor, loss: nn.Module) -> Tensor:
    """Return `loss(z, class)` over the rows of all ranks with a known class (not -1); 0 if there are none."""
    z, classes = gather_rows(z_ND), gather_rows(class_N)
    known = classes >= 0
    if not bool(known.any()):
        return z.sum() * 0 + sum(p.sum() for p in loss.parameters()) * 0
    return loss(z[known], classes[known])
