"""BiGAN: who learns from which part of the loss, and what the codes are."""

import pytest
import torch
from torch.nn.functional import softplus

import tiny
from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Clock
from medssl.rng import uniform_field

CLOCK = Clock(0, 10)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_discriminator_learns_the_truth_and_the_others_its_opposite(dims):
    """The gradients of the one loss are those of two, each for its own networks."""
    method, batch = tiny.method("bigan", dims).double(), tiny.batch(1, dims=dims)
    x = batch["views"][0].double()
    method.discriminator.eval()  # the estimates of spectral norms stay as they are
    out = method({**batch, "views": [x]}, CLOCK)
    out["loss"].backward()
    z = 2 * uniform_field(batch["key"], 0, METHOD_SLOT, (method.latent,)).double() - 1
    code, made = method.code(method.encoder(x)), method.generator(z)
    real, fake = method.discriminator(x, code), method.discriminator(made, z)
    truth = softplus(-real).mean() + softplus(fake).mean()
    opposite = softplus(real).mean() + softplus(-fake).mean()
    assert out["loss"].item() == pytest.approx((truth + opposite).item(), rel=1e-9)
    assert out["discriminator"].item() == pytest.approx(truth.item(), rel=1e-9)
    assert out["error"].item() == pytest.approx((method.generator(code) - x).square().mean().item(), rel=1e-9)
    players = [p for n, p in method.named_parameters() if not n.startswith("discriminator")]
    for loss, parameters in ((truth, [*method.discriminator.parameters()]), (opposite, players)):
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        for p, grad in zip(parameters, expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-9, atol=1e-12)


def test_codes_are_uniform_and_belong_to_the_scan():
    method, seen = tiny.method("bigan", latent=3), []
    method.generator.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    batch = tiny.batch(1, n=500)
    with torch.no_grad():
        method(batch, CLOCK)
        method({**batch, "views": [torch.zeros_like(batch["views"][0])]}, CLOCK)
        method({**batch, "key": tiny.key(500, seed=1)}, CLOCK)
    z, again, other = seen[::2]  # every second call rebuilds the scans
    assert torch.equal(z, again)
    assert not torch.isclose(z, other).any(1).all()
    assert z.amin() >= -1
    assert z.amax() <= 1
    torch.testing.assert_close(z.mean(0), torch.zeros(3), rtol=0, atol=0.12)  # 4 standard errors of 0.026 and more
    torch.testing.assert_close(z.var(0), torch.full((3,), 1 / 3), rtol=0.15, atol=0)


@pytest.mark.parametrize(("size", "dims"), [(28, 2), (7, 2), (9, 3)])
def test_scans_of_any_size_are_made_and_judged(size, dims):
    method = tiny.method("bigan", dims, channels=2, size=size)
    made = method.generator(torch.zeros(3, method.latent))
    assert made.shape == (3, 2, *(size,) * dims)
    assert method.discriminator(made, torch.zeros(3, method.latent)).shape == (3,)


@pytest.mark.parametrize(("options", "words"), [({"latent": 0}, "latent must be at least 1"), ({"width": 4}, "width")])
def test_sizes_that_cannot_work_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        tiny.method("bigan", **options)
