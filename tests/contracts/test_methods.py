"""Every yaml in configs/method meets the contract, in 2D and 3D, on one channel and on three. A new yaml is found by itself."""

import copy

import numpy as np
import pytest
import torch

import tiny
from medssl import catalog, rng
from medssl.errors import UserError
from medssl.methods.base import METHOD_SLOT, Clock
from medssl.methods.parts.teacher import ema_update, make_teacher
from medssl.schedule import cosine

LEARNING = [m for m in tiny.METHODS if tiny.trains(tiny.method(m))]
GAMES = {"bigan"}  # networks that play against each other: nothing they log falls from the first step on
SHAPES = [(2, 1), (2, 3), (3, 1), (3, 3)]


@pytest.mark.parametrize(("dims", "channels"), SHAPES)
@pytest.mark.parametrize("name", tiny.METHODS)
def test_loss_is_finite_and_every_parameter_gets_a_gradient_in_some_part(name, dims, channels):
    if channels < tiny.fewest_channels(name):
        return
    method = tiny.method(name, dims, channels)
    if name not in LEARNING:
        assert torch.isfinite(method(tiny.batch_for(method), Clock(0, 10))["loss"])
        return
    idle = {n for n, p in method.named_parameters() if p.requires_grad}
    for part in range(method.parts):
        out = method(tiny.batch_for(method), Clock(part * 10, method.parts * 10))
        assert out["loss"].ndim == 0
        assert torch.isfinite(out["loss"])
        method.zero_grad(set_to_none=True)
        out["loss"].backward()
        idle -= {n for n, p in method.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert idle == set()


def test_kmeans_alone_trains_without_gradients_and_colour_alone_needs_two_channels():
    """`tiny.trains` and `tiny.fewest_channels` are right about known methods."""
    assert "kmeans_bank" not in LEARNING
    assert {"simclr", "rbm", "supervised"} <= set(LEARNING)
    assert [m for m in ("colour", "simclr", "mae") if tiny.fewest_channels(m) > 1] == ["colour"]
    for dims in (2, 3):
        with pytest.raises(UserError, match="one"):
            tiny.method("colour", dims, channels=1)


@pytest.mark.parametrize("name", sorted({*LEARNING} - GAMES))
def test_a_few_steps_lower_the_loss(name):
    method = tiny.method(name)
    optimizer = torch.optim.Adam([p for p in method.parameters() if p.requires_grad], 3e-3)
    steps, losses = 40, []
    for step in range(steps):
        clock = Clock(step, method.parts * steps)  # stay in the first part
        out = method(tiny.batch_for(method), clock)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(clock)
        losses.append(out.get("error", out["loss"]).item())
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("name", tiny.METHODS)
def test_bfloat16_around_the_encoder_hardly_moves_the_loss(name):
    """The rest is the encoder's rounding: the loss itself stays in float32."""
    a, b = tiny.method(name), tiny.method(name)
    batch = tiny.batch_for(a, n=32)
    plain = a(batch, Clock(0, 10))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = b(batch, Clock(0, 10))["loss"]
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(plain.item(), rel=2e-2)


@pytest.mark.parametrize("name", LEARNING)
def test_a_nan_in_the_input_is_refused(name):
    method = tiny.method(name)
    batch = tiny.batch_for(method)
    batch["views"][0][0] = float("nan")
    with pytest.raises(FloatingPointError, match="finite"):
        method(batch, Clock(0, 10))


@pytest.mark.parametrize("name", tiny.METHODS)
def test_randomness_inside_a_method_is_keyed_by_the_scan(name):
    """Other draws from torch's generator change nothing."""
    a, b = tiny.method(name), tiny.method(name)
    batch = tiny.batch_for(a)
    first = a(batch, Clock(0, 10))["loss"]
    torch.rand(7)
    assert torch.equal(first, b(batch, Clock(0, 10))["loss"])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", tiny.METHODS)
def test_no_two_draws_of_a_step_share_a_slot(monkeypatch, name, dims):
    """Equal slots give equal numbers: the order of the tiles would decide their jitter."""
    method, drawn = tiny.method(name, dims), []
    words = rng.words

    def recorded(key, view, slot, n):
        drawn.append((view, slot))
        return words(key, view, slot, n)

    monkeypatch.setattr(rng, "words", recorded)
    method(tiny.batch_for(method), Clock(0, 10))
    assert len(set(drawn)) == len(drawn)
    assert all(slot >= METHOD_SLOT for _, slot in drawn), "slots below are those of the augmentations"


@pytest.mark.parametrize("name", [m for m in tiny.METHODS if tiny.method(m).teacher_student() is not None])
def test_a_teacher_moves_after_the_step_and_not_before(name):
    """It averages the weights that the optimiser made, so it stands still during the forward pass."""
    method = tiny.method(name).train()
    with torch.no_grad():
        for p in method.parameters():
            if p.requires_grad:
                p.mul_(1.5)
    teacher = method.teacher_student()[0]
    before = copy.deepcopy(list(teacher.parameters()))
    method(tiny.batch_for(method), Clock(3, 10))
    assert all(map(torch.equal, teacher.parameters(), before))
    method.after_step(Clock(3, 10))
    assert not all(map(torch.equal, teacher.parameters(), before))


def test_byol_compares_each_view_with_the_teacher_of_the_other():
    """Equation 2 in a loop over scans, for both orders of the views."""
    method = tiny.method("byol").double()
    batch = {**tiny.batch(2, n=5), "views": [torch.randn(5, 1, 16, 16).double() for _ in range(2)]}
    for _ in range(50):  # statistics of norms that do not depend on the batch, and do depend on the scan
        method.train()(batch, Clock(0, 10))
    method.eval()
    terms, own = [], []
    for mine, other in (batch["views"], batch["views"][::-1]):
        for i in range(5):
            p = method.predictor(method.projector(method.encoder(mine[i : i + 1])))[0]
            for total, view in ((terms, other), (own, mine)):
                t = method.teacher(view[i : i + 1])[0]
                total.append((p / p.norm() - t / t.norm()).square().sum().item())
    loss = method(batch, Clock(0, 10))["loss"].item()
    assert loss == pytest.approx(sum(terms) / 10, rel=1e-6)
    assert loss != pytest.approx(sum(own) / 10, rel=1e-3), "the views differ enough for the test to see it"


def test_mae_scores_the_patches_that_it_hides():
    method = tiny.method("mae")
    seen, rebuilt = [], []
    tokens = method.encoder.tokens
    method.encoder.tokens = lambda x, keep: seen.append(keep) or tokens(x, keep)
    method.rebuild.register_forward_hook(lambda m, given, out: out.retain_grad() or rebuilt.append(out))
    method(tiny.batch(1, n=4), Clock(0, 1))["loss"].backward()
    for keep, grad in zip(seen[0], rebuilt[0].grad, strict=True):
        scored = grad.abs().sum(1) > 0
        assert set(scored.nonzero()[:, 0].tolist()) == set(range(16)) - set(keep.tolist())


@pytest.mark.parametrize("name", ["inpainting", "colour"])
def test_what_stays_visible_is_not_scored(name):
    """The decoder's output counts exactly where the network was shown zeros."""
    method = tiny.method(name)
    shown, rebuilt = [], []
    method.encoder.register_forward_pre_hook(lambda m, given: shown.append(given[0]))
    if hasattr(method.encoder, "stages"):
        stages = method.encoder.stages
        method.encoder.stages = lambda x: shown.append(x) or stages(x)
    method.decoder.register_forward_hook(lambda m, given, out: out.retain_grad() or rebuilt.append(out))
    method(tiny.batch_for(method), Clock(0, 1))["loss"].backward()
    assert torch.equal(rebuilt[0].grad != 0, shown[0] == 0)


def test_mae_refuses_to_hide_nothing():
    with pytest.raises(UserError, match=r"method\.ratio=0\.05 of 16 patches hides none"):
        tiny.method("mae", ratio=0.05)


def test_mae_hides_its_share_and_never_reads_it():
    method = tiny.method("mae", ratio=0.75)
    batch = tiny.batch(1, n=4)
    before = method(batch, Clock(0, 1))["loss"]
    seen = []
    tokens = method.encoder.tokens
    method.encoder.tokens = lambda x, keep: seen.append(keep) or tokens(x, keep)
    assert torch.equal(method(batch, Clock(0, 1))["loss"], before)
    assert seen[0].shape == (4, 4)  # 16 patches, 4 seen
    assert not all(torch.equal(seen[0][0].sort()[0], row.sort()[0]) for row in seen[0])


def test_byol_teacher_follows_by_the_schedule_and_gets_no_gradient():
    method = tiny.method("byol")
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    before = copy.deepcopy(method.teacher)
    clock = Clock(3, 10)
    method.after_step(clock)
    m = cosine(0.3, method.momentum, 1.0)
    teacher, student = (m.parameters() for m in method.teacher_student())
    for t, old, s in zip(teacher, before.parameters(), student, strict=True):
        assert not t.requires_grad
        torch.testing.assert_close(t, m * old + (1 - m) * s)


def test_teacher_is_a_copy():
    student = torch.nn.Linear(2, 2)
    teacher = make_teacher(student)
    with torch.no_grad():
        student.weight.add_(1)
    assert not torch.equal(teacher.weight, student.weight)
    ema_update(teacher, student, 0.0)
    assert torch.equal(teacher.weight, student.weight)


def test_greedy_layers_train_one_after_the_other_and_lower_ones_are_frozen():
    method = tiny.method("greedy_ae", encoder="cnn")
    layers = len(method.encoder.layers)
    for at in range(layers):
        method.zero_grad(set_to_none=True)
        before = copy.deepcopy(method.encoder.layers[:at].state_dict())
        method.train()
        out = method(tiny.batch(1), Clock(at * 10, layers * 10))
        out["loss"].backward()
        assert int(out["layer"]) == at
        trained = {
            i for i, layer in enumerate(method.encoder.layers) if any(p.grad is not None for p in layer.parameters())
        }
        assert trained == {at}
        after = method.encoder.layers[:at].state_dict()
        assert all(torch.equal(after[k], v) for k, v in before.items()), "a frozen layer's statistics moved"


def test_kmeans_bank_whitens_and_lowers_its_error():
    method = tiny.method("kmeans_bank", whitening=0.25, rounds=4, per_scan=8)
    losses = []
    for step in range(40):
        clock = Clock(step, 40)
        losses.append(method({**tiny.batch(1, n=32, seed=step)}, clock)["loss"].item())
        method.after_step(clock)
    assert int(method.round) == 4
    assert losses[-1] < losses[12]
    patches = method.encoder.patches_at(tiny.batch(1, n=64, seed=99)["views"][0], torch.rand(64, 50))
    white = method.encoder.whitened(patches)
    spread = torch.linalg.eigvalsh(torch.cov(white.T))
    assert spread.max() < 1.3


def test_kmeans_bank_equals_sklearn_from_the_same_start():
    """One round over one batch is one step of Lloyd's algorithm."""
    from sklearn.cluster import KMeans

    method = tiny.method("kmeans_bank", whitening=0.5, rounds=1, per_scan=8)
    batch = tiny.batch(1, n=32)
    method(batch, Clock(0, 2))
    method.after_step(Clock(0, 2))
    (fit,) = method.fits
    fit.start(method.encoder, method.encoder.patches_at(*_places(method, batch)).double())
    method.round.zero_()
    white = method.encoder.whitened(method.encoder.patches_at(*_places(method, batch))).double()
    start = method.encoder.centroids.double().numpy().copy()
    loss = method(batch, Clock(1, 2))["loss"]
    method.after_step(Clock(1, 2))
    reference = KMeans(len(start), init=start, n_init=1, max_iter=1).fit(white.numpy())
    distance = ((white.numpy()[:, None] - start[None]) ** 2).sum(-1)
    assert loss.item() == pytest.approx(distance.min(1).mean(), rel=1e-4)
    nearest = distance.argmin(1)
    expected = [white.numpy()[nearest == k].mean(0) if (nearest == k).any() else start[k] for k in range(len(start))]
    torch.testing.assert_close(
        method.encoder.centroids.double(), torch.tensor(np.stack(expected)), rtol=1e-4, atol=1e-4
    )
    assert reference.inertia_ <= distance.min(1).sum()


def test_kmeans_bank_fits_each_bank_of_a_pyramid_as_if_alone():
    def fitted(encoder, **options):
        torch.manual_seed(0)
        spec = catalog.spec("method", "kmeans_bank", whitening=0.5, rounds=2, per_scan=8)
        spec.pop("_run_")
        model = catalog.build(catalog.spec("encoder", encoder, centroids=8, **options), channels=1, size=(16, 16))
        method = catalog.build(spec, encoder=model)
        for step in range(8):
            method(tiny.batch(1, n=32, seed=step), Clock(step, 8))
            method.after_step(Clock(step, 8))
        return model

    alone, (first, second) = fitted("patch_bank", patch=3), fitted("patch_pyramid", patches=[3, 5]).banks
    assert all(torch.equal(a, b) for a, b in zip(alone.buffers(), first.buffers(), strict=True))
    assert second.patch == 5
    assert not torch.equal(second.whiten, torch.eye(25))
    again = fitted("patch_pyramid", patches=[3, 3]).banks[1]  # other places of the same scans
    assert not torch.equal(again.centroids, first.centroids)


def _places(method, batch):
    from medssl.methods.base import METHOD_SLOT
    from medssl.rng import uniform

    return batch["views"][0], uniform(batch["key"], 0, METHOD_SLOT, method.per_scan)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("simclr", {"temperature": 0.0}, "temperature must be positive"),
        ("byol", {"momentum": 1.5}, "momentum"),
        ("vicreg", {"covariance": -1.0}, "weights of 0 or more"),
        (
            "vicreg",
            {"variance": 0.0},
            "the variance's above 0: without it, equal features of all scans have the least loss",
        ),
        ("lejepa", {"weight": 0.0}, "at 0, equal features of all scans lose least"),
        ("visreg", {"weight": 0.0}, "at 0, equal features of all scans lose least"),
        ("moco", {"temperature": 0.0}, "temperature must be positive"),
        ("moco", {"momentum": 1.5}, "momentum must lie between 0 and 1"),
        ("moco", {"queue": -1}, "queue must be 0 or more"),
        ("moco", {"momentum_end": -0.1}, "momentum_end must lie between 0 and 1"),
        ("densecl", {"temperature": 0.0}, "temperature must be positive"),
        ("densecl", {"queue": 0}, "queue must be at least 1"),
        ("densecl", {"local": 1.5}, "local must lie between 0 and 1"),
        ("deepcluster", {"temperature": 0.0}, "temperature must be positive"),
        ("deepcluster", {"rounds": 0}, "must be at least 1"),
        ("dcl", {"temperature": -0.1}, "temperature must be positive"),
        ("nnclr", {"temperature": 0.0}, "temperature must be positive"),
        ("nnclr", {"queue": 0}, "queue must be at least 1"),
        ("dino", {"teacher_temperature": 0.0}, "teacher_temperature must be positive"),
        ("dino", {"warmup": 1.5}, "warmup must lie between 0 and 1"),
        ("dino", {"prototypes": 1}, "prototypes must be at least 2"),
        ("barlow", {"redundancy": -0.1}, "redundancy must be 0 or more"),
        ("contrastive", {"positive_margin": 1.2}, "margins"),
        ("triplet", {"mining": "semi-hard"}, "Did you mean 'semihard'"),
        ("triplet", {"margin": -1.0}, "margin must be positive"),
        ("mae", {"ratio": 1.0}, "ratio"),
        ("mae", {"encoder": "cnn"}, "use encoder=vit"),
        ("simmim", {"encoder": "cnn"}, "use encoder=vit, or method=spark"),
        ("simmim", {"ratio": 0.0}, "ratio between 0 and 1"),
        ("simmim", {"edge": 4}, "edge from 1 to 3 patches"),
        ("simmim", {"ratio": 0.05}, "of 16 squares hides none"),
        ("data2vec", {"encoder": "cnn"}, "use encoder=vit"),
        ("data2vec", {"smallest": 0.7}, "method.smallest <= method.ratio"),
        ("data2vec", {"ratio": 0.05, "smallest": 0.05}, "of 16 patches hides none"),
        ("data2vec", {"top": 3}, "between 1 and the teacher's 2 blocks"),
        ("data2vec", {"beta": 0.0}, "beta must be positive"),
        ("data2vec", {"momentum": 1.5}, "momentum must lie between 0 and 1"),
        ("ijepa", {"encoder": "cnn"}, "use encoder=vit"),
        ("ijepa", {"scale": [0.2, 0.15]}, r"method\.scale must be \[low, high\]"),
        ("ijepa", {"scale": [0.2, 0.3]}, "of up to 4 patches leave no context of 16"),
        ("ijepa", {"count": 0}, "take 1 or more"),
        ("ijepa", {"momentum": -0.5}, "momentum must lie between 0 and 1"),
        ("greedy_ae", {"encoder": "vit"}, "encoder=mlp"),
        ("greedy_ae", {"encoder": "cnn", "tied": True}, "encoder=mlp, or method.tied=false"),
        ("greedy_ae", {"corruption": 1.0}, "corruption"),
        ("greedy_ae", {"supervised": -1.0}, "weights of 0 or more"),
        ("greedy_supervised", {"finetune": 1.0}, "finetune"),
        ("multitask", {"method": "distill"}, "needs a teacher"),
        ("kmeans_bank", {"encoder": "cnn"}, "encoder=patch_bank"),
    ],
)
def test_impossible_options_are_refused_at_construction(name, options, words):
    with pytest.raises(UserError, match=words):
        tiny.method(name, **options)
