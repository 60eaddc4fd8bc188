"""Cross-entropy between distributions over prototypes, and Sinkhorn's, against their definitions as loops and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from medssl.losses.self_distillation import across_views, entropy, gram_distance, prototype_cross_entropy, sinkhorn


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, P = rows(5, 6), torch.softmax(rows(5, 6, seed=1), 1)


def cross(p, s, temperature):
    """-sum p log softmax(s / temperature), in a loop."""
    total = sum(math.exp(float(v) / temperature) for v in s)
    return -sum(float(u) * math.log(math.exp(float(v) / temperature) / total) for u, v in zip(p, s, strict=True))


def test_it_is_the_definition():
    each = [cross(P[i], S[i], 0.8) for i in range(5)]
    assert prototype_cross_entropy(S, P, 0.8).item() == pytest.approx(sum(each) / 5, rel=1e-9)
    weights = torch.tensor([0.1, 0.0, 2.0, 0.5, 0.3]).double()
    expected = sum(w * e for w, e in zip(weights.tolist(), each, strict=True))
    assert prototype_cross_entropy(S, P, 0.8, weights).item() == pytest.approx(expected, rel=1e-9)


def test_a_target_of_one_prototype_is_cross_entropy_with_a_class():
    choice = P.argmax(1)
    expected = F.cross_entropy(S / 0.3, choice)
    assert prototype_cross_entropy(S, F.one_hot(choice, 6).double(), 0.3).item() == pytest.approx(
        expected.item(), rel=1e-9
    )


def test_all_views_learn_from_the_other_global_views():
    """DINO's equation 3: two global views, two small ones; six pairs."""
    student, target = rows(4, 5, 6), torch.softmax(rows(2, 5, 6, seed=1), 2)
    pairs = [(s, t) for s in range(4) for t in range(2) if s != t]
    assert len(pairs) == 6
    expected = sum(cross(target[t][i], student[s][i], 0.5) for s, t in pairs for i in range(5)) / 30
    assert across_views(student.unbind(), target.unbind(), 0.5).item() == pytest.approx(expected, rel=1e-9)


def test_gradients_equal_finite_differences_and_targets_have_none():
    student, target = S.clone().requires_grad_(), P.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: prototype_cross_entropy(s, P, 0.8), student)
    prototype_cross_entropy(student, target, 0.8).backward()
    assert target.grad is None


def test_entropy_is_the_cross_entropy_with_itself():
    assert entropy(torch.full((3, 8), 1 / 8)).item() == pytest.approx(math.log(8), rel=1e-6)
    assert entropy(torch.eye(4)).item() == 0
    weights = rows(5).abs()
    assert entropy(P, weights).item() == pytest.approx(
        prototype_cross_entropy(P.log(), P, 1.0, weights).item(), rel=1e-9
    )


@pytest.mark.parametrize("rounds", [1, 3])
def test_sinkhorn_is_its_definition(rounds):
    q = [[math.exp(float(v) / 0.5) for v in row] for row in S]
    for _ in range(rounds):
        columns = [sum(row[k] for row in q) for k in range(6)]
        q = [[v / (6 * c) for v, c in zip(row, columns, strict=True)] for row in q]
        q = [[v / (5 * sum(row)) for v in row] for row in q]
    torch.testing.assert_close(sinkhorn(S, 0.5, rounds), 5 * torch.tensor(q).double())


def test_sinkhorn_uses_all_prototypes_equally_and_keeps_every_row_a_distribution():
    alike = rows(1, 6) + 0.1 * rows(30, 6, seed=1)  # the softmax would give all rows the same prototype
    q = sinkhorn(alike, 0.05, 100)
    torch.testing.assert_close(q.sum(1), torch.ones(30).double())
    torch.testing.assert_close(q.sum(0), torch.full((6,), 5.0).double(), rtol=1e-3, atol=0)
    assert torch.softmax(alike / 0.05, 1).sum(0).max() > 29


def test_sinkhorn_of_scores_whose_exponentials_vanish_is_finite_and_has_no_gradient():
    scores = torch.tensor([[1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    q = sinkhorn(scores, 0.005, 3)  # exp(-200) is 0 in float32
    torch.testing.assert_close(q, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    assert not q.requires_grad
    assert sinkhorn(torch.zeros(0, 4), 0.1, 3).shape == (0, 4)


def test_gram_distance_is_its_definition_and_sees_no_rotation():
    student, teacher = rows(2, 4, 3), rows(2, 4, 3, seed=1)
    total = 0.0
    for b in range(2):
        for i in range(4):
            for j in range(4):
                of = [float(x[b, i] @ x[b, j] / x[b, i].norm() / x[b, j].norm()) for x in (student, teacher)]
                total += (of[0] - of[1]) ** 2
    assert gram_distance(student, teacher).item() == pytest.approx(total / 32, rel=1e-9)
    q, _ = torch.linalg.qr(rows(3, 3, seed=2))
    assert gram_distance(3 * student @ q, student).item() == pytest.approx(0, abs=1e-20)
    assert torch.autograd.gradcheck(lambda s: gram_distance(s, teacher), student.requires_grad_())
