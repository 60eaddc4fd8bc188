"""A trained encoder as a frozen teacher, which is shown the student's scans in the format that it was trained with."""

from typing import Any

import torch
from torch import Tensor, nn

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
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
        for_axis = zip(x.shape[2:], self.size, strict=True)
        if x.shape[2:] != self.size:
            x = apply_axes(x, [_resize(n_in, n_out).to(x) for n_in, n_out in for_axis])
        return self.encoder(x * self.scale + self.shift)


def _resize(n_in: int, n_out: int) -> Tensor:
    """Return the weights (n_out, n_in) that resample a whole axis."""
    return axis_weights(torch.zeros(1), torch.tensor([float(n_in)]), n_in, n_out)[0]
