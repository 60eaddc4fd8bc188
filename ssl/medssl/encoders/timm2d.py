"""Any timm model as an encoder of 2D scans, and ResNets in 2D or 3D."""

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import get_pretrained_cfg, group_parameters
from torch import Tensor, nn

from medssl.encoders.monai3d import ResNet3d
from medssl.encoders.vit import pyramid
from medssl.errors import UserError


class TimmEncoder(nn.Module):
    """Encode (B, C, H, W) as (B, dim): the pooled features before a timm model's classifier.

    `net` is the timm model itself: its state dict loads into `timm.create_model(model, in_chans=channels,
    num_classes=0)`, with `img_size=size` for a transformer.

    Raises UserError for a 3D size, an unknown model, a size it does not support, and weights that cannot be fetched.
    """

    def __init__(self, channels: int, size: tuple[int, ...], model: str = "resnet18", pretrained: bool = False):
        super().__init__()
        if len(size) != 2:
            raise UserError(
                f"timm's {model} takes 2D images and this store is {len(size)}D; "
                "choose encoder=resnet18, encoder=cnn or encoder=vit, which do both"
            )
        if not timm.is_model(model):
            raise UserError(f"encoder.model: timm has no model {model!r}.{_near(model)}")
        self.channels, self.size = channels, tuple(size)
        self.options = {"model": model, "pretrained": pretrained}
        self.net: Any = _create(model, pretrained, channels, self.size)
        self.dim = self._width(model)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, H, W)."""
        return self.net(x_BCHW)

    def maps(self, x_BCHW: Tensor) -> Tensor:
        """Return the features (B, dim, h, w) before pooling; a transformer's tokens on their grid.

        Raises UserError if the model has no map with `dim` channels (a layer after pooling, a token pyramid).
        """
        f = self.net.forward_features(x_BCHW)
        if isinstance(f, Tensor) and f.ndim == 3 and hasattr(self.net, "num_prefix_tokens"):
            f = f[:, self.net.num_prefix_tokens :].transpose(1, 2).unflatten(2, self.net.patch_embed.grid_size)
        elif getattr(self.net, "output_fmt", "NCHW") == "NHWC":
            f = f.permute(0, 3, 1, 2)
        if not isinstance(f, Tensor) or f.ndim != 4 or f.shape[1] != self.dim:
            raise UserError(f"timm's {self.options['model']} has no {self.dim}-channel map; choose encoder=resnet18")
        return f

    def stages(self, x_BCHW: Tensor) -> list[Tensor]:
        """Return the maps (B, width, h, w) of timm's forward_intermediates, from fine to coarse.

        For a model with one resolution, such as a transformer, a `pyramid`. Raises UserError if timm has no such maps.
        """
        try:
            found = self.net.forward_intermediates(x_BCHW, norm=True, output_fmt="NCHW", intermediates_only=True)
        except (AttributeError, AssertionError, NotImplementedError) as e:
            raise UserError(f"timm has no feature maps of {self.options['model']}; choose encoder=resnet18") from e
        sizes = [m.shape[2:] for m in found]
        if len(set(sizes)) > 1 or len(found) == 1:
            return [m for m, size, after in zip(found, sizes, [*sizes[1:], None], strict=True) if size != after]
        patch = tuple(n // m for n, m in zip(self.size, sizes[0], strict=True))
        return pyramid(found, patch, lambda m: m)

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters in timm's groups for layer-wise learning rates, input first.

        For a model without such groups, one group per top-level module and per item of those that are lists. A final norm
        belongs to the last block.
        """
        if hasattr(self.net, "group_matcher"):
            of_timm = group_parameters(self.net, self.net.group_matcher(coarse=False), return_values=True)
            groups = [of_timm[i] for i in sorted(of_timm)]
        else:
            lists = nn.Sequential, nn.ModuleList
            parts = [part for child in self.net.children() for part in (child if isinstance(child, lists) else [child])]
            found = [list(self.net.parameters(recurse=False)), *(list(part.parameters()) for part in parts)]
            groups = [group for group in found if group]
        if len(groups) > 1 and all(p.ndim <= 1 for p in groups[-1]):
            norm = groups.pop()
            groups[-1] += norm
        return groups

    def _width(self, model: str) -> int:
        """Return the output width, from a pass of an empty image, so that an unsupported size fails at construction."""
        patch = getattr(getattr(self.net, "patch_embed", None), "patch_size", (1, 1))
        if any(n % p for n, p in zip(self.size, patch, strict=True)):
            raise UserError(f"size {self.size} is not a multiple of {model}'s patch {tuple(patch)}; choose one")
        was = self.net.training
        try:
            with torch.no_grad():
                out = self.net.eval()(torch.zeros(1, self.channels, *self.size))
        except (RuntimeError, ValueError, AssertionError) as e:
            raise UserError(f"{model} cannot take size {self.size} ({e}); choose a larger one or encoder=cnn") from e
        finally:
            self.net.train(was)
        if not isinstance(out, Tensor) or out.ndim != 2:
            raise UserError(f"timm's {model} does not end in one vector per image; choose another encoder.model")
        return out.shape[1]


def resnet(channels: int, size: tuple[int, ...], model: str = "resnet18", pretrained: bool = False) -> nn.Module:
    """Build a ResNet: timm's in 2D, MONAI's in 3D (He et al., 2015, arXiv:1512.03385).

    Raises UserError for pretrained weights in 3D, which do not exist here, and as the two encoders do.
    """
    if len(size) == 2:
        return TimmEncoder(channels, size, model, pretrained)
    if pretrained:
        raise UserError(f"encoder.pretrained: there are no pretrained 3D weights for {model}; leave it off")
    return ResNet3d(channels, size, model)


def weights_available(model: str) -> bool:
    """Return whether timm's weights of `model` are on this machine, so that `pretrained` works offline."""
    about = get_pretrained_cfg(model)
    if about is None or not about.hf_hub_id:
        return False
    files = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(about.hf_hub_id, name), str) for name in files)


def _create(model: str, pretrained: bool, channels: int, size: tuple[int, ...]) -> nn.Module:
    build = partial(timm.create_model, model, pretrained=pretrained, in_chans=channels, num_classes=0)
    try:
        return _with_size(build, model, size)
    except Exception as e:  # the hub's client raises its own, httpx's, requests' and urllib's errors, by version
        if not pretrained:
            raise
        why = str(e).split("\n", 1)[0]
        raise UserError(
            f"encoder.pretrained: the weights of {model} are not available offline ({type(e).__name__}: {why}); "
            "run once with network access, or encoder.pretrained=false"
        ) from e


def _with_size(build: Callable[..., nn.Module], model: str, size: tuple[int, ...]) -> nn.Module:
    """Build with the image size, which transformers need, or without, for convolutional networks, which refuse it."""
    try:
        return build(img_size=size)
    except TypeError as e:
        if "img_size" not in str(e):
            raise
    except (RuntimeError, ValueError, AssertionError) as e:
        raise UserError(f"timm cannot build {model} for size {size} ({e}); choose another size or encoder.model") from e
    return build()


def _near(model: str) -> str:
    close = difflib.get_close_matches(model, timm.list_models(), n=3)
    return f" Did you mean {', '.join(close)}?" if close else " timm.list_models('*vit*') lists what it has."
