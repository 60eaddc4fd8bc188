"""The walk sees everything, follows nothing and believes no name."""

import gzip
import os
import unicodedata

import nibabel
import numpy as np
import pytest
from PIL import Image

from medssl.errors import UserError
from medssl.readers.scan import Unreadable
from medssl.readers.walk import File, open_file, sniff, walk


def names(source, **options):
    return {f.name: f.problem for f in walk(source, **options)}


def test_regular_files_in_order_and_everything_else_accounted_for(tmp_path):
    source = tmp_path / "source"
    (source / "b" / "deep").mkdir(parents=True)
    (source / "a").mkdir()
    for name in ("b/deep/x.dcm", "b/1", "a/2.png", "z"):
        (source / name).write_bytes(b"12")
    (source / "empty").touch()
    (source / ".DS_Store").write_bytes(b"1")
    (source / "b" / "Thumbs.db").write_bytes(b"1")
    (source / ".hidden").mkdir()
    (source / ".hidden" / "inside").write_bytes(b"1")
    (source / "link").symlink_to(source / "z")
    (source / "b" / "loop").symlink_to(source)
    os.mkfifo(source / "pipe.dcm")
    found = names(source)
    assert {n for n, p in found.items() if not p} == {"a/2.png", "b/1", "b/deep/x.dcm", "z"}
    assert {n: p for n, p in found.items() if p} == {
        "empty": "EMPTY",
        ".DS_Store": "LITTER",
        "b/Thumbs.db": "LITTER",
        ".hidden": "LITTER",
        "link": "NOT_A_FILE",
        "b/loop": "NOT_A_FILE",
        "pipe.dcm": "NOT_A_FILE",
    }
    assert [f.name for f in walk(source)] == [f.name for f in walk(source)]


def test_a_folder_that_cannot_be_listed_is_said(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (tmp_path / "closed").mkdir(mode=0)
    assert names(tmp_path) == {"closed": "CANNOT_OPEN"}


def test_one_file_is_a_source_and_nothing_is_none(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"1")
    assert names(tmp_path / "x.npz") == {"x.npz": ""}
    with pytest.raises(UserError, match="nothing at"):
        list(walk(tmp_path / "y"))


def test_names_are_composed_and_korean_disks_are_read(tmp_path):
    decomposed = unicodedata.normalize("NFD", "환자")
    (tmp_path / decomposed).write_bytes(b"1")
    (tmp_path / os.fsdecode("영상".encode("cp949"))).write_bytes(b"1")
    assert set(names(tmp_path)) == {"환자", "영상"}
    for file in walk(tmp_path):
        with open_file(file) as stream:
            assert stream.read() == b"1"


def test_a_stamp_changes_with_the_file(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1")
    os.utime(path, ns=(1, 1))
    first = next(walk(tmp_path)).stamp
    assert next(walk(tmp_path)).stamp == first
    os.utime(path, ns=(2, 2))
    second = next(walk(tmp_path)).stamp
    path.write_bytes(b"12")
    os.utime(path, ns=(2, 2))
    assert len({first, second, next(walk(tmp_path)).stamp}) == 3


def test_a_link_or_a_pipe_that_takes_a_files_place_is_not_opened(tmp_path):
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("link", "NOT_A_FILE"), ("pipe", "NOT_A_FILE"), ("gone", "CANNOT_OPEN")):
        with pytest.raises(Unreadable) as why:
            open_file(File(name, str(tmp_path / name)))
        assert why.value.code == code
        assert str(tmp_path) not in str(why.value)


def test_content_decides(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "n.nii.gz")
    nibabel.save(nibabel.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "n2.nii")
    for suffix in ("png", "jpg", "tiff", "gif"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"i.{suffix}")
    np.savez(tmp_path / "a.npz", train_images=np.zeros((1, 2, 2)))
    (tmp_path / "d").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "bare").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 192")
    (tmp_path / "big").write_bytes(b"\0\x08\0\x05CS\0\x0aISO_IR 192")
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"text"))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text" * 999)[:20])
    (tmp_path / "t.txt").write_bytes(b"text")
    kinds = {}
    for file in walk(tmp_path):
        with open_file(file) as stream:
            kinds[file.name] = sniff(stream)
            assert stream.tell() == 0
    assert kinds == {
        **dict.fromkeys(("n.nii.gz", "n2.nii"), "nifti"),
        **dict.fromkeys(("i.png", "i.jpg", "i.tiff"), "image"),
        "a.npz": "npz",
        **dict.fromkeys(("d", "bare", "big"), "dicom"),
        **dict.fromkeys(("t.gz", "cut.gz", "t.txt", "i.gif"), ""),
    }
