"""A store behind a link stays one store: no second one beside the link, and a withdrawn scan is gone from the other disk."""

import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from medssl.commands.data.ingest import ingest
from medssl.commands.data.release import release
from medssl.commands.data.shard import shard
from medssl.errors import UserError
from medssl.files import disk_errors, write_text
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.store import Store
from tiny import secret


@pytest.fixture
def place(tmp_path):
    """A source of four pictures, a key, and a second disk."""
    rng = np.random.default_rng(0)
    for folder in ("source", "disk", "home"):
        (tmp_path / folder).mkdir()
    for k in range(4):
        Image.fromarray(rng.integers(0, 256, (40, 40), dtype=np.uint8)).save(tmp_path / f"source/{k}.png")
    secret(tmp_path / "key")
    return tmp_path


def run(place, out, **options):
    return ingest(place / "source", out, key=place / "key", workers=1, **options)


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def linked(place):
    """A store on the second disk, and the link to it."""
    run(place, place / "disk/store")
    link = place / "home/store"
    link.symlink_to(place / "disk/store")
    return link


@pytest.mark.parametrize("options", [{}, {"overwrite": True}])
def test_a_withdrawn_scan_is_gone_from_the_disk_that_a_link_leads_to(place, options):
    link = linked(place)
    (place / "source/3.png").unlink()
    store = run(place, link, **options)
    assert len(store) == len(Store.open(place / "disk/store")) == 3
    assert os.readlink(link) == str(place / "disk/store")
    assert names(place / "home") == names(place / "disk") == ["store"]
    assert names(place / "disk/store/packs") == sorted({p.split("/")[1] for p in store.column("file")})


def test_a_link_to_a_link_and_a_relative_link_are_followed(place):
    linked(place)
    (place / "home/again").symlink_to("store")
    (place / "source/3.png").unlink()
    assert len(run(place, place / "home/again")) == 3
    assert len(Store.open(place / "disk/store")) == 3
    assert (place / "home/again").is_symlink()
    assert (place / "home/store").is_symlink()


def test_a_folder_above_may_be_a_link(place):
    (place / "mount").symlink_to(place / "disk")
    run(place, place / "mount/store")
    (place / "source/3.png").unlink()
    assert len(run(place, place / "mount/store")) == 3
    assert names(place / "disk") == ["store"]
    assert (place / "mount").is_symlink()


def test_a_link_to_a_new_name_is_where_the_store_is_made(place):
    (place / "home/store").symlink_to(place / "disk/new")
    run(place, place / "home/store")
    assert names(place / "disk") == ["new"]
    assert names(place / "home") == ["store"]
    assert (place / "home/store").is_symlink()


@pytest.mark.parametrize("target", ["gone/store", "home/store"])
def test_a_link_that_leads_to_nothing_is_refused(place, target):
    """An unmounted disk, or a circle."""
    (place / "home/store").symlink_to(place / target)
    with pytest.raises(UserError, match="a link that leads to nothing; mount the disk"):
        run(place, place / "home/store")
    with pytest.raises(UserError, match="a link that leads to nothing; mount the disk"):
        run(place, place / "home/store/below")
    assert names(place / "home") == ["store"]
    assert "gone" not in names(place)


@pytest.mark.parametrize("inside", ["packs", "manifest.parquet", "packs/000000.pack"])
def test_a_link_inside_a_store_is_refused_because_its_target_would_stay(place, inside):
    run(place, place / "store")
    shutil.move(place / "store" / inside, place / "disk/moved")
    (place / "store" / inside).symlink_to(place / "disk/moved")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match="is a link, and what it leads to would outlive this store"):
            run(place, place / "store", **options)
    assert len(Store.open(place / "store")) == 4


def test_a_released_scan_is_released_behind_the_link(place):
    x = np.random.default_rng(0).integers(0, 256, (1, 40, 40), dtype=np.uint8)
    with StoreWriter(place / "disk/store", Pseudonyms(bytes(32))) as writer:
        writer.add(Scan(x, scan="a", patient="p", quarantined="burned-in risk"), "a.png")
        writer.finish()
    (place / "home/store").symlink_to(place / "disk/store")
    shutil.move(place / "disk/store/manifest.parquet", place / "disk/manifest")
    (place / "disk/store/manifest.parquet").symlink_to(place / "disk/manifest")
    release(place / "home/store", "modality == ''")
    assert len(Store.open(place / "disk/store")) == 1
    assert (place / "disk/store/manifest.parquet").is_symlink()
    assert (place / "home/store").is_symlink()


def test_a_written_store_and_shards_follow_links(place):
    x = np.random.default_rng(0).integers(0, 256, (1, 40, 40), dtype=np.uint8)
    link = linked(place)
    with StoreWriter(link, Pseudonyms(bytes(32)), overwrite=True) as writer:
        writer.add(Scan(x, scan="a", patient="p"), "a.png")
        writer.finish()
    (place / "home/shards").symlink_to(place / "disk/shards")
    shard(link, place / "home/shards")
    assert len(Store.open(place / "disk/store")) == len(Store.open(place / "disk/shards")) == 1
    assert names(place / "disk") == names(place / "home") == ["shards", "store"]
    assert link.is_symlink()
    assert (place / "home/shards").is_symlink()


def test_a_written_file_replaces_what_a_link_leads_to(tmp_path):
    (tmp_path / "old").write_text("old")
    (tmp_path / "link").symlink_to("old")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "old").read_text() == "new"
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path) == ["link", "old"]


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV])
def test_a_mount_point_that_cannot_be_replaced_is_named(tmp_path, number):
    with pytest.raises(UserError, match=f"cannot write {tmp_path}: .*; choose another place"), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
