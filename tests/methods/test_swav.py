"""SwAV: swapped predictions of balanced assignments, its queue, and the number of prototypes."""

import pytest
import torch

import tiny
from medssl.errors import UserError
from medssl.losses.self_distillation import prototype_cross_entropy, sinkhorn
from medssl.methods.base import Clock

CLOCK = Clock(0, 10)


def scores_of(method, views):
    return [method.prototypes(method.projector(z)) for z in method.encoder(torch.cat(views)).chunk(len(views))]


def prepared(**options):
    """Return a method in evaluation mode, so that batch statistics do not tie views together."""
    method = tiny.method("swav", **options)
    for _ in range(30):
        method(tiny.batch_for(method), CLOCK)
        method.after_step(CLOCK)
    return method.eval()


def test_each_view_predicts_the_assignment_of_the_other():
    method = prepared()
    batch = tiny.batch_for(method)
    a, b = scores_of(method, batch["views"])
    q_a, q_b = (sinkhorn(s, 0.05, 3) for s in (a, b))
    expected = (prototype_cross_entropy(a, q_b, 0.1) + prototype_cross_entropy(b, q_a, 0.1)).item() / 2
    own = (prototype_cross_entropy(a, q_a, 0.1) + prototype_cross_entropy(b, q_b, 0.1)).item() / 2
    loss = method(batch, CLOCK)["loss"].item()
    assert loss == pytest.approx(expected, rel=1e-5)
    assert loss != pytest.approx(own, rel=1e-3), "the views differ enough for the test to see it"


def test_small_views_predict_and_are_not_assigned():
    method = prepared(small={"count": 2, "size": 0.5, "scale": [0.1, 0.4]})
    batch = tiny.batch_for(method)
    whole, small = scores_of(method, batch["views"][:2]), scores_of(method, batch["views"][2:])
    q = [sinkhorn(s, 0.05, 3) for s in whole]
    pairs = [(whole[0], q[1]), (whole[1], q[0])] + [(s, t) for s in small for t in q]
    expected = sum(prototype_cross_entropy(s, t, 0.1).item() for s, t in pairs) / 6
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_a_queue_takes_part_in_the_assignment_of_its_view():
    method = prepared(queue=24)
    batch = tiny.batch_for(method)
    whole = scores_of(method, batch["views"])
    q = [
        sinkhorn(torch.cat([s, method.prototypes(queue.rows)]), 0.05, 3)[:8]
        for s, queue in zip(whole, method.queues, strict=True)
    ]
    assert not torch.equal(method.queues[0].rows, method.queues[1].rows)
    expected = (prototype_cross_entropy(whole[0], q[1], 0.1) + prototype_cross_entropy(whole[1], q[0], 0.1)).item() / 2
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("prototypes", "queue", "fewest"), [(8, 0, 8), (64, 0, 64), (64, 56, 8), (64, 512, 2)])
def test_a_pass_needs_as_many_scans_as_prototypes_less_those_of_the_queue(prototypes, queue, fewest):
    assert tiny.method("swav", prototypes=prototypes, queue=queue).fewest_scans == fewest


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"sharpness": 0.0}, {"queue": -1}, {"prototypes": 1}], ids=str
)
def test_impossible_options_are_refused(options):
    with pytest.raises(UserError, match=next(iter(options))):
        tiny.method("swav", **options)
