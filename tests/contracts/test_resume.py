"""kill -9 at any step, with 0 and 2 workers: the restarted run ends with the same bits as an uninterrupted one."""

import multiprocessing as mp
import os
import random
import signal
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

import tiny
from medssl import catalog
from medssl.errors import UserError
from medssl.losses import target_losses
from medssl.tasks import supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

STEPS, SAVE_EVERY = 12, 3
LABELLED = {  # methods trained on labels: the target loss, and a target per scan
    "classification": (target_losses.classification(2), lambda n: torch.arange(n) % 2),
    "multilabel": (
        target_losses.multilabel(3),
        lambda n: torch.tensor([[0, 1, torch.nan], [1, 0, 1.0]]).repeat(n // 2, 1),
    ),
}
ADAPTED = {"byol with lora": ("byol", "lora"), "simclr with norm": ("simclr", "norm")}
"""Methods of which a part of the encoder is trained: the method, and the part."""
EVERYTHING = [*tiny.METHODS, *LABELLED, *ADAPTED]


def go(
    name: str, out: str, workers: int = 0, die_at: int = 0, signal_at: int = 0, steps: int = STEPS, **options
) -> None:
    """Train in this process as the command line would. `die_at`: SIGKILL in the middle of that step."""
    torch.set_num_threads(1)
    name, part = ADAPTED.get(name, (name, "all"))
    resampled = tiny.resampled(channels=1 if name in LABELLED else tiny.fewest_channels(name))
    targets = None
    if name in LABELLED:
        kind, truth = LABELLED[name]
        encoder = tiny.method("simclr").encoder
        torch.manual_seed(0)
        method = supervised.Supervised(encoder, kind, blocks=1 if name == "multilabel" else None)
        targets = truth(len(resampled.array))
    else:
        method = tiny.method(name, adapted=part)
        targets = tiny.targets(method.target, len(resampled.array))
    views = "neutral" if name in LABELLED else catalog.load("method", name).get("_run_", {}).get("augment", "neutral")

    def monitor(encoder, rows):
        if rows[-1]["step"] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if rows[-1]["step"] == signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"rows": len(rows), "weight": float(sum(p.detach().double().abs().sum() for p in encoder.parameters()))}

    run = Path(out)
    run.mkdir(exist_ok=True)
    settings = {"batch": 16, "save_every": SAVE_EVERY, "log_every": 2, "seed": 7} | options
    optim = Optim(name=settings.pop("optimizer", "adamw"), lr=3e-3)
    train(
        Fabric(accelerator="cpu", devices=1),
        method,
        TrainingData(
            resampled,
            torch.arange(len(resampled.array)).numpy(),
            catalog.build(catalog.spec("augment", views), size=resampled.size),
            None if targets is None else targets.numpy(),
        ),
        TrainOptions(steps=steps, optim=optim, workers=workers, monitor_every=1, **settings),
        run / "checkpoints",
        Log(run, "jsonl", {}),
        monitor,
    )


def start(*args, **kwargs) -> int:
    """Call `go` in a process of its own and return the exit code."""
    child = mp.get_context("fork").Process(target=go, args=args, kwargs=kwargs)
    child.start()
    child.join()
    return child.exitcode


def equal(a, b) -> bool:
    """Compare bit by bit, through dicts and lists."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def same(a: Path, b: Path) -> None:
    left, right = (torch.load(p / "checkpoints" / "last.ckpt", weights_only=True) for p in (a, b))
    assert left["step"] == right["step"]
    assert equal(left["method"], right["method"])
    assert equal(left.get("optimizer"), right.get("optimizer"))
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", EVERYTHING)
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, name, workers):
    step = random.Random(f"{name} {workers}").randrange(SAVE_EVERY + 1, STEPS)
    go(name, str(tmp_path / "whole"))
    assert start(name, str(tmp_path / "killed"), workers, die_at=step) == -signal.SIGKILL
    assert (tmp_path / "killed/checkpoints/last.ckpt").exists(), "there is something to resume"
    assert start(name, str(tmp_path / "killed"), workers) == 0
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("options", [{"accumulate": 2}, {"optimizer": "lars"}, {"optimizer": "sgd"}], ids=str)
def test_so_does_one_with_accumulation_and_every_optimiser(tmp_path, options):
    go("simclr", str(tmp_path / "whole"), **options)
    assert start("simclr", str(tmp_path / "killed"), die_at=8, **options) == -signal.SIGKILL
    go("simclr", str(tmp_path / "killed"), **options)
    same(tmp_path / "whole", tmp_path / "killed")


def test_a_run_killed_twice_and_before_its_first_checkpoint(tmp_path):
    go("byol", str(tmp_path / "whole"))
    for step in (1, 5):
        assert start("byol", str(tmp_path / "killed"), die_at=step) == -signal.SIGKILL
    go("byol", str(tmp_path / "killed"))
    same(tmp_path / "whole", tmp_path / "killed")


def test_sigterm_saves_the_step_and_advises_to_run_again(tmp_path):
    with pytest.raises(UserError, match="run the same command again") as stopped:
        go("simclr", str(tmp_path / "stopped"), signal_at=5)
    assert stopped.value.code == 75
    assert torch.load(tmp_path / "stopped/checkpoints/last.ckpt", weights_only=True)["step"] == 5
    go("simclr", str(tmp_path / "stopped"))
    go("simclr", str(tmp_path / "whole"))
    same(tmp_path / "whole", tmp_path / "stopped")


def test_seeds_differ(tmp_path):
    """The comparison above detects different runs."""
    go("simclr", str(tmp_path / "a"))
    go("simclr", str(tmp_path / "b"), seed=8)
    with pytest.raises(AssertionError):
        same(tmp_path / "a", tmp_path / "b")


def test_a_damaged_checkpoint_is_named(tmp_path):
    go("simclr", str(tmp_path / "a"), steps=3)
    path = tmp_path / "a/checkpoints/last.ckpt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
        go("simclr", str(tmp_path / "a"), steps=3)
