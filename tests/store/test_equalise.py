"""Histogram equalisation, and that contrast curves do not change equalised scans in the store, training and scoring."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy.stats import rankdata

import medssl
import tiny
from medssl.encoders.export import load_encoder
from medssl.errors import UserError
from medssl.scoring.baselines import FROZEN, FeatureSources
from medssl.store.equalise import MEAN, STD, equalise_histogram
from medssl.store.resampled import resampled_for_encoder
from medssl.store.store import Store

SHAPES = st.sampled_from([(1, 6, 7), (3, 4, 5), (1, 3, 4, 5)])
SCANS = st.sampled_from(["uint8", "int16", "float32"]).flatmap(
    lambda dtype: hnp.arrays(dtype, SHAPES, elements=st.integers(0, 100))
)


@given(SCANS, st.integers(-1, 100))
def test_ranks_equal_scipy(x, low):
    found = equalise_histogram(x, low)
    assert (found.dtype, found.shape) == (np.uint8, x.shape)
    inside = x > low
    assert not found[~inside].any()
    if inside.any():
        share = (rankdata(x[inside]) - 0.5) / inside.sum()
        np.testing.assert_array_equal(found[inside], np.ceil(255 * share))


@given(SCANS, st.integers(-1, 100))
def test_increasing_curves_change_nothing(x, low):
    curve = np.sort(np.random.default_rng(0).choice(np.arange(-30000, 30000, dtype=np.int16), 102, replace=False))
    np.testing.assert_array_equal(
        equalise_histogram(curve[x.astype(int) + 1], curve[low + 1]), equalise_histogram(x, low)
    )


def test_ranks_are_uniform():
    x = np.random.default_rng(0).normal(size=(1, 300, 300)).astype(np.float32)
    unit = equalise_histogram(x, -100.0) / 255
    assert unit.mean() == pytest.approx(MEAN, abs=0.003)
    assert unit.std() == pytest.approx(STD, abs=0.001)


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory):
    """The same patients in two hospitals whose scanners have different contrast curves."""
    work = tmp_path_factory.mktemp("hospitals")
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(48, 8, 8)).repeat(3, 1).repeat(3, 2) + 0.3 * rng.normal(size=(48, 24, 24))
    grey = np.clip(110 + 45 * smooth, 1, 254)
    for name, power in (("a", 1.0), ("b", 0.5)):
        folder = work / f"scans {name}"
        folder.mkdir()
        for i, x in enumerate(grey):
            Image.fromarray(np.uint8(np.round(255 * (np.round(x) / 255) ** power))).save(folder / f"{i}.png")
        medssl.ingest(folder, work / name, key=tiny.secret(work / "key"))
    return work


def run_on(work, out, equalise):
    return medssl.pretrain(
        work / "a", work / out, method="simclr", encoder="cnn", encoder_options={"widths": [8, 16]}, size=16,
        steps=2, batch=4, monitor_every=0, equalise=equalise,
    )  # fmt: skip


def test_features_do_not_depend_on_the_contrast_curve(hospitals):
    """Nor do those of the baselines; without equalisation both change much."""
    a, b = (Store.open(hospitals / name) for name in "ab")
    rows = a.rows()
    moved = {}
    for equalise in (False, True):
        run = run_on(hospitals, f"run {equalise}", equalise)
        entrants = FeatureSources(run, a, "cpu")
        for name, source in entrants.all(FROZEN):
            x, y = source(a, rows), source(b, rows)
            moved[name, equalise] = np.abs(x - y).mean() / x.std(0).mean()
    for name in ("run", *FROZEN):
        assert moved[name, True] < 0.1 * moved[name, False], (name, moved)
    assert moved["run", False] > 0.1, moved


def test_encoder_json_has_mean_and_std_of_ranks(hospitals):
    run = run_on(hospitals, "run card", True)
    card = json.loads((run / "encoder.json").read_text())
    assert (card["equalise"], card["mean"], card["std"]) == (True, MEAN, STD)
    resampled = resampled_for_encoder(Store.open(hospitals / "b"), load_encoder(run)[1].input)
    assert (resampled.mean, resampled.std, resampled.array.dtype) == (MEAN, STD, np.uint8)
    assert set(resampled.low) == {0.0}
    assert set(resampled.high) == {255.0}


def test_a_run_without_equalise_is_refused(hospitals):
    run = run_on(hospitals, "run old", False)
    text = (run / "resolved.yaml").read_text()
    (run / "resolved.yaml").write_text(text.replace("equalise: false\n", ""))
    with pytest.raises(UserError, match="written by an earlier medssl; pretrain again"):
        medssl.report(run)
