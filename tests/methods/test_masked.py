"""SimMIM, data2vec and I-JEPA: what is hidden is never read, and losses equal their definitions in loops."""

import copy

import pytest
import torch
import torch.nn.functional as F

import tiny
from medssl import catalog
from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.methods.base import Clock
from medssl.methods.parts.context_blocks import context_and_targets
from medssl.methods.parts.frozen_teacher import FrozenTeacher
from medssl.methods.parts.step_key import step_key
from medssl.methods.parts.token_masks import hide_blocks, hide_squares

CLOCK = Clock(3, 10)


def doubled(name, **options):
    """Return a method in float64 whose teacher, if any, differs from the student, and a batch."""
    method, batch = tiny.method(name, **options).double(), tiny.batch(1, n=5)
    if method.teacher_student() is not None:
        with torch.no_grad():
            for p in method.teacher.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    with torch.no_grad():
        method.hole.copy_(torch.linspace(-1, 1, len(method.hole)))
    return method, {**batch, "views": [batch["views"][0].double()]}


def hidden_of(method, batch):
    """Return which patches (B, N) a step hides."""
    if hasattr(method, "mask"):
        return hide_blocks(batch["key"], 0, 1000, method.encoder.grid, *method.mask)
    return hide_squares(batch["key"], 0, 1000, method.encoder.grid, method.ratio, method.edge)


@pytest.mark.parametrize("edge", [1, 2])
def test_simmim_is_the_absolute_error_of_hidden_pixels(edge):
    method, batch = doubled("simmim", edge=edge)
    (x,), encoder = batch["views"], method.encoder
    errors = []
    for scan, hidden in zip(x, hidden_of(method, batch), strict=True):
        patches = encoder.patchify(scan[None])[0]
        h = torch.stack([method.hole if hide else encoder.embed(p) for p, hide in zip(patches, hidden, strict=True)])
        h = (h + encoder.pos)[None]
        for block in encoder.blocks:
            h = block(h)
        rebuilt = method.head(encoder.norm(h))[0]
        errors += [(rebuilt[i] - patches[i]).abs() for i in range(16) if hidden[i]]
    expected = torch.cat(errors).mean().item()
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("top", [1, 2])
def test_data2vec_predicts_the_mean_of_the_teachers_last_normalised_blocks(top):
    method, batch = doubled("data2vec", top=top, beta=0.5)
    (x,), terms = batch["views"], []
    for scan, hidden in zip(x, hidden_of(method, batch), strict=True):
        h, outputs = method.teacher.embed(method.teacher.patchify(scan[None])) + method.teacher.pos, []
        for block in method.teacher.blocks:
            h = block(h)
            outputs.append(h[0])
        normalised = [[(t - t.mean()) / (t.var(correction=0) + 1e-5).sqrt() for t in out] for out in outputs[-top:]]
        student = method.predictor(method.encoder.tokens(scan[None], hidden_BN=hidden[None], hole=method.hole))[0]
        for i in hidden.nonzero()[:, 0].tolist():
            target = sum(block[i] for block in normalised) / top
            for d in (student[i] - target).abs().tolist():
                terms.append(d * d / 2 / 0.5 if d <= 0.5 else d - 0.25)
    assert min(terms) < 0.1 < 0.5 < max(terms), "both branches of the loss are seen"
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_ijepa_predicts_each_target_by_itself_from_the_context():
    method, batch = doubled("ijepa")
    (x,), step = batch["views"], step_key(batch["key"], CLOCK, 1, torch.device("cpu"))
    context, targets = context_and_targets(batch["key"], step, 0, 1000, method.encoder.grid, method.blocks)
    terms = []
    for scan, seen, wanted in zip(x, context, targets, strict=True):
        truth = method.teacher.tokens(scan[None])[0]
        tokens = method.narrow(method.encoder.tokens(scan[None], seen[None]))[0] + method.positions[seen]
        for block in wanted:
            asked = method.hole + method.positions[block]
            out = method.predictor(torch.cat([tokens, asked])[None])[0, len(seen) :]
            for predicted, i in zip(out, block.tolist(), strict=True):
                t = (truth[i] - truth[i].mean()) / (truth[i].var(correction=0) + 1e-5).sqrt()
                terms += [d * d / 2 if d <= 1 else d - 0.5 for d in (predicted - t).abs().tolist()]
    assert len(terms) == 5 * targets[0].numel() * method.encoder.dim
    assert method(batch, CLOCK)["loss"].item() == pytest.approx(sum(terms) / len(terms), rel=1e-9)


def test_the_blocks_of_ijepa_have_one_size_a_step_and_change_with_it():
    method, sizes = tiny.method("ijepa", size=48), set()
    for step in range(12):
        key = tiny.key(4)
        of_step = step_key(key, Clock(step, 20), 1, torch.device("cpu"))
        context, targets = context_and_targets(key, of_step, 0, 1000, method.encoder.grid, method.blocks)
        sizes.add((context.shape[1], targets.shape[2]))
    assert len(sizes) > 3


@pytest.mark.parametrize("name", ["simmim", "data2vec"])
def test_what_a_token_stands_for_is_never_read(name):
    """Other intensities in hidden patches change the student's output nowhere."""
    method, batch = doubled(name)
    head = method.head if name == "simmim" else method.predictor
    outputs: list[torch.Tensor] = []
    head.register_forward_hook(lambda m, given, out: outputs.append(out.detach()))
    method(batch, CLOCK)
    (x,), hidden = batch["views"], hidden_of(method, batch)
    cells = hidden.view(-1, 1, *method.encoder.grid)
    pixels = F.interpolate(cells.double(), x.shape[2:]).bool()
    changed = torch.where(pixels, x.flip(0) + 3, x)
    method({**batch, "views": [changed]}, CLOCK)
    assert torch.equal(outputs[0], outputs[1])
    method({**batch, "views": [torch.where(pixels, x, x + 0.1)]}, CLOCK)
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_teachers_follow_by_the_schedule_and_get_no_gradient(name):
    method = tiny.method(name)
    method(tiny.batch(1), CLOCK)["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    with torch.no_grad():
        for p in method.encoder.parameters():
            p.add_(1.0)
    before = copy.deepcopy(list(method.teacher.parameters()))
    method.after_step(Clock(5, 10))
    m = 1 - (1 - method.momentum) / 2  # halfway to 1
    for t, old, s in zip(method.teacher.parameters(), before, method.encoder.parameters(), strict=True):
        torch.testing.assert_close(t, m * old + (1 - m) * s)


def frozen(name, dim=32, grid_of=2):
    """Return a method with a frozen teacher of another width and another size of scans, whose patches are `grid_of` pixels."""
    takes = InputConfig(1, (8, 8), None, False, 0.3, 0.25)
    torch.manual_seed(1)
    encoder = catalog.build(
        catalog.spec("encoder", "vit", patch=grid_of, dim=dim, depth=3, heads=2), channels=1, size=takes.size
    )
    return tiny.method(name, teacher=FrozenTeacher(encoder, takes, InputConfig(1, (16, 16), None, False, 0.35, 0.2)))


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_a_frozen_teacher_sets_the_targets_and_never_moves(name):
    """Its tokens at the wanted places, of the scan in its own size and standardisation, are what the loss compares with."""
    method, batch = frozen(name), tiny.batch(1, n=5)
    before, (x,) = copy.deepcopy(method.teacher.state_dict()), batch["views"]
    small = F.interpolate(x, (8, 8), mode="bilinear", antialias=True) * (0.2 / 0.25) + (0.35 - 0.3) / 0.25
    if name == "data2vec":
        wanted = torch.stack([F.layer_norm(h, (32,)) for h in method.teacher.encoder.depths(small)[-2:]]).mean(0)
        wanted, head = wanted[hidden_of(method, batch)], method.predictor
    else:
        step = step_key(batch["key"], CLOCK, 1, x.device)
        context, targets = context_and_targets(batch["key"], step, 0, 1000, method.encoder.grid, method.blocks)
        tokens = F.layer_norm(method.teacher.encoder.tokens(small), (32,))
        wanted = torch.stack([t[block] for t, blocks in zip(tokens, targets, strict=True) for block in blocks])
        head = method.predictor
    outputs: list[torch.Tensor] = []
    head.register_forward_hook(lambda m, given, out: outputs.append(out))
    loss = method(batch, CLOCK)["loss"]
    predicted = outputs[0] if name == "data2vec" else outputs[0][:, context.shape[1] :]
    assert loss.item() == pytest.approx(
        F.smooth_l1_loss(predicted, wanted, beta=getattr(method, "beta", 1.0)).item(), rel=1e-4
    )
    loss.backward()
    method.after_step(CLOCK)
    assert method.teacher_student() is None
    assert all(torch.equal(before[k], v) for k, v in method.teacher.state_dict().items())


@pytest.mark.parametrize("name", ["data2vec", "ijepa"])
def test_a_frozen_teacher_without_these_patches_is_refused(name):
    with pytest.raises(UserError, match=r"the teacher has a grid of \(2, 2\) patches, and the encoder one of \(4, 4\)"):
        frozen(name, grid_of=4)
    with pytest.raises(UserError, match="the teacher has no tokens"):
        tiny.method(name, teacher=tiny.teacher(1, (16, 16)))
