"""Guided by metadata: which part of the network learns what, and that the fact to unlearn is gone where it can be."""

import math

import pytest
import torch
import torch.nn.functional as F

import tiny
from medssl.errors import UserError
from medssl.losses.adversarial import ridge_error
from medssl.losses.target_losses import classification, regression
from medssl.methods.base import Clock


def losses(method, batch):
    """Return the losses of head and adversary=mlp for the known scans, without any reversal."""
    features = method.encoder(batch["views"][0])
    known = ~batch["target"].isnan().any(1)
    scores = method.head(features), method.adversary(features)
    return [F.cross_entropy(s[known], batch["target"][known, i].long()) for i, s in enumerate(scores)]


@pytest.mark.parametrize(("step", "reversed_"), [(0, 0.0), (5, 0.98661), (10, 0.99991)])
def test_the_encoder_gets_the_second_gradient_reversed_and_the_adversary_as_it_is(step, reversed_):
    """2 / (1 + exp(-10 p)) - 1 at the progress p = 0, .5 and 1, times the strength."""
    method = tiny.method("guided", strength=0.5, adversary="mlp").double()
    batch = tiny.batch_for(method)
    batch["views"] = [batch["views"][0].double()]
    out = method(batch, Clock(step, 10))
    out["loss"].backward()
    first, second = losses(method, batch)
    assert out["loss"].item() == pytest.approx((first + second).item(), rel=1e-9)
    assert out["error"].item() == pytest.approx(first.item(), rel=1e-9)
    assert out["unlearn"].item() == pytest.approx(second.item(), rel=1e-9)
    parts = ((method.encoder, first - 0.5 * reversed_ * second), (method.adversary, second), (method.head, first))
    for part, loss in parts:
        parameters = [*part.parameters()]
        for p, grad in zip(parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-7)


def two_facts(n, seed):
    """Scans whose left half shows the first fact and whose right half the second, in noise."""
    g = torch.Generator().manual_seed(seed)
    facts = torch.randint(0, 2, (n, 2), generator=g)
    x = torch.randn(n, 1, 16, 16, generator=g)
    x[..., :8] += facts[:, 0, None, None, None]
    x[..., 8:] -= 0.5 * facts[:, 1, None, None, None]
    return {"views": [x], "key": tiny.key(n), "target": facts.float()}


def probed(method, column):
    """Return the accuracy of a least-squares probe of a fact, trained and tested on features of new scans."""
    method.eval()
    with torch.no_grad():
        parts = [
            (method.encoder(b["views"][0]), b["target"][:, column]) for b in (two_facts(600, 900), two_facts(600, 901))
        ]
    (x, y), (x_test, y_test) = [(torch.cat([f, torch.ones(len(f), 1)], 1), t * 2 - 1) for f, t in parts]
    weight = torch.linalg.lstsq(x, y[:, None]).solution
    return ((x_test @ weight)[:, 0].sign() == y_test).float().mean().item()


def trained(steps=150, **options):
    method = tiny.method("guided", **options)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    for step in range(steps):
        method.train()
        loss = method(two_facts(32, step), Clock(step, steps))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [probed(method, column) for column in (0, 1)]


def test_the_second_fact_is_unlearnt_and_the_first_is_kept():
    kept, unlearnt = trained(strength=0.0), trained(strength=1.0)
    assert min(kept[0], unlearnt[0]) > 0.95
    assert kept[1] > 0.8
    assert unlearnt[1] < 0.7


def test_the_reversed_gradient_is_that_of_the_ridge_regressions_error():
    method = tiny.method("guided", strength=0.5).double()
    batch = tiny.batch_for(method, n=24)
    batch["views"] = [batch["views"][0].double()]
    out = method(batch, Clock(10, 10))
    out["loss"].backward()
    features = method.encoder(batch["views"][0])
    known = ~batch["target"].isnan().any(1)
    answer = F.one_hot(batch["target"][:, 1].nan_to_num(0).long(), 2).double()
    first = F.cross_entropy(method.head(features)[known], batch["target"][known, 0].long())
    second = ridge_error(features, answer, known)
    assert out["unlearn"].item() == pytest.approx(second.item(), rel=1e-6)
    parameters = [*method.encoder.parameters()]
    expected = torch.autograd.grad(first - 0.49995 * second, parameters)
    for p, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-3, atol=1e-6)


def test_unknown_facts_count_for_nothing_and_numbers_have_their_own_loss():
    method = tiny.method("guided", adversary="mlp", predict_loss=regression(40.0, 10.0), unlearn_loss=classification(3))
    batch = tiny.batch(1, n=4)
    batch["target"] = torch.tensor([[30.0, 2.0], [math.nan, 0.0], [50.0, math.nan], [math.nan, math.nan]])
    out = method(batch, Clock(0, 10))
    features = method.encoder(batch["views"][0])
    age, site = method.head(features)[[0, 2], 0], method.adversary(features)[:2]
    expected = F.smooth_l1_loss(age, torch.tensor([-1.0, 1.0])), F.cross_entropy(site, torch.tensor([2, 0]))
    assert out["error"].item() == pytest.approx(expected[0].item(), rel=1e-4)
    assert out["unlearn"].item() == pytest.approx(expected[1].item(), rel=1e-4)


def test_an_unknown_number_to_unlearn_counts_for_nothing():
    method = tiny.method("guided", predict_loss=classification(2), unlearn_loss=regression(40.0, 10.0))
    batch = tiny.batch(1, n=12)
    age = torch.rand(12, generator=torch.Generator().manual_seed(0)) * 60
    batch["target"] = torch.stack([torch.arange(12) % 2.0, age.masked_fill(torch.arange(12) > 8, math.nan)], 1)
    features = method.encoder(batch["views"][0])
    expected = ridge_error(features[:9], age[:9, None], torch.ones(9, dtype=torch.bool)).item()
    assert method(batch, Clock(0, 10))["unlearn"].item() == pytest.approx(expected, rel=1e-4)


def test_a_negative_strength_is_refused():
    with pytest.raises(UserError, match=r"method\.strength must be 0 or more"):
        tiny.method("guided", strength=-1.0)
    with pytest.raises(UserError, match=r"method\.adversary is 'rigde'.*Did you mean 'ridge'"):
        tiny.method("guided", adversary="rigde")
