"""Dense probes: which pixels are drawn, what a linear reader and neighbours make of them, and that nobody asks himself."""

import numpy as np
import pytest
import torch
from torch import nn

import tiny
from medssl.encoders.cnn import CNN
from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.evals.embed import standardised
from medssl.evals.probes.dense import Pixels, by_neighbours, hypercolumns, linear, sample
from medssl.store.resampled import ResampledScans


class AsItIs(nn.Module):
    """An encoder whose only stage is the scan itself: what a probe sees is then known."""

    def stages(self, x):
        return [x]


def gaussians(n=30, size=24, seed=0, share=(0.9, 0.1), shift=2.0):
    """Scans of two channels, whose pixels of class k are normal about (k shift, 0), and the classes."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((n, size, size)) < share[1]).astype(np.uint8)
    x = rng.normal(size=(n, 2, size, size)).astype(np.float32)
    x[:, 0] += shift * masks
    # values in the unit range, as a canvas's window makes them; standardised, they are x again
    array, mean, std = (x + 10) / 30, 10 / 30, 1 / 30
    return ResampledScans(array, np.zeros(n, np.float32), np.ones(n, np.float32), mean, std, (size, size)), masks, x


def discs(n=24, size=16):
    """`tiny.canvas` and its discs."""
    resampled = tiny.resampled(n, size=size)
    return resampled, (resampled.array[:, 0] > 120).astype(np.uint8)


PEOPLE = np.array([f"p{i // 2}" for i in range(60)], object)


@pytest.fixture(scope="module")
def cnn():
    torch.manual_seed(0)
    return CNN(1, (16, 16), widths=(8, 16)).eval()


def test_a_hypercolumn_is_every_stage_at_one_place(cnn):
    resampled, _ = discs(4)
    x = standardised(resampled, np.arange(4))
    with torch.inference_mode():
        f, blocks = hypercolumns(cnn, x)
        fine, coarse = cnn.stages(x)
    assert blocks == (8, 16)
    assert f.shape == (4, 24, 16, 16)
    assert torch.equal(f[:, :8], fine)
    # linear interpolation by hand: output 5 lies at 2.25 in the coarse stage, output 8 at 3.75
    by_hand = sum(a * b * coarse[:, :, i, j] for i, a in ((2, 0.75), (3, 0.25)) for j, b in ((3, 0.25), (4, 0.75)))
    torch.testing.assert_close(f[:, 8:, 5, 8], by_hand)


def test_the_sample_is_balanced_and_keeps_the_class_shares(cnn):
    resampled, masks = discs()
    rows = np.array([3, 7, 8, 20])
    pixels = sample(cnn, resampled, masks, rows, PEOPLE, 2, each=5)
    assert len(pixels.x) == 4 * 2 * 5
    for row in rows:
        mine = pixels.y[pixels.patient == PEOPLE[row]]
        assert set(mine) == {0, 1}
    np.testing.assert_allclose(pixels.share, np.bincount(masks[rows].ravel()) / masks[rows].size)
    np.testing.assert_allclose(pixels.correction, pixels.share / 0.5)
    with torch.inference_mode():
        f = hypercolumns(cnn, standardised(resampled, rows[:1]))[0][0].flatten(1).T.numpy()
    flat = masks[rows[0]].ravel()
    for x, y in zip(pixels.x[:10], pixels.y[:10], strict=True):  # each is a pixel of that scan, of that class
        assert y in flat[np.abs(f - x).max(1) < 1e-5]


def test_the_sample_is_a_function_of_seed_and_scan(cnn):
    resampled, masks = discs()
    whole = sample(cnn, resampled, masks, np.array([3, 7, 8]), PEOPLE, 2, each=5)
    alone = sample(cnn, resampled, masks, np.array([7]), PEOPLE, 2, each=5)
    assert np.array_equal(whole.x[10:20], alone.x)
    assert not np.array_equal(alone.x, sample(cnn, resampled, masks, np.array([7]), PEOPLE, 2, each=5, seed=1).x)
    with pytest.raises(UserError, match="only one class"):
        sample(cnn, resampled, masks * 0, np.array([7]), PEOPLE, 2)
    with pytest.raises(UserError, match="no feature maps"):
        sample(MLP(1, (16, 16), widths=(8,)), resampled, masks, np.array([7]), PEOPLE, 2)


@pytest.mark.parametrize("share", [(0.9, 0.1), (0.5, 0.5)])
def test_a_linear_probe_finds_the_true_probabilities(share):
    """Two Gaussians of equal spread: log odds are shift (x - shift / 2) + log prior odds, whatever was sampled."""
    resampled, masks, x = gaussians(share=share)
    pixels = sample(AsItIs(), resampled, masks, np.arange(30), PEOPLE, 2, each=150)
    p = linear(AsItIs(), pixels)(torch.from_numpy(x[:4]))[:, 1].numpy()
    truth = 1 / (1 + np.exp(-(2.0 * (x[:4, 0] - 1.0) + np.log(share[1] / share[0]))))
    np.testing.assert_allclose(p, truth, atol=0.05)


def test_a_linear_probe_of_three_classes_and_one_that_was_never_drawn():
    resampled, masks, x = gaussians(8)
    masks[:, :8] = 3 * masks[:, :8]  # classes 0, 1 and 3; nobody has 2
    pixels = sample(AsItIs(), resampled, masks, np.arange(8), PEOPLE, 4, each=50)
    p = linear(AsItIs(), pixels)(torch.from_numpy(x[:2]))
    assert p.shape == (2, 4, 24, 24)
    assert (p[:, 2] == 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(2, 24, 24))


def test_neighbours_vote_as_in_a_loop_over_pixels(cnn):
    resampled, masks = discs(6)
    pixels = sample(cnn, resampled, masks, np.array([0, 1, 2, 3]), PEOPLE, 2, each=6)
    x = standardised(resampled, np.array([0]))
    with torch.inference_mode():
        p = by_neighbours(cnn, pixels, k=5)(PEOPLE[0])(x)[0].movedim(0, -1).numpy()
        f = hypercolumns(cnn, x)[0][0].movedim(0, -1).numpy()
    bank = [np.split(v.astype(np.float64), [8]) for v in pixels.x]
    others = np.flatnonzero(pixels.patient != PEOPLE[0])
    assert 0 < len(others) < len(bank)
    correction = pixels.share / np.array([np.mean(pixels.y == k) for k in (0, 1)])
    for i, j in ((0, 0), (8, 8), (5, 11)):
        asks = np.split(f[i, j].astype(np.float64), [8])

        def cosine(a, b):
            return a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-12)

        s = {o: np.mean([cosine(a, b) for a, b in zip(asks, bank[o], strict=True)]) for o in others}
        nearest = sorted(others, key=lambda o: -s[o])[:5]
        votes = np.array([sum(np.exp(s[o] / 0.07) for o in nearest if pixels.y[o] == k) for k in (0, 1)]) * correction
        np.testing.assert_allclose(p[i, j], votes / votes.sum(), rtol=1e-4)


def test_a_pixel_never_uses_its_own_patient():
    """A bank that holds the very pixels of the scan with the wrong class, as its own patient's, and weaker right ones."""
    x = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])  # two pixels, (1, 0) and (0, 1)
    bank = np.array([[1, 0], [0, 1], [0.9, 0.4], [0.4, 0.9]], np.float32)
    pixels = Pixels(bank, np.array([1, 0, 0, 1]), np.array(["a", "a", "b", "b"], object), np.array([0.5, 0.5]), (2,))
    own = by_neighbours(AsItIs(), pixels, k=1)
    assert own("a")(x).argmax(1).tolist() == [[[0, 1]]]
    assert own("c")(x).argmax(1).tolist() == [[[1, 0]]]


def test_probes_see_the_discs(cnn):
    """Features of an untrained network are enough for bright discs: both probes find them in scans of other people."""
    resampled, masks = discs(40)
    pixels = sample(cnn, resampled, masks, np.arange(30), PEOPLE, 2, each=8)
    for net in (linear(cnn, pixels), by_neighbours(cnn, pixels)("somebody else")):
        with torch.inference_mode():
            found = net(standardised(resampled, np.arange(30, 40))).argmax(1).numpy()
        truth = masks[30:40]
        assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
