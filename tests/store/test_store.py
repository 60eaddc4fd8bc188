"""Scans are stored and read bit for bit; damaged and interrupted stores are refused."""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from torch.utils.data import ConcatDataset, DataLoader, Dataset

import medssl.ingestion.staged_store as write
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.store.store import Store

ALIAS = Pseudonyms(b"k" * 32)
DTYPES = ["uint8", "int16", "uint16", "float32"]


def noise(shape, dtype="uint8", seed=0):
    """The full range of integers; floats from tiny to huge, with both zeros."""
    rng = np.random.default_rng(seed)
    if dtype == "float32":
        x = (rng.normal(size=shape) * 10.0 ** rng.integers(-30, 30, shape)).astype(dtype)
        x.flat[:2] = 0.0, -0.0
        return x
    limits = np.iinfo(dtype)
    x = rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    x.flat[:2] = limits.min, limits.max
    return x


def scan(array, i=0, **fields):
    return Scan(array, **{"scan": f"scan{i}", "patient": f"patient{i}", **fields})


def make(out, scans, **options):
    with StoreWriter(out, ALIAS, **options) as writer:
        for i, s in enumerate(scans):
            writer.add(s, f"{i}.png")
        return writer.finish()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 33, 47), (3, 20, 31), (1, 9, 33, 47), (2, 70, 40, 35), (1, 1, 3)])
def test_arrays_come_back_bit_for_bit(tmp_path, dtype, shape):
    arrays = [noise(shape, dtype, seed) for seed in range(3)]
    store = make(tmp_path / "s", [scan(a, i) for i, a in enumerate(arrays)])
    for got, want in zip(store, arrays, strict=True):
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()
    store.verify()
    assert store.dims == len(shape) - 1
    assert store.channels == shape[0]


def test_byte_order_and_strides_do_not_matter(tmp_path):
    x = noise((1, 8, 9), "int16")
    store = make(tmp_path / "s", [scan(x.astype(">i2"), 0), scan(x.swapaxes(1, 2), 1)])
    assert np.array_equal(store[0], x)
    assert np.array_equal(store[1], x.swapaxes(1, 2))


def test_many_packs(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "PACK", 1000)
    arrays = [noise((1, 20, 20), seed=i) for i in range(12)]
    store = make(tmp_path / "s", [scan(a, i) for i, a in enumerate(arrays)])
    assert len(list((store.path / "packs").iterdir())) > 3
    by_name = dict(zip(store.column("scan"), store, strict=True))
    assert all(np.array_equal(by_name[f"scan{i}"], a) for i, a in enumerate(arrays))


class Rows(Dataset):
    def __init__(self, store):
        self.store = store

    def __len__(self):
        return len(self.store)

    def __getitem__(self, i):
        return self.store[i]


def test_workers_read_the_same(tmp_path):
    shapes = [(1, 12, 13), (1, 5, 6, 7)]
    stores = [make(tmp_path / str(len(s)), [scan(noise(s, seed=i), i) for i in range(3)]) for s in shapes]
    rows = ConcatDataset(Rows(store) for store in stores)
    alone = [x.numpy() for x in DataLoader(rows)]
    spawned = [x.numpy() for x in DataLoader(rows, num_workers=1, multiprocessing_context="spawn")]
    forked = [x.numpy() for x in DataLoader(rows, num_workers=2)]
    assert all(np.array_equal(a, b) and np.array_equal(a, c) for a, b, c in zip(alone, spawned, forked, strict=True))
    assert len(pickle.dumps(stores[0])) < 500


def test_the_manifest_has_the_metadata_of_the_scan(tmp_path):
    affine = np.diag([2.0, 1, 1, 1])
    store = make(
        tmp_path / "s",
        [
            scan(
                noise((1, 4, 5)), 0, spacing=(0.5, 0.25), metadata={"age": 41, "view": "PA"}, labels={"lesion": "yes"}
            ),
            scan(noise((1, 4, 5), seed=1), 1, affine=affine, modality="CR", split="val", site="A", patient_known=False),
        ],
    )
    assert store.column("spacing").tolist() == [(0.5, 0.25), None]
    assert store.column("affine")[1] == tuple(affine.ravel())
    assert store.column("shape").tolist() == [(1, 4, 5)] * 2
    assert store.column("fact:age").tolist()[0] == 41.0
    assert np.isnan(store.column("fact:age")[1])
    assert store.column("fact:view").tolist() == ["PA", None]
    assert store.labels == ["lesion"]
    assert store.column("label:lesion").tolist() == ["yes", None]
    assert store.column("patient_known").tolist() == [True, False]
    assert store.column("site").tolist() == ["", "A"]
    assert store.rows("val").tolist() == [1] if store.column("split")[0] != "val" else [0, 1]
    assert sorted(np.concatenate([store.rows(s) for s in ("train", "val", "test")])) == [0, 1]
    with pytest.raises(UserError, match="Did you mean 'patient'"):
        store.column("patiemt")
    with pytest.raises(UserError, match="Did you mean 'train'"):
        store.rows("trian")
    with pytest.raises(IndexError):
        store[2]


def test_mean_and_std_are_of_train_pixels_in_unit_range(tmp_path):
    arrays = [noise((1, 6 + i, 7), seed=i) for i in range(4)]
    splits = ["train", "train", "train", "test"]
    store = make(tmp_path / "s", [scan(a, i, split=s) for i, (a, s) in enumerate(zip(arrays, splits, strict=True))])
    units = [a / 255 for a in arrays[:3]]
    mean = np.mean([u.mean() for u in units])
    assert store.mean == pytest.approx(mean, abs=1e-6)
    assert store.std == pytest.approx(np.sqrt(np.mean([np.square(u).mean() for u in units]) - mean**2), abs=1e-6)


def test_one_of_several_kinds_is_selected(tmp_path):
    grey, colour, volume = noise((1, 8, 9)), noise((3, 8, 9)), noise((1, 4, 8, 9))
    store = make(tmp_path / "s", [scan(x, i) for i, x in enumerate([colour, grey, volume, grey + 1])])
    assert store.kinds == [
        "2 of unknown modality in 2D, 1 channel",
        "1 of unknown modality in 2D, 3 channels",
        "1 of unknown modality in 3D, 1 channel",
    ]
    with pytest.raises(UserError, match=r'several kinds .* where="dims == 3"'):
        _ = store.dims
    with pytest.raises(UserError, match=r'several kinds .* where="channels == 3"'):
        _ = store.channels
    some = Store.open(store, "dims == 2 and channels == 1")
    assert (some.dims, some.channels, len(some)) == (2, 1, 2)
    assert np.array_equal(some[0], grey)
    assert np.array_equal(some[1], grey + 1)
    again = pickle.loads(pickle.dumps(some))
    assert again.fingerprint == some.fingerprint != store.fingerprint
    with pytest.raises(UserError, match="selects no scan"):
        Store.open(store, "channels == 2")


def test_quarantined_scans_are_excluded_unless_requested(tmp_path):
    scans = [scan(noise((1, 8, 9), seed=i), i, quarantined="localizer" if i == 1 else "") for i in range(3)]
    everything = make(tmp_path / "s", scans)
    assert len(everything) == 3
    assert everything.info["counts"]["held"] == {"localizer": 1}
    store = Store.open(tmp_path / "s")
    assert store.column("scan").tolist() == ["scan0", "scan2"]
    assert np.array_equal(store[1], scans[2].array)
    assert store.fingerprint != everything.fingerprint
    make(tmp_path / "t", scans[1:2])
    with pytest.raises(UserError, match=r"all 1 scans .* quarantined; .* medssl release"):
        Store.open(tmp_path / "t")


def test_arrays_that_cannot_be_stored_are_refused_one_by_one(tmp_path):
    with StoreWriter(tmp_path / "s", ALIAS) as writer:
        with pytest.raises(Unreadable) as e:
            writer.add(scan(np.array([[[1, np.nan]]], np.float32)), "a")
        assert e.value.code == "NON_FINITE"
        with pytest.raises(Unreadable) as e:
            writer.add(scan(np.zeros((1, 0, 4), np.uint8)), "b")
        assert e.value.code == "NO_PIXELS"
        writer.add(scan(noise((1, 4, 4))), "c")
        assert len(writer.finish()) == 1


def test_duplicates_are_counted_and_kept(tmp_path):
    x, y = noise((1, 8, 8)), noise((1, 8, 8), seed=1)
    splits = ["train", "train", "test", "test", "val"]
    scans = [scan(a, i, split=s) for i, (a, s) in enumerate(zip([x, x, x, y, y], splits, strict=True))]
    store = make(tmp_path / "s", scans)
    assert len(store) == 5
    assert store.info["duplicates"] == {"within": 1, "between": 2, "near": 0}


def test_same_scans_same_bytes(tmp_path):
    stores = [make(tmp_path / n, [scan(noise((1, 5, 30, 30), seed=i), i) for i in range(3)]) for n in "ab"]
    names = [sorted(str(p.relative_to(s.path)) for p in s.path.rglob("*") if p.is_file()) for s in stores]
    assert names[0] == names[1]
    for name in names[0]:
        assert (stores[0].path / name).read_bytes() == (stores[1].path / name).read_bytes(), name


@pytest.mark.parametrize(
    "change",
    [
        {"labels": {"x": "1"}},
        {"split": "test"},
        {"patient": "other"},
        {"array": noise((1, 4, 4), seed=9)},
        {"modality": "CT"},
        {"quarantined": "localizer"},
    ],
)
def test_the_fingerprint_depends_on_every_field(tmp_path, change):
    plain = {"array": noise((1, 4, 4)), "split": "train"}
    a = make(tmp_path / "a", [scan(**plain)])
    b = make(tmp_path / "b", [scan(**plain | change)])
    assert a.fingerprint != b.fingerprint


def test_what_is_not_a_store(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        Store.open(tmp_path / "none")
    with pytest.raises(UserError, match=r"no store\.json"):
        Store.open(tmp_path)
    store = make(tmp_path / "s", [scan(noise((1, 4, 4)))])
    info = json.loads((store.path / "store.json").read_text())
    for text, message in [
        (json.dumps(info | {"schema": 99}), "made by another version .* ingest"),
        ("{", "damaged"),
        ("[]", "damaged"),
        (json.dumps(info | {"counts": {"scans": 2}}), "do not match"),
    ]:
        (store.path / "store.json").write_text(text)
        with pytest.raises(UserError, match=message):
            Store.open(store.path)
    (store.path / "store.json").write_text(json.dumps(info))
    (store.path / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="damaged"):
        Store.open(store.path)
    (store.path / "manifest.parquet").unlink()
    with pytest.raises(UserError, match="missing"):
        Store.open(store.path)


@pytest.mark.parametrize("shape", [(1, 40, 40), (1, 16, 32, 32)])
def test_damage_is_found(tmp_path, shape):
    store = make(tmp_path / "s", [scan(noise(shape, seed=i), i) for i in range(3)])
    path = store.path / store.column("file")[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    with pytest.raises(UserError, match="is damaged"):
        store[2]
    flipped = bytearray(whole)
    flipped[-len(whole) // 6] ^= 1  # in the pixels: the length stays correct
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"1 of 3 scans .* \(rows 2\)"):
        store.verify()
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        store[2]


def test_a_changed_manifest_is_found(tmp_path):
    store = make(tmp_path / "s", [scan(noise((1, 4, 4), seed=i), i) for i in range(2)])
    pq.write_table(store.table.take([1, 0]), store.path / "manifest.parquet")
    with pytest.raises(UserError, match="was changed"):
        store.verify()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, error):
    def begin(overwrite):
        with StoreWriter(tmp_path / "s", ALIAS, overwrite=overwrite) as writer:
            writer.add(scan(noise((1, 4, 4, 4))), "a")
            raise error

    with pytest.raises(error):
        begin(overwrite=False)
    assert not list(tmp_path.iterdir())
    old = make(tmp_path / "s", [scan(noise((1, 4, 4)))])
    with pytest.raises(error):
        begin(overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert Store.open(tmp_path / "s").fingerprint == old.fingerprint


def test_overwrite_replaces_stores_only(tmp_path):
    make(tmp_path / "s", [scan(noise((1, 4, 4)))])
    with pytest.raises(UserError, match="overwrite=true"):
        make(tmp_path / "s", [scan(noise((1, 5, 5)))])
    assert make(tmp_path / "s", [scan(noise((1, 5, 5)))], overwrite=True)[0].shape == (1, 5, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").touch()
    with pytest.raises(UserError, match="not a store"):
        make(tmp_path / "thesis", [scan(noise((1, 4, 4)))], overwrite=True)


def test_nothing_added_writes_nothing(tmp_path):
    with StoreWriter(tmp_path / "s", ALIAS) as writer:
        writer.reject("a", Unreadable("TRUNCATED", "too short"))
        with pytest.raises(UserError, match="no scan was added"):
            writer.finish()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(1, 300, 300), (1, 30, 100, 100)])
def test_a_full_disk_raises_and_leaves_no_file(tmp_path, shape):
    here, there = multiprocessing.get_context("fork").Pipe()

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            make(tmp_path / "s", [scan(noise(shape, seed=i), i) for i in range(3)])
        except UserError as e:
            there.send(str(e))

    multiprocessing.get_context("fork").Process(target=fill, daemon=True).start()
    assert here.poll(30)
    said = here.recv()
    assert said.startswith("cannot write")
    assert "free some space" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("sent", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_a_killed_write_leaves_no_store(tmp_path, sent, left):
    here, there = multiprocessing.get_context("fork").Pipe()

    def fill():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # tests run in the background of a shell ignore it
        with StoreWriter(tmp_path / "s", ALIAS) as writer:
            for i in range(1000):
                writer.add(scan(noise((1, 8, 40, 40)), i), str(i))
                there.send("wrote")
                time.sleep(0.02)

    child = multiprocessing.get_context("fork").Process(target=fill)
    child.start()
    assert here.poll(30)
    os.kill(child.pid, sent)
    child.join(30)
    assert child.exitcode not in {0, None}
    assert not (tmp_path / "s").exists()
    assert len(list(tmp_path.iterdir())) == left
    assert len(make(tmp_path / "s", [scan(noise((1, 4, 4)))])) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s"]  # the staging folder left by SIGKILL was reused


def test_a_failed_move_brings_the_old_store_back(tmp_path):
    make(tmp_path / "s", [scan(noise((1, 4, 4)))])
    with pytest.raises(FileNotFoundError):
        write._move(tmp_path / "gone", tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert len(Store.open(tmp_path / "s")) == 1
