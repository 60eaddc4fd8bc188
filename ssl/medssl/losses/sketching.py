"""Losses that make features an isotropic Gaussian, compared with it along random directions, and views of a scan agree."""

import torch
import torch.nn.functional as F
from torch import Tensor

from medssl.losses.distributed import full_precision, gather_rows

KNOTS, FURTHEST = 17, 3.0  # of the integral over frequencies; of LeJEPA's code
VISREG_EPSILON = 1e-4  # added to standard deviations


@full_precision
def toward_centre(z_VBD: Tensor, whole: int) -> Tensor:
    """Return the mean over all V views of the squared distance, per feature, to the mean of the first `whole`, global, views.

    The prediction of LeJEPA, Balestriero & LeCun, 2025, https://arxiv.org/abs/2511.08544, and of VISReg. Gradients flow through
    the mean too.
    """
    return (z_VBD - z_VBD[:whole].mean(0)).square().mean()


@full_precision
def sigreg(z_BD: Tensor, directions_MD: Tensor) -> Tensor:
    """Return LeJEPA's SIGReg: how far features projected to directions are from a normal distribution of mean 0 and variance 1.

    Balestriero & LeCun, 2025: the statistic of Epps and Pulley. With N rows, of all ranks, and x their projections to a
    direction of length 1, it is the mean over directions of

        N * integral over t of |mean over rows of exp(i t x) - exp(-t^2 / 2)|^2 exp(-t^2 / 2)

    from -3 to 3 by the trapezoidal rule, as in their code; their paper integrates from -5 to 5. directions: of any length, the
    same on all ranks.
    """
    x_GM = gather_rows(z_BD) @ F.normalize(directions_MD, dim=1).to(z_BD.dtype).T
    t = torch.linspace(0, FURTHEST, KNOTS, device=x_GM.device, dtype=x_GM.dtype)
    normal = torch.exp(-t.square() / 2)
    phase = x_GM[..., None] * t
    error = (phase.cos().mean(0) - normal).square() + phase.sin().mean(0).square()
    return len(x_GM) * 2 * torch.trapezoid(error * normal, t, dim=1).mean()


@full_precision
def visreg(z_BD: Tensor, directions_MD: Tensor, scale: float, shape: float, centre: float) -> Tensor:
    """Return the regularisation of VISReg, Wu et al., 2026, https://arxiv.org/abs/2606.02572, equations 1, 5 and 6.

    With m_j and s_j the mean and standard deviation of feature j (dividing by the number of rows, those of all ranks) it is

        scale  * mean over j of (1 - s_j)^2
      + shape  * mean over directions and rows of (q - x)^2, for the sorted projections x of (z - m) / (s + 1e-4)
      + centre * mean over j of m_j^2

    q: `normal_quantiles`, which make it a squared Wasserstein distance. No gradient flows through s in the second term.
    """
    z_GD = gather_rows(z_BD)
    mean, std = z_GD.mean(0), z_GD.std(0, correction=0)
    x_GM = ((z_GD - mean) / (std.detach() + VISREG_EPSILON)) @ F.normalize(directions_MD, dim=1).to(z_BD.dtype).T
    off = (x_GM.sort(0).values - normal_quantiles(len(x_GM)).to(x_GM, non_blocking=True)[:, None]).square().mean()
    return scale * (1 - std).square().mean() + shape * off + centre * mean.square().mean()


def normal_quantiles(n: int) -> Tensor:
    """Return (n,) float64 quantiles of the normal distribution at 1 / (n + 1) … n / (n + 1), scaled to a mean square of 1.

    The paper does not scale them. The variance of theirs is less than 1 (.57 for 8 rows, .89 for 64), so that they draw features
    together, the more the fewer the rows: with 8 rows features collapse.
    """
    q = torch.special.ndtri(torch.arange(1, n + 1, dtype=torch.float64) / (n + 1))
    return q / q.square().mean().sqrt()
