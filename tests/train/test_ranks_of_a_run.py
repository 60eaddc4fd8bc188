"""Runs of several processes: the search for unused parameters, and the same training on 1, 2 and 4 of them."""

import json
import signal
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import processes
import tiny
from medssl import catalog
from medssl.errors import Interrupted, UserError
from medssl.methods.base import Clock, Method
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.ranks import check_shards, make_fabric

TRAINED = [name for name in tiny.METHODS if tiny.trains(tiny.method(name))]


class Idle(torch.nn.Module):
    """An encoder with a parameter that nothing uses, as the classifiers of some libraries."""

    def __init__(self):
        super().__init__()
        inner = tiny.method("simclr").encoder
        self.inner, self.channels, self.size, self.dim = inner, inner.channels, inner.size, inner.dim
        self.idle = torch.nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.inner(x)


class Alternating(Method):
    """A method from elsewhere that uses all heads in the first step, and later another one in every step."""

    def __init__(self):
        super().__init__()
        self.encoder = tiny.method("simclr").encoder
        self.heads = torch.nn.ModuleList(torch.nn.Linear(self.encoder.dim, 1) for _ in range(2))

    def forward(self, batch, clock):
        heads = self.heads if not clock.step else [self.heads[clock.step % 2]]
        x = self.encoder(batch["views"][0])
        return {"loss": torch.cat([head(x) for head in heads]).square().mean()}


def made(name: str, **options) -> Method:
    torch.manual_seed(0)
    if name == "idle encoder":
        return catalog.build(catalog.spec("method", "simclr", hidden=32, out=16), encoder=Idle())
    return Alternating() if name == "alternating" else tiny.method(name, **options)


def go(
    rank: int,
    name: str,
    out: Path,
    devices: int,
    steps: int,
    stop_at: int,
    strategy: str,
    optimizer: str,
    options: dict,
) -> None:
    """Train as one of `devices` processes. stop_at: the last one gets a signal in that step."""
    method, scans = made(name, **options), tiny.resampled()
    fabric = make_fabric("cpu", devices, "32-true", strategy)
    fabric.launch()
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=scans.size)
    settings = TrainOptions(steps, 16, 0, Optim(optimizer, lr=1e-3), log_every=1, save_every=100, monitor_every=1)

    def monitor(method, rows):
        if rows[-1]["step"] == stop_at and rank == devices - 1:
            signal.raise_signal(signal.SIGTERM)
        return {}

    data = TrainingData(scans, np.arange(48), recipe)
    with suppress(Interrupted):
        train(fabric, method, data, settings, out / "c", Log(out, "jsonl", {}), monitor, quiet=True)
    if devices > 1 and strategy == "ddp":
        (out / f"{rank}.json").write_text(json.dumps(fabric.strategy.searches))


def trained(
    name: str,
    out: Path,
    devices: int,
    steps: int = 4,
    stop_at: int = 0,
    strategy: str = "ddp",
    optimizer: str = "adamw",
    **options,
) -> tuple[list[dict], dict]:
    """Return the rows of the log and the last checkpoint of a run with that many processes. options: of the method."""
    out.mkdir(exist_ok=True)
    processes.run(go, devices, name, out, devices, steps, stop_at, strategy, optimizer, options)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows, torch.load(out / "c/last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("name", "searches"), [("simclr", False), ("greedy_ae", True), ("idle encoder", True), ("alternating", True)]
)
def test_the_search_for_unused_parameters_ends_where_all_are_used(tmp_path, name, searches):
    rows, _ = trained(name, tmp_path / "two", 2)
    assert [json.loads((tmp_path / f"two/{rank}.json").read_text()) for rank in range(2)] == [searches] * 2
    alone, _ = trained(name, tmp_path / "one", 1)
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[key] for r in rows], [r[key] for r in alone], rtol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_a_method_that_uses_every_parameter_in_one_step_does_so_in_all_later_ones(name):
    """`stop_searching` looks at one step. A batch without a known label is the hardest for a method with labels."""
    method, used = tiny.method(name).train(), []
    for step in (0, 4, 9):
        batch = tiny.batch_for(method, n=16, seed=step)
        if step == 9 and method.target in ("label", "facts"):
            batch["target"] = torch.full_like(batch["target"], -1 if method.target == "label" else torch.nan)
        method.zero_grad()
        method(batch, Clock(step, 10))["loss"].backward()
        used.append(all(p.grad is not None for p in method.parameters() if p.requires_grad))
        method.after_step(Clock(step, 10))
    assert used == sorted(used)
    assert all(used) == (method.parts == 1)


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_1_2_and_4_processes_train_alike(tmp_path, name):
    """The scans, views and masks of every step are the same, and the loss is that of the whole batch."""
    one, *others = (trained(name, tmp_path / str(n), n) for n in (1, 2, 4)[:: 1 if name == "simclr" else 2])
    for rows, state in others:
        for key in ("loss", "grad_norm"):
            np.testing.assert_allclose([r[key] for r in rows], [r[key] for r in one[0]], rtol=1e-4)
        for k, v in one[1]["method"].items():
            torch.testing.assert_close(state["method"][k], v, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("devices", [2, 4])
def test_a_run_of_several_processes_resumes_to_the_same_bits(tmp_path, devices):
    """The layers are wider than a chunk of gloo's, so that the order of a sum over four processes depends on the place."""
    for folder, stops in (("whole", [0]), ("stopped", [3, 0])):
        for at in stops:
            trained("simclr", tmp_path / folder, devices, steps=6, stop_at=at, hidden=400)
    a, b = (tmp_path / folder for folder in ("whole", "stopped"))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
    assert same(*(torch.load(folder / "c/last.ckpt", weights_only=True) for folder in (a, b)))


def test_a_run_that_goes_on_with_another_number_keeps_its_scans_and_masks(tmp_path):
    trained("mae", tmp_path / "moved", 1, steps=6, stop_at=3)
    rows, state = trained("mae", tmp_path / "moved", 4, steps=6)
    unmoved, expected = trained("mae", tmp_path / "unmoved", 1, steps=6)
    assert rows[:3] == unmoved[:3]
    np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in unmoved], rtol=1e-4)
    for k, v in expected["method"].items():
        torch.testing.assert_close(state["method"][k], v, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("name", "optimizer"), [("simclr", "adamw"), ("mae", "adamw"), ("byol", "sgd")])
def test_fsdp_trains_as_one_process_does_and_resumes_to_the_same_bits(tmp_path, name, optimizer):
    """Gradients, clipping, the optimiser and teachers see whole tensors, and the checkpoint has them.

    mae has a transformer, which is divided by blocks, and byol a teacher. adamw would move byol's biases without a gradient,
    those before a norm, by the signs of rounding errors.
    """
    options = {"steps": 6, "optimizer": optimizer}
    rows, state = trained(name, tmp_path / "whole", 2, strategy="fsdp", **options)
    alone, expected = trained(name, tmp_path / "one", 1, **options)
    for key in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[key] for r in rows], [r[key] for r in alone], rtol=1e-4)
    assert state["method"].keys() == expected["method"].keys()
    for k, v in expected["method"].items():
        torch.testing.assert_close(state["method"][k], v, rtol=1e-3, atol=1e-4)
    if name != "mae":
        return
    trained(name, tmp_path / "stopped", 2, strategy="fsdp", stop_at=3, **options)
    again, resumed = trained(name, tmp_path / "stopped", 2, strategy="fsdp", **options)
    assert again == rows
    assert same(resumed, state)


@pytest.mark.parametrize("name", TRAINED)
def test_fsdp_refuses_methods_with_scalars_or_that_write_weights_in_a_pass_and_no_other(name):
    """What a pass writes into a weight that is put together for it would be lost with it."""
    method = tiny.method(name).train()
    trained = {n: p for n, p in method.named_parameters() if p.requires_grad}
    before = {n: p._version for n, p in trained.items()}
    method(tiny.batch_for(method), Clock(0, 10))
    fits = all(p.ndim and p._version == before[n] for n, p in trained.items()) and method.parts == 1
    try:
        check_shards(method)
        assert fits
    except UserError:
        assert not fits


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: tiny.method("rbm"), "RBM cannot be trained in pieces"),
        (lambda: tiny.method("similarity"), "Similarity cannot be trained in pieces"),
        (lambda: tiny.method("greedy_ae"), "GreedyAE cannot be trained in pieces"),
        (lambda: tiny.method("kmeans_bank"), "trains nothing by gradient"),
    ],
)
def test_what_fsdp_cannot_divide_is_refused(made, says):
    with pytest.raises(UserError, match=says):
        check_shards(made())


@pytest.mark.parametrize(
    ("change", "says"), [({"devices": 1}, "devices is 1"), ({"optimizer": "lars"}, "lars needs whole")]
)
def test_settings_that_fsdp_cannot_have_are_refused(change, says):
    with pytest.raises(UserError, match=says):
        tiny.config(**{"strategy": "fsdp", "devices": 2} | change)


def same(a: object, b: object) -> bool:
    """Compare bit by bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
