"""An empty folder is as good a destination as none; anything else in the place of a store stays."""

import numpy as np
import pytest

from medssl import ingest
from medssl.errors import UserError
from medssl.ingestion.staged_store import StagedStore, check_destination
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.shard import shard
from medssl.store.store import Store


def write(out, **options):
    rng = np.random.default_rng(0)
    with StoreWriter(out, Pseudonyms(bytes(32)), **options) as writer:
        for i in range(2):
            writer.add(Scan(rng.integers(0, 255, (1, 9, 8)).astype(np.uint8), f"s{i}", f"p{i}"), f"{i}")
        return writer.finish()


def test_an_empty_folder_becomes_the_store(tmp_path):
    for name in ("source", "written", "ingested", "sharded"):
        (tmp_path / name).mkdir()
    store = write(tmp_path / "written")
    assert len(Store.open(tmp_path / "written")) == 2
    np.save(tmp_path / "source" / "no scan.npy", np.zeros(3))
    np.savez(tmp_path / "source" / "a.npz", train_images=np.random.default_rng(0).integers(0, 255, (3, 8, 8)))
    ingest(tmp_path / "source", tmp_path / "ingested", key=tmp_path / "key", workers=1)
    assert len(Store.open(tmp_path / "ingested")) == 3
    shard(store, tmp_path / "sharded", 1 << 20)
    assert len(Store.open(tmp_path / "sharded")) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ingested", "key", "sharded", "source", "written"]


def test_a_folder_with_anything_in_it_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("words")
    with pytest.raises(UserError, match="exists and is not a store, so it is not overwritten; choose another out="):
        write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "words"


def test_a_mounted_disk_is_not_replaced(tmp_path, monkeypatch):
    """No test can mount a disk, so this one only claims to be one."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(type(tmp_path), "is_mount", lambda path: path.name == "out")
    with pytest.raises(UserError, match=r"choose a folder in it: out=.*/out/store"):
        check_destination(tmp_path / "out", overwrite=False)
    check_destination(tmp_path / "out" / "store", overwrite=False)


def test_an_empty_folder_does_not_cost_a_store_that_was_set_aside(tmp_path):
    """As after a kill between the two renames of a move, when somebody has then made the folder."""
    write(tmp_path / "s")
    (tmp_path / "s").rename(tmp_path / ".s.1.old")
    (tmp_path / "s").mkdir()
    with StagedStore(tmp_path / "s"):
        assert len(Store.open(tmp_path / "s")) == 2
