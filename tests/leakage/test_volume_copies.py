"""Copies of volumes, and slices of them as images, are found whatever was done to them; other patients' volumes are not."""

import dataclasses
from functools import partial

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from transformed_volumes import WAYS

import medssl
import tiny
from leakage.test_leak_check import empty, of
from medssl.errors import UserError
from medssl.leakage.leak_check import check_leaks, read_pretrained_on, scan_set_from_store
from medssl.leakage.registration import Affine, register
from medssl.leakage.transformed_copies import AgreeingPairs
from medssl.leakage.transformed_duplicates import classify_volumes
from medssl.leakage.transformed_search import best_of_each
from medssl.leakage.volume_copies import agreeing_volumes
from medssl.leakage.volume_grid import HALF_SIDE, MAX_PLANES, VolumeGrid, slice_grids, smoothed_to
from medssl.leakage.volume_search import VolumeTransforms


@pytest.fixture(scope="module")
def transforms():
    return VolumeTransforms()


@pytest.fixture(scope="module")
def volumes(shared):
    files = sorted((shared / "hippocampus" / "images").iterdir())[:24]
    arrays = [np.asarray(nibabel.load(f).dataobj, np.float32).transpose(2, 1, 0) for f in files]
    low, high = zip(*(np.percentile(x, (0.5, 99.5)) for x in arrays), strict=True)
    return [np.clip((x - a) / (b - a), 0, 1) for x, a, b in zip(arrays, low, high, strict=True)]


def as_set(name, volumes):
    """Return a set of volumes, each of another patient."""
    part = of(name, [x[len(x) // 2] for x in volumes], hash=[f"{name} {i}" for i in range(len(volumes))])
    return dataclasses.replace(part, volumes={i: partial(np.asarray, x) for i, x in enumerate(volumes)})


def grid(x):
    return VolumeGrid.from_volume(np.ascontiguousarray(x, np.float32))


def smooth(shape, sigma, seed=0):
    x = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return ((x - x.min()) / np.ptp(x)).astype(np.float32)


def test_each_kind_of_copy_is_found_and_other_volumes_are_not(volumes, transforms):
    rng = np.random.default_rng(0)
    copies = [change(volumes[k % 3], rng) for k, change in enumerate(WAYS.values())]
    queries = [grid(x) for x in [*copies, *volumes[18:]]]
    pairs = agreeing_volumes(queries, [grid(x) for x in volumes[:18]], transforms, 0.5)
    near = np.array(classify_volumes(pairs)) == "near"
    found = dict(zip(pairs.query[near].tolist(), pairs.image[near].tolist(), strict=True))
    wrong = {way: found.get(k) for k, way in enumerate(WAYS) if found.get(k) != k % 3}
    assert wrong == {}
    assert set(found) == set(range(len(WAYS)))


def test_a_test_of_transformed_training_volumes_is_refused_and_other_patients_are_not(volumes):
    train = as_set("training", volumes[:14])
    copies = [volumes[0][::3], volumes[1][:, ::-1], np.rot90(1 - volumes[2], 1, (0, 2)), volumes[3][2:-2, 3:-3, 2:-3]]
    test = as_set("test", [*copies, *volumes[16:20]])
    report = check_leaks(empty("pretraining"), train, empty("validation"), test)
    assert "training includes at least 4 of the 8 test images (4 near-duplicates)" in report.refusal
    assert report["training", "test"].examples[0] == ("near", "training scan 0", "test scan 0")
    clean = check_leaks(empty("pretraining"), train, empty("validation"), as_set("test", volumes[16:20]))
    assert not clean["training", "test"]


@pytest.mark.parametrize("volumes_are", ["training", "test"])
def test_slices_as_images_are_found_among_volumes_and_the_other_way_round(volumes, volumes_are):
    places = [(0, 0, 9), (1, 0, 25), (2, 1, 20), (3, 2, 17), (4, 0, 5)]
    slices = [np.round(volumes[i].take(k, axis) * 255) / 255 for i, axis, k in places]
    others = [x[14] for x in volumes[16:20]]
    images = partial(of, images=[np.ascontiguousarray(x, np.float32) for x in (*slices, *others)])
    if volumes_are == "training":
        sets = as_set("training", volumes[:14]), images("test")
    else:
        sets = images("training"), as_set("test", volumes[:14])
    report = check_leaks(empty("pretraining"), sets[0], empty("validation"), sets[1])
    assert report["training", "test"].near == 5
    assert report.refusal


def test_a_thin_stack_is_compared_by_its_middle_slice(volumes):
    thin = volumes[0][14:18]
    assert grid(thin) is None
    train, test = as_set("training", volumes[:14]), as_set("test", [thin, volumes[16][10:14]])
    report = check_leaks(empty("pretraining"), train, empty("validation"), test)
    assert report["training", "test"].near == 1


def test_volumes_of_stores_are_read_whole_and_damaged_ones_of_pretraining_are_left_out(volumes, tmp_path):
    (tmp_path / "scans").mkdir()
    for i, x in enumerate(volumes[:6]):
        nibabel.save(
            nibabel.Nifti1Image(np.float32(x.transpose(2, 1, 0) * 900), np.eye(4)), tmp_path / "scans" / f"p{i}.nii"
        )
    store = medssl.ingest(tmp_path / "scans", tmp_path / "store", patient=r"(p\d)", key=tiny.secret(tmp_path / "key"))
    part = scan_set_from_store("test", store, store.rows())
    assert set(part.volumes) == set(range(6))
    np.testing.assert_array_equal(part.volumes[2]()[part.volumes[2]().shape[0] // 2], part.image(2))
    run = medssl.pretrain(store, tmp_path / "run", encoder="cnn", steps=1, batch=2, size=16, monitor_every=0)
    seen = read_pretrained_on(run / "pretrained_on.parquet", "key", [store])
    assert set(seen.volumes) == set(range(len(seen)))
    for name in set(store.column("file").tolist()):
        (store.path / name).unlink()
    assert seen.volumes[0]() is None
    with pytest.raises(UserError):
        part.volumes[0]()


def test_descriptors_under_a_transform_are_those_of_the_transformed_volume(transforms):
    n = HALF_SIDE
    x = torch.from_numpy(smooth((1, n, n, n), (0, 1.5, 1.5, 1.5)))
    described = transforms.describe_transformed(x.flatten(1))[0]
    assert len(described) == len(transforms.maps.shift)
    for at in range(0, len(described), 97):
        moved = transforms.maps[torch.tensor([at])].sample(x[:, None])[:, 0]
        expected = transforms.describe(moved.flatten(1))[0]
        np.testing.assert_allclose(described[at], expected, atol=2e-3 * float(expected.norm()))


def test_registration_recovers_an_affine_map_of_a_volume():
    x = torch.from_numpy(smooth((1, 32, 32, 32), (0, 2, 2, 2)))
    x, everywhere = x / x.std(), torch.ones(1, 32, 32, 32)
    matrix = torch.tensor([[[0.95, 0.05, 0], [-0.04, 1.03, 0.02], [0.01, 0, 0.97]]])
    true = Affine(matrix, torch.tensor([[0.02, -0.03, 0.01]]))
    start = Affine(torch.eye(3)[None], torch.zeros(1, 3))
    maps, score = register((x, everywhere), (true.sample(x[:, None])[:, 0], everywhere), start, 12)
    assert float(score) > 0.99
    np.testing.assert_allclose(maps.matrix, true.matrix, atol=0.01)
    np.testing.assert_allclose(maps.shift, true.shift, atol=0.005)


def test_smoothing_along_each_axis_as_by_hand():
    rng = np.random.default_rng(3)
    value, weight = rng.random((2, 6, 6, 6)), (rng.random((2, 6, 6, 6)) > 0.3) * 1.0
    sigma = np.array([[0.0, 1.0, 2.0], [1.5, 0.7, 0.0]])
    found = smoothed_to(*(torch.tensor(a, dtype=torch.float32) for a in (value, weight, sigma))).numpy()
    for k, p in ((0, (1, 2, 3)), (1, (4, 0, 5))):
        total = share = 0.0
        for q in np.ndindex(6, 6, 6):
            w = weight[k][q]
            for a in range(3):
                far = p[a] - q[a]
                w *= (
                    float(far == 0)
                    if sigma[k, a] == 0
                    else np.exp(-0.5 * (far / sigma[k, a]) ** 2) * (abs(far) <= 4 * sigma[k, a])
                )
            total, share = total + w * value[k][q], share + w
        assert found[k][p] == pytest.approx(total / share * weight[k][p], abs=1e-5)


def test_a_volume_is_described_inside_its_border_and_a_thin_or_empty_one_is_not():
    x = smooth((20, 30, 40), 2)
    framed = np.pad(x, ((2, 3), (0, 4), (5, 0)), constant_values=0.4)
    np.testing.assert_array_equal(grid(framed).ranks, grid(x).ranks)
    assert grid(framed).voxels == (20, 30, 40)
    assert grid(x[:7]) is None
    assert grid(x[:, :15, :15]) is None
    assert grid(np.full((30, 30, 30), 0.5)) is None
    np.testing.assert_allclose(
        grid(x**1.5).ranks.astype(int), grid(x).ranks, atol=8
    )  # resampled before they are ranked


def test_slices_along_all_axes_are_described():
    x = smooth((30, 40, 50), 2)
    assert len(slice_grids(x)) == 120
    assert len(slice_grids(x[:, :20])) == 20  # the others have too few pixels
    long = np.tile(x, (1, 1, 6))
    assert len(slice_grids(long)) == 30 + 40 + MAX_PLANES


def test_the_best_slice_of_each_volume_counts():
    value, scan = torch.tensor([0.1, 0.9, 0.8, 0.3, 0.5, 0.2]), torch.tensor([0, 1, 1, 2, 2, 3])
    assert best_of_each(value, scan, 3).tolist() == [1, 4, 5]
    assert best_of_each(value, torch.arange(6), 3).tolist() == [1, 2, 4]


@pytest.mark.parametrize(("score", "runner_up", "kind"), [
    (0.9, 0.6, "near"), (0.84, 0.5, "maybe"), (0.82, 0.5, "maybe"), (0.9, 0.8, "maybe"), (0.79, 0.2, ""), (0.9, 0.85, ""),
])  # fmt: skip
def test_the_limits_of_a_copy_of_a_volume(score, runner_up, kind):
    one = np.zeros(1, np.int64)
    pairs = AgreeingPairs(one, one, np.array([score]), np.array([20.0]), np.array([runner_up]), np.array([True]))
    assert classify_volumes(pairs) == [kind]
