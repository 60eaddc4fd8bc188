"""Segmentation scores against MONAI, closed forms and their own conventions; windows against MONAI; grids there and back."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import sliding_window_inference
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

import tiny
from medssl.encoders.config import InputConfig
from medssl.evals.embed import standardised
from medssl.evals.metrics.segmentation import agreement, case
from medssl.evals.sliding_window import Grid, importance, slide, windows
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import open_key
from medssl.readers.scan import Scan
from medssl.store.masks import labels_to_classes, mask_labels, resample_masks, resample_nearest
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store

DICE, HD95, SURFACE, VOLUME = range(4)


def blob(seed, shape, share=0.2):
    """Smooth random regions."""
    x = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.5)
    return x > np.quantile(x, 1 - share)


def ball(radius, shape=(40, 40, 40), centre=(20, 20, 20)):
    return sum((g - c) ** 2 for g, c in zip(np.indices(shape), centre, strict=True)) <= radius**2


def theirs(predicted, truth, spacing, tolerance):
    """Dice, HD95 and surface Dice by MONAI."""
    p, t = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (predicted, truth))
    at = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            float(compute_dice(p, t, include_background=True)),
            float(compute_hausdorff_distance(p, t, percentile=95, **at)),
            float(compute_surface_dice(p, t, [tolerance], **at)),
        ]


@pytest.mark.parametrize("seed", range(8))
def test_random_masks_score_as_in_monai(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(9, 24, 2 + seed % 2))
    spacing = tuple(rng.uniform(0.5, 3, len(shape)))
    a, b = blob(seed, shape, rng.uniform(0.05, 0.5)), blob(seed + 100, shape, rng.uniform(0.05, 0.5))
    for tolerance in (0.0, 1.0, 2.5):
        mine = agreement(a, b, spacing, tolerance)
        np.testing.assert_allclose(mine[:3], theirs(a, b, spacing, tolerance), rtol=1e-5, atol=1e-6)
    assert mine[VOLUME] == pytest.approx((a.sum() - b.sum()) * np.prod(spacing) / 10 ** len(shape))


def test_real_masks_score_as_in_monai(shared, tmp_path):
    import nibabel

    for path in sorted((shared / "hippocampus" / "labels").iterdir())[:3]:
        truth = np.asarray(nibabel.load(path).dataobj).astype(np.uint8)
        predicted = np.roll(truth, 2, axis=1)
        predicted[binary_dilation(truth == 1) & (truth == 0)] = 1
        found = case(predicted, truth, 3, (1.0, 1.5, 0.7), 1.0)
        for k in (1, 2):
            expected = theirs(predicted == k, truth == k, (1.0, 1.5, 0.7), 1.0)
            np.testing.assert_allclose(found[k - 1, :3], expected, rtol=1e-5)


def test_shifted_cubes():
    """An edge of n moved by d along one axis: n - d of n planes are common, and the moved faces are d apart."""
    n, d, spacing = 10, 3, (2.0, 1.0, 0.5)
    truth = np.zeros((24, 24, 24), bool)
    truth[5 : 5 + n, 5 : 5 + n, 5 : 5 + n] = True
    for axis in range(3):
        found = agreement(np.roll(truth, d, axis), truth, spacing)
        assert found[DICE] == pytest.approx((n - d) / n)
        assert found[VOLUME] == 0
        assert found[HD95] <= d * spacing[axis]


def test_parallel_plates_are_apart_by_what_lies_between_them():
    truth = np.zeros((20, 12, 12), bool)
    truth[4] = True
    for d in (1, 5):
        found = agreement(np.roll(truth, d, 0), truth, (1.5, 1, 1), tolerance=1.5 * d)
        np.testing.assert_allclose(found, [0, 1.5 * d, 1, 0])
        assert agreement(np.roll(truth, d, 0), truth, (1.5, 1, 1), tolerance=1.5 * d - 0.01)[SURFACE] == 0


def test_concentric_balls():
    r, s = 15, 11
    found = agreement(ball(r), ball(s), (2.0, 2.0, 2.0), tolerance=2 * (r - s) - 2.0)
    volume = [4 / 3 * np.pi * x**3 for x in (r, s)]
    assert found[DICE] == pytest.approx(2 * volume[1] / sum(volume), abs=0.01)
    assert found[HD95] == pytest.approx(2 * (r - s), abs=2 * 0.9)  # within a voxel's diagonal of the exact surfaces
    assert found[SURFACE] < 0.1
    assert found[VOLUME] == pytest.approx((volume[0] - volume[1]) * 8 / 1000, rel=0.02)
    assert agreement(ball(r), ball(s), (2.0, 2.0, 2.0), tolerance=2 * (r - s) + 2.0)[SURFACE] == 1


def test_what_touches_the_border_has_its_surface_there():
    whole = np.ones((6, 6), bool)
    hole = whole.copy()
    hole[2:4, 2:4] = False
    found = agreement(whole, hole, None, 0.0)
    # surfaces: the 20 pixels of the rim, and for `hole` the 8 about the hole as well, which are a pixel from the rim
    assert found[SURFACE] == pytest.approx((20 + 20) / (20 + 28))
    assert found[HD95] == 1.0


def test_conventions_where_a_class_is_absent():
    some, none = ball(3, (10, 10, 10), (5, 5, 5)), np.zeros((10, 10, 10), bool)
    spacing = (1.0, 2.0, 3.0)
    assert agreement(none, none, spacing).tolist() == [1, 0, 1, 0]
    diagonal = np.linalg.norm([10, 20, 30])
    for p, t in ((some, none), (none, some)):
        np.testing.assert_allclose(agreement(p, t, spacing)[:3], [0, diagonal, 0])
    assert agreement(none, some, spacing)[VOLUME] == pytest.approx(-some.sum() * 6 / 1000)
    assert diagonal > agreement(np.roll(some, 4, 2), some, spacing)[HD95]  # nothing can be worse than finding nothing
    with pytest.raises(ValueError, match="the reference"):
        agreement(none, none[:-1])


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), axis=st.integers(0, 2), shares=st.tuples(*[st.sampled_from([0.02, 0.1, 0.4])] * 2))
def test_neither_direction_nor_orientation_nor_unit_matters(seed, axis, shares):
    a, b = blob(seed, (9, 10, 11), shares[0]), blob(seed + 1, (9, 10, 11), shares[1])
    spacing = np.array([1.0, 2.0, 0.5])
    first = agreement(a, b, spacing, 1.0)
    np.testing.assert_allclose(agreement(b, a, spacing, 1.0), first * [1, 1, 1, -1])
    np.testing.assert_allclose(agreement(np.flip(a, axis), np.flip(b, axis), spacing, 1.0), first)
    turned = agreement(np.moveaxis(a, 0, 2), np.moveaxis(b, 0, 2), np.roll(spacing, -1), 1.0)
    np.testing.assert_allclose(turned, first)
    np.testing.assert_allclose(agreement(a, b, 3 * spacing, 3.0), first * [1, 3, 1, 27])


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 8), (8, 8)), ((13, 9), (8, 8)), ((20, 33), (8, 12)), ((8, 17), (8, 6)), ((9, 16, 11), (8, 8, 4))],
)
def test_windows_as_in_monai(shape, size):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d if len(shape) == 2 else torch.nn.Conv3d
    net = torch.nn.Sequential(conv(2, 3, 3, padding=1), torch.nn.Softmax(1)).eval()
    x = torch.randn(2, *shape)
    with torch.inference_mode():
        expected = sliding_window_inference(x[None], size, 3, net, overlap=0.5, mode="gaussian")[0]
        torch.testing.assert_close(slide(net, x, size, batch=3), expected)
    for n, m in zip(shape, size, strict=True):
        covered = np.zeros(n, int)
        for start in windows(n, m):
            covered[start : start + m] += 1
        assert (covered > 0).all()


def test_a_window_counts_most_in_its_middle_and_its_own_answer_comes_back():
    say = importance((6, 9))
    assert say.argmax() in (2 * 9 + 4, 3 * 9 + 4)
    assert say.min() > 0
    x = torch.randn(2, 15, 20)
    torch.testing.assert_close(slide(lambda w: w, x, (6, 9)), x)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Volumes of three tissues with masks that say which, of several shapes and spacings; the mask's labels are 2 and 7."""
    folder = tmp_path_factory.mktemp("drawn")
    alias = open_key(tiny.secret(folder / "key"))
    with StoreWriter(folder / "s", alias, intensity="natural") as writer:
        for k, (shape, spacing) in enumerate(
            [((24, 24, 24), (1.0,) * 3), ((12, 30, 24), (2.0, 1.0, 1.0)), ((21, 17, 40), (1.0, 1.3, 0.8))] * 2
        ):
            at = [np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)]
            middle = [n * mm / 2 for n, mm in zip(shape, spacing, strict=True)]
            far = sum(((g - m) / (m * 0.8)) ** 2 for g, m in zip(np.meshgrid(*at, indexing="ij"), middle, strict=True))
            mask = np.where(far > 1, 0, np.where(np.arange(shape[2]) < shape[2] * (0.4 + 0.02 * k), 2, 7)).astype(
                np.uint8
            )
            image = np.choose(np.searchsorted([0, 2, 7], mask), [20, 120, 220]).astype(np.uint8)
            affine = np.diag([*spacing, 1.0])
            about = {"spacing": spacing, "affine": affine, "patient_known": False}
            writer.add(Scan(image[None], f"i{k}", f"p{k}", **about), f"images/c{k}.nii")
            writer.add(Scan(mask[None], f"m{k}", f"q{k}", quarantined="label map", **about), f"labels/c{k}.nii")
        writer.finish()
    return Store.open(folder / "s")


def by_brightness(x):
    """A network that cannot err: the three tissues by their brightness, as scores of 0 or 1."""
    return (
        torch.nn.functional.one_hot(torch.bucketize(x[:, 0] * 255, torch.tensor([70.0, 170.0])), 3)
        .movedim(-1, 1)
        .float()
    )


def test_labels_become_classes(drawn):
    assert len(drawn) == 6
    assert mask_labels(drawn, drawn.rows()) == (0, 2, 7)
    assert mask_labels(drawn, drawn.rows()[:0]) == (0,)
    mask = drawn.mask(0)
    assert np.array_equal(np.array([0, 2, 7])[labels_to_classes(mask, (0, 2, 7))], mask[0])
    assert set(np.unique(labels_to_classes(mask, (0, 7)))) == {0, 1}


@pytest.mark.parametrize(("size", "spacing"), [(16, None), (24, None), ((24, 30, 24), 1.0), (12, 1.0)])
def test_masks_are_resampled_to_the_same_place_as_their_images(drawn, size, spacing):
    masks, resampled = resample_masks(drawn, (0, 2, 7), size, spacing), resample_scans(drawn, size, spacing)
    assert masks.shape == (6, *resampled.size)
    seen = resampled.array[:, 0] > 70  # halfway between the background and the darker tissue
    assert min(agreement(m > 0, s)[DICE] for m, s in zip(masks, seen, strict=True)) > 0.9
    if spacing == 1.0 and size == (24, 30, 24):
        same = [row for row in range(6) if drawn.column("spacing")[row] == (1.0, 1.0, 1.0)]
        assert same
        for row in same:  # nothing is resampled: voxel by voxel, with the padding that centres it
            assert np.array_equal(masks[row][:, 3:27], labels_to_classes(drawn.mask(row), (0, 2, 7)))
            assert not masks[row][:, :3].any()
    assert resample_masks(drawn, (0, 2, 7), size, spacing).tobytes() == masks.tobytes()


def test_nearest_is_the_voxel_a_centre_lies_in():
    x = np.arange(1, 8)
    starts, extents, n = -1.5, 10.0, 6
    expected = []
    for j in range(n):
        at = starts + (j + 0.5) * extents / n
        expected.append(int(x[int(np.floor(at))]) if 0 <= at < len(x) else 0)
    assert resample_nearest(x, [n], [starts], [extents]).tolist() == expected
    assert resample_nearest(x, [7], [0.0], [7.0]).tolist() == x.tolist()


def plain(size, spacing):
    return InputConfig(1, size, spacing, False, 0.0, 1.0)


@pytest.mark.parametrize("equalise", [False, True])
def test_a_grid_gives_what_training_gave(drawn, equalise):
    wanted = replace(plain((24, 24, 24), None), equalise=equalise, mean=0.3, std=0.7)
    resampled = resampled_for_encoder(drawn, wanted)
    for row in drawn.rows().tolist():
        x = Grid(drawn, wanted, "cpu").of(row)[0]
        np.testing.assert_array_equal(x.numpy(), standardised(resampled, np.array([row]), "cpu")[0].numpy())


@pytest.mark.parametrize(("size", "spacing"), [(24, None), (16, 1.0), ((16, 12, 20), 0.7)])
def test_there_and_back_a_scan_is_segmented_on_its_own_voxels(drawn, size, spacing):
    size = (size,) * 3 if isinstance(size, int) else size
    grid = Grid(drawn, plain(size, spacing), "cpu")
    for row in drawn.rows():
        truth = labels_to_classes(drawn.mask(row), (0, 2, 7))
        found = grid.segment(by_brightness, int(row))
        assert found.shape == truth.shape
        assert agreement(found > 0, truth > 0)[DICE] > 0.93
        for k in (0, 1, 2):  # away from the borders, where tissues mix
            assert (found[binary_erosion(truth == k, iterations=3)] == k).all()
        if spacing == 1.0 and drawn.column("spacing")[row] == (1.0, 1.0, 1.0):
            assert np.array_equal(found, truth)  # nothing is resampled, and windows meet without a seam


def test_a_grid_puts_every_voxel_where_it_is_in_mm(drawn):
    """A network that answers with the position of its pixels: what comes back is each voxel's own position, in mm."""
    row = int(np.flatnonzero([len({*s}) == 3 for s in drawn.column("spacing")])[0])
    voxel, shape = drawn.column("spacing")[row], drawn.column("shape")[row][1:]
    for spacing, size in ((0.9, (16, 16, 16)), (None, (24, 24, 24))):
        grid = Grid(drawn, plain(size, spacing), "cpu")
        x, starts, extents = grid.of(row)
        at = [s + (np.arange(n) + 0.5) * e / n for s, e, n in zip(starts, extents, x.shape[1:], strict=True)]
        mm = torch.from_numpy(np.stack(np.meshgrid(*at, indexing="ij"))).float() * torch.tensor(voxel).view(3, 1, 1, 1)
        back = grid.back(mm, row, starts, extents).numpy()
        own = np.stack(
            np.meshgrid(*[(np.arange(n) + 0.5) * v for n, v in zip(shape, voxel, strict=True)], indexing="ij")
        )
        inside = (slice(None), *(slice(2, -2) for _ in shape))
        # half a voxel's shift would be 0.4 mm; an antialiased mean of two or three samples errs by some hundredths
        np.testing.assert_allclose(back[inside], own[inside], atol=0.1)
