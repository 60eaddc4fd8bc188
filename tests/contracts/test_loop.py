"""The loop: schedules, optimisers, gradients that are not finite, accumulation, logging."""

import dataclasses
import json
import math

import pytest
import torch
from lightning_fabric import Fabric

import tiny
from medssl import catalog
from medssl.errors import UserError
from medssl.methods.base import Clock, Method
from medssl.schedule import cosine, warmup_cosine
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions


def go(tmp_path, method, resampled=None, **options):
    resampled = resampled or tiny.resampled()
    options = TrainOptions(**{"steps": 4, "batch": 16, "seed": 0, "optim": Optim(), "log_every": 1} | options)
    rows = torch.arange(len(resampled.array)).numpy()
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
    log = Log(tmp_path, "jsonl", {})
    data = TrainingData(resampled, rows, recipe)
    train(Fabric(accelerator="cpu"), method, data, options, tmp_path / "c", log)
    return [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


def test_schedule_closed_forms():
    assert [cosine(f, 2.0, 0.0) for f in (0, 0.5, 1, 2)] == pytest.approx([2, 1, 0, 0])
    assert warmup_cosine(0.05, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(0.55, 0.1) == pytest.approx(0.5)
    assert warmup_cosine(1.0, 0.1, floor=0.3) == pytest.approx(0.3)
    assert warmup_cosine(0.0, 0.0) == 1.0


def test_the_logged_rate_is_the_one_used(tmp_path):
    optim = Optim(lr=0.1, warmup=0.5, lr_end=0.2)
    rows = go(tmp_path, tiny.method("simclr"), optim=optim)
    assert [r["lr"] for r in rows] == pytest.approx([0.1 * warmup_cosine(s / 4, 0.5, 0.2) for s in range(4)])


def test_rows_do_not_depend_on_the_clock(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    assert go(tmp_path / "a", tiny.method("byol")) == go(tmp_path / "b", tiny.method("byol"))
    timing = [json.loads(line) for line in (tmp_path / "a/timing.jsonl").read_text().splitlines()]
    assert all(t["seconds"] > 0 and t["scans_per_s"] > 0 for t in timing)


def test_accumulated_gradients_are_the_mean_of_the_parts():
    """For a loss that is a mean over scans (no batch statistics), two halves equal the whole."""
    whole, halves = tiny.method("mae"), tiny.method("mae")
    batch = tiny.batch(1, n=8)
    whole(batch, Clock(0, 1))["loss"].backward()
    for part in (slice(0, 4), slice(4, 8)):
        half = {"views": [batch["views"][0][part]], "key": tiny.key(4, start=part.start)}
        (halves(half, Clock(0, 1))["loss"] / 2).backward()
    for a, b in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_loop_accumulates_what_one_pass_would_give(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, halves = (go(tmp_path / name, tiny.method("mae"), accumulate=n) for name, n in (("a", 1), ("b", 2)))
    for key in ("loss", "grad_norm"):
        assert halves[0][key] == pytest.approx(whole[0][key], rel=1e-5)


def test_a_loss_that_is_not_finite_stops_with_a_remedy(tmp_path):
    resampled = tiny.resampled()
    bad = dataclasses.replace(resampled, std=0.0)
    with pytest.raises(UserError, match=r"step 0: .* is not finite; nothing was updated.*Lower lr"):
        go(tmp_path, tiny.method("simclr"), resampled=bad)


def test_a_gradient_that_is_not_finite_stops_before_the_update_and_is_named(tmp_path):
    method = tiny.method("simclr")
    before = {k: v.clone() for k, v in method.named_parameters()}
    method.projector[0].weight.register_hook(lambda g: g * math.nan)
    with pytest.raises(
        UserError, match=r"step 0: the gradient of projector\.0\.weight is not finite; nothing was updated"
    ):
        go(tmp_path, method)
    assert all(torch.equal(v, before[k]) for k, v in method.named_parameters())


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_every_optimiser_moves_every_weight_and_decays_matrices_only(name):
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    optimizer = Optim(name, lr=0.1, weight_decay=0.5).build(module)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.5, 0.0]
    before = [p.clone() for p in module.parameters()]
    module(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    assert not any(
        torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True) if b.grad.abs().sum() > 1e-6
    )


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_lars_matches_its_equation(decay):
    """You et al., 2017, equation 6: the step of a matrix is lr * trust * |w| / (|g| + decay |w|) * (g + decay w)."""
    w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    module = torch.nn.Module()
    module.w = w
    g, lr, trust = torch.tensor([[0.6, 0.8]]), 0.1, 0.001
    optimizer = Optim("lars", lr=lr, weight_decay=decay, momentum=0.0).build(module)
    w.grad = g.clone()
    old = w.detach().clone()
    optimizer.step()
    expected = old - lr * trust * old.norm() / (g.norm() + decay * old.norm()) * (g + decay * old)
    torch.testing.assert_close(w.detach(), expected)


def test_lars_does_not_scale_the_rate_of_biases():
    module = torch.nn.Module()
    module.bias = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = Optim("lars", lr=0.1, momentum=0.0).build(module)
    module.bias.grad = torch.tensor([0.6, 0.8])
    optimizer.step()
    torch.testing.assert_close(module.bias.detach(), torch.tensor([2.94, 3.92]))


@pytest.mark.parametrize("options", [{"name": "adam"}, {"lr": 0.0}, {"clip": -1.0}])
def test_impossible_optimiser_settings_are_refused(options):
    with pytest.raises(UserError):
        Optim(**options)


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not divide"):
        go(tmp_path, tiny.method("simclr"), batch=15, accumulate=2)


def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = Log(tmp_path, "wandb", {"lr": 0.1})
    log.write({"step": 1, "loss": 2.0}, {"step": 1, "seconds": 0.1})
    log.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


class Line(Method):
    """loss = w, so that every step of SGD at a constant rate lowers w by the rate. Keeps w as `after_step` finds it."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Identity()
        self.w, self.found = torch.nn.Parameter(torch.tensor(1.0)), []

    def forward(self, batch, clock):
        return {"loss": self.w * 1.0}

    def after_step(self, clock):
        self.found.append(self.w.item())


def test_a_method_sees_the_updated_weights_after_a_step(tmp_path):
    method = Line()
    optim = Optim("sgd", lr=0.1, warmup=0.0, lr_end=1.0, momentum=0.0, weight_decay=0.0)
    go(tmp_path, method, optim=optim, steps=3)
    assert method.found == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.parametrize("name", tiny.METHODS)
def test_a_pass_of_one_scan_teaches_something_or_is_refused(tmp_path, name):
    method = tiny.method(name)
    if method.fewest_scans > 1:
        with pytest.raises(UserError, match="one scan at a time"):
            go(tmp_path, method, batch=4, accumulate=4, resampled=tiny.resampled(channels=method.encoder.channels))
        return
    out = method.train()(tiny.batch_for(method, n=1), Clock(0, 10))
    assert torch.isfinite(out["loss"])
    if tiny.trains(method):
        out["loss"].backward()
        assert sum(p.grad.abs().sum() for p in method.parameters() if p.grad is not None) > 0


def test_labels_beside_a_method_that_compares_scans_need_two_as_well():
    assert [tiny.method("multitask", method=name).fewest_scans for name in ("mahalanobis", "denoising")] == [2, 1]


def test_methods_that_compare_scans_need_two_and_others_one():
    need = {name: tiny.method(name).fewest_scans for name in ("simclr", "mahalanobis", "jigsaw", "mae", "denoising")}
    assert need == {"simclr": 2, "mahalanobis": 2, "jigsaw": 2, "mae": 1, "denoising": 1}
