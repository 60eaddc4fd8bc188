"""Classes with a learned vector each, which scans are drawn to: losses of pytorch-metric-learning that hold parameters."""

from pytorch_metric_learning import losses
from torch import Tensor, nn

from medssl.objectives.ranks import all_rows, full_precision

EDGE = 1 - 1e-7  # the largest float32 cosine short of 1 by more than its rounding


class ArcFace(losses.ArcFaceLoss):
    """Deng et al., 2019, https://arxiv.org/abs/1801.07698, equation 3, without the infinite gradient at angles 0 and pi."""

    def get_angles(self, cosine_of_target_classes: Tensor) -> Tensor:
        """In radians, between a row and the vector of its class."""
        return cosine_of_target_classes.clamp(-EDGE, EDGE).acos()


@full_precision
def of_classes(z_ND: Tensor, class_N: Tensor, loss: nn.Module) -> Tensor:
    """`loss(z, class)` over the rows of all ranks whose class is known (not -1); 0 when none is."""
    z, classes = all_rows(z_ND), all_rows(class_N)
    known = classes >= 0
    if not bool(known.any()):
        return z.sum() * 0 + sum(p.sum() for p in loss.parameters()) * 0
    return loss(z[known], classes[known])
