"""The global and the local contrastive loss against their definitions as loops, closed forms, and finite differences."""

import math

import pytest
import torch

from medssl.losses.local_global import partition_contrast, place_contrast


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("across", [True, False])
def test_partition_contrast_is_its_definition(across):
    z, t = rows(3, 4, 2, 5), 0.3
    each = [(b, p, v) for b in range(3) for p in range(4) for v in range(2)]
    terms = []
    for i in each:
        others = sum(math.exp(cosine(z[i], z[k]) / t) for k in each if k[1] != i[1])
        for j in each:
            if j != i and j[1] == i[1] and (across or j[0] == i[0]):
                own = math.exp(cosine(z[i], z[j]) / t)
                terms.append(-math.log(own / (own + others)))
    assert len(terms) == (24 * 5 if across else 24)
    assert partition_contrast(z, t, across).item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


@pytest.mark.parametrize("across", [True, False])
def test_partition_contrast_of_constant_features_and_finite_differences(across):
    assert partition_contrast(torch.ones(3, 4, 2, 5), 0.1, across).item() == pytest.approx(math.log(1 + 3 * 2 * 3))
    z = rows(2, 3, 2, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: partition_contrast(z, 0.5, across), (z,))


def test_the_same_position_of_another_scan_matters_only_across_scans():
    z = rows(2, 3, 2, 5)
    moved = z.clone()
    moved[1, 0] = -z[0, 0]  # scan 1 at position 0 now opposes scan 0 there
    alone = [partition_contrast(x[:, :1].repeat(1, 2, 1, 1), 0.2, False) for x in (z, moved)]
    assert partition_contrast(moved, 0.2, True) > partition_contrast(z, 0.2, True)
    assert torch.isfinite(torch.stack(alone)).all()


def test_place_contrast_is_its_definition():
    a, b, t = rows(2, 6, 4), rows(2, 6, 4, seed=1), 0.2
    total = 0.0
    for x, y in ((a, b), (b, a)):
        for scan in range(2):
            for i in range(6):
                scores = [math.exp(cosine(x[scan, i], y[scan, k]) / t) for k in range(6)]
                total -= math.log(scores[i] / sum(scores))
    assert place_contrast(a, b, t).item() == pytest.approx(total / 24, rel=1e-9)
    assert place_contrast(torch.ones(2, 6, 4), torch.ones(2, 6, 4), t).item() == pytest.approx(math.log(6))
    assert torch.autograd.gradcheck(lambda a, b: place_contrast(a, b, 0.5), (a.requires_grad_(), b.requires_grad_()))
