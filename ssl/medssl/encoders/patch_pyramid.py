"""Banks of whitened patches of several sizes (see encoders.patch_bank)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medssl.encoders.patch_bank import PatchBank
from medssl.errors import UserError


class PatchPyramid(nn.Module):
    """Encode (B, C, *size) as (B, dim), the concatenated outputs of its banks. 2D or 3D, no parameters.

    A bank represents texture at the size of its patches: edges for small ones, ribs and vessels for large ones.

    Args:
        channels: channels of the scans.
        size: size of the scans.
        patches: edges in pixels, one per bank. By default 1/7 and 2/7 of the shortest axis in 2D, half of that in 3D, at
            least 3: 4 and 8 for 28 pixels, 9 and 18 for 64.
        centroids: number of centroids of each bank.
        pool: cells per axis of each bank.
        contrast: see PatchBank.

    Raises UserError if `patches` is empty, and as PatchBank does.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        patches: Sequence[int] | None = None,
        centroids: int = 256,
        pool: int = 3,
        contrast: float = 0.01,
    ):
        super().__init__()
        if patches is None:
            patches = [max(3, round(share * min(size) / (7 if len(size) == 2 else 14))) for share in (1, 2)]
        if not patches:
            raise UserError("encoder.patches is empty; give the edges of patches in pixels, [4,8] for example")
        self.channels, self.size = channels, tuple(size)
        self.options = {"patches": list(patches), "centroids": centroids, "pool": pool, "contrast": contrast}
        banks = [PatchBank(channels, size, p, centroids, pool, contrast) for p in patches]
        self.banks, self.dim = nn.ModuleList(banks), sum(bank.dim for bank in banks)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        return torch.cat([bank(x) for bank in self.banks], 1)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Raise UserError: there are no feature maps."""
        raise UserError("patch banks have no feature maps, only averages of codes; choose encoder=cnn, vit or resnet18")

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return no parameters: nothing is trained by gradient."""
        return []
