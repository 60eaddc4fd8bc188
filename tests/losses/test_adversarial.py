"""The parts of games between networks against their definitions, torch's own loss and finite differences."""

import math

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from medssl.losses.adversarial import reverse_gradient, tell_apart


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B = rows(5), rows(7, seed=1)


def test_tell_apart_is_its_definition_and_torchs():
    def p(logit):
        return 1 / (1 + math.exp(-logit))

    expected = -sum(math.log(p(a)) for a in A.tolist()) / 5 - sum(math.log(1 - p(b)) for b in B.tolist()) / 7
    assert tell_apart(A, B).item() == pytest.approx(expected, rel=1e-12)
    ones, zeros = torch.ones_like(A), torch.zeros_like(B)
    torchs = binary_cross_entropy_with_logits(A, ones) + binary_cross_entropy_with_logits(B, zeros)
    assert tell_apart(A, B).item() == pytest.approx(torchs.item(), rel=1e-12)


def test_tell_apart_is_two_ln_two_without_knowledge_and_its_gradient_is_right():
    assert tell_apart(torch.zeros(3), torch.zeros(4)).item() == pytest.approx(2 * math.log(2))
    assert torch.autograd.gradcheck(tell_apart, (A.clone().requires_grad_(), B.clone().requires_grad_()))


def test_a_reversed_gradient_has_the_other_sign_and_the_value_is_the_same():
    x = A.clone().requires_grad_()
    reversed_ = reverse_gradient(x, 0.3)
    assert torch.equal(reversed_, x)
    reversed_.pow(3).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * 3 * A**2)
