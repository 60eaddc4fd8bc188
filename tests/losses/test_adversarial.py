"""The parts of games between networks against their definitions, torch's own loss and finite differences."""

import math

import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import binary_cross_entropy_with_logits

from medssl.losses.adversarial import reverse_gradient, ridge_error, tell_apart


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


EVERY = torch.ones(40, dtype=torch.bool)


@pytest.mark.parametrize("width", [3, 60])
def test_the_ridge_error_is_that_of_sklearn_at_its_degrees_of_freedom(width):
    """40 rows have 5 degrees of freedom; with 3 columns nearly 3 are used."""
    x, y = 7 * rows(40, width) + 2, rows(40, 2, seed=1)
    z = ((x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()).numpy()
    e = torch.linalg.eigvalsh(torch.from_numpy(z.T @ z)).clamp(min=0).numpy()
    penalties = e.max() * 10 ** torch.linspace(-4, 4, 4001, dtype=torch.float64).numpy()
    freedom = (e[:, None] / (e[:, None] + penalties)).sum(0)
    a = penalties[abs(freedom - 5).argmin()]
    assert freedom.max() > 5 if width == 60 else a == penalties[0]
    model = Ridge(a).fit(z, y.numpy())
    left = ((y.numpy() - model.predict(z)) ** 2).sum() / ((y - y.mean(0)) ** 2).sum().item()
    assert ridge_error(x, y, EVERY).item() == pytest.approx(left, rel=2e-3)


def test_the_ridge_error_is_small_for_what_can_be_told_and_near_one_for_noise():
    x = rows(40, 60)
    assert ridge_error(x, x[:, :1] + x[:, 1:2], EVERY).item() < 0.65
    assert ridge_error(rows(40, 3), rows(40, 3) @ rows(3, 1, seed=2), EVERY).item() < 1e-3
    assert ridge_error(x, rows(40, 1, seed=3), EVERY).item() > 0.7


def test_the_gradient_of_the_ridge_error_is_that_with_its_weights_held():
    """By finite differences of the error of a regression that was fitted before."""
    x, y = rows(40, 4), rows(40, 1, seed=1)
    x.requires_grad_()
    ridge_error(x, y, EVERY).backward()

    def standardised(x):
        return (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-6).sqrt()

    z, t = standardised(x.detach()), y - y.mean(0)
    weight = torch.linalg.solve(z.T @ z + 1e-4 * torch.linalg.eigvalsh(z.T @ z).max() * torch.eye(4), z.T @ t)
    step = torch.zeros_like(z)
    step[3, 2] = 1e-5
    up, down = (((t - standardised(x.detach() + s) @ weight) ** 2).sum() / (t**2).sum() for s in (step, -step))
    assert x.grad[3, 2].item() == pytest.approx(((up - down) / 2e-5).item(), rel=1e-3)


def test_what_cannot_be_regressed_is_not_told():
    x = rows(40, 4).requires_grad_()
    few = torch.zeros(40, dtype=torch.bool)
    for y, known in ((rows(40, 1), few), (torch.ones(40, 1, dtype=torch.float64), EVERY)):
        error = ridge_error(x, y, known)
        error.backward()
        assert error.item() == 1
    assert not x.grad.any()
