"""The relatives of NT-Xent against their definitions written as loops, another library, and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from lightly.loss import DCLLoss

from medssl.losses.infonce import decoupled, nt_xent, query_key


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


A, B, NONE = rows(5, 7), rows(5, 7, seed=1), rows(0, 7)


def similarity(x, y):
    return float(x @ y) / math.sqrt(float(x @ x) * float(y @ y))


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_decoupled_is_its_definition(temperature):
    z, total = torch.cat([A, B]), 0.0
    for i in range(10):
        j = (i + 5) % 10
        others = [math.exp(similarity(z[i], z[k]) / temperature) for k in range(10) if k not in (i, j)]
        total += -similarity(z[i], z[j]) / temperature + math.log(sum(others))
    assert decoupled(A, B, temperature).item() == pytest.approx(total / 10, rel=1e-9)


def test_decoupled_equals_lightly():
    assert decoupled(A, B, 0.2).item() == pytest.approx(DCLLoss(0.2)(A, B).item(), rel=1e-6)


def test_decoupled_is_info_nce_without_the_positive_in_the_denominator():
    """With partners at right angles to all else, of the 2B - 1 terms of the denominator the partner's is left out."""
    basis = torch.eye(6, dtype=torch.float64)
    a, b = basis[:3], basis[3:]  # every similarity is 0
    assert nt_xent(a, b, 0.1).item() == pytest.approx(math.log(5), rel=1e-9)
    assert decoupled(a, b, 0.1).item() == pytest.approx(math.log(4), rel=1e-9)
    same = basis[:3]  # partners are equal: exp(10) is in one denominator only
    assert nt_xent(same, same, 0.1).item() == pytest.approx(math.log(math.exp(10) + 4) - 10, rel=1e-9)
    assert decoupled(same, same, 0.1).item() == pytest.approx(math.log(4) - 10, rel=1e-9)


@pytest.mark.parametrize("queue", [NONE, rows(3, 7, seed=2)], ids=["no queue", "queue"])
def test_query_key_is_its_definition(queue):
    total, keys = 0.0, [*B, *queue]
    for i in range(5):
        s = [similarity(A[i], k) / 0.2 for k in keys]
        total += -s[i] + math.log(sum(map(math.exp, s)))
    assert query_key(A, B, 0.2, queue).item() == pytest.approx(total / 5, rel=1e-9)


def test_constant_features_have_the_loss_of_chance():
    one = torch.ones(8, 7)
    assert decoupled(one, one, 0.1).item() == pytest.approx(math.log(14), rel=1e-6)
    assert query_key(one, one, 0.1, one[:3]).item() == pytest.approx(math.log(11), rel=1e-6)


LOSSES = {
    "decoupled": lambda a, b: decoupled(a, b, 0.3),
    "query_key": lambda a, b: query_key(a, b, 0.3, rows(3, 7, seed=2)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name):
    assert torch.autograd.gradcheck(LOSSES[name], [A.clone().requires_grad_(), B.clone().requires_grad_()])


def test_an_easy_positive_still_pulls_without_itself_in_the_denominator():
    """The paper's section 3: the pull of InfoNCE vanishes on easy pairs, that of the decoupled loss is 1 / temperature."""
    pulls = []
    for loss in (nt_xent, decoupled):
        a, b = torch.eye(4, dtype=torch.float64).requires_grad_(), torch.eye(4, dtype=torch.float64)
        near = F.normalize(b + 0.1 * rows(4, 4), dim=1)
        loss(a, near, 0.05).backward()
        pulls.append(a.grad.norm().item())
    assert pulls[0] < 1e-3 * pulls[1]
