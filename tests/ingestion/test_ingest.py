"""Ingest of real scans: a correct store, the same every time, without any identifier."""

import csv
import gzip
import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from medssl.commands.data.ingest import ingest
from medssl.errors import UserError
from medssl.ingestion.pipeline import IngestPipeline
from medssl.readers.pseudonyms import open_key
from medssl.store.resampled import resample_scans
from medssl.store.store import Store
from medssl.synthetic.cohort import identifiers, write_cohort


@pytest.fixture
def key(tmp_path_factory):
    return tmp_path_factory.mktemp("secret") / "key"


@pytest.fixture
def xrays(shared, tmp_path):
    """60 real chest X-rays, 2 to 4 per patient, with their original file names, and their table."""
    with (shared / "cxr_guangzhou/manifest.csv").open() as f:
        rows = list(csv.DictReader(f))
    rows = sorted(rows, key=lambda r: (r["patient_id"], r["file"]))[100:160]
    folder = tmp_path / "cxr"
    (folder / "images").mkdir(parents=True)
    for row in rows:
        shutil.copy(shared / "cxr_guangzhou/images" / row["file"], folder / "images")
    with (folder / "manifest.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return folder, rows


def everything(folder: Path) -> bytes:
    """Every byte of a store, as stored and decompressed, and every file name."""
    parts = [str(p.relative_to(folder)).encode() for p in folder.rglob("*")]
    parts += [p.read_bytes() for p in folder.rglob("*") if p.is_file()]
    parts.append(json.dumps(pq.read_table(folder / "manifest.parquet").to_pylist(), ensure_ascii=False).encode())
    parts.append(str(pq.read_schema(folder / "manifest.parquet").metadata).encode())
    parts += [x.tobytes() for x in Store.open(folder, quarantined=True)]
    parts.append("\n".join(sqlite3.connect(folder / "ledger.sqlite").iterdump()).encode())
    return b"\0".join(parts)


def test_real_xrays_with_their_table(xrays, tmp_path, key):
    folder, rows = xrays
    (folder / "images" / "KIM_MINJUN_19700101.txt").write_text("Kim Minjun, 010-1234-5678")
    store = ingest(
        folder / "images", tmp_path / "out", labels=folder / "manifest.csv", targets=["label", "subtype"], key=key
    )
    assert len(store) == 60
    store.verify()
    by_name = {r["file"]: r for r in rows}
    alias = open_key(key)
    name_of = {alias.of("scan", f"file|{name}"): name for name in by_name}
    files = [name_of[scan] for scan in store.column("scan")]
    assert sorted(files) == sorted(by_name)
    assert store.column("label:label").tolist() == [by_name[f]["label"] for f in files]
    assert store.column("label:subtype").tolist() == [by_name[f]["subtype"] for f in files]
    for i in (0, 31, 59):
        assert np.array_equal(store[i][0], np.atleast_3d(Image.open(folder / "images" / files[i]))[..., 0])
    patients = [by_name[f]["patient_id"] for f in files]
    assert len(set(zip(patients, store.column("patient"), strict=True))) == len(set(patients))
    assert len(set(zip(store.column("patient"), store.column("split"), strict=True))) == len(set(patients))
    assert store.info["counts"]["rejected"] == {"NOT_A_SCAN": 1}
    for words in (
        "60 of 60 scans have a row",
        "columns not copied: repo_split, md5_224, group_id",
        f"{len(set(patients))}\n",
        "NOT_A_SCAN 1",
        str(key),
        store.fingerprint,
    ):
        assert words in store.summary
    secrets = {r[c] for r in rows for c in ("file", "patient_id", "md5_224")} | {Path(f).stem for f in files}
    secrets |= {"KIM_MINJUN", "Minjun", str(folder), str(tmp_path), key.read_text().strip()}
    data = everything(store.path)
    assert [s for s in sorted(secrets) if s.encode() in data] == []


def test_no_identifier_of_a_cohort_reaches_the_store(tmp_path, key):
    cohort = write_cohort(tmp_path / "cohort", patients=12, size=48)
    store = ingest(cohort / "scans", tmp_path / "out", labels=cohort / "labels.csv", key=key)
    assert store.info["counts"]["patients"] == 12
    assert sum(store.info["counts"]["rejected"].values()) == 3
    assert set(store.column("label:lesion")) <= {"yes", "no"}
    data = everything(store.path)
    assert [w for w in identifiers(12) if w.encode() in data or w.encode("cp949", "ignore") in data] == []
    assert [p for p in ("0003/", "0.dcm", "broken") if p.encode() in data] == []


def test_real_volumes(shared, tmp_path, key):
    source = tmp_path / "mr"
    source.mkdir()
    for path in sorted((shared / "hippocampus/images").iterdir())[:8]:
        shutil.copy(path, source)
    (source / "broken.nii.gz").write_bytes(gzip.compress(b"\0" * 100))
    store = ingest(source, tmp_path / "out", intensity="mr", key=key)
    store.verify()
    assert (len(store), store.dims, store.channels) == (8, 3, 1)
    assert len(store.column("affine")[0]) == 16
    resampled = resample_scans(store, 32)
    assert resampled.array.shape == (8, 1, 32, 32, 32)
    unit = (resampled.array - resampled.low[:, None, None, None, None]) / (resampled.high - resampled.low)[
        :, None, None, None, None
    ]
    assert 0.2 < np.clip(unit, 0, 1).mean() < 0.6
    assert b"hippocampus" not in everything(store.path)


def test_an_archive_keeps_its_splits_and_labels(shared, tmp_path, key):
    small = {}
    with np.load(shared / "medmnist/adrenalmnist3d.npz", allow_pickle=False) as archive:
        for split, n in (("train", 20), ("val", 4), ("test", 6)):
            small |= {f"{split}_{what}": archive[f"{split}_{what}"][:n] for what in ("images", "labels")}
    np.savez(tmp_path / "adrenal.npz", **small)
    store = ingest(tmp_path / "adrenal.npz", tmp_path / "out", key=key)
    assert {s: len(store.rows(s)) for s in ("train", "val", "test")} == {"train": 20, "val": 4, "test": 6}
    for split in ("train", "val", "test"):
        images = {
            x.tobytes(): str(y[0]) for x, y in zip(small[f"{split}_images"], small[f"{split}_labels"], strict=True)
        }
        for row in store.rows(split):
            assert images[store[row].tobytes()] == store.column(f"label:{store.labels[0]}")[row]
    assert b"adrenal" not in everything(store.path)


def test_real_2d_archive_duplicates_across_splits_are_counted(shared, tmp_path, key):
    store = ingest(shared / "medmnist/pneumoniamnist_rebuilt.npz", tmp_path / "out", key=key)
    assert len(store) == 5856
    assert (store.info["duplicates"]["within"], store.info["duplicates"]["between"]) == (
        18 + 3,
        8,
    )  # known flaws of this data set


def test_same_source_and_key_same_store(xrays, tmp_path, key):
    folder, _ = xrays
    a, b = (ingest(folder / "images", tmp_path / name, key=key, workers=1) for name in "ab")
    assert a.fingerprint == b.fingerprint
    for path in [a.path / "store.json", a.path / "manifest.parquet", *a.path.rglob("*.pack")]:
        assert path.read_bytes() == (b.path / path.relative_to(a.path)).read_bytes(), path.name
    other = ingest(folder / "images", tmp_path / "c", key=key.with_name("other"))
    assert not set(other.column("patient")) & set(a.column("patient"))
    assert other.info["key_id"] != a.info["key_id"]


def test_adding_patients_moves_no_other(xrays, tmp_path, key):
    folder, _ = xrays
    options = {"patient": r"^(person\d+|.*-\d+)[-_]", "key": key}
    whole = ingest(folder / "images", tmp_path / "whole", **options)
    for path in sorted((folder / "images").iterdir())[:30]:
        path.unlink()
    part = ingest(folder / "images", tmp_path / "part", **options)
    splits = dict(zip(whole.column("patient"), whole.column("split"), strict=True))
    assert [splits[p] for p in part.column("patient")] == part.column("split").tolist()
    assert {*part.column("patient")} <= {*whole.column("patient")}
    assert {*part.column("hash")} <= {*whole.column("hash")}


@pytest.fixture
def pictures(tmp_path):
    """12 small images, two of them 3-channel."""
    rng = np.random.default_rng(0)
    for i in range(12):
        path = tmp_path / "pictures" / ("well" if i % 2 else "sick") / f"p{i // 2}_{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3) if i > 9 else (20, 24), np.uint8)).save(path)
    return tmp_path / "pictures"


def test_folders_pattern_and_site(pictures, tmp_path, key):
    store = ingest(pictures, tmp_path / "out", labels="folders", patient=r"p(\d)_", site="north", key=key)
    assert sorted(store.column("label:label")) == ["sick"] * 6 + ["well"] * 6
    assert set(store.column("site")) == {"north"}
    assert len(set(store.column("patient"))) == 6
    assert "10 of unknown modality in 2D, 1 channel\n" in store.summary
    assert "2 of unknown modality in 2D, 3 channels\n" in store.summary


def test_the_table_may_lie_in_the_source(pictures, tmp_path, key):
    (pictures / "table.csv").write_text("file;label\np0_0;a\n")
    store = ingest(pictures, tmp_path / "out", labels=pictures / "table.csv", key=key)
    assert "NOT_A_SCAN" not in store.info["counts"]["rejected"]
    assert store.column("label:label").tolist().count("a") == 1


def test_a_patient_in_two_given_splits_is_refused(pictures, tmp_path, key):
    table = tmp_path / "t.csv"
    table.write_text("file,patient,split\np0_0.png,A,train\np0_1.png,A,test\n")
    with pytest.raises(UserError, match="1 patients into more than one split"):
        ingest(pictures, tmp_path / "out", labels=table, key=key)
    assert not (tmp_path / "out").exists()


def test_invalid_arguments_are_refused(pictures, tmp_path, key):
    inside = [
        ({"source": tmp_path / "none"}, "does not exist"),
        ({"out": pictures / "out"}, "lies in the source"),
        ({"out": pictures}, "lies in the source"),
        ({"out": tmp_path}, "lies in out"),
        ({"key": pictures / "key"}, "would lie in source"),
        ({"key": tmp_path / "out" / "key"}, "would lie in out"),
        ({"intensity": "mri"}, "Did you mean 'mr'"),
        ({"labels": tmp_path / "none.csv"}, "does not exist"),
        ({"patient": r"nobody(\d)"}, "no path"),
    ]
    for wrong, message in inside:
        with pytest.raises(UserError, match=message):
            ingest(**{"source": pictures, "out": tmp_path / "out", "key": key} | wrong)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no files"):
        ingest(tmp_path / "empty", tmp_path / "out", key=key)


def test_a_link_does_not_hide_that_out_lies_in_the_source(pictures, tmp_path, key):
    (tmp_path / "link").symlink_to(pictures)
    with pytest.raises(UserError, match="lies in the source"):
        ingest(pictures, tmp_path / "link" / "out", key=key)


def test_without_a_usable_scan_the_error_gives_the_reasons_and_nothing_is_written(tmp_path, key):
    source = tmp_path / "source"
    source.mkdir()
    for name in "abc":
        (source / f"{name}.txt").write_text("words")
    with pytest.raises(UserError, match="3 × NOT_A_SCAN"):
        ingest(source, tmp_path / "out", key=key)
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


def test_a_failed_overwrite_keeps_the_old_store(pictures, tmp_path, key, monkeypatch, capsys):
    old = ingest(pictures, tmp_path / "out", key=key)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(IngestPipeline, "build_volumes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(pictures, tmp_path / "out", key=key, overwrite=True)
    assert "everything read so far is kept for the next try" in capsys.readouterr().err
    assert Store.open(tmp_path / "out").fingerprint == old.fingerprint
    old.verify()
    monkeypatch.undo()
    assert ingest(pictures, tmp_path / "out", key=key, overwrite=True).fingerprint == old.fingerprint
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "pictures"]


def test_an_interrupt_while_reading_keeps_what_was_read(pictures, tmp_path, key, monkeypatch):
    record, calls = IngestPipeline._record_outcome, []

    def interrupted(self, file_id, outcome):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(file_id)
        record(self, file_id, outcome)

    monkeypatch.setattr(IngestPipeline, "_record_outcome", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ingest(pictures, tmp_path / "out", key=key)
    assert (tmp_path / ".out.part").is_dir()
    monkeypatch.setattr(IngestPipeline, "_record_outcome", lambda *a: (calls.append(a[1]), record(*a)))
    assert len(ingest(pictures, tmp_path / "out", key=key)) == 12
    assert len(set(calls)) == len(calls) == 12  # no file is read twice


def test_the_default_key_is_outside_and_private(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSL_KEY", str(tmp_path / "keys" / "one"))
    a = ingest(pictures, tmp_path / "a")
    assert os.stat(tmp_path / "keys" / "one").st_mode & 0o777 == 0o600
    monkeypatch.delenv("MEDSSL_KEY")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    b = ingest(pictures, tmp_path / "b")
    assert (tmp_path / "home/.config/medssl/key").is_file()
    assert a.fingerprint != b.fingerprint
