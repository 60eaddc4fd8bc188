"""Hashes of one image are similar however it was saved, and hashes of different images are not."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.fft import dct

from medssl.readers.phash import BLANK, hamming, packed, phash, resize_weights, thumbnail


@pytest.fixture(scope="module")
def xrays(shared):
    files = (
        sorted((shared / "cxr_nih" / "images").iterdir())[:40]
        + sorted((shared / "cxr_guangzhou" / "images").iterdir())[::100]
    )
    return [np.asarray(Image.open(f).convert("L"), np.float32) / 255 for f in files]


def jpeg(x):
    buffer = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(buffer, "JPEG", quality=75)
    return np.asarray(Image.open(buffer), np.float32) / 255


def resized(x):
    return np.asarray(Image.fromarray(x).resize((x.shape[1] // 2, x.shape[0] // 2), Image.Resampling.BICUBIC))


def shifted(x):
    return np.pad(x, ((2, 0), (2, 0)), mode="edge")[: x.shape[0], : x.shape[1]]


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        (jpeg, 10),
        (resized, 10),
        (lambda x: np.clip(x * 1.1, 0, 1), 10),
        (lambda x: x * 0.9, 1),
        (lambda x: x**0.7, 40),
        (shifted, 48),
    ],
    ids=["jpeg", "resized", "brighter", "darker", "gamma", "shifted"],
)
def test_hashes_of_the_same_xray_are_close(xrays, change, bits):
    a, b = packed([phash(x) for x in xrays]), packed([phash(change(x)) for x in xrays])
    assert hamming(a, b).max() <= bits


def test_hashes_of_different_patients_are_far_apart(xrays):
    hashes = packed([phash(x) for x in xrays])
    apart = [hamming(hashes[i], hashes[i + 1 :]).min() for i in range(len(hashes) - 1)]
    assert min(apart) > 50


def test_the_hash_is_the_dct_of_the_thumbnail():
    x = np.random.default_rng(0).random((70, 90))
    band = dct(dct(thumbnail(x), axis=0), axis=1)[:16, :16]
    band[0] /= np.sqrt(2)
    band[:, 0] /= np.sqrt(2)
    bits = (band > np.median(band.ravel()[1:])).astype(int).ravel()
    assert phash(x) == "".join(f"{int(''.join(map(str, bits[k : k + 4])), 2):x}" for k in range(0, 256, 4))


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(-2, 2))
def test_resize_weights_average(n, shift):
    w = resize_weights(n, shift)
    assert w.shape == (64, n)
    np.testing.assert_allclose(w.sum(1), 1, rtol=1e-5)
    assert w.min() >= 0


def test_shifted_thumbnails():
    x = np.random.default_rng(0).random((128, 128)).astype(np.float32)
    there = thumbnail(np.roll(x, (-2, 1), (0, 1)))
    np.testing.assert_allclose(thumbnail(x, 2, -1)[4:-4, 4:-4], there[4:-4, 4:-4], atol=1e-5)


def test_volumes_use_the_middle_slice_and_flat_images_are_blank():
    volume = np.random.default_rng(0).random((7, 40, 50))
    assert phash(volume) == phash(volume[3]) != phash(volume[2])
    assert phash(np.full((40, 50), 0.7)) == BLANK
    assert phash(np.full((40, 50), np.nan)) == BLANK


@settings(deadline=None)
@given(hnp.arrays(np.uint8, (5, 32)), hnp.arrays(np.uint8, (5, 32)))
def test_hamming_counts_bits(a, b):
    slow = [
        sum(f"{x ^ y:b}".count("1") for x, y in zip(p.tolist(), q.tolist(), strict=True))
        for p, q in zip(a, b, strict=True)
    ]
    assert hamming(a, b).tolist() == slow
    assert packed([row.tobytes().hex() for row in a]).tolist() == a.tolist()
