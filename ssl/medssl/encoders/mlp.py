"""A fully connected encoder: what deep belief nets and stacked autoencoders train layer by layer."""

import math

from torch import Tensor, nn

from medssl.errors import UserError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
CODES = ("same", "linear")


class MLP(nn.Module):
    """(B, C, *size) -> (B, dim = last width).

    Attributes:
        layers: one `Sequential(Flatten, Linear, activation)` per width, to be applied in order.

    code: what the last layer gives, "same" as the others or "linear", without an activation.

    Raises UserError for an unknown activation or code and for no widths.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, ...],
        widths: tuple[int, ...] = (500, 500, 500),
        activation: str = "sigmoid",
        code: str = "same",
    ):
        super().__init__()
        if activation not in ACTIVATIONS:
            raise UserError(f"encoder.activation: unknown {activation!r}.{nearest(activation, ACTIVATIONS)}")
        if code not in CODES:
            raise UserError(f"encoder.code: unknown {code!r}.{nearest(code, CODES)}")
        if not widths:
            raise UserError("encoder.widths is empty; give at least one layer, as in encoder.widths=[500,500]")
        self.channels, self.size, self.dim = channels, tuple(size), widths[-1]
        self.options = {"widths": list(widths), "activation": activation, "code": code}
        ins = (channels * math.prod(size), *widths[:-1])
        kinds = [ACTIVATIONS[activation]] * (len(widths) - 1)
        kinds.append(nn.Identity if code == "linear" else ACTIVATIONS[activation])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(i, o), kind()) for i, o, kind in zip(ins, widths, kinds, strict=True)
        )

    def stages(self, x: Tensor) -> list[Tensor]:
        """There are none: UserError."""
        raise UserError("an MLP has no feature maps; choose encoder=cnn, vit or resnet18")

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Every parameter once, layer by layer from the input on."""
        return [list(layer.parameters()) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *size) -> (B, dim)."""
        for layer in self.layers:
            x = layer(x)
        return x
