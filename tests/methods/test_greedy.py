"""Layer-wise training: frozen layers, the terms of the options, and each loss against its definition."""

import pytest
import torch
import torch.nn.functional as F

import tiny
from medssl.errors import UserError
from medssl.losses.regression import jacobian_norm
from medssl.losses.target_losses import classification
from medssl.methods.base import Clock
from medssl.rng import Key


def trained_by(method, clock, n=8):
    """Return the names of the parameters that get a gradient at `clock`, and the outputs of the step."""
    method.zero_grad(set_to_none=True)
    method.train()
    out = method(tiny.batch_for(method, n=n), clock)
    out["loss"].backward()
    return {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}, out


def test_jacobian_norm_is_rifais_closed_form_on_average():
    """For a sigmoid layer: sum over units of (h (1 - h))^2 |w|^2 (Rifai et al., 2011, equation 7)."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Sigmoid()).double()
    x = torch.randn(1, 6, dtype=torch.float64)
    h, w = layer(x)[0], layer[0].weight
    exact = ((h * (1 - h)).square() * w.square().sum(1)).sum() / 6
    many = Key(0, torch.zeros(40_000, dtype=torch.int64), torch.arange(40_000))
    estimate = jacobian_norm(layer, x.expand(40_000, -1), many, 1100)
    assert estimate.item() == pytest.approx(exact.item(), rel=0.01)
    mine = torch.autograd.grad(estimate, w)[0]
    truth = torch.autograd.grad(exact, w)[0]
    torch.testing.assert_close(mine, truth, rtol=0.05, atol=0.05 * truth.abs().max().item())


def test_contractive_adds_its_weighted_term():
    plain, more = tiny.method("greedy_ae"), tiny.method("greedy_ae", contractive=2.0)
    batch = tiny.batch_for(plain)
    norm = jacobian_norm(plain.encoder.layers[0], batch["views"][0], batch["key"], 1100).item()
    expected = plain(batch, Clock(0, 2))["loss"].item() + 2 * norm
    assert more(batch, Clock(0, 2))["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert norm > 1e-3


def test_plain_autoencoder_is_the_squared_error_of_its_reconstruction():
    method = tiny.method("greedy_ae", corruption=0.0)
    batch = tiny.batch_for(method)
    x = batch["views"][0]
    rebuilt = method.decoders[0](method.encoder.layers[0](x))
    assert method(batch, Clock(0, 2))["loss"].item() == pytest.approx((rebuilt - x).square().mean().item())


def test_tied_decoders_are_the_layers_own_weights():
    method = tiny.method("greedy_ae", tied=True)
    code = torch.randn(3, 32)
    linear, decoder = method.encoder.layers[0][1], method.decoders[0]
    torch.testing.assert_close(decoder(code), (code @ linear.weight + decoder.bias).view(3, 1, 16, 16))
    assert {n for n, _ in method.decoders.named_parameters()} == {"0.bias", "1.bias"}
    names, _ = trained_by(method, Clock(0, 2))
    assert names == {"encoder.layers.0.1.weight", "encoder.layers.0.1.bias", "decoders.0.bias"}


def test_partly_supervised_layers_learn_from_labelled_scans():
    method = tiny.method("greedy_ae", supervised=3.0)
    batch = tiny.batch_for(method, n=10)
    plain = tiny.method("greedy_ae")
    extra = method(batch, Clock(5, 10))["loss"] - plain(batch, Clock(5, 10))["loss"]
    x, known = batch["views"][0], batch["target"] >= 0
    assert not known.all()
    scores = method.heads[1](method.encoder.layers[1](method.encoder.layers[0](x)))
    assert extra.item() == pytest.approx(3 * F.cross_entropy(scores[known], batch["target"][known]).item(), rel=1e-4)
    names, _ = trained_by(method, Clock(5, 10))
    assert {n.rpartition(".")[0] for n in names} == {"encoder.layers.1.1", "decoders.1.map.0", "heads.1"}
    with pytest.raises(UserError, match="target="):
        tiny.method("greedy_ae", supervised=1.0, target_loss=None)


def test_at_the_end_the_whole_network_reconstructs_the_scan():
    method = tiny.method("greedy_ae", finetune=0.5, target_loss=None)
    parts = [int(trained_by(method, Clock(step, 8))[1]["layer"]) for step in range(8)]
    assert parts == [0, 0, 1, 1, 2, 2, 2, 2]
    names, out = trained_by(method, Clock(7, 8))
    assert names == {n for n, _ in method.named_parameters()}
    x = tiny.batch_for(method)["views"][0]
    rebuilt = method.decoders[0](method.decoders[1](method.encoder(x)))
    assert out["loss"].item() == pytest.approx((rebuilt - x).square().mean().item(), rel=1e-5)


def test_at_the_end_the_whole_network_learns_the_labels_if_there_are_any():
    method = tiny.method("greedy_ae", finetune=0.5)
    names, _ = trained_by(method, Clock(7, 8))
    assert all(n.startswith(("encoder", "heads")) for n in names)
    assert sum(n.startswith("encoder") for n in names) == 4
    assert tiny.method("greedy_ae").target == "", "labels nobody asked for"


@pytest.mark.parametrize("encoder", ["mlp", "cnn"])
def test_greedy_supervised_freezes_lower_layers(encoder):
    method = tiny.method("greedy_supervised", encoder=encoder)
    for at in range(2):
        before = {k: v.clone() for k, v in method.encoder.layers[:at].state_dict().items()}
        names, out = trained_by(method, Clock(at * 10, 20))
        assert {n.split(".")[2] for n in names if n.startswith("encoder")} == {str(at)}
        assert {n for n in names if n.startswith("heads")} == {f"heads.{at}.weight", f"heads.{at}.bias"}
        assert int(out["layer"]) == at
        after = method.encoder.layers[:at].state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()), "a frozen layer's statistics moved"
    whole = tiny.method("greedy_supervised", encoder=encoder, finetune=0.5)
    names, _ = trained_by(whole, Clock(19, 20))
    assert {n for n, p in whole.named_parameters() if n.startswith("encoder")} <= names


def test_heads_have_the_outputs_of_the_target():
    method = tiny.method("greedy_supervised", target_loss=classification(3))
    assert method.heads[0].weight.shape == (3, 32)
