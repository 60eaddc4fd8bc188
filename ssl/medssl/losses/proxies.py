"""Classes with a learned vector each, which scans are drawn to: losses of pytorch-metric-learning that hold parameters."""

from torch import Tensor, nn

from medssl.losses.distributed import full_precision, gather_rows


@full_precision
def proxy_loss(z_ND: Tensor, class_N: Tensor, loss: nn.Module) -> Tensor:
    """`loss(z, class)` over the rows of all ranks whose class is known (not -1); 0 when none is."""
    z, classes = gather_rows(z_ND), gather_rows(class_N)
    known = classes >= 0
    if not bool(known.any()):
        return z.sum() * 0 + sum(p.sum() for p in loss.parameters()) * 0
    return loss(z[known], classes[known])
