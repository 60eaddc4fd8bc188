"""nnU-Net's residual encoder, so that a segmentation by nnU-Net can start from pretrained weights."""

from typing import Any

from torch import Tensor, nn

from medssl.errors import UserError

LEAST = 4  # voxels along each axis that nnU-Net leaves at the coarsest stage, at least

SECOND_NAMES = ("conv", "dropout", "norm", "nonlin")


class ResEnc(nn.Module):
    """Encode (B, C, *size) as (B, dim): the residual encoder of nnU-Net (Isensee et al., 2024, https://arxiv.org/abs/2404.09556).

    `net` is the `ResidualEncoder` of the library dynamic_network_architectures, as in nnU-Net's ResEnc plans: 3x3 convolutions
    with bias, instance normalisation, leaky ReLU; every stage but the first halves the resolution. The features are the mean
    over the positions of the last stage. Its state dict is that of `encoder` in a `ResidualEncoderUNet`, without the second name
    that the library has for each layer of a block.

    Stages are left out at the end that would have fewer than 4 voxels along an axis, as nnU-Net's planner does.

    Args:
        channels, size: of the scans.
        features: channels of each stage.
        blocks: residual blocks of each stage.

    Raises UserError if the library is not installed, and for features and blocks that do not fit each other.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        features: tuple[int, ...] = (32, 64, 128, 256, 320, 320),
        blocks: tuple[int, ...] = (1, 3, 4, 6, 6, 6),
    ):
        super().__init__()
        if not features or len(features) != len(blocks) or min(*features, *blocks) < 1:
            raise UserError(
                f"encoder.features {list(features)} and encoder.blocks {list(blocks)} must be as many, each 1 or more"
            )
        count, edge = 1, min(size)
        while count < len(features) and -(-edge // 2) >= LEAST:
            count, edge = count + 1, -(-edge // 2)
        self.channels, self.size, self.dim = channels, tuple(size), features[count - 1]
        self.options = {"features": list(features[:count]), "blocks": list(blocks[:count])}
        self.net: Any = _library()(channels, **architecture(len(size), **self.options), return_skips=True)
        for block in [m for m in self.net.modules() if hasattr(m, "all_modules")]:
            for name in SECOND_NAMES:  # of the layers in all_modules; safetensors holds each tensor once
                if hasattr(block, name):
                    delattr(block, name)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Return the maps (B, features, *s) of every stage for x (B, C, *size), from fine to coarse."""
        return list(self.net(x))

    def maps(self, x: Tensor) -> Tensor:
        """Return (B, dim, *s) for x (B, C, *size), the last of `stages`."""
        return self.stages(x)[-1]

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem and of each residual block, input first."""
        blocks = [block for stage in self.net.stages for block in stage.blocks]
        return [list(part.parameters()) for part in (self.net.stem, *blocks)]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        return self.maps(x).flatten(2).mean(2)


def architecture(dims: int, features: list[int], blocks: list[int]) -> dict[str, Any]:
    """Return the arguments of `ResidualEncoder` but for the channels of the scans, as nnU-Net's ResEnc planner sets them."""
    conv, norm = (nn.Conv2d, nn.InstanceNorm2d) if dims == 2 else (nn.Conv3d, nn.InstanceNorm3d)
    return {
        "n_stages": len(features),
        "features_per_stage": list(features),
        "conv_op": conv,
        "kernel_sizes": [[3] * dims] * len(features),
        "strides": [[1] * dims] + [[2] * dims] * (len(features) - 1),
        "n_blocks_per_stage": list(blocks),
        "conv_bias": True,
        "norm_op": norm,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


def _library() -> Any:
    """Return the constructor. Imported late: the library is an extra."""
    try:
        from dynamic_network_architectures.building_blocks.residual_encoders import ResidualEncoder
    except ImportError as e:
        raise UserError("encoder=resenc needs nnU-Net's networks: pip install 'medssl[nnunet]'") from e
    return ResidualEncoder
