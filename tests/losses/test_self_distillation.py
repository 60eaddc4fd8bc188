"""Cross-entropy between distributions over prototypes, against its definition written as loops and closed forms."""

import math

import pytest
import torch

from medssl.losses.self_distillation import centred_cross_entropy


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


S, T, C = rows(5, 6), rows(5, 6, seed=1), rows(6, seed=2)


def softmax(values):
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def test_it_is_the_definition():
    total = 0.0
    for i in range(5):
        p = softmax([float(T[i, k] - C[k]) / 0.5 for k in range(6)])
        q = softmax([float(S[i, k]) / 0.8 for k in range(6)])
        total -= sum(u * math.log(v) for u, v in zip(p, q, strict=True))
    assert centred_cross_entropy(S, T, C, 0.8, 0.5).item() == pytest.approx(total / 5, rel=1e-9)


def test_a_centre_of_the_teachers_constant_output_makes_it_uniform():
    constant = C.expand(5, 6)
    found = centred_cross_entropy(constant * 0, constant, C, 0.1, 0.04)
    assert found.item() == pytest.approx(math.log(6), rel=1e-12)
    assert centred_cross_entropy(constant, constant, C * 0, 0.04, 0.04).item() < math.log(6) / 2


def test_a_sharp_teacher_is_cross_entropy_with_its_choice():
    expected = torch.nn.functional.cross_entropy(S / 0.3, (T - C).argmax(1))
    assert centred_cross_entropy(S, T, C, 0.3, 1e-4).item() == pytest.approx(expected.item(), rel=1e-9)


def test_gradient_equals_finite_differences_and_the_teacher_has_none():
    student, teacher = S.clone().requires_grad_(), T.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda s: centred_cross_entropy(s, T, C, 0.8, 0.5), student)
    centred_cross_entropy(student, teacher, C, 0.8, 0.5).backward()
    assert teacher.grad is None
