"""Copies of X-rays that were mirrored, turned, cropped, padded, shifted, inverted or covered are found, and nothing else."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from quality_transformed_copies import WAYS
from scipy.ndimage import gaussian_filter

from leakage.test_leak_check import empty, of
from medssl.leakage.equalised_grid import (
    EqualisedGrid,
    as_tensors,
    content,
    normalise_contrast,
    smoothed,
    uniform_regions,
)
from medssl.leakage.image_sets import ImageComparer
from medssl.leakage.leak_check import check_leaks
from medssl.leakage.registration import Affine, correlation, independent_values, register
from medssl.leakage.transformed_copies import AgreeingPairs, agreeing_pairs, best_pairs
from medssl.leakage.transformed_duplicates import classify, find_transformed
from medssl.leakage.transformed_search import Candidates, TransformedSearch, Transforms

HARD = (
    "a square of a quarter blacked anywhere",
    "local equalisation, 8 x 8 tiles, no limit",
    "shifted by 10 %, wrapped",
)


@pytest.fixture(scope="module")
def transforms():
    return Transforms()


@pytest.fixture(scope="module")
def xrays(shared):
    files = sorted((shared / "cxr_nih" / "images").iterdir())[:220]
    return [np.asarray(Image.open(f).convert("L"), np.float32) / 255 for f in files]


def grid(x):
    return EqualisedGrid.from_image(np.ascontiguousarray(x, np.float32))


def shrunk(x, side):
    return np.asarray(Image.fromarray(x).resize((side, side), Image.Resampling.BOX))


@pytest.mark.parametrize("seen_side", [224, 28])
def test_each_kind_of_copy_is_found_and_other_xrays_are_not(xrays, transforms, seen_side):
    small = [grid(shrunk(x, seen_side)) for x in xrays[:60]]
    kept = [i for i, g in enumerate(small) if g is not None]
    assert kept[:3] == [0, 1, 2]
    assert len(kept) > 56  # a few have less than 24 pixels inside their border
    rng, copies, names = np.random.default_rng(0), [], []
    for way, change in WAYS.items():
        if way in HARD or (way == "28 pixels" and seen_side == 224):
            continue
        copies += [change(x, rng) for x in xrays[:3]]
        names += [way] * 3
    others = xrays[195:]
    queries = [(k, g) for k, x in enumerate([*copies, *others]) if (g := grid(x)) is not None]
    pairs = agreeing_pairs([g for _, g in queries], [small[i] for i in kept], transforms, 0.5)
    found = {}
    for q, i, kind in zip(pairs.query, pairs.image, classify(pairs), strict=True):
        if kind == "near" or (kind == "maybe" and seen_side == 28):  # many of these refuse as well
            found.setdefault(queries[q][0], kept[i])
    assert sum(k >= len(copies) for k in found) == 0
    hits = {way: sum(found.get(k) == k % 3 for k, n in enumerate(names) if n == way) for way in dict.fromkeys(names)}
    weak = [way for way in WAYS if seen_side == 28 and ("local" in way or "quadrant" in way)]
    assert {way: n for way, n in hits.items() if n < 2 and way not in weak} == {}
    assert np.mean([found.get(k) == k % 3 for k in range(len(copies))]) >= (0.95 if seen_side == 224 else 0.8)


def test_a_window_that_saturates_parts_all_over_an_image_leaves_it_among_the_candidates(xrays, transforms):
    small = [shrunk(x, 64) for x in xrays]
    described = [(x, g) for x in small if (g := grid(x)) is not None]
    search = TransformedSearch(np.stack([g.ranks for _, g in described]), torch.arange(len(described)), transforms)
    queries = described[:60]
    copies = [
        grid(np.clip((x - low) / (high - low), 0, 1)) for x, _ in queries for low, high in [np.percentile(x, (30, 70))]
    ]
    asked = [i for i, g in enumerate(copies) if g is not None]
    found = search.candidates(np.stack([copies[i].ranks for i in asked]))
    right = {asked[q] for q, image in zip(found.query.tolist(), found.image.tolist(), strict=True) if image == asked[q]}
    assert len(asked) > 50
    assert len(right) >= 0.95 * len(asked)


def test_transforms_of_one_wrong_image_do_not_take_the_places_of_the_right_one():
    """Two finalists are compared in full: the best transform of each of the two best images."""
    candidates = Candidates(*(torch.tensor(x) for x in ([0] * 3, [5, 5, 3], [0, 1, 2], [1.0] * 3)))
    final = {0: 0.1, 1: 0.1, 2: 0.97}
    pairs, score, _, _ = best_pairs(
        candidates,
        candidates.image,
        torch.tensor([0.9, 0.8, 0.7]),
        lambda at: torch.tensor([[final[i] for i in at.tolist()], [20.0] * len(at)]),
        0.8,
    )
    assert candidates.image[pairs].tolist() == [3]
    assert score.tolist() == pytest.approx([0.97])


def test_a_test_of_transformed_training_scans_is_refused_and_other_patients_are_not(xrays, tmp_path):
    train = of("training", xrays[:60])
    copies = [x[10:-12, 9:-11] for x in xrays[:6]] + [x[:, ::-1] for x in xrays[6:12]]
    test = of("test", [np.ascontiguousarray(x) for x in copies] + xrays[60:70])
    cache = tmp_path / "cache"
    for _ in range(2):  # computed, then read from the cache
        report = check_leaks(empty("pretraining"), train, empty("validation"), test, cache)
        assert "training includes at least 12 of the 22 test images (12 near-duplicates)" in report.refusal
    kept = list(cache.glob("transformed_*.npz"))
    assert len(kept) == 1
    for damaged in (cache.glob("leaks_*.json"), kept):
        for file in damaged:
            file.write_bytes(b"damaged")
        assert check_leaks(empty("pretraining"), train, empty("validation"), test, cache)["training", "test"].near == 12
    clean = dataclasses.replace(of("test", xrays[60:70]))
    report = check_leaks(empty("pretraining"), train, empty("validation"), clean)
    assert report.refusal == ""
    assert not report["training", "test"]


def test_the_result_does_not_depend_on_the_order_of_scans(xrays):
    a, b = of("training", xrays[:40]), of("test", [x[:, ::-1].copy() for x in [*xrays[30:40], *xrays[200:205]]])
    backwards = of("training", xrays[:40][::-1])
    found = [find_transformed((part,), b, ImageComparer([part, b])) for part in (a, backwards)]
    assert found[0] == found[1]
    assert len(found[0].copies) == 10
    assert not found[0].not_compared


def test_scans_that_are_not_compared_are_counted(xrays, tmp_path):
    """Three shapes without texture and a thumbnail of 20 pixels."""
    y, x = np.indices((64, 64))
    shapes = [(x + y > 60 + 2 * k).astype(np.float32) for k in range(5)]
    train = of("training", [*shapes[:2], *xrays[:4]])
    test = of("test", [*shapes[2:], shrunk(xrays[9], 20), *xrays[10:14]])
    cache = tmp_path / "cache"
    for _ in range(2):  # computed, then read from the cache
        words = "\n".join(check_leaks(empty("pretraining"), train, empty("validation"), test, cache).warnings())
        assert "4 of 8 test scans and 2 of 6 training scans have too little texture" in words


def test_the_border_is_cut_off_and_regions_without_structure_are_marked():
    x = gaussian_filter(np.random.default_rng(0).normal(size=(90, 70)), 2)
    x = ((x - x.min()) / np.ptp(x)).astype(np.float32)
    assert content(np.pad(x, ((5, 9), (0, 12)), constant_values=0.4)) == (slice(5, 95), slice(0, 70))
    np.testing.assert_array_equal(grid(np.pad(x, 8)).ranks, grid(x).ranks)
    y = np.tile(x[:64, :64], 1)
    y[10:30, 20:50] = 0.3
    marked = uniform_regions(y)
    assert marked[11:29, 21:49].all()
    assert not marked[:9].any()
    assert grid(x[:20, :20]) is None  # too few pixels
    assert grid(np.full((90, 90), 0.5)) is None


def test_ranks_do_not_change_under_curves_and_are_reversed_when_inverted():
    x = gaussian_filter(np.random.default_rng(1).normal(size=(64, 64)), 2)
    x = ((x - x.min()) / np.ptp(x)).astype(np.float32)
    ranks = grid(x).ranks.astype(int)
    assert np.abs(grid(x**3).ranks.astype(int) - ranks).max() <= 1
    assert np.abs(256 - grid(1 - x).ranks.astype(int) - ranks).max() <= 1


def test_contrast_is_normalised_as_by_hand():
    rng = np.random.default_rng(2)
    value, weight = rng.random((1, 12, 12)), (rng.random((1, 12, 12)) > 0.2) * 1.0
    found = normalise_contrast(torch.tensor(value).float(), torch.tensor(weight).float(), 1.5)[0].numpy()

    def mean(x):
        out = np.zeros((12, 12))
        for i in range(12):
            for j in range(12):
                total = share = 0.0
                for k in range(12):
                    for m in range(12):
                        if max(abs(i - k), abs(j - m)) <= 6:
                            w = np.exp(-((i - k) ** 2 + (j - m) ** 2) / (2 * 1.5**2)) / (2 * np.pi * 1.5**2)
                            total, share = total + w * weight[0, k, m] * x[k, m], share + w * weight[0, k, m]
                out[i, j] = total / (share + 1e-3)
        return out

    apart = (value[0] - mean(value[0])) * weight[0]
    np.testing.assert_allclose(found, apart / np.sqrt(mean(apart**2) + 0.03**2), atol=1e-4)


def test_a_weighted_gaussian_mean_as_by_hand():
    rng = np.random.default_rng(5)
    value, weight = rng.random((1, 10, 10)), (rng.random((1, 10, 10)) > 0.2) * 1.0
    found = smoothed(torch.tensor(value).float(), torch.tensor(weight).float(), 1.0)[0].numpy()
    at = np.arange(10)
    near = np.exp(-0.5 * (at[:, None] - at) ** 2) * (np.abs(at[:, None] - at) <= 4)
    total, share = near @ (value * weight)[0] @ near, near @ weight[0] @ near
    np.testing.assert_allclose(found, total / share * weight[0], atol=1e-5)


def test_a_central_square_of_28_pixels_is_found_in_a_wide_image(xrays, transforms):
    squares = [grid(shrunk(np.ascontiguousarray(x[:, 45:179]), 28)) for x in xrays[:40]]  # 0.6 of the width
    seen = [i for i, g in enumerate(squares) if g is not None]
    queries = [grid(x) for x in [*xrays[:20], *xrays[195:]]]
    pairs = agreeing_pairs(queries, [squares[i] for i in seen], transforms, 0.5)
    sure = {
        (int(q), seen[i])
        for q, i, kind in zip(pairs.query, pairs.image, classify(pairs), strict=True)
        if kind == "near"
    }
    assert all(q == i for q, i in sure)
    assert len(sure) >= 16


def test_registration_recovers_an_affine_map():
    x = torch.from_numpy(gaussian_filter(np.random.default_rng(3).normal(size=(1, 64, 64)), (0, 3, 3))).float()
    x, everywhere = x / x.std(), torch.ones(1, 64, 64)
    true = Affine(torch.tensor([[[0.95, 0.05], [-0.04, 1.03]]]), torch.tensor([[0.02, -0.03]]))
    fixed = true.sample(x[:, None])[:, 0]
    start = Affine(torch.eye(2)[None], torch.zeros(1, 2))
    maps, score = register((x, everywhere), (fixed, everywhere), start, 12)
    assert float(score) > 0.995
    np.testing.assert_allclose(maps.matrix, true.matrix, atol=0.01)
    np.testing.assert_allclose(maps.shift, true.shift, atol=0.005)


def test_grids_at_half_resolution_average_what_has_structure():
    ranks = np.zeros((1, 64, 64), np.uint8)
    ranks[0, :2, :2] = [[11, 21], [31, 0]]
    ranks[0, 2, 2] = 101
    value, weight = as_tensors(ranks, 32)
    assert float(value[0, 0, 0]) == pytest.approx((21 - 1) / 254)
    assert weight[0, 0, 0] == 1
    assert weight.sum() == 1  # a quarter of a pixel is not enough
    assert as_tensors(ranks, 64)[1].sum() == 4


@pytest.mark.parametrize(("score", "evidence", "runner_up", "sharp", "kind"), [
    (0.9, 20, 0.5, True, "near"), (0.91, 20, 0.5, False, "near"), (0.85, 20, 0.5, False, "maybe"),
    (0.89, 20, 0.5, False, "near"), (0.87, 20, 0.5, False, "maybe"), (0.75, 20, 0.3, True, "maybe"),
    (0.9, 20, 0.85, True, ""), (0.96, 20, 0.96, True, "near"), (0.96, 20, 0.96, False, ""), (0.7, 20, 0.0, True, ""),
    (0.96, 7.9, 0.96, True, ""), (0.91, 7.9, 0.5, False, ""), (0.91, 8.0, 0.5, False, "near"),
])  # fmt: skip
def test_the_limits_of_a_copy(score, evidence, runner_up, sharp, kind):
    one = np.zeros(1, np.int64)
    pairs = AgreeingPairs(one, one, *(np.array([x]) for x in (score, evidence, runner_up, sharp)))
    assert classify(pairs) == [kind]


def test_unrelated_images_of_a_few_smooth_blobs_are_no_copies(transforms):
    rng = np.random.default_rng(0)
    blobs = [Image.fromarray(rng.normal(size=(4, 4)).astype(np.float32)).resize((48, 48), 3) for _ in range(200)]
    images = [grid(np.clip(0.43 + 0.1 * np.asarray(x), 0, 1).round(3)) for x in blobs]
    pairs = agreeing_pairs(images[140:], images[:140], transforms, 0.5)
    assert pairs.score.max() > 0.84  # so much alike that correlation alone does not tell
    assert not any(classify(pairs))


def test_the_number_of_independent_values():
    """By its definition: the correlation of unrelated smooth images has the mean square 1 / m."""
    rng = np.random.default_rng(0)
    wide = (gaussian_filter(rng.normal(size=(600, 64, 64)), (0, 1, 1), mode="wrap") for _ in "xy")
    x, y = (torch.from_numpy(i[:, 16:48, 16:48]).float() for i in wide)
    weight = torch.ones(600, 32, 32)
    found, m = correlation(x, y, weight), independent_values(3 * x + 1, y, weight)
    assert float(found.square().mean()) == pytest.approx(float((1 / m).mean()), rel=0.2)
    half = weight * (torch.arange(32) < 16)
    torch.testing.assert_close(independent_values(x * half, y * half, half), independent_values(x, y + 1 - half, half))
    white = torch.from_numpy(rng.normal(size=(2, 200, 16, 16))).float()
    assert float(independent_values(*white, torch.ones(200, 16, 16)).median()) == pytest.approx(256, rel=0.1)


def test_sharp_images_are_smoothed_to_the_detail_of_small_ones(xrays, transforms):
    """Noise of a sharp image that a small copy cannot show does not count against it."""
    rng = np.random.default_rng(0)
    small = [shrunk(x, 40) for x in xrays[:30]]
    noisy = [np.clip(x + rng.normal(0, 0.12, x.shape), 0, 1) for x in xrays[:8]]
    pairs = agreeing_pairs([grid(x) for x in noisy], [grid(x) for x in small], transforms, 0.5)
    right = {int(q): float(s) for q, i, s in zip(pairs.query, pairs.image, pairs.score, strict=True) if q == i}
    assert len(right) == 8
    assert np.median(list(right.values())) > 0.9
