"""A frozen teacher sees the student's scans in its own size and standardisation, or is refused."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.methods.parts.frozen_teacher import FrozenTeacher

OURS = InputConfig(1, (16, 16), None, False, 0.4, 0.2)


class Look(nn.Module):
    """Features are what it was shown, and a weight that could be trained."""

    dim = 3

    def __init__(self):
        super().__init__()
        self.weight, self.norm = nn.Parameter(torch.ones(1)), nn.BatchNorm1d(3)

    def forward(self, x):
        self.shown = x
        return x.flatten(1)[:, :3] * self.weight


def test_a_scan_of_known_intensities_is_standardised_as_the_teacher_was_trained():
    unit = torch.rand(2, 1, 16, 16)
    teacher = FrozenTeacher(Look(), replace(OURS, mean=0.1, std=0.5), OURS)
    teacher((unit - 0.4) / 0.2)
    torch.testing.assert_close(teacher.encoder.shown, (unit - 0.1) / 0.5)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("size", [8, 16, 32])
def test_it_is_resampled_to_the_teachers_grid(dims, size):
    """A scan that rises linearly keeps its values at every place inside."""
    ours, theirs = replace(OURS, size=(16,) * dims), replace(OURS, size=(size,) * dims)
    teacher = FrozenTeacher(Look(), theirs, ours)

    def ramp(n: int) -> torch.Tensor:
        return ((torch.arange(n) + 0.5) / n).expand(2, 1, *(n,) * dims)

    teacher(ramp(16))
    assert teacher.encoder.shown.shape == (2, 1, *(size,) * dims)
    torch.testing.assert_close(teacher.encoder.shown[..., 2:-2], ramp(size)[..., 2:-2], atol=1e-5, rtol=0)


def test_it_has_no_gradient_and_stays_in_evaluation_mode():
    teacher = FrozenTeacher(Look(), OURS, OURS).train()
    assert not teacher.encoder.norm.training
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.rand(2, 1, 16, 16, requires_grad=True)).requires_grad


@pytest.mark.parametrize(
    ("takes", "ours", "words"),
    [
        ({"channels": 3}, {}, "takes 3-channel scans in 2D, and the store has 1 in 2D"),
        ({"size": (16, 16, 16)}, {}, "in 3D, and the store has 1 in 2D"),
        ({"equalise": True}, {}, "equalise=true; use the same"),
        ({}, {"equalise": True}, "equalise=false; use the same"),
        ({"spacing": 1.0}, {}, r"size=16 and spacing=1.0, and this run has size=16 and spacing=null"),
        ({"spacing": 1.0}, {"spacing": 2.0}, "grids of equal mm"),
    ],
)
def test_scans_that_cannot_be_shown_as_it_expects_are_refused(takes, ours, words):
    with pytest.raises(UserError, match=words):
        FrozenTeacher(Look(), replace(OURS, **takes), replace(OURS, **ours))


def test_another_resolution_of_the_same_mm_is_taken():
    takes, ours = replace(OURS, size=(32, 32), spacing=1.0), replace(OURS, spacing=2.0)
    assert FrozenTeacher(Look(), takes, ours)(torch.rand(2, 1, 16, 16)).shape == (2, 3)
