"""Fully connected encoder, trained layer by layer by deep belief nets and stacked autoencoders."""

import math

from torch import Tensor, nn

from medssl.errors import UserError, nearest

ACTIVATIONS: dict[str, type[nn.Module]] = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}
CODES = ("same", "linear")


class MLP(nn.Module):
    """Encode (B, C, *size) as (B, dim = last width).

    Attributes:
        layers: one `Sequential(Flatten, Linear, activation)` per width, in order.

    code: activation of the last layer, "same" as the others or "linear" (none).

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
        """Raise UserError: there are no feature maps."""
        raise UserError("an MLP has no feature maps; choose encoder=cnn, vit or resnet18")

    def by_depth(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer, input first."""
        return [list(layer.parameters()) for layer in self.layers]

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, dim) for x (B, C, *size)."""
        for layer in self.layers:
            x = layer(x)
        return x
