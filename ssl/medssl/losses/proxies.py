"""Classes with a learned vector each, which scans are drawn to: losses of pytorch-metric-learning that hold parameters."""

from torch import Tensor, nn

from medssl.losses.distributed import all_rows, full_precision


@full_precision
def of_classes(z_ND: Tensor, class_N: Tensor, loss: nn.Module) -> Tensor:
    """`loss(z, class)` over the rows of all ranks whose class is known (not -1); 0 when none is."""
    z, classes = all_rows(z_ND), all_rows(class_N)
    known = classes >= 0
    if not bool(known.any()):
        return z.sum() * 0 + sum(p.sum() for p in loss.parameters()) * 0
    return loss(z[known], classes[known])
