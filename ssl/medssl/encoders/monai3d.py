"""MONAI's residual networks for 3D scans."""

from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError, nearest

MODELS = ("resnet10", "resnet18", "resnet34", "resnet50")
SMALL = 32  # voxels along the longest axis up to which the stem keeps the resolution


class ResNet3d(nn.Module):
    """Encode (B, C, D, H, W) as (B, dim): a 3D ResNet with global average pooling (He et al., 2015; Chen et al., 2019, Med3D).

    `net` is MONAI's own module, so its state dict loads into `monai.networks.nets.resnet18(spatial_dims=3,
    n_input_channels=channels, conv1_t_stride=encoder.net.conv1.stride, feed_forward=False)`. The stem halves the
    volume, as in Med3D, except for volumes of up to 32 voxels a side, which five halvings would reduce to one voxel.

    Raises UserError for a 2D size, for an unknown model, and if MONAI is not installed.
    """

    def __init__(self, channels: int, size: tuple[int, ...], model: str = "resnet18"):
        super().__init__()
        if len(size) != 3:
            raise UserError(f"ResNet3d takes volumes and this store is {len(size)}D; choose encoder=resnet18")
        if model not in MODELS:
            raise UserError(f"encoder.model: no 3D network {model!r}.{nearest(model, MODELS)}")
        self.channels, self.size, self.options = channels, tuple(size), {"model": model}
        self.net = _nets(model)(
            spatial_dims=3,
            n_input_channels=channels,
            conv1_t_stride=1 if max(size) <= SMALL else 2,
            feed_forward=False,
        )
        self.dim = self.net.in_planes

    def forward(self, x_BCDHW: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, D, H, W)."""
        return self.maps(x_BCDHW).mean((2, 3, 4))

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and of each residual block."""
        n = self.net
        blocks = [block for stage in (n.layer1, n.layer2, n.layer3, n.layer4) for block in stage]
        return [[*n.conv1.parameters(), *n.bn1.parameters()], *(list(block.parameters()) for block in blocks)]

    def stages(self, x_BCDHW: Tensor) -> list[Tensor]:
        """Return the maps (B, width, d, h, w) of the stem and the four groups of blocks, from fine to coarse."""
        n = self.net
        found = [n.act(n.bn1(n.conv1(x_BCDHW)))]
        x = n.maxpool(found[0])
        for layer in (n.layer1, n.layer2, n.layer3, n.layer4):
            x = layer(x)
            found.append(x)
        return found

    def maps(self, x_BCDHW: Tensor) -> Tensor:
        """Return (B, dim, d, h, w) at 1/16 or 1/32 of the resolution, the last of `stages`."""
        return self.stages(x_BCDHW)[-1]


def _nets(model: str) -> Any:
    """Return the constructor. Imported late: MONAI is an extra and takes seconds to import."""
    try:
        from monai.networks.nets import resnet
    except ImportError as e:
        raise UserError("3D ResNets need MONAI: pip install 'medssl[monai]' or choose encoder=cnn") from e
    return getattr(resnet, model)
