"""KoLeo against its definition written as loops, closed forms and finite differences."""

import math

import pytest
import torch

from medssl.losses.koleo import koleo


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = rows(7, 4)


def test_it_is_the_definition():
    unit, total = [x / x.norm() for x in X], 0.0
    for i in range(7):
        total -= math.log(min(float((unit[i] - unit[j]).norm()) for j in range(7) if j != i) + 1e-8)
    assert koleo(X).item() == pytest.approx(total / 7, rel=1e-9)


def test_it_does_not_see_lengths_and_is_least_where_rows_are_far_apart():
    assert koleo(X * rows(7, 1).abs()).item() == pytest.approx(koleo(X).item(), rel=1e-9)
    square = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    assert koleo(square).item() == pytest.approx(-math.log(math.sqrt(2)), rel=1e-6)
    assert koleo(square) < koleo(square[[0, 1, 2, 2]])


def test_equal_rows_cost_much_and_keep_the_gradient_finite():
    same = torch.ones(3, 4, requires_grad=True)
    loss = koleo(same)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-8), rel=1e-6)
    assert torch.isfinite(same.grad).all()


def test_gradient_equals_finite_differences():
    assert torch.autograd.gradcheck(koleo, X.clone().requires_grad_())
