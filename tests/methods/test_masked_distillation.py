"""iBOT and DINOv2: hidden patches, two heads, KoLeo and Gram anchoring."""

import math

import pytest
import torch

import tiny
from medssl.errors import UserError
from medssl.losses.koleo import koleo
from medssl.losses.self_distillation import across_views, gram_distance
from medssl.methods.base import Clock
from medssl.methods.parts.token_masks import hide_some, hide_tokens

CLOCK = Clock(5, 10)  # past the warmup: the teacher's temperature is .07


def test_a_share_of_the_patches_is_hidden_and_the_same_one_again_for_the_same_scan():
    share = torch.tensor([0.0, 0.25, 0.5, 1.0, 0.26])
    hidden = hide_tokens(tiny.key(5), 0, 1000, 16, share)
    assert hidden.sum(1).tolist() == [0, 4, 8, 16, 4]
    assert torch.equal(hide_tokens(tiny.key(1, start=2), 0, 1000, 16, share[2:3]), hidden[2:3])
    often = hide_tokens(tiny.key(4000), 0, 1000, 16, torch.full((4000,), 0.25)).float().mean(0)
    assert (often - 0.25).abs().max() < 0.03, "every place is hidden as often"


def test_half_of_the_views_have_hidden_patches_and_how_many_varies():
    hidden = hide_some(tiny.key(4000), 1, 1000, 100, 0.5, (0.1, 0.5)).sum(1)
    some = hidden[hidden > 0].double()
    assert len(some) / 4000 == pytest.approx(0.5, abs=0.03)
    assert (some.min(), some.max()) == (10, 49)
    assert some.mean().item() == pytest.approx(29.5, abs=0.7)


def forward(method, batch):
    """Return the loss of iBOT without KoLeo and Gram anchoring, in loops over scans and patches."""
    seen, real = [], method.encoder.tokens
    method.encoder.tokens = lambda x, **given: seen.append(given) or real(x, **given)
    loss = method(batch, CLOCK)["loss"].item()
    method.encoder.tokens = real
    (given,) = seen
    views = torch.cat(batch["views"])
    with torch.no_grad():
        student, teacher = real(views, **given), method.teacher[0].tokens(views)
        target = torch.softmax(method.teacher[1](teacher.mean(1)) / 0.07, 1)
        scans = across_views(method.head(student.mean(1)).chunk(2), target.chunk(2), 0.1).item()
        patches, hidden_BN = 0.0, given["hidden_BN"]
        # the heads normalise over all hidden patches of the batch
        asked = torch.softmax(method.teacher[2](teacher[hidden_BN]) / 0.07, 1)
        said = torch.log_softmax(method.patch_head(student[hidden_BN]) / 0.1, 1)
        terms = iter(-(p * q).sum().item() for p, q in zip(asked, said, strict=True))
        for hidden in hidden_BN:
            each = [next(terms) for _ in range(int(hidden.sum()))]
            patches += sum(each) / max(len(each), 1) / len(views)
    return loss, scans, patches, given


@pytest.mark.parametrize("name", ["ibot", "dinov2"])
def test_the_loss_is_that_of_scans_and_of_hidden_patches(name):
    method = tiny.method(name, koleo=0.0, centring="mean", patches=0.7)
    loss, scans, patches, given = forward(method, tiny.batch_for(method))
    assert 0 < given["hidden_BN"].any(1).sum() < 16, "some views are whole"
    assert patches > 0
    assert loss == pytest.approx(scans + 0.7 * patches, rel=1e-5)


def test_hidden_patches_are_not_read_and_the_teacher_sees_them():
    method = tiny.method("ibot")
    x, hidden = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 5] = True
    other = x.clone()
    other[:, :, 4:8, 4:8] = 9.0  # patch 5 of a grid of four by four
    with torch.no_grad():
        method.hole.normal_()
        a, b = (method.encoder.tokens(v, hidden_BN=hidden, hole=method.hole) for v in (x, other))
        assert torch.equal(a, b)
        assert not torch.equal(method.teacher[0].tokens(x), method.teacher[0].tokens(other))
        zero = method.encoder.tokens(x, hidden_BN=hidden, hole=0 * method.hole)
    assert not torch.allclose(a, zero), "the learned vector takes its place"


def test_one_head_or_two():
    heads = {name: tiny.method(name) for name in ("ibot", "dinov2")}
    assert heads["ibot"].patch_head is heads["ibot"].head
    assert heads["ibot"].teacher[2] is heads["ibot"].teacher[1]
    assert heads["dinov2"].patch_head is not heads["dinov2"].head


def test_koleo_is_added_for_each_view_apart():
    with_it, without = tiny.method("dinov2"), tiny.method("dinov2", koleo=0.0)
    batch = tiny.batch_for(with_it)
    seen, real = [], with_it.encoder.tokens
    with_it.encoder.tokens = lambda x, **given: seen.append(real(x, **given)) or seen[-1]
    gap = with_it(batch, CLOCK)["loss"].item() - without(batch, CLOCK)["loss"].item()
    a, b = seen[0].mean(1).chunk(2)
    assert gap == pytest.approx(0.1 * (koleo(a) + koleo(b)).item(), rel=1e-4)


def test_gram_anchoring_begins_at_its_share_with_the_teacher_of_then_which_stays():
    method = tiny.method("dinov2", gram=2.0, gram_start=0.3)
    plain = tiny.method("dinov2")
    batch = tiny.batch_for(method)

    def move():
        with torch.no_grad():
            for p in method.encoder.parameters():
                p.add_(0.05 * torch.randn(p.shape))

    assert method(batch, Clock(2, 10))["loss"].item() == pytest.approx(
        plain(batch, Clock(2, 10))["loss"].item(), rel=1e-6
    )
    for step in range(6):
        move()
        method.after_step(Clock(step, 10))
        pairs = zip(method.gram_teacher.parameters(), method.teacher[0].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs) == (step < 3)
    seen, real = [], method.encoder.tokens
    method.encoder.tokens = lambda x, **given: seen.append(real(x, **given)) or seen[-1]
    loss = method(batch, Clock(6, 10))["loss"].item()
    method.gram_start = 1.0  # the same step without it
    method.targets.sums.clear(), method.patch_targets.sums.clear()
    gap = loss - method(batch, Clock(6, 10))["loss"].item()
    with torch.no_grad():
        expected = 2 * gram_distance(seen[0], method.gram_teacher.tokens(torch.cat(batch["views"]))).item()
    assert expected > 0
    assert gap == pytest.approx(expected, rel=1e-3)


def test_the_centre_of_patches_is_the_mean_over_hidden_ones_and_stays_without_any():
    method = tiny.method("ibot")
    batch, seen = tiny.batch_for(method), []
    method.teacher[2].register_forward_hook(lambda m, given, out: seen.append(out))
    method(batch, CLOCK)
    method.after_step(CLOCK)
    torch.testing.assert_close(method.patch_targets.centre, 0.1 * seen[1].mean(0))
    method.chance, before = 0.0, method.patch_targets.centre.clone()
    out = method(batch, CLOCK)
    assert out["patches"] == 0
    assert out["chance"].item() == pytest.approx(math.log(8))
    method.after_step(CLOCK)
    assert torch.equal(method.patch_targets.centre, before)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"encoder": "cnn"}, "use encoder=vit"),
        ({"ratio": [0.5, 0.1]}, "ratio must be"),
        ({"ratio": [0.01, 0.05]}, r"ratio=\[0\.01, 0\.05\] of 16 patches hides none"),
        ({"chance": 1.5}, "chance must lie between 0 and 1"),
        ({"koleo": -1.0}, "koleo is a weight of 0 or more"),
        ({"centring": "batch"}, "centring is 'batch'"),
        ({"small": {"count": 2, "size": 0.1, "scale": [0.1, 0.4]}}, "less than a patch"),
    ],
)
def test_impossible_options_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        tiny.method("ibot", **options)
