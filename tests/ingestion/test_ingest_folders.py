"""Ingest of mixed folders: every file is accounted for, and the store does not depend on how it was made."""

import errno
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image

from medssl.commands.data.ingest import ingest
from medssl.errors import UserError
from medssl.ingestion.pipeline import IngestPipeline
from medssl.ingestion.staged_store import StagedStore
from medssl.store.release import release
from medssl.store.store import Store
from tiny import secret

SERIES = (
    "dicom/dicom2nifti/generic/anatomical/001",
    "dicom/dicom2nifti/generic/compressed_jpegls/001",
    "dicom/dicom2nifti/failing/sliceincrement/002",
    "dicom/dicom2nifti/failing/notavolume/001",
)


@pytest.fixture(scope="module")
def hospital(shared, tmp_path_factory):
    """A folder as hospitals have it: several series, NIfTI, pictures, a copy, broken files, other files."""
    source = tmp_path_factory.mktemp("hospital")
    for i, series in enumerate(SERIES):
        shutil.copytree(shared / series, source / f"ward{i}")
    (source / "nifti").mkdir()
    for path in sorted((shared / "hippocampus").rglob("*.nii*"))[:3]:
        shutil.copy(path, source / "nifti")
    (source / "pictures").mkdir()
    pictures = sorted((shared / "cxr_guangzhou").rglob("*.jp*g"))[:10]
    for path in pictures:
        shutil.copy(path, source / "pictures")
    Image.open(pictures[0]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(source / "pictures" / "mirrored.png")
    shutil.copy(pictures[1], source / "a copy.jpg")
    (source / "broken.jpg").write_bytes(pictures[2].read_bytes()[:2000])
    (source / "notes.txt").write_text("nothing")
    (source / "empty.dcm").touch()
    slices = sorted((source / "ward0").iterdir())
    (source / "broken.dcm").write_bytes(slices[3].read_bytes()[:-500])
    (source / "ward0" / "link.dcm").symlink_to(slices[0])
    return source


def make(source, out, tmp_path, **options):
    return ingest(source, out, key=secret(tmp_path / "key"), **{"workers": 1} | options)


def rejects(store):
    return [json.loads(line) for line in (store.path / "rejects.jsonl").read_text().splitlines()]


def everything(store):
    """Everything that must not depend on how the store was made."""
    return store.info["fingerprint"], rejects(store), [store[i].tobytes() for i in range(len(store))]


@pytest.fixture(scope="module")
def whole(hospital, tmp_path_factory):
    """The store of the hospital, made in one run."""
    folder = tmp_path_factory.mktemp("whole")
    return make(hospital, folder / "s", folder)


def test_everything_seen_is_used_or_rejected(hospital, whole):
    on_disk = sum(1 for f in hospital.rglob("*") if not f.is_dir() or f.is_symlink())
    db = sqlite3.connect(whole.path / "ledger.sqlite")
    files, scans, slices = ({f for (f,) in db.execute(f"SELECT file FROM {t}")} for t in ("files", "scans", "slices"))
    left_out = {r["file"] for r in rejects(whole)}
    assert whole.info["counts"]["files"] == on_disk == len(files)
    assert files == scans | slices | left_out
    assert len(slices - left_out) == np.nansum(whole.column("fact:images").astype(float))
    whole.verify()


def test_codes_say_what_is_wrong(whole):
    codes = {r["code"] for r in rejects(whole)}
    assert {"EMPTY", "NOT_A_SCAN", "TRUNCATED", "NOT_A_FILE"} <= codes
    assert whole.info["counts"]["rejected"] == {c: sum(r["code"] == c for r in rejects(whole)) for c in sorted(codes)}


def test_the_number_of_workers_does_not_matter(hospital, whole, tmp_path):
    assert everything(make(hospital, tmp_path / "s", tmp_path, workers=3)) == everything(whole)


CODE = """
import sys
from medssl.commands.data.ingest import ingest
ingest(sys.argv[1], sys.argv[2], key=sys.argv[3], workers=2)
"""


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_ingest_continues_with_the_same_command(hospital, whole, tmp_path, seed):
    args = [sys.executable, "-c", CODE, hospital, tmp_path / "s", secret(tmp_path / "key")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CI": "true"}
    draw = random.Random(seed)
    for _ in range(4):
        process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1 + 3 * draw.random())
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "s").exists():
            break
    assert everything(make(hospital, tmp_path / "s", tmp_path)) == everything(whole)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_new_files_are_added_and_no_other_is_read(hospital, whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(hospital, source, symlinks=True)
    late = [source / "pictures", source / "ward1", *sorted((source / "ward0").glob("*.dcm"))[-2:]]
    aside = tmp_path / "aside"
    aside.mkdir()
    for path in late:
        shutil.move(path, aside / path.name)
    first = make(source, tmp_path / "s", tmp_path)
    assert len(first) < len(whole)
    for path in late:
        shutil.move(aside / path.name, path)
    unreadable = sorted((source / "nifti").iterdir())[0]
    stat = unreadable.stat()
    unreadable.write_bytes(b"\0" * stat.st_size)  # same size and time: it is not read again
    os.utime(unreadable, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert everything(make(source, tmp_path / "s", tmp_path)) == everything(whole)


def test_files_removed_from_the_source_are_removed_from_the_store(hospital, whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(hospital, source, symlinks=True)
    make(source, tmp_path / "s", tmp_path)
    for path in (source / "ward1", source / "pictures" / "mirrored.png", sorted((source / "nifti").iterdir())[0]):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    store = make(source, tmp_path / "s", tmp_path)
    assert everything(store) == everything(make(source, tmp_path / "t", tmp_path))
    assert len(store) < len(whole)
    kept = sum(store.table["length"].to_pylist())
    assert sum(p.stat().st_size for p in (store.path / "packs").iterdir()) == kept
    assert len(list((store.path / "volumes").iterdir())) == len({f for f in store.column("file") if "volumes" in f})


def test_files_are_removed_and_added_repeatedly(hospital, tmp_path):
    """Bytes of removed files are dropped, and the others are still found by every later ingest."""
    source = tmp_path / "source"
    shutil.copytree(hospital / "pictures", source)
    make(source, tmp_path / "s", tmp_path)
    files = sorted(source.iterdir())
    shutil.copy(files[0], source / "a twin.jpg")
    draw = random.Random(0)
    for step in range(4):
        files[step].rename(tmp_path / files[step].name)
        image = np.random.default_rng(step).integers(0, 255, (30, 40), np.uint8)
        Image.fromarray(image).save(source / f"new {draw.random()}.png")
        store = make(source, tmp_path / "s", tmp_path)
        store.verify()
        assert everything(store) == everything(make(source, tmp_path / f"fresh{step}", tmp_path))


def test_a_kill_between_compaction_and_the_move_loses_nothing(hospital, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(hospital / "pictures", source)
    make(source, tmp_path / "s", tmp_path)
    sorted(source.iterdir())[0].unlink()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StagedStore, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "s", tmp_path)
    Store.open(tmp_path / "s").verify()
    monkeypatch.undo()
    store = make(source, tmp_path / "s", tmp_path)
    store.verify()
    assert everything(store) == everything(make(source, tmp_path / "fresh", tmp_path))


def test_a_store_set_aside_by_a_killed_process_comes_back(hospital, tmp_path):
    make(hospital / "pictures", tmp_path / "s", tmp_path)
    (tmp_path / "s").rename(tmp_path / ".s.123.old")
    make(hospital / "pictures", tmp_path / "s", tmp_path).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "s"]


def test_a_full_disk_at_the_end_keeps_what_was_read(hospital, tmp_path, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("medssl.ingestion.staged_store.write_synced", full)
    with pytest.raises(UserError, match="free some space"):
        make(hospital / "pictures", tmp_path / "s", tmp_path)
    assert "everything read so far is kept for the next try" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(IngestPipeline, "_record_outcome", full)  # no file may be read again
    make(hospital / "pictures", tmp_path / "s", tmp_path).verify()


def test_code_in_the_folder_of_the_scans_is_not_run(hospital, tmp_path, monkeypatch):
    source = tmp_path / "source"
    shutil.copytree(hospital / "pictures", source)
    for module in ("blosc2", "random", "imagecodecs"):
        (source / f"{module}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(source)
    store = make(".", tmp_path / "s", tmp_path)
    assert not (tmp_path / "ran").exists()
    assert set(store.info["counts"]["rejected"]) == {"NOT_A_SCAN"}


def test_kept_work_is_not_discarded_for_another_source(hospital, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(StagedStore, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        make(hospital / "pictures", tmp_path / "s", tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"none of the \d+ files of the unfinished ingest"):
        make(hospital / "nifti", tmp_path / "s", tmp_path)
    assert (tmp_path / ".s.part" / "ledger.sqlite").exists()
    make(hospital / "pictures", tmp_path / "s", tmp_path).verify()
    with pytest.raises(UserError, match="there is no key"):
        ingest(hospital / "pictures", tmp_path / "s", key=tmp_path / "mistyped")
    assert not (tmp_path / "mistyped").exists()


def test_a_release_holds_as_long_as_the_pixels_are_the_same(tmp_path):
    source = tmp_path / "source"
    source.mkdir()

    def draw(seed):
        mask = np.random.default_rng(seed).integers(0, 3, (8, 9, 10)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), source / "a_seg.nii")

    draw(0)
    store = make(source, tmp_path / "s", tmp_path)
    assert store.column("held").tolist() == ["label map"]
    release(store, [0])
    (source / "note.txt").write_text("new")
    assert make(source, tmp_path / "s", tmp_path).column("held").tolist() == [""]
    draw(1)
    assert make(source, tmp_path / "s", tmp_path).column("held").tolist() == ["label map"]


def test_folder_labels_and_patterns_apply_to_volumes(shared, tmp_path):
    source = tmp_path / "source"
    for i, label in enumerate(("sick", "well")):
        shutil.copytree(shared / SERIES[0], source / label)
        for path in (source / label).iterdir():
            ds = pydicom.dcmread(path)
            ds.PatientID, ds.SeriesInstanceUID, ds.StudyInstanceUID = "ANON", f"1.2.{i}", f"1.3.{i}"
            ds.SOPInstanceUID = f"{ds.SOPInstanceUID}.{i}"
            ds.save_as(path.with_name(f"P{i}_{path.name}"))
            path.unlink()
    store = make(source, tmp_path / "s", tmp_path, labels="folders", patient=r"(P\d)_")
    assert sorted(store.column("label:label")) == ["sick", "well"]
    assert store.column("patient_known").all()
    assert len(set(store.column("patient"))) == 2


def test_a_changed_file_is_read_again(hospital, whole, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(hospital / "pictures", source)
    before = make(source, tmp_path / "s", tmp_path)
    path = sorted(source.iterdir())[0]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60), np.uint8)).save(path, "png")
    after = make(source, tmp_path / "s", tmp_path)
    assert set(after.column("hash")) != set(before.column("hash"))
    assert everything(after) == everything(make(source, tmp_path / "t", tmp_path))


def test_nothing_new_leaves_the_store_alone(hospital, tmp_path):
    make(hospital / "pictures", tmp_path / "s", tmp_path)
    (tmp_path / "s" / "cache").mkdir()
    store = make(hospital / "pictures", tmp_path / "s", tmp_path)
    assert (tmp_path / "s" / "cache").exists()
    assert "nothing has changed" in store.summary


def test_another_source_does_not_empty_a_store(hospital, tmp_path):
    make(hospital / "pictures", tmp_path / "s", tmp_path)
    with pytest.raises(UserError, match=r"none of the .* files of the last ingest"):
        make(hospital / "nifti", tmp_path / "s", tmp_path)
    assert len(Store.open(tmp_path / "s")) == len(list((hospital / "pictures").iterdir()))
    assert make(hospital / "nifti", tmp_path / "s", tmp_path, overwrite=True).dims == 3


@pytest.mark.parametrize("change", [{"intensity": "natural"}, {"key": "other"}])
def test_a_store_keeps_its_settings(hospital, tmp_path, change):
    make(hospital / "pictures", tmp_path / "s", tmp_path)
    if "key" in change:
        change = {"key": secret(tmp_path / "other", "1")}
    with pytest.raises(UserError, match="was made with"):
        ingest(hospital / "pictures", tmp_path / "s", **{"key": secret(tmp_path / "key"), "workers": 1} | change)


def test_a_damaged_ledger_is_reported(hospital, tmp_path):
    make(hospital / "pictures", tmp_path / "s", tmp_path)
    (tmp_path / "s" / "ledger.sqlite").write_bytes(b"damaged" * 1000)
    with pytest.raises(UserError, match=r"ledger\.sqlite is damaged"):
        make(hospital / "pictures", tmp_path / "s", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "s"]
    Store.open(tmp_path / "s").verify()


def test_two_at_once_are_refused(hospital, tmp_path):
    args = [sys.executable, "-c", CODE, hospital, tmp_path / "s", secret(tmp_path / "key")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CI": "true"}
    process = subprocess.Popen(args, env=env, stdout=subprocess.DEVNULL)
    try:
        while not (tmp_path / ".s.part" / "ledger.sqlite").exists():
            time.sleep(0.01)
        with pytest.raises(UserError, match="another ingest is writing"):
            make(hospital, tmp_path / "s", tmp_path)
        assert (tmp_path / ".s.part" / "ledger.sqlite").exists()  # the other process needs it
    finally:
        process.kill()
        process.wait()


def test_a_file_that_needs_too_much_memory_is_rejected(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(source / "small.png")
    big = np.zeros((400, 400, 900), np.float32)
    big[0, 0, 0] = 1
    nibabel.save(nibabel.Nifti1Image(big, np.eye(4)), source / "big.nii.gz")
    store = make(source, tmp_path / "s", tmp_path, memory=0.5)
    assert len(store) == 1
    assert [r["code"] for r in rejects(store)] == ["TOO_BIG_TO_READ"]


def test_a_store_may_hold_several_kinds_of_scans(whole):
    store = Store.open(whole.path)
    with pytest.raises(UserError, match="several kinds"):
        _ = store.dims
    for dims in (2, 3):
        part = Store.open(whole.path, where=f"dims == {dims} and channels == 1")
        assert part.dims == dims
        assert 0 < len(part) < len(whole)
        assert part.fingerprint != store.fingerprint
        assert {len(x.shape) for x in part} == {dims + 1}


def test_no_path_or_name_is_stored(hospital, whole):
    words = {n.encode() for f in hospital.rglob("*") for n in (f.name, f.stem) if len(n) > 7}
    for path in Path(whole.path).rglob("*"):
        if path.is_file():
            data = path.read_bytes() + path.name.encode()
            assert not [w for w in words if w in data], path.name
