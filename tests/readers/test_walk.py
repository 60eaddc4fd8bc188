"""Every file of a folder is listed; links are not followed."""

import os
import unicodedata

import pytest

from medssl.errors import UserError
from medssl.readers.scan import Unreadable
from medssl.readers.walk import File, open_file, walk


def names(source, **options):
    return {f.name: f.problem for f in walk(source, **options)}


def test_files_are_listed_in_order_and_others_with_a_problem(tmp_path):
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


def test_unreadable_folders_are_reported(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (tmp_path / "closed").mkdir(mode=0)
    assert names(tmp_path) == {"closed": "CANNOT_OPEN"}


def test_a_single_file_is_a_source_and_a_missing_one_an_error(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"1")
    assert names(tmp_path / "x.npz") == {"x.npz": ""}
    with pytest.raises(UserError, match="nothing at"):
        list(walk(tmp_path / "y"))


def test_names_are_composed_and_korean_names_are_decoded(tmp_path):
    decomposed = unicodedata.normalize("NFD", "환자")
    (tmp_path / decomposed).write_bytes(b"1")
    (tmp_path / os.fsdecode("영상".encode("cp949"))).write_bytes(b"1")
    assert set(names(tmp_path)) == {"환자", "영상"}
    for file in walk(tmp_path):
        with open_file(file) as stream:
            assert stream.read() == b"1"


def test_the_stamp_changes_with_the_file(tmp_path):
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


def test_links_and_pipes_are_not_opened(tmp_path):
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("link", "NOT_A_FILE"), ("pipe", "NOT_A_FILE"), ("gone", "CANNOT_OPEN")):
        with pytest.raises(Unreadable) as why:
            open_file(File(name, str(tmp_path / name)))
        assert why.value.code == code
        assert str(tmp_path) not in str(why.value)
