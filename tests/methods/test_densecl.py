"""DenseCL: the loss against its definition, which places are paired, and which keys are negatives."""

import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from medssl.errors import UserError
from medssl.methods.base import Clock
from medssl.methods.contrastive.densecl import embed, most_similar

CLOCK = Clock(0, 10)


def cosine(a, b):
    return F.cosine_similarity(a, b, dim=0).item()


def info_nce(query, own, negatives, temperature=0.2):
    terms = [math.exp(cosine(query, key) / temperature) for key in (own, *negatives)]
    return -math.log(terms[0] / sum(terms))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_loss_is_its_definition(dims):
    """In loops over scans and places, at a step whose queue holds keys of other scans, of the same scans, and none."""
    method = tiny.method("densecl", dims, encoder="vit", queue=10, local=0.3).double()
    batch = tiny.batch(2, n=3, dims=dims)
    batch["views"] = [v.double() for v in batch["views"]]
    method.owner[:4] = torch.tensor([0, 7, 2, 8])
    with torch.no_grad():
        for p in method.teacher.parameters():
            p.mul_(1.1)
    map_a, q, r = embed(method.encoder, method.projector, method.places, batch["views"][0])
    map_b, k, t = embed(*method.teacher, batch["views"][1])
    whole, places = [], []
    for i in range(3):
        counts = [s for s in range(4) if method.owner[s] not in (i, -1)]
        others = [j for j in range(3) if j != i]
        whole.append(info_nce(q[i], k[i], [*k[others], *method.queues[0].rows[counts]]))
        for place in range(r.shape[1]):
            similar = [cosine(map_a[i, place], other) for other in map_b[i]]
            negatives = [*(t[j].mean(0) for j in others), *method.queues[1].rows[counts]]
            places.append(info_nce(r[i, place], t[i, similar.index(max(similar))], negatives))
    expected = 0.7 * sum(whole) / len(whole) + 0.3 * sum(places) / len(places)
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(expected, rel=1e-9)


def test_a_place_is_paired_with_the_one_that_looks_like_it():
    places = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    moved = 3 * places[:, order] + 0.01  # longer vectors: the cosine decides
    assert torch.equal(most_similar(places, moved), order.argsort().expand(2, 9))


def test_keys_and_their_scans_enter_the_queues_after_the_step_newest_first():
    method, clock = tiny.method("densecl", queue=12), Clock(3, 10)
    before = [queue.rows.clone() for queue in method.queues]
    first = tiny.batch(2)
    method(first, clock)
    assert all(torch.equal(queue.rows, old) for queue, old in zip(method.queues, before, strict=True))
    assert (method.owner == -1).all()
    _, k, t = embed(*method.teacher, first["views"][1])
    method.after_step(clock)
    for queue, key in zip(method.queues, (k, t.mean(1)), strict=True):
        torch.testing.assert_close(queue.rows[:8], F.normalize(key, dim=1), rtol=1e-4, atol=1e-5)
    assert method.owner.tolist() == [*range(8), -1, -1, -1, -1]
    method({**tiny.batch(2, seed=1), "key": tiny.key(8, start=8)}, clock)
    method.after_step(clock)
    assert method.owner.tolist() == [*range(8, 16), *range(4)]


def test_constant_features_have_the_loss_of_chance():
    method = tiny.method("densecl", queue=16)
    for head in (method.projector, method.places, *method.teacher[1:]):
        head[-1].weight.data.zero_()
    for step in range(2):
        out = method({**tiny.batch(2), "key": tiny.key(8, start=8 * step)}, Clock(step, 10))
        method.after_step(Clock(step, 10))
        assert out["loss"].item() == pytest.approx(math.log(8 + 8 * step), rel=1e-5)
        assert out["chance"].item() == pytest.approx(math.log(8 + 8 * step), rel=1e-5)
        assert out["error"].item() == pytest.approx(1.0, rel=1e-5)


def test_an_encoder_without_maps_and_a_queue_shorter_than_a_step_are_refused():
    with pytest.raises(UserError, match="no feature maps; choose encoder=cnn"):
        tiny.method("densecl", encoder="mlp")
    with pytest.raises(UserError, match=r"method\.queue=4 is shorter than the 8 features of a step"):
        tiny.method("densecl", queue=4)(tiny.batch(2), CLOCK)
