"""Banks of whitened patches of several sizes, side by side: see encoders.patch_bank."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medssl.encoders.patch_bank import PatchBank
from medssl.errors import UserError


class PatchPyramid(nn.Module):
    """(B, C, *size) -> (B, dim), the outputs of its banks one after the other. 2D or 3D, no parameters.

    A bank sees texture at the size of its patches and nothing else. Small ones see edges, large ones see ribs and vessels.

    Args:
        channels: of the scans.
        size: of the scans.
        patches: edges in pixels, one for each bank. By default a seventh and two sevenths of the shortest axis in 2D, half as
            much in 3D, at least 3: 4 and 8 of 28 pixels, 9 and 18 of 64.
        centroids: of each.
        pool: cells per axis of each.
        contrast: see PatchBank.

    Raises UserError without patches, and as PatchBank does.
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

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, dim)."""
        return torch.cat([bank(x) for bank in self.banks], 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, dim)."""
        return self.encode(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        """There are none: UserError."""
        raise UserError("patch banks have no feature maps, only averages of codes; choose encoder=cnn, vit or resnet18")

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Nothing here is trained by gradient."""
        return []
