"""The scans of each step, for any rank and start; raw batches; views of a batch."""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl import catalog
from medssl.augmentations.loader import RawScans, StepSampler, apply_windows, loader, make_views
from medssl.errors import UserError
from medssl.store.partners import Partners


@dataclass
class Resampled:
    array: np.ndarray
    low: np.ndarray
    high: np.ndarray


def _resampled(path: Path, shape: tuple[int, ...] = (1, 8, 8), dtype: str = "uint16", n: int = 20) -> Resampled:
    values = np.random.default_rng(0).integers(0, 200, size=(n, *shape)).astype(dtype)
    np.save(path / "resampled.npy", values)
    array = np.load(path / "resampled.npy", mmap_mode="r")
    return Resampled(array, np.linspace(0, 50, n, dtype=np.float32), np.linspace(100, 199, n, dtype=np.float32))


sizes = st.integers(1, 4).flatmap(
    lambda world: st.tuples(st.just(world), st.integers(1, 4).map(lambda k: k * world), st.integers(0, 30))
)


@settings(max_examples=60, deadline=None)
@given(sizes=sizes, start=st.integers(0, 15), length=st.integers(0, 12), seed=st.integers(0, 2**63 - 1))
def test_ranks_share_the_global_batch_and_a_later_start_gives_the_same_batches(sizes, start, length, seed):
    world, batch, more = sizes
    rows = np.arange(batch + more) * 3 + 100
    whole = list(StepSampler(rows, batch, 0, start + length, seed))
    ranks = [list(StepSampler(rows, batch, start, start + length, seed, r, world)) for r in range(world)]
    assert [list(chain.from_iterable(rank[i] for rank in ranks)) for i in range(length)] == whole[start:]


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 12), seed=st.integers(0, 1000))
def test_an_epoch_visits_each_row_at_most_once(n, batch, seed):
    if n < batch:
        batch = n
    per_epoch = n // batch
    steps = list(StepSampler(np.arange(n) + 5, batch, 0, 3 * per_epoch, seed))
    for epoch in range(3):
        seen = list(chain.from_iterable(steps[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert {e for _, e in seen} == {epoch}
        assert len({row for row, _ in seen}) == len(seen) == per_epoch * batch
        assert {row for row, _ in seen} <= set(range(5, n + 5))


def test_epochs_and_seeds_differ_in_order():
    rows = np.arange(30)
    first, second = ([row for row, _ in step] for step in StepSampler(rows, 30, 0, 2, 1))
    (other,) = ([row for row, _ in step] for step in StepSampler(rows, 30, 0, 1, 2))
    assert sorted(first) == sorted(second) == sorted(other) == list(range(30))
    assert first != second
    assert first != other


def test_an_impossible_batch_is_refused_with_a_remedy():
    with pytest.raises(UserError, match="lower batch to at most 10"):
        StepSampler(np.arange(11), 12, 0, 1, 0, 0, 2)
    with pytest.raises(UserError, match="multiple of 4"):
        StepSampler(np.arange(100), 10, 0, 1, 0, 0, 4)
    with pytest.raises(UserError, match="add scans"):
        StepSampler(np.arange(1), 2, 0, 1, 0, 0, 2)


KEPT = [("uint8", torch.uint8), ("int16", torch.int16), ("uint16", torch.int32), ("float32", torch.float32)]


@pytest.mark.parametrize(("dtype", "kept"), KEPT)
@pytest.mark.parametrize("shape", [(1, 6, 5), (4, 3, 4, 5)])
def test_raw_batches_hold_the_requested_rows(tmp_path, dtype, kept, shape):
    resampled = _resampled(tmp_path, shape, dtype)
    raw = RawScans(resampled, np.arange(20) * 2).__getitems__([(7, 3), (2, 3), (7, 4)])
    assert raw["image"].dtype == kept
    assert np.array_equal(raw["image"].numpy(), resampled.array[[7, 2, 7]])
    assert raw["scan"].tolist() == [7, 2, 7]
    assert raw["epoch"].tolist() == [3, 3, 4]
    assert raw["target"].tolist() == [14, 4, 14]
    assert torch.equal(raw["low"], torch.from_numpy(resampled.low[[7, 2, 7]]))
    assert torch.equal(raw["high"], torch.from_numpy(resampled.high[[7, 2, 7]]))
    assert "target" not in RawScans(resampled).__getitems__([(0, 0)])


def test_large_uint16_values_survive(tmp_path):
    resampled = _resampled(tmp_path)
    resampled.array = np.full((20, 1, 2, 2), 65535, dtype=np.uint16)
    assert RawScans(resampled).__getitems__([(0, 0)])["image"].max() == 65535


def test_workers_do_not_change_the_batches(tmp_path):
    resampled = _resampled(tmp_path)
    rows, targets = np.arange(3, 20), np.arange(20)
    alone, helped = (list(loader(resampled, rows, 4, 2, 9, 5, workers=w, targets=targets)) for w in (0, 2))
    assert len(alone) == len(helped) == 7
    for a, b in zip(alone, helped, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


def test_unit_range_is_the_window_of_each_scan():
    raw = {
        "image": torch.tensor([[[[0, 5, 10, 20]]], [[[0, 5, 10, 20]]], [[[7, 7, 7, 7]]]], dtype=torch.int16),
        "low": torch.tensor([0.0, 5.0, 7.0]),
        "high": torch.tensor([20.0, 10.0, 7.0]),
    }
    expected = torch.tensor([[0, 0.25, 0.5, 1], [0, 0, 1, 1], [0, 0, 0, 0]])
    assert torch.equal(apply_windows(raw).view(3, 4), expected)


def _raw(resampled: Resampled, pairs: list[tuple[int, int]]) -> dict[str, torch.Tensor]:
    return RawScans(resampled).__getitems__(pairs)


def test_views_are_standardised(tmp_path):
    raw = _raw(_resampled(tmp_path), [(0, 0), (1, 0)])
    views, key = make_views(raw, catalog.build(catalog.load("augment", "plain"), size=(8, 8)), 2, 11, mean=0.4, std=0.2)
    assert len(views) == 2
    assert torch.allclose(views[0], (apply_windows(raw) - 0.4) / 0.2, atol=1e-6)
    assert key.seed == 11
    assert torch.equal(key.scan, raw["scan"])
    assert torch.equal(key.epoch, raw["epoch"])


def test_views_do_not_depend_on_the_batch_or_on_autocast(tmp_path):
    resampled = _resampled(tmp_path, (1, 16, 16))
    recipe = catalog.build(catalog.spec("augment", "xray"), size=(16, 16))
    pairs = [(4, 1), (9, 1), (2, 1)]
    together, _ = make_views(_raw(resampled, pairs), recipe, 2, 3, 0.5, 0.25)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        alone = [make_views(_raw(resampled, [pair]), recipe, 2, 3, 0.5, 0.25)[0] for pair in pairs]
    for view in range(2):
        assert together[view].dtype == torch.float32
        assert torch.allclose(together[view], torch.cat([a[view] for a in alone]), atol=1e-5)
    later, _ = make_views(_raw(resampled, [(4, 2)]), recipe, 2, 3, 0.5, 0.25)
    assert not torch.allclose(later[0], together[0][:1], atol=1e-2)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_a_partner_is_drawn_anew_in_every_epoch_and_comes_with_its_own_window(tmp_path):
    resampled = _resampled(tmp_path)
    partners = [np.array([r for r in range(20) if r // 4 == row // 4 and r != row]) for row in range(20)]
    source = RawScans(resampled, partners=Partners(partners, aligned=False))
    drawn = []
    for epoch in range(40):
        raw = source.__getitems__([(row, epoch) for row in (5, 6, 13)])
        again = source.__getitems__([(13, epoch)])
        assert torch.equal(again["partner_image"][0], raw["partner_image"][2])
        for i, row in enumerate((5, 6, 13)):
            (at,) = (r for r in range(20) if np.array_equal(resampled.array[r], raw["partner_image"][i].numpy()))
            assert at in partners[row]
            assert raw["partner_low"][i] == resampled.low[at]
            assert raw["partner_high"][i] == resampled.high[at]
            drawn.append((row, at))
    assert set(drawn) == {(row, at) for row in (5, 6, 13) for at in partners[row]}
    counts = [drawn.count(pair) for pair in set(drawn)]
    assert min(counts) > 4  # of 40 / 3 expected


@pytest.mark.parametrize(("aligned", "view"), [(True, 0), (False, 1)])
def test_the_last_view_shows_the_partner_through_the_same_crop_or_its_own(tmp_path, aligned, view):
    """A scan and an aligned partner of equal pixels give equal views, else views 0 and 1; the partner's window applies."""
    resampled = _resampled(tmp_path, n=4)
    array = np.array(resampled.array)
    array[1] = array[0]
    low, high = np.zeros(4, np.float32), np.array([200, 100, 200, 200], np.float32)
    partners = Partners([np.array([1]), np.array([0]), np.array([3]), np.array([2])], aligned)
    source = RawScans(Resampled(array, low, high), partners=partners)
    crop = catalog.build(catalog.spec("augment", "crop"), size=(8, 8))
    raw = source.__getitems__([(0, 3), (2, 3)])
    name = "aligned" if aligned else "partner"
    plain = {k: v for k, v in raw.items() if not k.startswith(name)}
    (first, second), _ = make_views(raw, crop, 2, 7, 0.0, 1.0)
    alone, _ = make_views(plain, crop, 2, 7, 0.0, 1.0)
    assert torch.equal(first, alone[0])
    doubled, _ = make_views(plain | {"high": raw[f"{name}_high"]}, crop, 2, 7, 0.0, 1.0)
    torch.testing.assert_close(second[0], doubled[view][0])
    assert not torch.equal(second[0], first[0])
    assert not torch.equal(second[1], alone[1][1])
