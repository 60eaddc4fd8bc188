"""Binary masks that were mirrored, turned, inverted, windowed or padded are found, and masks of others are not."""

import dataclasses
from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from leakage.test_leak_check import empty, of
from medssl.leakage.leak_check import check_leaks
from medssl.leakage.plain_shapes import shape_digest
from medssl.readers.phash import BLANK
from medssl.store.manifest_columns import content_hash


def mask(seed, shape=(30, 24, 27)):
    """Return a binary mask of one smooth region, which no two patients share."""
    x = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 4)
    return (x > np.quantile(x, 0.6)).astype(np.float32)


WAYS = {
    "same": lambda x: x,
    "mirrored": lambda x: np.flip(x, 0),
    "mirrored along all axes": np.flip,
    "turned": lambda x: np.rot90(x, 1, (0, 1)),
    "turned and mirrored": lambda x: np.moveaxis(x, 0, -1)[::-1],
    "inverted": lambda x: 1 - x,
    "grey": lambda x: 0.2 + 0.5 * x,
    "padded": lambda x: np.pad(x, 3),
    "inverted, padded with grey": lambda x: np.pad(1 - x, 2, constant_values=0.5),
}


@pytest.mark.parametrize("shape", [(30, 24, 27), (40, 40, 40), (50, 60)])
def test_all_copies_have_one_digest_and_other_shapes_another(shape):
    found = {shape_digest(np.ascontiguousarray(change(mask(1, shape)))) for change in WAYS.values()}
    assert len(found) == 1
    others = {shape_digest(mask(seed, shape)) for seed in range(2, 8)}
    assert len(others) == 6
    assert not others & {*found, ""}


def test_levels_keep_their_order_and_simple_shapes_say_nothing():
    x = mask(1) + mask(2)
    assert shape_digest(x) == shape_digest(2 - x[::-1]) == shape_digest(x**2 / 4)
    assert shape_digest(x) != shape_digest(np.where(x == 1, 3, x))
    small = np.zeros((40, 40))
    small[5:15, 5:25] = 1
    assert shape_digest(small) == ""
    assert shape_digest(np.zeros((40, 40))) == ""
    assert shape_digest(np.random.default_rng(0).random((40, 40))) == ""


def test_a_test_of_transformed_masks_is_refused(tmp_path):
    """Of small masks, too, which are too few voxels to be described otherwise."""

    def as_set(name, volumes):
        volumes = list(map(np.ascontiguousarray, volumes))
        part = of(name, [x[len(x) // 2] for x in volumes], hash=[f"{name} {i}" for i in range(len(volumes))])
        return dataclasses.replace(part, volumes={i: partial(np.asarray, x) for i, x in enumerate(volumes)})

    masks = [mask(seed, (20, 14, 15)) for seed in range(12)]
    train = as_set("training", masks[:6])
    for _ in range(2):  # computed, then read from the cache
        test = as_set(
            "test", [*(change(x) for change, x in zip(list(WAYS.values())[1:6], masks, strict=False)), *masks[6:]]
        )
        report = check_leaks(empty("pretraining"), train, empty("validation"), test, tmp_path / "cache")
        assert report["training", "test"].near == 5
    clean = check_leaks(empty("pretraining"), train, empty("validation"), as_set("test", masks[6:]))
    assert not clean["training", "test"]


def test_volumes_whose_middle_slice_is_blank_are_compared_and_blank_volumes_are_not():
    masks = [mask(seed, (20, 14, 15)) for seed in range(3)]
    for x in masks:
        x[8:13] = 0
    nothing = np.zeros((20, 14, 15), np.float32)

    def as_set(name, volumes):
        part = of(name, [x[len(x) // 2] for x in volumes], hash=[content_hash(x) for x in volumes])
        assert set(part.phash) == {BLANK}
        return dataclasses.replace(part, volumes={i: partial(np.asarray, x) for i, x in enumerate(volumes)})

    train = as_set("training", [*masks[:2], nothing])
    test = as_set("test", [np.ascontiguousarray(masks[0][:, ::-1]), masks[1], masks[2], nothing])
    found = check_leaks(empty("pretraining"), train, empty("validation"), test)["training", "test"]
    assert (found.exact, found.near, found.maybe) == (0, 2, 0)
