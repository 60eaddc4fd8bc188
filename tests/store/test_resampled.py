"""Resampling to a common grid: pixels, proportions, padding and the cache."""

import errno
import multiprocessing
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

import medssl.store.resampled as resampled_module
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.resampled import resample_scans
from medssl.store.store import Store


def make(out, arrays, spacings=None, **options):
    with StoreWriter(out, Pseudonyms(b"k" * 32), **options) as writer:
        for i, x in enumerate(arrays):
            spacing = spacings[i] if spacings else None
            writer.add(Scan(x, scan=f"s{i}", patient=f"p{i}", spacing=spacing), f"{i}")
        return writer.finish()


def noise(shape, dtype="uint8", seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        return (rng.normal(size=shape) * 10.0 ** rng.integers(-9, 9, shape)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 24), (2, 8, 8, 8), (1, 6, 12, 9)])
def test_native_shapes_stay_as_they_are(tmp_path, dtype, shape):
    arrays = [noise(shape, dtype, seed) for seed in range(3)]
    made = resample_scans(make(tmp_path / "s", arrays), shape[1:])
    assert made.array.dtype == dtype
    assert made.array.tobytes() == np.stack(arrays).tobytes()


@pytest.mark.parametrize(("n", "m"), [(64, 32), (224, 64), (61, 48), (28, 64), (50, 111), (300, 17)])
@pytest.mark.parametrize("channels", [1, 3])
def test_squares_equal_torchvision(tmp_path, n, m, channels):
    arrays = [noise((channels, n, n), seed=seed) for seed in range(3)]
    made = resample_scans(make(tmp_path / "s", arrays), m)
    want = resize(torch.from_numpy(np.stack(arrays)).float() / 255, [m, m], antialias=True).numpy()
    assert np.abs(made.array / 255 - want).max() < 1 / 255


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_proportions_are_kept_and_padding_is_low(tmp_path, dtype):
    x = np.full((1, 40, 20), 100, dtype)
    x[:, ::2] = 90
    store = make(tmp_path / "s", [x], intensity="xray")
    made = resample_scans(store, 16)
    pad = np.array(made.low[0]).astype(dtype)
    assert (made.array[..., :4] == pad).all()
    assert (made.array[..., 12:] == pad).all()
    inside = made.array[..., 4:12].astype(float)
    assert inside.min() >= 90
    assert inside.max() <= 100
    assert abs(inside.mean() - 95) < 1


def test_upscaling_does_not_smear_the_edge_outwards(tmp_path):
    store = make(tmp_path / "s", [np.full((1, 20, 10), 200, np.uint8)])
    column = resample_scans(store, 200).array[0, 0, 100]
    assert (column[50:150] == 200).all()
    assert (column[:50] == 0).all()
    assert (column[150:] == 0).all()


def test_negative_values_are_padded_with_low_not_zero(tmp_path):
    store = make(tmp_path / "s", [np.full((1, 10, 30, 30), -500, np.int16)], intensity="ct")
    array = resample_scans(store, 15).array
    assert set(np.unique(array)) == {-1024, -500}
    assert (array == -500).sum() == 5 * 15 * 15


def ball(shape, spacing, radius):
    axes = [(np.arange(n) + 0.5 - n / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    distance = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    return (np.clip(radius - distance + 0.5, 0, 1) * 1000).astype(np.int16)[None]


@pytest.mark.parametrize(
    ("shape", "spacing"), [((12, 48, 48), (4, 1, 1)), ((48, 24, 96), (1.0, 2.0, 0.5)), ((40, 16), (0.5, 1.5))]
)
def test_a_ball_stays_a_ball(tmp_path, shape, spacing):
    x = ball(shape, spacing, 0.4 * min(n * mm for n, mm in zip(shape, spacing, strict=True)))
    array = resample_scans(make(tmp_path / "s", [x], [spacing], intensity="neutral"), 32).array[0, 0].astype(float)
    at = np.arange(32) - 15.5
    moments = []
    for axis in range(array.ndim):
        mass = array.sum(tuple(a for a in range(array.ndim) if a != axis))
        centre = (mass * at).sum() / mass.sum()
        assert abs(centre) < 0.55  # whole voxels of padding
        moments.append((mass * (at - centre) ** 2).sum() / mass.sum())
    assert max(moments) / min(moments) < 1.1  # without the spacing: 4 to 16


def test_odd_padding_does_not_blur(tmp_path):
    x = noise((1, 31, 32))
    array = resample_scans(make(tmp_path / "s", [x]), 32).array[0]
    assert np.array_equal(array[:, :31], x)


def test_a_scan_without_spacing_is_isotropic(tmp_path):
    array = resample_scans(make(tmp_path / "s", [np.full((1, 10, 40, 40), 9, np.uint8)]), 20).array
    assert (array != 0).sum() == 5 * 20 * 20


def test_a_grid_in_mm(tmp_path):
    store = make(tmp_path / "s", [np.full((1, 20, 40), 7, np.uint8)] * 2, [(1.0, 1.0), (2.0, 0.5)])
    first, second = resample_scans(store, 32, spacing=2.0).array[:, 0]
    assert np.argwhere(first)[[0, -1]].tolist() == [[11, 6], [20, 25]]  # 20 x 40 mm are 10 x 20 voxels
    assert np.argwhere(second)[[0, -1]].tolist() == [[6, 11], [25, 20]]
    middle = resample_scans(store, 4, spacing=1.0).array[0, 0]
    assert (middle == 7).all()  # a grid smaller than the scan keeps its middle
    with pytest.raises(UserError, match="spacing=-1"):
        resample_scans(store, 32, spacing=-1)
    with pytest.raises(UserError, match=r"1 of 2 scans .* no voxel size"):
        resample_scans(make(tmp_path / "t", [noise((1, 4, 4))] * 2, [None, (1.0, 1.0)]), 32, spacing=1.0)


@pytest.mark.parametrize("size", [0, -3, (8,), (8, 8, 8), (8, 0)])
def test_sizes_that_do_not_fit(tmp_path, size):
    with pytest.raises(UserError, match="does not fit"):
        resample_scans(make(tmp_path / "s", [noise((1, 4, 4))]), size)


@pytest.mark.parametrize(
    ("dtypes", "common"),
    [(("uint8", "uint16"), "uint16"), (("uint8", "int16"), "int16"), (("int16", "uint16"), "float32")],
)
def test_mixed_types_lose_nothing(tmp_path, dtypes, common):
    arrays = [noise((1, 8, 8), d, i) for i, d in enumerate(dtypes)]
    made = resample_scans(make(tmp_path / "s", arrays), 8)
    assert made.array.dtype == common
    assert all(np.array_equal(got, want) for got, want in zip(made.array, arrays, strict=True))


def test_batches_do_not_change_a_pixel(tmp_path, monkeypatch):
    arrays = [noise((1, 20 + i % 2, 20), seed=i) for i in range(9)]
    together = resample_scans(make(tmp_path / "a", arrays), 12)
    monkeypatch.setattr(resampled_module, "BATCH", 1)
    one_by_one = resample_scans(make(tmp_path / "b", arrays), 12)
    assert np.array_equal(together.array, one_by_one.array)
    assert together.low.dtype == together.high.dtype == np.float32


def test_the_cache_is_used_and_a_damaged_one_is_not(tmp_path):
    store = make(tmp_path / "s", [noise((1, 20, 20), seed=i) for i in range(3)])
    want = np.array(resample_scans(store, 12).array)
    (file,) = (store.path / "cache").iterdir()
    before = file.stat().st_mtime_ns
    assert np.array_equal(resample_scans(Store.open(store.path), (12, 12)).array, want)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-10])
    assert np.array_equal(resample_scans(store, 12).array, want)
    resample_scans(store, 13)
    assert len(list((store.path / "cache").iterdir())) == 2


def in_children(work, n=1):
    """Run `work(i)` in n forked processes at once; return their results."""
    pipes, context = [], multiprocessing.get_context("fork")
    for i in range(n):
        here, there = context.Pipe()
        context.Process(target=lambda: there.send(work(i)), daemon=True).start()  # noqa: B023
        pipes.append(here)
    assert all(pipe.poll(30) for pipe in pipes)
    return [pipe.recv() for pipe in pipes]


def test_two_processes_may_build_at_once(tmp_path):
    store = make(tmp_path / "s", [noise((1, 64, 64), seed=i) for i in range(100)])
    barrier = multiprocessing.get_context("fork").Barrier(3)

    def build(_):
        barrier.wait(20)
        return [resample_scans(store, size).array.tobytes() for size in (48, 32, 16)]

    got = in_children(build, 3)
    assert got == [[resample_scans(store, size).array.tobytes() for size in (48, 32, 16)]] * 3
    assert len(list((store.path / "cache").iterdir())) == 3


def test_a_full_disk_raises_and_leaves_no_file(tmp_path):
    store = make(tmp_path / "s", [noise((1, 16, 16), seed=i) for i in range(30)])

    def build(_):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            resample_scans(store, 64)
        except UserError as e:
            return str(e)

    (said,) = in_children(build)
    assert said.startswith("cannot write")
    assert "free some space" in said
    assert not list((store.path / "cache").iterdir())


def test_a_read_only_store_uses_a_private_folder(tmp_path, monkeypatch, capsys):
    with tempfile.TemporaryDirectory() as open_to_all:
        base = Path(open_to_all)
        base.chmod(0o755)
        store = make(base / "s", [noise((1, 20, 20), seed=i) for i in range(3)])
        want = np.array(resample_scans(store, 12).array)
        (store.path / "cache").rename(base / "gone")
        (base / "tmp").mkdir()
        (base / "tmp").chmod(0o777)
        monkeypatch.setattr(tempfile, "tempdir", str(base / "tmp"))
        store.path.chmod(0o555)
        root = os.geteuid() == 0
        try:
            if root:  # root may write anywhere
                os.seteuid(65534)
            got = resample_scans(store, 12)
            assert np.array_equal(resample_scans(store, 12).array, want)
        finally:
            if root:
                os.seteuid(0)
            store.path.chmod(0o755)
        assert np.array_equal(got.array, want)
        assert capsys.readouterr().err.count("is read-only") == 1
        (private,) = (base / "tmp").iterdir()
        assert private.stat().st_mode & 0o777 == 0o700


def test_the_private_folder_keeps_nothing_of_a_store_that_has_changed_or_is_gone(tmp_path, monkeypatch):
    """Withdrawn scans are in no cache after the ingest that withdrew them, or after the next use of any read-only store."""

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "read-only")

    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    arrays = [noise((1, 20, 20), seed=i) for i in range(3)]

    def cached(name):
        resample_scans(Store.open(tmp_path / name), 12)
        return sorted((tmp_path / "tmp").glob("*/*/*.npy"))

    make(tmp_path / "a", arrays)
    make(tmp_path / "b", arrays[:2])
    (kept,) = cached("a")
    assert kept.parent.parent.stat().st_mode & 0o777 == 0o700
    assert cached("a") == [kept]
    assert len(cached("b")) == 2
    make(tmp_path / "a", arrays[1:], overwrite=True)
    assert sorted((tmp_path / "tmp").glob("*/*/*.npy")) == cached("b")  # without a first use of the new store
    assert len(cached("a")) == 2
    shutil.rmtree(tmp_path / "b")
    (now,) = cached("a")
    assert now != kept
    by_another_user = tmp_path / "a" / "store.json"
    by_another_user.write_text(by_another_user.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    (kept.parent.parent / "resampled-of-an-earlier-version.npy").write_bytes(b"pixels")
    (last,) = cached("a")
    assert last != now
    assert list(kept.parent.parent.iterdir()) == [last.parent]
