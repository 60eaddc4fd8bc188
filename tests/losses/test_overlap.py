"""The losses of VoCo against their definitions as loops, the authors' formulas, and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F

from medssl.losses.overlap import distinct_bases, overlap_loss


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


P = rows(3, 2, 4).sigmoid()
Y = torch.tensor([[[0.5, 0.25, 0.25, 0], [0, 0, 0, 1.0]]], dtype=torch.float64).expand(3, -1, -1)


def test_overlap_loss_is_its_definition():
    expected = 0.0
    for p, y in zip(P, Y, strict=True):
        cells = [(float(p[q, k]), float(y[q, k])) for q in range(2) for k in range(4)]
        found = -sum(t * math.log(1 - abs(t - s) + 1e-6) for s, t in cells) / (sum(t for _, t in cells) + 1e-6)
        empty = [s for s, t in cells if t == 0]
        expected += (found + sum(s**2 for s in empty) / (len(empty) + 1e-6)) / 3
    assert overlap_loss(P, Y).item() == pytest.approx(expected, rel=1e-12)


def test_overlap_loss_and_its_gradient_are_those_of_the_authors_formula():
    """Their terms of one scan, with labels and logits, averaged over scans."""

    def theirs(logits, labels):
        distance = (labels - logits).abs()
        positive = (-labels * torch.log(1 - distance + 1e-6)).sum() / (labels.sum() + 1e-6)
        empty = (labels == 0).double()
        return positive + (empty * logits**2).sum() / (empty.sum() + 1e-6)

    a, b = (P.clone().requires_grad_() for _ in range(2))
    overlap_loss(a, Y).backward()
    (sum(theirs(p, y) for p, y in zip(b, Y, strict=True)) / 3).backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(lambda p: overlap_loss(p, Y), (P.clone().requires_grad_(),))


def test_a_right_prediction_costs_nothing_and_a_miss_of_everything_stays_finite():
    assert overlap_loss(Y.clone(), Y).item() == pytest.approx(0, abs=1e-5)
    assert overlap_loss(1.0 - (Y > 0).double(), (Y > 0).double()).item() == pytest.approx(1 - math.log(1e-6), rel=1e-4)


def test_distinct_bases_is_its_definition_with_a_gradient_for_one_of_each_pair():
    z = rows(2, 5, 3, seed=1)
    a, b = (z.clone().requires_grad_() for _ in range(2))
    total = 0
    for scan in b:
        for i in range(5):
            for j in range(i + 1, 5):
                total = total + F.cosine_similarity(scan[i], scan[j].detach(), dim=0).relu() ** 2 / 20
    loss = distinct_bases(a)
    assert loss.item() == pytest.approx(float(total.detach()), rel=1e-12)
    loss.backward()
    total.backward()
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)
    assert distinct_bases(torch.eye(4).double()[None]).item() == 0
    assert distinct_bases(torch.ones(1, 4, 3)).item() == pytest.approx(1)
