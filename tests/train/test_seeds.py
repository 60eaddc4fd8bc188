"""Training many seeds at once gives the result of training each with the loop."""

import copy
import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

import tiny
from medssl import catalog, rng
from medssl.augmentations.loader import StepSampler, make_views
from medssl.augmentations.recipes import SmallViews
from medssl.encoders.cnn import CNN
from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.losses import target_losses
from medssl.methods.base import Method
from medssl.rng import Key
from medssl.store.resampled import ResampledScans
from medssl.tasks.supervised import Supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.seeds import train_seeds
from medssl.train.stop import TrainingStopped

SEEDS, STEPS, BATCH = [3, 1 << 40, 7], 12, 16
LABELS = np.arange(48) % 2
METHODS = {
    "autoencoder": ("greedy_ae", {"corruption": 0.0}),
    "denoising": ("greedy_ae", {"corruption": 0.25}),
    "greedy_supervised": ("greedy_supervised", {}),
    "supervised": ("supervised", {}),
    "last layer": ("supervised", {"blocks": 1}),
    "machine": ("rbm", {"visible": "bernoulli"}),
    "chains": ("dbn", {"visible": "bernoulli", "persistent": 5}),
}
OPTIMS = {
    "adamw": Optim("adamw", 3e-3, weight_decay=0.1),
    "sgd": Optim("sgd", 0.05, weight_decay=0.1, clip=0.05),
    "by depth": Optim("adamw", 3e-3, layer_decay=0.5),
}


def method(name: str, weights: int, encoder: str | None = None, **options):
    """Return a method with its own initial weights."""
    if name == "supervised":
        made = Supervised(tiny.method("greedy_ae").encoder, target_losses.classification(2), **options)
    else:
        made = tiny.method(name, encoder=encoder, **options)
    torch.manual_seed(weights)
    for m in made.modules():
        if isinstance(m, torch.nn.Linear):
            m.reset_parameters()
    return made


def recipe(resampled, views: str = "neutral"):
    return catalog.build(catalog.load("augment", views), size=resampled.size)


def alone(made, seed: int, optim: Optim, out, resampled, targets=LABELS) -> list[dict]:
    """Train with the loop, in place; return the logged rows."""
    log = Log(out, "jsonl", {})
    train(
        Fabric(accelerator="cpu", devices=1), made,
        TrainingData(resampled, np.arange(48), recipe(resampled), targets if made.target else None),
        TrainOptions(STEPS, BATCH, seed, optim, log_every=1), out / "checkpoints", log,
    )  # fmt: skip
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def together(methods, optim: Optim = OPTIMS["adamw"], resampled=None, targets=LABELS, seeds=SEEDS, **options):
    resampled = resampled or tiny.resampled()
    options = {"steps": STEPS, "batch": BATCH} | options
    data = TrainingData(resampled, np.arange(48), recipe(resampled), targets)
    return train_seeds(methods, data, seeds=list(seeds), optim=optim, **options)


def distance(a, b) -> float:
    flat = [torch.cat([v.flatten() for v in m.state_dict().values()]) for m in (a, b)]
    return float((flat[0] - flat[1]).abs().max())


@pytest.mark.parametrize(
    ("name", "optim"),
    [
        ("autoencoder", "sgd"),
        ("denoising", "adamw"),
        ("denoising", "by depth"),
        ("greedy_supervised", "adamw"),
        ("supervised", "sgd"),
        ("supervised", "by depth"),
        ("last layer", "adamw"),
        ("machine", "sgd"),
        ("chains", "adamw"),
    ],
)
def test_every_seed_ends_as_if_trained_alone(tmp_path, name, optim):
    name, options = METHODS[name]
    many = [method(name, s, **options) for s in range(3)]
    start, resampled = copy.deepcopy(many), tiny.resampled()
    assert together(many, OPTIMS[optim], resampled) is many
    for s, seed in enumerate(SEEDS):
        one = copy.deepcopy(start[s])
        (tmp_path / str(s)).mkdir()
        alone(one, seed, OPTIMS[optim], tmp_path / str(s), resampled)
        assert distance(many[s], one) < 1e-4
        assert distance(many[s], start[s]) > 1e-3  # training changed it


class Enlarged(Method):
    """A network of one size is shown small views enlarged, beside whole ones."""

    small_views = SmallViews(2, (8, 8), (0.1, 0.3))

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, batch, clock):
        whole, *small = batch["views"]
        z = self.encoder(whole)
        near = sum(
            (z - self.encoder(x.repeat_interleave(2, -1).repeat_interleave(2, -2))).square().mean() for x in small
        )
        return {"loss": near + (z.square().mean() - 1).square()}


def test_every_seed_gets_the_small_views_that_it_would_get_alone(tmp_path):
    many = [Enlarged(method("greedy_ae", s).encoder) for s in range(3)]
    start, resampled = copy.deepcopy(many), tiny.resampled()
    together(many, OPTIMS["sgd"], resampled)
    for s, seed in enumerate(SEEDS):
        (tmp_path / str(s)).mkdir()
        one = copy.deepcopy(start[s])
        alone(one, seed, OPTIMS["sgd"], tmp_path / str(s), resampled)
        assert distance(many[s], one) < 1e-4
        assert distance(many[s], start[s]) > 1e-3


def test_each_seed_is_clipped_by_its_own_norm(tmp_path):
    many = [method("supervised", s) for s in range(3)]
    with torch.no_grad():
        for made, size in zip(many, (0.1, 3, 30), strict=True):
            made.head.weight.mul_(size)
    optim, resampled, start = Optim("sgd", 0.05, clip=1.0), tiny.resampled(), copy.deepcopy(many)
    together(many, optim, resampled)
    clipped = []
    for s, seed in enumerate(SEEDS):
        (tmp_path / str(s)).mkdir()
        rows = alone(start[s], seed, optim, tmp_path / str(s), resampled)
        clipped.append(sum(row["grad_norm"] > 1 for row in rows))
        assert distance(many[s], start[s]) < 1e-4
    assert clipped[0] == 0
    assert clipped[2] > 0


def test_seeds_with_equal_weights_diverge():
    many = together([method("greedy_ae", 0) for _ in SEEDS])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert distance(many[a], many[b]) > 1e-3


def test_watch_gets_current_methods_and_may_end_training():
    many, whole, seen = [[method("supervised", s) for s in range(3)] for _ in range(2)] + [{}]

    def watch(done: int, losses: torch.Tensor) -> bool:
        assert losses.shape == (3,)
        seen[done] = copy.deepcopy(many)
        return done == 8

    together(many, watch=watch, watch_every=4)
    assert list(seen) == [4, 8]
    assert distance(seen[4][1], seen[8][1]) > 1e-4
    assert distance(seen[8][1], many[1]) == 0
    together(whole, watch=lambda done, losses: seen.update({done: copy.deepcopy(whole)}) and False, watch_every=4)
    assert distance(seen[8][2], many[2]) == 0  # watching changes nothing
    assert distance(seen[12][2], whole[2]) == 0


def test_a_seed_that_is_not_finite_is_named_and_nothing_is_updated():
    resampled = tiny.resampled()
    firsts = [{row for row, _ in next(iter(StepSampler(np.arange(48), BATCH, 0, 1, seed)))} for seed in SEEDS]
    broken = min(firsts[1] - firsts[0] - firsts[2])
    array = resampled.array.astype(np.float32)
    array[broken, 0, 3, 3] = np.nan
    resampled = ResampledScans(array, resampled.low, resampled.high, resampled.mean, resampled.std, resampled.size)
    many = [method("supervised", s) for s in range(3)]
    start = copy.deepcopy(many)
    with pytest.raises(TrainingStopped, match=rf"step 0: seeds \[{SEEDS[1]}\] are not finite"):
        together(many, resampled=resampled)
    assert all(distance(a, b) == 0 for a, b in zip(many, start, strict=True))


class Drops(Supervised):
    """A method that draws from torch's generator."""

    def forward(self, batch, clock):
        return {"loss": torch.nn.functional.dropout(self.encoder(batch["views"][0])).mean()}


class Begun(Supervised):
    """A method with a flag that differs between seeds."""

    def __init__(self, weights: int):
        super().__init__(MLP(1, (16, 16), (8,)), target_losses.classification(2))
        self.register_buffer("begun", torch.tensor(weights == 1))


def _on_cnn(s: int) -> Supervised:
    return Supervised(CNN(1, (16, 16), (8,), "group"), target_losses.classification(2))


def _of(kind: type, **options):
    return lambda s: kind(MLP(1, (16, 16), (8,)), target_losses.classification(2), **options)


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (_on_cnn, {}, "encoder=mlp only, not CNN"),
        (lambda s: method("simclr", s, "mlp"), {}, "batch statistics"),
        (_of(Supervised, blocks=0), {}, "batch statistics"),
        (_of(Drops), {}, "one by one: vmap: called random operation"),
        (lambda s: Supervised(MLP(1, (16, 16), (8 + s,)), target_losses.classification(2)), {}, "one size"),
        (Begun, {}, "only when all have begun or none"),
        (_of(Supervised), {"targets": None}, "give targets"),
        (_of(Supervised), {"targets": np.where(LABELS, -1, LABELS)}, "known labels only"),
        (_of(Supervised), {"seeds": [1, 1, 2]}, "must be different"),
        (_of(Supervised), {"seeds": [1, 2]}, "one for each of 3"),
        (_of(Supervised), {"optim": Optim("lars")}, "lars"),
        (_of(Supervised), {"batch": 49}, "cannot fill a batch of 49"),
    ],
)
def test_methods_that_cannot_train_at_once_are_refused(make, options, words):
    with pytest.raises(UserError, match=words) as said:
        together([make(s) for s in range(3)], **options)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: rng.uniform(key, 1, 1000, 7),
        lambda key: rng.uniform_field(key, 0, 1001, (2, 5)),
        lambda key: rng.normal_field(key, 0, 1002, (3, 3)),
    ],
)
def test_draws_mapped_over_seeds_have_the_bits_of_each_seed(draw):
    epoch, scan = torch.arange(15).view(3, 5) % 4, torch.arange(15).view(3, 5)
    mapped = torch.vmap(lambda *key: draw(Key(*key)))(torch.tensor(SEEDS), epoch, scan)
    assert torch.equal(mapped, torch.stack([draw(Key(s, epoch[i], scan[i])) for i, s in enumerate(SEEDS)]))


def test_views_of_a_batch_of_several_seeds_are_those_of_each():
    """Large enough to be processed in chunks."""
    resampled = tiny.resampled(n=6, size=512)
    raw = {"image": torch.from_numpy(resampled.array), "epoch": torch.arange(6) % 2, "scan": torch.arange(6)}
    raw |= {"low": torch.from_numpy(resampled.low), "high": torch.from_numpy(resampled.high)}
    seeds = torch.tensor(SEEDS).repeat_interleave(2)
    (all_views,), _ = make_views(raw, recipe(resampled), 1, seeds, 0.4, 0.2)
    for i, seed in enumerate(seeds.tolist()):
        part = {k: v[i : i + 1] for k, v in raw.items()}
        (view,), _ = make_views(part, recipe(resampled), 1, seed, 0.4, 0.2)
        assert torch.allclose(all_views[i : i + 1], view, atol=1e-5)


def test_every_seed_moves_to_the_device():
    """The meta device stands for one that is not here: it has shapes and no values."""
    name, options = METHODS["denoising"]
    many = [method(name, s, **options) for s in range(3)]
    together(many, steps=0, device="meta")
    assert {p.device.type for m in many for p in m.parameters()} == {"meta"}
