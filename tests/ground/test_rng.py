"""Keyed random numbers: published answers of Philox, and statistics with fixed keys, so that results never vary."""

import pytest
import torch
from scipy import stats

from medssl import rng
from medssl.rng import Key

# Known answers published with Random123 (philox4x32, 10 rounds): counter, key, output.
ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def _words(text: str) -> torch.Tensor:
    return torch.tensor([int(w, 16) for w in text.split()])


def _key(n: int, seed: int = 7, epoch: int = 0) -> Key:
    return Key(seed, torch.full((n,), epoch), torch.arange(n))


@pytest.mark.parametrize(("counter", "key", "answer"), ANSWERS)
def test_philox_gives_the_published_answers(counter: str, key: str, answer: str):
    assert rng.philox(_words(counter), _words(key)).tolist() == _words(answer).tolist()


def test_philox_is_the_same_for_a_batch():
    counters, keys, answers = (torch.stack([_words(row[i]) for row in ANSWERS]) for i in range(3))
    assert torch.equal(rng.philox(counters, keys), answers)


def test_uniform_is_uniform():
    u = rng.uniform(_key(5000), 0, 0, 8)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    for column in u.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 0.001


def test_every_part_of_the_key_matters_and_draws_are_uncorrelated():
    n = 20000
    base = rng.uniform(_key(n), 0, 0, 2)
    others = {
        "column": base[:, 1],
        "slot": rng.uniform(_key(n), 0, 1)[:, 0],
        "view": rng.uniform(_key(n), 1, 0)[:, 0],
        "epoch": rng.uniform(_key(n, epoch=1), 0, 0)[:, 0],
        "seed": rng.uniform(_key(n, seed=8), 0, 0)[:, 0],
        "high half of the seed": rng.uniform(_key(n, seed=7 + (1 << 32)), 0, 0)[:, 0],
        "scan": base[:, 0].roll(1),
        "block": rng.uniform(_key(n), 0, 0, 5)[:, 4],
    }
    assert len({tuple(row[:8].tolist()) for row in (base[:, 0], *others.values())}) == 1 + len(others)
    for name, other in others.items():
        assert abs(stats.pearsonr(base[:, 0].numpy(), other.numpy()).statistic) < 4 / n**0.5, name


def test_a_number_does_not_depend_on_the_rest_of_the_batch():
    key = _key(9)
    alone = [rng.uniform(Key(7, key.epoch[i : i + 1], key.scan[i : i + 1]), 2, 3, 3) for i in range(9)]
    assert torch.equal(rng.uniform(key, 2, 3, 3), torch.cat(alone))
    assert torch.equal(rng.uniform(key, 2, 3, 3), rng.uniform(key, 2, 3, 11)[:, :3])


def test_a_slot_beyond_the_view_is_refused():
    with pytest.raises(ValueError, match="slot"):
        rng.uniform(_key(1), 0, rng.SLOTS)


def test_normal_field_is_normal():
    z = rng.normal_field(_key(64), 0, 0, (1, 50, 50))
    assert z.shape == (64, 1, 50, 50)
    flat = z.flatten().double()
    n = len(flat)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):  # moments and their variances
        assert abs((flat**power).mean() - moment) < 4 * (spread / n) ** 0.5, power
    assert stats.kstest(flat[:50000].numpy(), "norm").pvalue > 0.01


def test_uniform_field_is_uniform():
    u = rng.uniform_field(_key(20), 0, 0, (51, 51))
    assert u.shape == (20, 51, 51)
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.01
    assert abs(stats.pearsonr(u[:-1].flatten().numpy(), u[1:].flatten().numpy()).statistic) < 4 / 49419**0.5


def test_normal_field_has_no_pattern():
    z = rng.normal_field(_key(64), 0, 0, (48, 48))
    n = z.numel()
    pairs = {
        "right": (z[:, :, :-1], z[:, :, 1:]),
        "down": (z[:, :-1], z[:, 1:]),
        "next scan": (z[:-1], z[1:]),
        "next view": (z, rng.normal_field(_key(64), 1, 0, (48, 48))),
        "next slot": (z, rng.normal_field(_key(64), 0, 1, (48, 48))),
        "next epoch": (z, rng.normal_field(_key(64, epoch=1), 0, 0, (48, 48))),
        "squares": (z[:, :, :-1] ** 2, z[:, :, 1:] ** 2),
    }
    for name, (a, b) in pairs.items():
        assert abs(stats.pearsonr(a.flatten().numpy(), b.flatten().numpy()).statistic) < 4 / (n * 0.97) ** 0.5, name


def test_normal_field_of_a_scan_does_not_depend_on_the_batch():
    key = _key(4)
    one = rng.normal_field(Key(7, key.epoch[2:3], key.scan[2:3]), 0, 5, (3, 4, 5))
    assert torch.equal(rng.normal_field(key, 0, 5, (3, 4, 5))[2:3], one)


def test_seed_from_depends_on_every_key_and_their_order():
    seeds = {rng.seed_from(*keys) for keys in [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (1 << 32, 0), (0, 1 << 32)]}
    assert len(seeds) == 8
    assert all(0 <= s < 1 << 63 for s in seeds)


def test_generator_repeats_itself():
    assert torch.equal(
        torch.randperm(50, generator=rng.generator(3, 4)), torch.randperm(50, generator=rng.generator(3, 4))
    )
    assert not torch.equal(
        torch.randperm(50, generator=rng.generator(3, 4)), torch.randperm(50, generator=rng.generator(3, 5))
    )
