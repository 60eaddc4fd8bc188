"""Energies against sums over all states, Boltzmann machines against the exact likelihood gradient, and learning on digits."""

import gzip
import itertools
import math
import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from scipy.integrate import quad
from sklearn.linear_model import LogisticRegression
from torch import nn

import tiny
from medssl import catalog
from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.losses import energy
from medssl.methods.base import Clock
from medssl.methods.layerwise.dbm import DBM
from medssl.methods.parts.boltzmann import RBMLayer
from medssl.methods.reconstruction.vae import VAE
from medssl.rng import Key


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(n: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    """Return all states (2^n, n) of n binary units."""
    return torch.tensor(list(itertools.product([low, high], repeat=n)), dtype=torch.float64)


W, c, b = rows(3, 4), rows(3, seed=1), rows(4, seed=2)


def pair_energy(v, h, visible):
    """Return E(v, h), term by term."""
    E = sum((v[i] - b[i]) ** 2 / 2 if visible == "gaussian" else -b[i] * v[i] for i in range(4))
    return float(E - sum(h[j] * (c[j] + sum(W[j, i] * v[i] for i in range(4))) for j in range(3)))


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_free_energy_is_the_sum_over_all_hidden_states(visible):
    v = rows(5, 4, seed=3) if visible == "gaussian" else states(4, -0.4, 2.8)
    expected = [-math.log(sum(math.exp(-pair_energy(x, h, visible)) for h in states(3))) for x in v]
    found = energy.free_energy(v, W, c, b, visible, "bernoulli")
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_free_energy_of_gaussian_hidden_units_is_the_integral():
    w, bias = rows(1, 4), rows(1, seed=1)
    for v in states(4):
        a = float(w[0] @ v)
        integral = (
            quad(lambda h, a=a: math.exp(-((h - bias.item()) ** 2) / 2 + h * a), -30, 30)[0] / (2 * math.pi) ** 0.5
        )
        expected = -float(b @ v) - math.log(integral)
        assert energy.free_energy(v[None], w, bias, b, "bernoulli", "gaussian").item() == pytest.approx(
            expected, rel=1e-8
        )


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("hidden", ["bernoulli", "gaussian"])
def test_gradient_is_that_of_contrastive_divergence(visible, hidden):
    data, model = rows(6, 4, seed=4), rows(9, 4, seed=5).requires_grad_()
    parameters = [p.clone().requires_grad_() for p in (W, c, b)]
    energy.contrastive_divergence(data, model, *parameters, visible, hidden).backward()
    assert model.grad is None
    vh, h, v = [], [], []
    for some in (data, model.detach()):
        a = c + some @ W.T
        mean = a if hidden == "gaussian" else torch.sigmoid(a)
        vh.append(torch.einsum("nh,nv->hv", mean, some) / len(some))
        h.append(mean.mean(0))
        v.append(some.mean(0))
    for p, (of_data, of_model) in zip(parameters, (vh, h, v), strict=True):
        torch.testing.assert_close(-p.grad, of_data - of_model, rtol=1e-10, atol=1e-10)


def test_gradients_equal_finite_differences():
    p = torch.rand(3, 4, dtype=torch.float64)
    for loss, *given in (
        (lambda v: energy.free_energy(v, W, c, b, "gaussian", "bernoulli"), rows(3, 4)),
        (lambda z: energy.bernoulli_error(z, p), rows(3, 4)),
        (
            lambda x, m, s: energy.negative_elbo(x, rows(3, 4, seed=6), m, s, 0.7),
            rows(3, 4),
            rows(3, 2),
            rows(3, 2, seed=1),
        ),
    ):
        assert torch.autograd.gradcheck(loss, [g.requires_grad_() for g in given])


def test_reconstruction_errors_are_sums_over_pixels_and_means_over_scans():
    z, p, x = rows(3, 4), torch.rand(3, 4, dtype=torch.float64), rows(3, 4, seed=1)
    cross = half = 0.0
    for n, i in itertools.product(range(3), range(4)):
        q = 1 / (1 + math.exp(-z[n, i]))
        cross -= float(p[n, i] * math.log(q) + (1 - p[n, i]) * math.log(1 - q))
        half += float((z[n, i] - x[n, i]) ** 2) / 2
    assert energy.bernoulli_error(z, p).item() == pytest.approx(cross / 3, rel=1e-12)
    assert energy.gaussian_error(z, x).item() == pytest.approx(half / 3, rel=1e-12)
    normal = -torch.distributions.Normal(z, 1.0).log_prob(x).sum(1).mean() - 2 * math.log(2 * math.pi)
    assert energy.gaussian_error(z, x).item() == pytest.approx(normal.item(), rel=1e-12)


def test_divergence_of_a_code_is_torchs_and_beta_scales_it():
    mean, log_variance = rows(5, 3), rows(5, 3, seed=1)
    of = torch.distributions.Normal(mean, (log_variance / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(*of).sum(1)
    torch.testing.assert_close(energy.gaussian_kl(mean, log_variance), kl)
    x, y = rows(5, 4), rows(5, 4, seed=2)
    found = [energy.negative_elbo(x, y, mean, log_variance, beta).item() for beta in (0.0, 1.0, 4.0)]
    assert found[0] == pytest.approx(energy.gaussian_error(x, y).item())
    assert [f - found[0] for f in found] == pytest.approx([0, kl.mean().item(), 4 * kl.mean().item()])


def test_vae_samples_its_code_from_the_encoded_normal():
    method = VAE(MLP(1, (4, 4), (6,)), 2, 8, 1.0)
    nn.init.zeros_(method.code.weight)
    with torch.no_grad():
        method.code.bias.copy_(torch.tensor([1.0, -2.0, 2 * math.log(0.5), 2 * math.log(3.0)]))
    seen = []
    method.decoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    method({"views": [torch.zeros(20000, 1, 4, 4)], "key": tiny.key(20000)}, Clock(0, 1))
    torch.testing.assert_close(seen[0].mean(0), torch.tensor([1.0, -2.0]), rtol=0, atol=0.06)
    torch.testing.assert_close(seen[0].std(0), torch.tensor([0.5, 3.0]), rtol=0.03, atol=0)


def machine(visible: str, k: int, persistent: int = 0) -> tuple[RBMLayer, nn.Linear]:
    """Return a machine of 4 visible and 3 hidden units with half the weights above, so that chains mix."""
    torch.manual_seed(0)
    linear = nn.Linear(4, 3)
    made = RBMLayer(linear, 0, visible, "bernoulli", k, persistent)
    with torch.no_grad():
        for p, value in ((linear.weight, W / 2), (linear.bias, c), (made.visible.bias, b)):
            p.copy_(value)
    made.visible.started.fill_(True)
    return made.double(), linear.double()


def likelihood_gradient(v, visible, linear, made, low, high):
    """Return the gradient of mean -log p(v) by enumerating the visible states, or the normals given each hidden state."""
    parameters = linear.weight, linear.bias, made.visible.bias
    if visible == "bernoulli":
        F_of = lambda x: energy.free_energy(x, *parameters, visible, "bernoulli")  # noqa: E731
        loss = F_of(v).mean() + torch.logsumexp(-F_of(states(4, low, high)), 0)
    else:
        h = states(3)
        z = made.visible.bias + h @ linear.weight
        log_z = torch.logsumexp(h @ linear.bias + (z.square() - made.visible.bias.square()).sum(1) / 2, 0)
        loss = energy.free_energy(v, *parameters, visible, "bernoulli").mean() + log_z
    return torch.autograd.grad(loss, parameters)


@pytest.mark.parametrize("persistent", [0, 8192])
@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_long_chains_give_the_gradient_of_the_likelihood(visible, persistent):
    low, high = -0.5, 1.5
    made, linear = machine(visible, k=30, persistent=persistent)
    v = states(4, low, high)[torch.tensor([0, 3, 3, 9, 14, 15, 15, 15])].repeat(1024, 1)
    for step in range(2 if persistent else 1):
        loss = made(v, linear, tiny.key(len(v)), Clock(step, 10))["loss"]
        made.keep()
    found = torch.autograd.grad(loss, [linear.weight, linear.bias, made.visible.bias])
    expected = likelihood_gradient(v, visible, linear, made, low, high)
    assert (made.visible.low.item(), made.visible.high.item()) == ((low, high) if visible == "bernoulli" else (0, 1))
    assert max(g.abs().max() for g in expected) > 0.3
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=0.06)


def test_one_step_does_not_give_that_gradient():
    """The comparison above detects a wrong gradient."""
    made, linear = machine("bernoulli", k=1)
    v = states(4, -0.5, 1.5)[torch.tensor([0, 3, 3, 9, 14, 15, 15, 15])].repeat(1024, 1)
    found = torch.autograd.grad(made(v, linear, tiny.key(len(v)), Clock(0, 1))["loss"], linear.weight)[0]
    expected = likelihood_gradient(v, "bernoulli", linear, made, -0.5, 1.5)[0]
    assert (found - expected).abs().max() > 0.1


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_chains_use_new_random_numbers_at_every_step(visible):
    made, linear = machine(visible, k=1, persistent=64)
    moved = []
    for clock in (Clock(0, 10), Clock(0, 10), Clock(1, 10)):
        made(states(4), linear, tiny.key(16), clock)  # nothing kept: all three start alike
        moved.append(made.moved)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def go(method, steps, start=0):
    optimizer = torch.optim.SGD(method.parameters(), 1e-2)
    for step in range(start, steps):
        method(tiny.batch_for(method, seed=step), Clock(step, 20))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(Clock(step, 20))
    return method


@pytest.mark.parametrize("name", ["rbm", "dbn", "dbm"])
def test_chains_continue_where_they_stopped(name):
    options = {} if name == "dbm" else {"persistent": 8, "visible": "bernoulli"}
    whole, first, second = (tiny.method(name, **options) for _ in range(3))
    go(whole, 6)
    second.load_state_dict(go(first, 3).state_dict())
    go(second, 6, start=3)
    for (key, value), other in zip(whole.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    held = {k: v.clone() for k, v in whole.named_buffers()}
    a, b = (whole(tiny.batch_for(whole), Clock(6, 20))["loss"] for _ in range(2))  # two passes of one accumulated step
    assert torch.equal(a, b)
    assert all(torch.equal(v, held[k]) for k, v in whole.named_buffers())
    whole.after_step(Clock(6, 20))
    assert not all(torch.equal(v, held[k]) for k, v in whole.named_buffers())


def halves(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    method = tiny.method("rbm", visible="bernoulli", persistent=8).double()
    torch.save(step_of(method, slice(rank * 8, rank * 8 + 8)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def step_of(method, some: slice) -> dict:
    batch = tiny.batch_for(method, n=16)
    given = {"views": [batch["views"][0][some].double()], "key": Key(0, *(k[some] for k in batch["key"][1:]))}
    loss = method(given, Clock(3, 10))["loss"]
    loss.backward()
    method.after_step(Clock(3, 10))
    return {"loss": loss.detach(), "gradient": method.machine.visible.bias.grad, **dict(method.named_buffers())}


def test_chains_and_the_range_are_the_same_on_two_ranks_as_on_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.start_processes(halves, args=(port, str(tmp_path)), nprocs=2, start_method="fork")
    ranks = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(2)]
    one = step_of(tiny.method("rbm", visible="bernoulli", persistent=8).double(), slice(0, 16))
    for key, value in one.items():
        if key in ("loss", "gradient"):
            torch.testing.assert_close((ranks[0][key] + ranks[1][key]) / 2, value, rtol=1e-6, atol=1e-9)
        else:
            assert torch.equal(ranks[0][key], ranks[1][key])
            torch.testing.assert_close(ranks[0][key], value, rtol=1e-6, atol=1e-9)


def small_dbm(iterations: int = 1, chains: int = 1, k: int = 1, visible: str = "bernoulli") -> DBM:
    torch.manual_seed(3)
    method = DBM(MLP(1, (1, 3), (2, 2, 2)), visible, chains, k, iterations).double()
    with torch.no_grad():
        for p in method.parameters():
            p.copy_(torch.randn_like(p))
    method.visible.low.fill_(0.0)
    method.visible.high.fill_(1.0)
    return method


def test_energy_of_layers_is_the_sum_over_pairs():
    method = small_dbm()
    units = [rows(2, 3), rows(2, 2, seed=1), rows(2, 2, seed=2), rows(2, 2, seed=3)]
    for n, found in enumerate(method.energy(units).tolist()):
        expected = -sum(method.visible.bias[i] * units[0][n, i] for i in range(3))
        for at, layer in enumerate(method.encoder.layers):
            for j in range(2):
                told = layer[1].bias[j]
                for i in range(units[at].shape[1]):
                    told = told + layer[1].weight[j, i] * units[at][n, i]
                expected = expected - units[at + 1][n, j] * told
        assert found == pytest.approx(expected.item(), rel=1e-10)


def test_mean_field_ends_where_its_equations_hold():
    method = small_dbm(iterations=500)
    v = states(3)
    mu = [v, *method.mean_field(v)]
    for at, layer in enumerate(method.encoder.layers):
        a = layer[1].bias + mu[at] @ layer[1].weight.T
        if at < 2:
            a = a + mu[at + 2] @ method.encoder.layers[at + 1][1].weight
        torch.testing.assert_close(mu[at + 1], torch.sigmoid(a), rtol=0, atol=1e-8)


def test_every_mean_field_update_lowers_the_bound():
    """The bound on -log p(v), up to the partition function: energy minus entropy."""
    bounds = []
    for n in (1, 2, 3, 10):
        method = small_dbm(iterations=n)
        v = states(3)
        mu = method.mean_field(v)
        entropy = sum(torch.distributions.Bernoulli(m).entropy().sum(1) for m in mu)
        bounds.append(method.energy([v, *mu]) - entropy)
    assert all((later <= earlier + 1e-12).all() for earlier, later in itertools.pairwise(bounds))


def test_long_chains_of_layers_sample_the_model():
    method = small_dbm(chains=20000, k=60)
    every = states(9)
    p = torch.softmax(-method.energy(list(every.split([3, 2, 2, 2], 1))), 0)
    expected = torch.einsum("s,si,sj->ij", p, every, every)
    sample = torch.cat(method.gibbs(Key(0, torch.zeros(20000, dtype=torch.int64), torch.arange(20000))), 1)
    torch.testing.assert_close(sample.T @ sample / 20000, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_the_decoder_starts_as_the_transposed_machines(visible):
    method = tiny.method("deep_autoencoder", visible=visible)
    go(method, 10)  # half of 20 steps
    for at, layer in enumerate(method.encoder.layers):
        assert torch.equal(method.decoders[at].weight, layer[1].weight.T)
    x = tiny.batch(1)["views"][0]
    h = x.flatten(1)
    for layer in method.encoder.layers:
        h = layer(h)
    units = method.machines[0].visible
    below = torch.sigmoid(F.linear(h, method.encoder.layers[1][1].weight.T, method.machines[1].visible.bias))
    z = F.linear(below, method.encoder.layers[0][1].weight.T, units.bias)
    if visible == "bernoulli":
        rebuilt = units.low + (units.high - units.low) * torch.sigmoid((units.high - units.low) * z)
        expected = F.binary_cross_entropy(
            (rebuilt - units.low) / (units.high - units.low), (x.flatten(1) - units.low) / (units.high - units.low)
        )
    else:
        rebuilt, expected = z, (z - x.flatten(1)).square().mean() / 2
    out = method({"views": [x], "key": tiny.key(8)}, Clock(10, 20))
    assert out["layer"] == 2
    torch.testing.assert_close(out["loss"] / x[0].numel(), expected)
    torch.testing.assert_close(out["error"], (rebuilt - x.flatten(1)).square().mean())
    go(method, 12, start=10)
    assert not torch.equal(method.decoders[0].weight, method.encoder.layers[0][1].weight.T), "copies of their own"


def test_fine_tuning_alone_starts_at_once():
    method = tiny.method("deep_autoencoder", finetune=1.0)
    assert method.parts == 1
    assert method(tiny.batch_for(method), Clock(0, 10))["layer"] == len(method.encoder.layers)


def test_only_the_last_layer_is_a_linear_code():
    encoder = MLP(1, (4, 4), (5, 3), code="linear")
    x = torch.randn(2, 1, 4, 4)
    first, last = (layer[1] for layer in encoder.layers)
    torch.testing.assert_close(encoder(x), last(torch.sigmoid(first(x.flatten(1)))))
    again = MLP(1, (4, 4), **encoder.options)
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(x), encoder(x))
    with pytest.raises(UserError, match="Did you mean 'linear'"):
        MLP(1, (4, 4), code="lineal")


@pytest.fixture(scope="module")
def digits(shared):
    """Return 2,000 training and 1,000 test images (N, 1, 28, 28), standardised, with labels."""
    arrays = []
    for name, offset in (("train-images-idx3", 16), ("train-labels-idx1", 8)):
        with gzip.open(shared / "mnist" / f"{name}-ubyte.gz") as f:
            arrays.append(
                np.frombuffer(bytearray(f.read(offset + 3000 * (784 if offset == 16 else 1))), np.uint8, offset=offset)
            )
    x = torch.from_numpy(arrays[0].reshape(-1, 1, 28, 28) / np.float32(255))
    return (x - x[:2000].mean()) / x[:2000].std(), arrays[1]


def probe(encoder, x, y) -> float:
    with torch.no_grad():
        h = encoder(x).numpy()
    h = (h - h[:2000].mean(0)) / (h[:2000].std(0) + 1e-6)
    return LogisticRegression(C=0.01, max_iter=100, tol=1e-3).fit(h[:2000], y[:2000]).score(h[2000:], y[2000:])


def test_a_machine_learns_features_of_digits(digits):
    x, y = digits
    spec = catalog.spec("method", "rbm")
    del spec["_run_"]
    torch.manual_seed(0)
    method = catalog.build(spec, encoder=MLP(1, (28, 28), (200,)))
    before = probe(method.encoder, x, y)
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    errors = []
    for step in range(300):
        some = torch.arange(step * 100, step * 100 + 100) % 2000
        out = method({"views": [x[some]], "key": Key(0, torch.full((100,), step // 20), some)}, Clock(step, 300))
        out["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(Clock(step, 300))
        errors.append(out["error"].item())
    assert sum(errors[-20:]) / 20 < 0.5 * errors[0]
    assert probe(method.encoder, x, y) > before + 0.015


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rbm", {"encoder": "mlp"}, "encoder=layer"),
        ("rbm", {"encoder": "cnn"}, "use encoder=mlp"),
        ("rbm", {"visible": "gausian"}, "Did you mean 'gaussian'"),
        ("rbm", {"k": 0}, r"method\.k"),
        ("rbm", {"persistent": -1}, r"method\.persistent"),
        ("dbn", {"encoder": "vit"}, "use encoder=mlp"),
        ("dbm", {"encoder": "layer"}, "method=rbm"),
        ("dbm", {"encoder": "hourglass"}, "encoder=mlp"),
        ("dbm", {"iterations": 0}, r"method\.iterations"),
        ("deep_autoencoder", {"finetune": 0.0}, r"method\.finetune"),
        ("vae", {"latent": 0}, r"method\.latent"),
        ("vae", {"beta": -1.0}, r"method\.beta"),
    ],
)
def test_impossible_options_are_refused_at_construction(name, options, words):
    with pytest.raises(UserError, match=words):
        tiny.method(name, **options)


def test_encoders_without_binary_units_are_refused():
    spec = catalog.spec("method", "rbm")
    del spec["_run_"]
    for encoder, words in (
        (MLP(1, (4, 4), (3,), activation="relu"), r"encoder\.activation=sigmoid"),
        (MLP(1, (4, 4), (3,), code="linear"), r"method\.visible=bernoulli"),
    ):
        with pytest.raises(UserError, match=words):
            catalog.build(spec, encoder=encoder)
