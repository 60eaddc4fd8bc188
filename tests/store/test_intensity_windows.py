"""Intensity windows by modality, named CT windows, and the conversion to unit range and 8 bits."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import UsageError, UserError
from medssl.readers.scan import Scan
from medssl.store import intensity_windows
from medssl.store.intensity_windows import (
    CT_WINDOWS,
    INTENSITIES,
    check_intensity,
    resolve_intensity,
    to_uint8,
    to_unit_range,
    unit_moments,
    window,
)

RAMP = np.linspace(0, 1000, 10_001, dtype=np.float32).reshape(1, 73, 137)


def scan(array, modality="", **facts):
    return Scan(array=array, scan="s", patient="p", modality=modality, metadata=facts)


def noise(shape, dtype="uint8"):
    return np.random.default_rng(0).integers(0, 256, shape).astype(dtype)


def test_names():
    assert all(check_intensity(name) == name for name in INTENSITIES)
    with pytest.raises(UsageError, match="Did you mean 'xray'"):
        check_intensity("x-ray")
    assert {resolve_intensity("auto", m) for m in intensity_windows.BY_MODALITY} <= set(INTENSITIES)
    assert [resolve_intensity("auto", m) for m in ("CT", "PT", "DX", "US", "OP", "ES", "", "SC")] == (
        ["ct", "pet", "xray", "us", "fundus", "natural", "neutral", "neutral"]
    )
    assert resolve_intensity("mr", "CT") == "mr"


def test_windows_by_modality():
    assert window(scan(RAMP.astype("int16"), "CT"), "auto") == (-1024, 1500)
    assert window(scan(RAMP, "DX"), "auto") == pytest.approx((5, 995))
    assert window(scan(RAMP, "MR"), "auto") == pytest.approx((103.6, 995.5), abs=0.1)
    assert window(scan(RAMP, "PT"), "auto") == pytest.approx((5, 995))
    for recipe in ("us", "fundus", "natural"):
        assert window(scan(RAMP), recipe) == (0, 1000)
    for recipe in ("us", "fundus", "natural", "neutral"):
        assert window(scan(noise((3, 9, 9))), recipe) == (0, 255)
    assert window(scan(noise((1, 9, 9)), "DX"), "auto") == (0, 255)
    for recipe in ("mr", "xray", "pet", "neutral"):
        low, high = window(scan(np.full((1, 4, 4), 7, "int16")), recipe)
        assert (low, high) == (7, 8)
        low, high = window(scan(np.full((1, 4, 4), 1e25, "float32")), recipe)
        assert np.float32(high - low) > 0


@pytest.mark.parametrize("dtype", ["int16", "uint16", "float32"])
def test_one_bright_voxel_does_not_darken_a_scan_of_unknown_modality(dtype):
    x = np.random.default_rng(0).normal(500, 50, (1, 30, 40, 50)).astype(dtype)
    expected = tuple(np.percentile(x, [0.5, 99.5]))
    x[0, 3, 4, 5] = 30_000
    assert window(scan(x), "auto") == pytest.approx(expected, rel=1e-3)
    assert window(scan(x, "NM"), "auto") == window(scan(x), "neutral") == window(scan(x), "auto")
    middle = to_unit_range(x, *window(scan(x), "auto")).mean()
    assert middle == pytest.approx(0.5, abs=0.02)


def test_a_scan_of_unknown_modality_with_little_content_keeps_its_range():
    x = np.zeros((1, 100, 100), np.float32)
    x[0, 0, :3] = 0.25, 0.5, 0.75
    assert window(scan(x), "auto") == (0, 0.75)
    assert window(scan(x.astype(np.uint8)), "auto") == (0, 255)
    labels = np.zeros((1, 100, 100), np.int16)
    labels[0, :50], labels[0, 0, 0] = 1, 300
    assert window(Scan(array=labels, scan="s", patient="p", quarantined="label map"), "auto") == (0, 300)


def test_pet_in_suv():
    """20 SUV in the units of the array."""
    assert window(scan(RAMP, "PT", suv_factor=0.004), "auto") == (0, pytest.approx(5000))
    for broken in (0.0, -1.0, math.nan, math.inf, "much"):
        assert window(scan(RAMP, "PT", suv_factor=broken), "auto") == pytest.approx((5, 995))


@pytest.mark.parametrize(
    ("low", "high", "believed"),
    [
        (200, 800, True),
        (-200, 900, True),
        (500, 1500, True),
        (450, 590, True),
        (450, 500, False),  # 5 % of the values
        (2000, 3000, False),
        (990, 2000, False),
        (-30000, 30000, False),
        (800, 200, False),
        (math.nan, 800, False),
        ("200", 800, False),
    ],
)
def test_the_window_of_an_xray_is_used_if_it_fits(low, high, believed):
    found = window(scan(RAMP, "DX", voi_low=low, voi_high=high), "auto")
    assert found == ((low, high) if believed else pytest.approx((5, 995)))
    eight = window(scan(noise((1, 64, 64)), "CR", voi_low=20.0, voi_high=200.0), "auto")
    assert eight == (20, 200)
    assert window(scan(RAMP, "MR", voi_low=low, voi_high=high), "auto") == pytest.approx((103.6, 995.5), abs=0.1)


def test_mr_foreground_ignores_the_background():
    rng = np.random.default_rng(0)
    head = rng.normal(500, 50, (1, 20, 64, 64)).astype(np.float32)
    air = np.abs(rng.normal(0, 3, (1, 60, 64, 64))).astype(np.float32)
    low, high = window(scan(np.concatenate([air, head], 1), "MR"), "auto")
    assert (low, high) == pytest.approx(np.percentile(head, [0.5, 99.5]), rel=0.02)
    signed = np.concatenate([air * 0 - 3, (head - 500) / 50], 1)  # standardised, with the background darkest
    low, high = window(scan(signed, "MR"), "auto")
    assert -2.6 < low < -1.8
    assert 2.3 < high < 2.7


def test_a_hot_pixel_does_not_darken_an_mr():
    x = np.random.default_rng(0).normal(500, 50, (1, 256, 256)).astype(np.float32)
    x[0, 0, 0] = 1e7
    assert window(scan(x, "MR"), "auto")[1] < 700


@pytest.mark.parametrize("columns", [2048, 2000, 2187, 1023])
def test_thinned_percentiles_see_every_column(columns):
    big = np.broadcast_to(np.arange(columns, dtype="uint16"), (1, 4096, columns))
    big = np.ascontiguousarray(big)
    expected = np.percentile(np.arange(columns), [0.5, 99.5])
    assert window(scan(big), "xray") == pytest.approx(tuple(expected), abs=2)
    assert intensity_windows._sample(big).size <= intensity_windows.SAMPLE


def test_unit_range():
    x = np.array([-2000, -1024, 238, 1500, 3000], np.int16)
    np.testing.assert_allclose(to_unit_range(x, -1024, 1500), [0, 0, 0.5, 1, 1])
    assert to_unit_range(x, 0, 1).dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_arrays_and_tensors_are_mapped_alike(dtype):
    x = noise((2, 1, 9, 9), dtype)
    low, high = np.float64(20.25), np.float64(180.5)
    arrays = to_unit_range(x, low, high)
    ends = (torch.tensor([v, v]).view(2, 1, 1, 1).float() for v in (low, high))
    tensors = to_unit_range(torch.from_numpy(x), *ends)
    assert (arrays.dtype, tensors.dtype) == (np.float32, torch.float32)
    np.testing.assert_array_equal(arrays, tensors.numpy())
    np.testing.assert_allclose(arrays, np.clip((x.astype(float) - low) / (high - low), 0, 1), atol=1e-6)
    flat = to_unit_range(torch.full((1, 4), 7), torch.tensor([[7.0]]), torch.tensor([[7.0]]))
    assert torch.equal(flat, torch.zeros(1, 4))


@given(st.lists(st.integers(-3000, 3000), min_size=1, max_size=40), st.integers(-2000, 1000), st.floats(1, 4000))
@settings(max_examples=100, deadline=None)
def test_moments_equal_a_loop(values, low, width):
    array = np.array(values, np.int16).reshape(1, 1, -1)
    u = [min(max((v - low) / width, 0), 1) for v in values]
    mean, square = unit_moments(array, float(low), low + width)
    assert mean == pytest.approx(sum(u) / len(u), abs=1e-6)
    assert square == pytest.approx(sum(v * v for v in u) / len(u), abs=1e-6)


def test_moments_and_windows_need_little_memory():
    array = noise((1, 64, 512, 512), "int16")
    tracemalloc.start()
    mean, square = unit_moments(array, 0, 255)
    window(scan(array, "MR"), "auto")
    eight = to_uint8(array, 128, 256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < eight.nbytes + (48 << 20)
    assert (mean, square) == pytest.approx((np.mean(array / 255), np.mean((array / 255) ** 2)), abs=1e-5)


def linear(x, centre, width):
    """Pseudo-code of PS3.3 C.11.2.1.2.1 with output 0 to 255."""
    if x <= centre - 0.5 - (width - 1) / 2:
        return 0
    if x > centre - 0.5 + (width - 1) / 2:
        return 255
    return ((x - (centre - 0.5)) / (width - 1) + 0.5) * 255


@pytest.mark.parametrize("name", CT_WINDOWS)
def test_named_windows_are_voi_linear(name):
    level, width = CT_WINDOWS[name]
    x = np.arange(-1400, 2800, dtype=np.int16).reshape(1, 60, 70)
    got = to_uint8(x, level, width)
    assert (got.dtype, got.shape) == (np.uint8, x.shape)
    assert got.ravel().tolist() == [round(linear(int(v), level, width)) for v in x.ravel()]
    assert (got[x < level - width / 2 - 1] == 0).all()
    assert (got[x > level + width / 2 + 1] == 255).all()
    assert {int(got.min()), int(got.max())} == {0, 255}


@given(
    st.lists(st.floats(-3000, 3000, width=32), min_size=1, max_size=30),
    st.floats(-1000, 1000),
    st.just(1.0) | st.floats(1, 5000),
)
@settings(max_examples=200, deadline=None)
def test_to_uint8_equals_a_loop(values, level, width):
    got = to_uint8(np.array(values, np.float32).reshape(1, 1, -1), level, width)
    expected = [linear(v, level, width) for v in values]
    assert np.abs(got.ravel() - np.array(expected)).max() <= 0.5 + 1e-6


def test_to_uint8_spans_many_chunks(monkeypatch):
    monkeypatch.setattr(intensity_windows, "CHUNK", 7)
    x = np.arange(60, dtype=np.int16).reshape(1, 6, 10)
    assert to_uint8(x, 30, 60).ravel().tolist() == [round(linear(v, 30, 60)) for v in range(60)]
    assert unit_moments(x, 0, 59)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("width", [0, 0.5, -3, math.nan, math.inf])
def test_windows_without_width(width):
    with pytest.raises(UserError, match="width"):
        to_uint8(RAMP, 40, width)


def test_the_published_table():
    ranges = {name: (level - width / 2, level + width / 2) for name, (level, width) in CT_WINDOWS.items()}
    assert ranges == {
        "lung": (-1350, 150),
        "mediastinum": (-160, 240),
        "abdomen": (-150, 250),
        "liver": (-45, 105),
        "brain": (0, 80),
        "stroke": (20, 60),
        "subdural": (-32.5, 182.5),
        "bone": (-500, 1300),
        "temporal": (-800, 2000),
        "cta": (-130, 470),
    }
