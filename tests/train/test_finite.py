"""When a loss or gradient that is not finite is noticed late, as on a GPU: what is said, and that nothing of it is saved."""

import math

import pytest
import torch
from lightning_fabric import Fabric

import tiny
from medssl import catalog
from medssl.losses.supervised import cross_entropy
from medssl.train import loop
from medssl.train.finite import FiniteChecks
from medssl.train.log import Log
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.stop import TrainingStopped

FABRIC = Fabric(accelerator="cpu", devices=1)


def checks(tmp_path, method=None):
    return FiniteChecks(method or torch.nn.Linear(2, 2), tmp_path / "last.ckpt", at_once=False)


def test_the_first_bad_loss_is_named_when_the_loop_reads(tmp_path):
    late = checks(tmp_path)
    for step, value in enumerate([0.0, 1.0, math.nan, math.inf, 2.0]):
        with late.of_losses(step):
            cross_entropy(torch.full((2, 3), value), torch.tensor([0, 1]))
    with pytest.raises(TrainingStopped, match=r"step 2: the loss is not finite; noticed after step 4") as error:
        late.read(FABRIC, 4)
    assert error.value.step == 2
    assert "cross_entropy was given values that are not finite" in str(error.value.__cause__)


def test_the_last_parameter_with_a_bad_gradient_in_the_first_bad_step_is_named(tmp_path):
    method = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    late = checks(tmp_path, method)
    for step, bad in enumerate([[], ["0.weight", "1.weight"], ["1.bias"]]):
        for name, p in method.named_parameters():
            p.grad = torch.full_like(p, math.nan if name in bad else 1.0)
        norm = late.norm(step)
    with pytest.raises(TrainingStopped, match=r"step 1: the gradient of 1\.weight is not finite"):
        late.read(FABRIC, 2, norm=norm)


def test_what_is_read_is_what_was_given_and_the_norm_is_torchs(tmp_path):
    method = torch.nn.Linear(3, 4)
    for p in method.parameters():
        p.grad = torch.randn(p.shape)
    expected = torch.nn.utils.get_total_norm([p.grad for p in method.parameters()])
    late = checks(tmp_path, method)
    loss = torch.tensor(0.1)
    norm = late.norm(0)
    assert late.read(FABRIC, 0, {"loss": loss}, norm) == {"loss": loss.item(), "grad_norm": expected.item()}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_nothing_after_the_bad_step_is_saved_and_a_restart_is_exact(tmp_path, monkeypatch, what):
    """Step 4 of 8 is bad and noticed after step 5, before it is saved: the checkpoint is that of step 3."""
    monkeypatch.setattr(loop, "FiniteChecks", lambda method, last, at_once: FiniteChecks(method, last, at_once=False))

    def go(out, bad=None):
        method, resampled = tiny.method("byol"), tiny.resampled()
        if what == "loss":
            poison = lambda m, given: given[0] * math.nan if m.step == bad else None  # noqa: E731
            method.encoder.register_forward_pre_hook(poison)
        else:
            weight = method.encoder.head.weight if hasattr(method.encoder, "head") else next(method.parameters())
            weight.register_hook(lambda g: g * math.nan if method.encoder.step == bad else g)
        method.register_forward_pre_hook(lambda m, given: setattr(m.encoder, "step", given[1].step))
        recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
        options = TrainOptions(8, 16, 0, Optim(), log_every=7, save_every=3)
        data = TrainingData(resampled, torch.arange(48).numpy(), recipe)
        out.mkdir(exist_ok=True)
        loop.train(FABRIC, method, data, options, out / "c", Log(out, "jsonl", {}), quiet=True)
        return method.state_dict(), (out / "metrics.jsonl").read_text()

    with pytest.raises(
        TrainingStopped, match=rf"step 4: the {what}.*noticed after step 5; nothing was saved since"
    ) as stopped:
        go(tmp_path / "a", bad=4)
    assert stopped.value.step == 4
    saved = torch.load(tmp_path / "a/c/last.ckpt", weights_only=True)
    assert saved["step"] == 3
    assert all(v.isfinite().all() for v in saved["method"].values())
    (again, rows), (whole, expected) = go(tmp_path / "a"), go(tmp_path / "b")
    assert rows == expected
    assert all(torch.equal(again[k], whole[k]) for k in whole)
