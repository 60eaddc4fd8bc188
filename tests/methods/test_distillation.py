"""The losses of SimSiam, DINO and distillation, and the collapses that a stop-gradient, a predictor and centring prevent."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tiny
from medssl.errors import UserError
from medssl.losses.self_distillation import across_views, prototype_cross_entropy, sinkhorn
from medssl.methods.base import Clock


def test_simsiam_predicts_the_other_view_which_gets_no_gradient():
    """Equation 4 in a loop over scans, times 2 and plus 2."""
    method, batch = tiny.method("simsiam").double(), tiny.batch(2, n=5)
    z = method.projector(method.encoder(torch.cat(batch["views"]).double()))
    p = method.predictor(z)
    cosines = [p[i] @ z[(i + 5) % 10] / p[i].norm() / z[(i + 5) % 10].norm() for i in range(10)]
    batch["views"] = [v.double() for v in batch["views"]]
    assert method(batch, Clock(0, 10))["loss"].item() == pytest.approx(2 - 2 * sum(cosines).item() / 10, rel=1e-9)


def test_with_more_views_each_predicts_the_mean_of_the_others():
    """FastSiam, in a loop over views and scans."""
    method = tiny.method("simsiam", views=4).double()
    batch = tiny.batch(4, n=5)
    batch["views"] = [v.double() for v in batch["views"]]
    z = method.projector(method.encoder(torch.cat(batch["views"]))).detach().view(4, 5, -1)
    p = method.predictor(z.flatten(0, 1)).detach().view(4, 5, -1)
    total = 0.0
    for v in range(4):
        for i in range(5):
            target = sum(z[w, i] for w in range(4) if w != v) / 3
            total += 2 - 2 * float(p[v, i] @ target / p[v, i].norm() / target.norm())
    out = method(batch, Clock(0, 10))["loss"]
    assert out.item() == pytest.approx(total / 20, rel=1e-9)
    with pytest.raises(UserError, match=r"method\.views must be at least 2"):
        tiny.method("simsiam", views=1)


@pytest.mark.parametrize("fault", ["none", "no stop-gradient", "no predictor"])
def test_simsiam_collapses_without_its_stop_gradient_or_predictor_and_not_with_both(fault):
    """The paper's figure 2 and table 1; without the projector's last norm, which slows the collapse of so short a run."""
    method = tiny.method("simsiam")
    method.projector[1] = nn.Identity()
    if fault == "no predictor":
        method.predictor = nn.Identity()
    optimizer = torch.optim.SGD(method.parameters(), 0.05, momentum=0.9)
    for step in range(80):
        batch = tiny.batch(2, n=16, seed=step)
        loss = method(batch, Clock(step, 80))["loss"]
        if fault == "no stop-gradient":
            z = method.projector(method.encoder(torch.cat(batch["views"])))
            loss = 2 - 2 * F.cosine_similarity(method.predictor(z), z.roll(16, 0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = F.normalize(method.projector(method.encoder(tiny.batch(1, n=128, seed=999)["views"][0])), dim=1)
    spread = z.std(0).norm().item()  # 1 for directions that cancel each other
    assert spread > 0.8 if fault == "none" else spread < 0.2


def test_the_centre_is_a_moving_average_that_waits_for_the_step():
    method, clock = tiny.method("dino"), Clock(0, 10)
    first, second = tiny.batch(2), tiny.batch(2, seed=1)
    outputs = [method.teacher(torch.cat(b["views"])).mean(0) for b in (first, second)]
    method(first, clock)
    method(second, clock)  # two passes of one step
    assert not method.targets.centre.any()
    method.after_step(clock)
    torch.testing.assert_close(method.targets.centre, 0.1 * (outputs[0] + outputs[1]) / 2)
    before = method.targets.centre.clone()
    method(first, clock)
    method.after_step(clock)
    expected = 0.9 * before + 0.1 * outputs[0]  # of this step alone; the teacher has not moved, as the student has not
    torch.testing.assert_close(method.targets.centre, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("step", "temperature"), [(0, 0.04), (3, 0.055), (6, 0.07), (9, 0.07)])
def test_the_teachers_temperature_rises_over_the_warmup(step, temperature):
    method, batch = tiny.method("dino", warmup=0.6), tiny.batch(2)
    views = torch.cat(batch["views"])
    student = method.prototypes(method.projector(method.encoder(views)))
    (s_a, s_b), (t_a, t_b) = student.chunk(2), torch.softmax(method.teacher(views) / temperature, 1).chunk(2)
    expected = sum(prototype_cross_entropy(s, t, 0.1).item() for s, t in ((s_a, t_b), (s_b, t_a)))
    out = method(batch, Clock(step, 10))
    assert out["loss"].item() == pytest.approx(expected / 2, rel=1e-5)
    p = torch.softmax(method.teacher(views) / temperature, 1)
    entropy = -(p * p.log()).sum(1).mean().item()
    assert out["error"].item() == pytest.approx(expected / 2 - entropy, rel=1e-4)


def test_without_warmup_the_temperature_is_the_last_one_from_the_start():
    first, second = (tiny.method("dino", warmup=w, teacher_start=s) for w, s in ((0.0, 0.04), (1.0, 0.07)))
    batch = tiny.batch(2)
    assert torch.equal(first(batch, Clock(0, 10))["loss"], second(batch, Clock(0, 10))["loss"])


def test_without_centring_a_few_prototypes_take_all_scans():
    used, losses = {}, {}
    for centred in (True, False):
        method = tiny.method("dino", prototypes=64)
        optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
        for step in range(60):
            loss = method(tiny.batch(2, n=16, seed=step), Clock(step, 60))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            method.after_step(Clock(step, 60))
            if not centred:
                method.targets.centre.zero_()
        share = method.targets(method.teacher(tiny.batch(1, n=128, seed=999)["views"][0]), 0.04).mean(0)
        used[centred], losses[centred] = (share.clamp(min=1e-9).log() * -share).sum().exp().item(), loss.item()
    assert used[False] < 0.5 * used[True]
    assert losses[False] < losses[True]


def test_distillation_is_a_loop_over_scans_and_leaves_the_teacher_as_it_was():
    """2 - 2 cos of the student's prediction and the teacher's features, standardised by hand over the batch."""
    method, batch = tiny.method("distill").double(), tiny.batch(1, n=6)
    batch["views"] = [v.double() for v in batch["views"]]
    before = {k: v.clone() for k, v in method.frozen_teacher.state_dict().items()}
    loss = method(batch, Clock(0, 10))["loss"]
    t = method.frozen_teacher(batch["views"][0])
    p = method.projector(method.encoder(batch["views"][0]))
    t = (t - t.mean(0)) / (t.var(0, correction=0) + 1e-5).sqrt()
    cosines = [p[i] @ t[i] / p[i].norm() / t[i].norm() for i in range(6)]
    assert loss.item() == pytest.approx(2 - 2 * sum(cosines).item() / 6, rel=1e-9)
    loss.backward()
    assert all(p.grad is None for p in method.frozen_teacher.parameters())
    assert method.train().frozen_teacher.encoder.training is False
    assert all(torch.equal(v, before[k]) for k, v in method.frozen_teacher.state_dict().items())


def test_a_student_learns_what_separates_the_teachers_features():
    """From scans never trained on, the projector predicts them better than a constant could."""
    method = tiny.method("distill")
    optimizer = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], 3e-3)
    unseen = tiny.batch(1, n=64, seed=999)
    losses = []
    for step in range(120):
        losses.append(method.train()(unseen, Clock(step, 120))["loss"].item() if step in (0, 119) else 0)
        optimizer.zero_grad()
        method(tiny.batch(1, n=32, seed=step), Clock(step, 120))["loss"].backward()
        optimizer.step()
    assert losses[0] > 1.5  # a random direction has 2
    assert losses[-1] < 0.75 * losses[0]


def test_the_centre_is_subtracted_before_the_softmax():
    method = tiny.method("dino")
    scores, centre = torch.randn(4, 8), torch.randn(8)
    method.targets.centre.copy_(centre)
    torch.testing.assert_close(method.targets(scores, 0.05), torch.softmax((scores - centre) / 0.05, 1))


def test_the_student_sees_small_views_and_the_teacher_does_not():
    method = tiny.method("dino", small={"count": 3, "size": 0.5, "scale": [0.1, 0.4]})
    batch, seen = tiny.batch_for(method), []
    method.teacher[0].register_forward_hook(lambda m, given, out: seen.append(given[0].shape))
    loss = method(batch, Clock(5, 10))["loss"]
    assert seen == [(16, 1, 16, 16)]
    encoded = torch.cat([method.encoder(torch.cat(v)) for v in (batch["views"][:2], batch["views"][2:])])
    student = method.prototypes(method.projector(encoded)).split(8)
    target = torch.softmax(method.teacher(torch.cat(batch["views"][:2])) / 0.07, 1).chunk(2)
    assert len(student) == 5
    assert loss.item() == pytest.approx(across_views(student, target, 0.1).item(), rel=1e-5)
    assert loss.item() != pytest.approx(across_views(student[:2], target, 0.1).item(), rel=1e-3)


def test_sinkhorn_balances_the_teachers_choices_of_both_views_and_has_no_state():
    method = tiny.method("dino", centring="sinkhorn")
    batch = tiny.batch_for(method)
    views = torch.cat(batch["views"])
    student = method.prototypes(method.projector(method.encoder(views))).chunk(2)
    target = sinkhorn(method.teacher(views), 0.07, 3).chunk(2)
    assert method(batch, Clock(5, 10))["loss"].item() == pytest.approx(
        across_views(student, target, 0.1).item(), rel=1e-5
    )
    method.after_step(Clock(5, 10))
    assert not method.targets.centre.any()
    assert method.fewest_scans == 2
    with pytest.raises(UserError, match=r"method\.centring is 'sinkhorm'\. Did you mean 'sinkhorn'"):
        tiny.method("dino", centring="sinkhorm")
