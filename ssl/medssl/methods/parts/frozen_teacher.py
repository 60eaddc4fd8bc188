"""A trained encoder as a frozen teacher, which is shown the student's scans in the format that it was trained with."""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.methods.parts.teacher import make_teacher
from medssl.resample import apply_axes, axis_weights


class FrozenTeacher(nn.Module):
    """Return features (B, dim) of views (B, C, *size) in the student's format: resampled and standardised as the teacher expects.

    It has no gradient and stays in evaluation mode. dim: length of its features, which may differ from the student's.

    Raises UserError if the teacher takes other channels or dimensions, or if the two see the scans at another resolution,
    field of view or contrast, which views cannot be turned into.
    """

    def __init__(self, encoder: Any, takes: InputConfig, student: InputConfig):
        super().__init__()
        ours, theirs = ((c.channels, len(c.size)) for c in (student, takes))
        if ours != theirs:
            raise UserError(
                f"the teacher takes {theirs[0]}-channel scans in {theirs[1]}D, and the store has {ours[0]} in {ours[1]}D; "
                "choose another teacher"
            )
        if takes.equalise != student.equalise:
            raise UserError(f"the teacher was trained with equalise={str(takes.equalise).lower()}; use the same")
        fields = [None if c.spacing is None else c.spacing * c.size[0] for c in (takes, student)]
        if fields[0] != fields[1]:
            shown = [f"size={c.size[0]} and spacing={c.spacing or 'null'}" for c in (takes, student)]
            raise UserError(
                f"the teacher was trained with {shown[0]}, and this run has {shown[1]}; "
                "both must fit scans into the grid, or have grids of equal mm"
            )
        self.encoder, self.size, self.dim = encoder.requires_grad_(False).eval(), tuple(takes.size), int(encoder.dim)
        self.scale, self.shift = student.std / takes.std, (student.mean - takes.mean) / takes.std

    def train(self, mode: bool = True) -> "FrozenTeacher":
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.in_its_format(x))

    @torch.no_grad()
    def tokens(self, x: Tensor) -> Tensor:
        """Return the tokens (B, N, dim) of a transformer."""
        return self.encoder.tokens(self.in_its_format(x))

    @torch.no_grad()
    def depths(self, x: Tensor) -> list[Tensor]:
        """Return the outputs (B, N, dim) of every block of a transformer."""
        return self.encoder.depths(self.in_its_format(x))

    def in_its_format(self, x: Tensor) -> Tensor:
        """Return views (B, C, *size) in the student's format as the teacher expects them."""
        for_axis = zip(x.shape[2:], self.size, strict=True)
        if x.shape[2:] != self.size:
            x = apply_axes(x, [_resize(n_in, n_out).to(x, non_blocking=True) for n_in, n_out in for_axis])
        return x * self.scale + self.shift


def _resize(n_in: int, n_out: int) -> Tensor:
    """Return the weights (n_out, n_in) that resample a whole axis."""
    return axis_weights(torch.zeros(1), torch.tensor([float(n_in)]), n_in, n_out)[0]


def token_teacher(encoder: Any, frozen: FrozenTeacher | None) -> Any:
    """Return the teacher of a transformer's tokens: the frozen one, or a copy of the encoder, which will follow it.

    Raises UserError if the frozen one has no tokens or another grid of them.
    """
    if frozen is None:
        return make_teacher(encoder)
    grid = getattr(frozen.encoder, "grid", None)
    if grid != encoder.grid:
        theirs = "no tokens" if grid is None else f"a grid of {grid} patches"
        raise UserError(
            f"the teacher has {theirs}, and the encoder one of {encoder.grid}; choose another teacher or encoder.patch"
        )
    return frozen
