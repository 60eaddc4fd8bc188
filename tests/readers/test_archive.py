"""Members of zip archives equal those read by `zipfile`, and harmful ones are refused with a reason."""

import io
import struct
import unicodedata
import warnings
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.readers import archive
from medssl.readers.archive import Member, is_archive, members, open_member
from medssl.readers.scan import Unreadable


def zipped(files, method=zipfile.ZIP_DEFLATED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as z, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about equal names
        for name, data in files:
            z.writestr(name, data)
    return out


def entry_at(data, k=0):
    at = -1
    for _ in range(k + 1):
        at = data.index(b"PK\x01\x02", at + 1)
    return at


def patched(stream, at, code, value):
    data = bytearray(stream.getvalue())
    struct.pack_into(code, data, at, value)
    return io.BytesIO(bytes(data))


def korean(names, method=zipfile.ZIP_STORED):
    """Return an archive as written by Korean Windows: names in CP949, flag 11 not set."""
    blanks = {f"{i:0{len(name.encode('cp949'))}d}": name for i, name in enumerate(names)}
    data = zipped([(blank, name.encode()) for blank, name in blanks.items()], method).getvalue()
    for blank, name in blanks.items():
        data = data.replace(blank.encode(), name.encode("cp949"))
    return io.BytesIO(data)


def fault(stream, name=None):
    with pytest.raises(Unreadable) as e:
        list(members(stream)) if name is None else open_member(stream, name)
    return e.value.code, str(e.value)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text("abc가나/._ ", min_size=1, max_size=9), st.binary(max_size=3000), max_size=6),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.binary(max_size=40),
    st.binary(max_size=40).filter(lambda comment: b"PK" not in comment),  # zipfile would take it for the end
)
def test_members_equal_those_read_by_zipfile(files, method, before, comment):
    stream = zipped(files.items(), method)
    with zipfile.ZipFile(stream, "a") as z:
        z.comment = comment
    stream = io.BytesIO(before + stream.getvalue())
    with zipfile.ZipFile(stream) as z:
        wanted = {i.filename: z.read(i) for i in z.infolist() if not i.is_dir()}
    assert list(members(stream)) == [Member(name, len(data)) for name, data in wanted.items()]
    for name, data in wanted.items():
        if not (name.startswith("/") or ".." in name.split("/") or is_archive(data[:512])):
            assert open_member(stream, name).read() == data


def test_large_members_are_read_in_pieces(monkeypatch):
    data = bytes(range(256)) * 3000 + bytes(500_000)
    for step in (1, 7, 4096):
        monkeypatch.setattr(archive, "STEP", step if step > 1 else 257)
        assert open_member(zipped([("a", data)]), "a").read() == data
    monkeypatch.setattr(archive, "STEP", 257)
    for size in range(1000, 1300):  # the output ends within the last bits of the input
        assert open_member(zipped([("a", bytes(size))]), "a").read() == bytes(size)


def test_large_members_go_to_an_unnamed_file(monkeypatch, tmp_path):
    monkeypatch.setattr(archive, "IN_MEMORY", 10)
    monkeypatch.setattr(archive.tempfile, "tempdir", str(tmp_path))
    with open_member(zipped([("kim.dcm", b"x" * 100)]), "kim.dcm") as f:
        assert not isinstance(f, io.BytesIO)
        assert list(tmp_path.iterdir()) == []
        assert f.read() == b"x" * 100
        assert f.seek(0) == 0


def test_zip64(monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)  # so that small archives are written as zip64
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    stream = zipped([("a", b"1" * 50), ("b/c", b"2" * 60)])
    assert b"PK\x06\x06" in stream.getvalue()
    assert list(members(stream)) == [Member("a", 50), Member("b/c", 60)]
    assert open_member(stream, "b/c").read() == b"2" * 60
    cut = entry_at(stream.getvalue(), 1) + 28  # lengths of the name and of the extra field
    assert fault(patched(stream, cut + 2, "<H", 0))[0] == "BAD_ARCHIVE"


def test_korean_names():
    names = ["원천데이터/환자1/영상.dcm", "철.json"]  # alone, the second is valid UTF-8 as well
    stream = korean(names)
    assert [m.name for m in members(stream)] == names
    assert open_member(stream, names[1]).read() == names[1].encode()
    # macOS: decomposed names, with or without the flag
    nfd = unicodedata.normalize("NFD", names[0])
    flagged = zipped([(nfd, b"1")])
    flags = entry_at(flagged.getvalue()) + 8
    for stream in (flagged, patched(flagged, flags, "<H", 0)):
        assert [m.name for m in members(stream)] == [names[0]]
        assert open_member(stream, names[0]).read() == b"1"


def test_a_utf8_copy_of_the_name_is_used_unless_stale():
    info = zipfile.ZipInfo("a?.dcm")
    copy = "가.dcm".encode()
    field = b"\x01" + zlib.crc32(b"a?.dcm").to_bytes(4, "little") + copy
    info.extra = struct.pack("<2H", 0x7075, len(field)) + field
    assert [m.name for m in members(zipped([(info, b"1")]))] == ["가.dcm"]
    info.filename = "b?.dcm"  # renamed later, so the copy is stale
    assert [m.name for m in members(zipped([(info, b"1")]))] == ["b?.dcm"]


def test_backslashes_are_separators_and_folders_are_skipped():
    stream = zipped([("a_b.dcm", b"1"), ("c/", b"")])
    stream = io.BytesIO(stream.getvalue().replace(b"a_b.dcm", b"a\\b.dcm"))
    assert list(members(stream)) == [Member("a/b.dcm", 1)]
    assert open_member(stream, "a/b.dcm").read() == b"1"


@pytest.mark.parametrize("name", ["../up.dcm", "a/../../up.dcm", "/etc/up.dcm", "C:/up.dcm", "..\\up.dcm"])
def test_paths_that_lead_out_are_refused(name):
    stream = zipped([(name.replace("\\", "_"), b"1"), ("fine", b"2")])
    stream = io.BytesIO(stream.getvalue().replace(name.replace("\\", "_").encode(), name.encode()))
    listed = [m.name for m in members(stream)]
    code, reason = fault(stream, listed[0])
    assert (code, "leads out" in reason, "up" in reason) == ("BAD_ARCHIVE", True, False)
    assert open_member(stream, "fine").read() == b"2"


def test_members_with_the_same_name_are_refused():
    stream = zipped([("a", b"1"), ("a", b"2"), ("b", b"3")])
    assert list(members(stream)) == [Member("a", 1), Member("b", 1)]
    assert "same name" in fault(stream, "a")[1]
    assert open_member(stream, "b").read() == b"3"


def test_encrypted_members_links_and_other_methods_are_refused():
    plain = zipped([("kim.dcm", b"1")])
    at = entry_at(plain.getvalue())
    assert fault(patched(plain, at + 8, "<H", 1), "kim.dcm") == ("BAD_ARCHIVE", "encrypted")
    assert "compression method" in fault(patched(plain, at + 10, "<H", 9), "kim.dcm")[1]
    link = zipfile.ZipInfo("kim.dcm")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    assert fault(zipped([(link, b"/etc/passwd")]), "kim.dcm")[0] == "NOT_A_FILE"
    assert fault(plain, "gone.dcm")[0] == "CANNOT_OPEN"


@pytest.mark.parametrize(
    "inner",
    [
        zipped([("x", b"1")]).getvalue(),
        zipped([]).getvalue(),
        b"7z\xbc\xaf\x27\x1c\x00\x04",
        b"\0" * 257 + b"ustar\x0000",
        zlib.compress(b"\0" * 257 + b"ustar\x0000" + b"\0" * 300, wbits=31),
    ],
    ids=["zip", "empty zip", "7z", "tar", "tar.gz"],
)
def test_nested_archives_are_refused(inner):
    stream = zipped([("in.dcm", inner)])
    assert [m.name for m in members(stream)] == ["in.dcm"]
    assert fault(stream, "in.dcm") == ("BAD_ARCHIVE", "an archive inside an archive")


def test_npz_files_and_gzipped_images_are_not_archives():
    npz = zipped([("train_images.npy", b"1" * 300)], zipfile.ZIP_STORED).getvalue()
    dicom = b"PK\x03\x04".ljust(128, b"\0") + b"DICM"
    gz = zlib.compress(b"\x5c\x01\0\0" * 200, wbits=31)
    for data in (npz, dicom, gz, b"", b"\x1f\x8b\x08"):
        assert not is_archive(data[:512])
        assert open_member(zipped([("x", data)]), "x").read() == data


def test_zip_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(archive, "SMALL", 1 << 10)
    assert fault(zipped([("kim.dcm", bytes(1 << 20))])) == (
        "BAD_ARCHIVE",
        "it unpacks to far more than its size; it may be a zip bomb",
    )
    ballast = zipfile.ZipInfo("ballast")  # makes the archive as a whole look harmless
    stream = zipped([("kim.dcm", bytes(1 << 20)), (ballast, bytes(1 << 14))])
    assert [m.name for m in members(stream)] == ["kim.dcm", "ballast"]
    assert fault(stream, "kim.dcm")[0] == "TOO_LARGE"
    assert len(open_member(stream, "ballast").read()) == 1 << 14
    monkeypatch.setattr(archive, "SMALL", 1 << 20)
    assert len(open_member(stream, "kim.dcm").read()) == 1 << 20


def test_a_member_longer_than_stated_is_damaged(monkeypatch):
    data = zipped([("kim.dcm", bytes(5 << 20))])
    at = entry_at(data.getvalue())
    lying = patched(data, at + 24, "<I", 1000)
    written = []
    monkeypatch.setattr(archive.io, "BytesIO", type("Sink", (io.BytesIO,), {"write": lambda _, b: written.append(b)}))
    assert fault(lying, "kim.dcm") == ("BAD_ARCHIVE", "a member is damaged")
    assert sum(map(len, written)) <= 1000


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_member_shorter_than_stated_is_damaged(method):
    data = zipped([("a", b"1" * 400)], method)
    longer = patched(data, entry_at(data.getvalue()) + 24, "<I", 500)
    assert fault(longer, "a") == ("BAD_ARCHIVE", "a member is damaged")


def test_overlapping_members_are_refused():
    data = zipped([("a", b"1" * 400), ("b", b"2" * 400)], zipfile.ZIP_STORED)
    size = len(data.getvalue())
    for k in (0, 1):
        data = patched(data, entry_at(data.getvalue(), k) + 20, "<I", size - 40)
    assert "overlap" in fault(data)[1]


def test_limits_on_count_and_size(monkeypatch):
    monkeypatch.setattr(archive, "MEMBERS", 2)
    assert len(list(members(zipped([("a", b""), ("b", b"")])))) == 2
    assert fault(zipped([("a", b""), ("b", b""), ("c", b"")]))[0] == "BAD_ARCHIVE"
    monkeypatch.setattr(archive, "LARGEST", 4)
    assert fault(zipped([("a", b"12345")]), "a")[0] == "TOO_LARGE"
    monkeypatch.setattr(archive, "TOTAL", 4)
    assert fault(zipped([("a", b"12345")]))[0] == "BAD_ARCHIVE"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_raises_only_unreadable(data):
    stream = zipped([("a/b.dcm", bytes(range(200))), ("철.json", b"{}" * 40)])
    raw = bytearray(stream.getvalue())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    for _ in range(data.draw(st.integers(0, 3))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    codes = set()
    try:
        listed = list(members(io.BytesIO(bytes(raw))))
    except Unreadable as e:
        codes.add(e.code)
        listed = []
    for name, size in listed:
        try:
            assert len(open_member(io.BytesIO(bytes(raw)), name).read()) == size
        except Unreadable as e:
            codes.add(e.code)
    assert codes <= {"BAD_ARCHIVE", "TOO_LARGE", "NOT_A_FILE"}


def test_a_wrong_checksum_is_damage():
    data = zipped([("a", b"1" * 400)], zipfile.ZIP_STORED).getvalue()
    assert fault(io.BytesIO(data.replace(b"1111", b"1211", 1)), "a") == ("BAD_ARCHIVE", "a member is damaged")


def test_incomplete_archives_are_refused(tmp_path):
    whole = zipped([("a", b"1" * 4000)], zipfile.ZIP_STORED)
    assert "one part of several" in fault(io.BytesIO(whole.getvalue()[:2000]))[1]
    end = whole.getvalue().rindex(b"PK\x05\x06")
    assert "in several files" in fault(patched(whole, end + 4, "<H", 1))[1]
    assert fault(str(tmp_path / "none.zip"))[0] == "CANNOT_OPEN"


def test_a_list_with_fewer_members_than_stated_is_refused():
    whole = zipped([("a", b"1"), ("b", b"2")])
    end = whole.getvalue().rindex(b"PK\x05\x06")
    for field in (8, 10):  # members on this disk, members
        whole = patched(whole, end + field, "<H", 3)
    assert "incomplete" in fault(whole)[1]


def test_an_archive_that_changes_is_read_again(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(zipped([("a", b"1")]).getvalue())
    assert list(members(str(path))) == [Member("a", 1)]
    path.write_bytes(zipped([("b", b"22")]).getvalue())
    assert list(members(str(path))) == [Member("b", 2)]
    assert open_member(str(path), "b").read() == b"22"


def test_the_directory_is_read_once_for_all_its_members(tmp_path, monkeypatch):
    path, times = tmp_path / "a.zip", []
    path.write_bytes(zipped([(f"s/{i}", b"%d" % i) for i in range(500)]).getvalue())
    read = archive._check_directory
    monkeypatch.setattr(archive, "_check_directory", lambda stream: times.append(1) or read(stream))
    assert [open_member(str(path), m.name).read() for m in members(str(path))] == [b"%d" % i for i in range(500)]
    assert len(times) == 1
