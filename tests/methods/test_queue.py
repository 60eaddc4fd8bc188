"""Queues of features: they move after the step and not before, newest first, and a batch must fit."""

import pytest
import torch
import torch.nn.functional as F

import tiny
from medssl.errors import UserError
from medssl.losses.infonce import query_key
from medssl.methods.base import Clock
from medssl.methods.parts.queue import Queue

CLOCK = Clock(0, 10)


def test_the_newest_features_come_first_and_the_oldest_leave():
    queue, eye = Queue(4, 6), torch.eye(6)
    queue.add(2 * eye[:2])
    queue.add(eye[2:3])  # a second pass of the same step
    queue.advance()
    assert torch.equal(queue.rows[:3], eye[:3])
    queue.add(eye[3:5])
    assert torch.equal(queue.rows[:3], eye[:3])
    queue.advance()
    assert torch.equal(queue.rows, eye[[3, 4, 0, 1]])
    queue.advance()
    assert torch.equal(queue.rows, eye[[3, 4, 0, 1]]), "nothing is added twice"


def test_more_features_than_fit_are_refused():
    queue = Queue(4, 6)
    queue.add(torch.eye(6)[:3])
    with pytest.raises(UserError, match=r"method\.queue=4 is shorter than the 6 features of a step"):
        queue.add(torch.eye(6)[:3])


@pytest.mark.parametrize(("name", "kept"), [("moco", 16), ("nnclr", 8)])
def test_a_queue_moves_after_the_step_and_not_before(name, kept):
    method = tiny.method(name, queue=20)
    before = method.queue.rows.clone()
    method(tiny.batch_for(method), CLOCK)
    assert torch.equal(method.queue.rows, before)
    method.after_step(CLOCK)
    assert torch.equal(method.queue.rows[kept:], before[: 20 - kept])
    assert not torch.isclose(method.queue.rows[:kept], before[:kept]).all(1).any()
    with pytest.raises(UserError, match="shorter"):
        method(tiny.batch_for(method, n=21), CLOCK)


def test_moco_queues_the_keys_of_its_teacher_and_sees_them_as_negatives():
    method, batch = tiny.method("moco", queue=16), tiny.batch(2)
    alone = tiny.method("moco", queue=0)
    assert method(batch, CLOCK)["loss"] > alone(batch, CLOCK)["loss"]
    keys = method.teacher(torch.cat(batch["views"]))
    method.after_step(Clock(0, 10))
    torch.testing.assert_close(method.queue.rows, F.normalize(keys, dim=1))


def test_nnclr_finds_the_nearest_neighbour():
    method = tiny.method("nnclr", queue=50)
    z = torch.randn(5, 16)
    for row, near in zip(z, method.neighbours(z), strict=True):
        distances = [(row / row.norm() - q).norm().item() for q in method.queue.rows]
        assert torch.equal(near, method.queue.rows[distances.index(min(distances))])


@pytest.mark.parametrize("name", ["moco", "nnclr"])
def test_each_view_is_compared_with_the_other(name):
    """The paired rows are those of two views of a scan, in both orders."""
    method, batch, none = tiny.method(name), tiny.batch(2), torch.empty(0, 16)
    views = torch.cat(batch["views"])
    z = method.projector(method.encoder(views))
    queries, keys = method.predictor(z), method.teacher(views) if name == "moco" else z
    if name == "nnclr":
        queries, keys = method.neighbours(z), queries
    (q_a, q_b), (k_a, k_b) = queries.chunk(2), keys.chunk(2)
    crossed, straight = (
        sum(query_key(q, k, method.temperature, none).item() for q, k in pairs) / 2
        for pairs in (((q_a, k_b), (q_b, k_a)), ((q_a, k_a), (q_b, k_b)))
    )
    loss = method(batch, CLOCK)["loss"].item()
    assert loss == pytest.approx(crossed, rel=1e-5)
    assert loss != pytest.approx(straight, rel=1e-3), "the views differ enough for the test to see it"


def test_moco_v2_has_no_predictor_and_a_constant_momentum():
    method = tiny.method("moco", queue=20, predictor=False, momentum=0.9, momentum_end=0.9)
    batch = tiny.batch(2)
    views = torch.cat(batch["views"])
    q, k = method.projector(method.encoder(views)), method.teacher(views)
    expected = sum(query_key(a, b, 0.2, method.queue.rows).item() for a, b in ((q[:8], k[8:]), (q[8:], k[:8]))) / 2
    assert method(batch, Clock(9, 10))["loss"].item() == pytest.approx(expected, rel=1e-5)
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    teacher, student = (next(m.parameters()) for m in method.teacher_student())
    before = teacher.clone()
    method.after_step(Clock(9, 10))
    torch.testing.assert_close(teacher, 0.9 * before + 0.1 * student)
