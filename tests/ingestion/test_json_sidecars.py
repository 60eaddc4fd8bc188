"""JSON files as in AI-Hub: each is matched to its scan, each copy to its original, and no identifier is kept."""

import io
import json
import tracemalloc
import unicodedata
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medssl.errors import UserError
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.json_values import MAX_BYTES, allowed_values, columns, parse_json
from medssl.ingestion.path_match import pair
from medssl.leakage import rendition
from medssl.readers.archive import members, open_member
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Unreadable

ALIAS = Pseudonyms(b"k" * 32)


def rows(paths):
    return [{"scan": p, "patient": "own", "patient_known": False} for p in paths]


def values_of(content, keys=None, targets=()):
    return allowed_values(content, columns(keys or {}, targets))


def sidecars(files, pattern="auto", **options):
    out = Sidecars(ALIAS, pattern, **options)
    for name, content in files.items():
        out.add(name, json.dumps(content, ensure_ascii=False).encode())
    return out


def labels(out):
    return [row.get("label:label") for row in out]


def test_a_set_in_two_trees(tmp_path):
    """One half was written on a Mac, the other on Linux: one has decomposed names."""
    for hospital in ("가병원", "나병원"):
        for k in range(2):
            source = tmp_path / unicodedata.normalize("NFD", f"01.원천데이터/TS_{hospital}/사례{k}.dcm")
            label = tmp_path / f"02.라벨링데이터/TL_{hospital}/사례{k}.json"
            for path in (source, label):
                path.parent.mkdir(parents=True, exist_ok=True)
            source.write_bytes(b"dicom")
            if (hospital, k) != ("나병원", 1):  # one is missing
                label.write_text(json.dumps({"info": {"환자번호": f"{hospital}{k}"}, "label": f"{hospital[0]}{k}"}))
    beside = Sidecars(ALIAS)
    scans = []
    for path in sorted(p for p in tmp_path.rglob("*") if p.is_file()):
        name = unicodedata.normalize("NFC", path.relative_to(tmp_path).as_posix())
        if name.endswith(".json"):
            beside.add(name, path.read_bytes())
        else:
            scans.append(name)
    out, report = beside.join(rows(scans), scans)
    assert labels(out) == ["가0", "가1", "나0", None]
    assert [r["patient"] for r in out[:3]] == [ALIAS.patient(p) for p in ("가병원0", "가병원1", "나병원0")]
    assert [r["patient_known"] for r in out] == [True, True, True, False]
    assert report == ["3 of 4 scans have a JSON file (labels: label)"]


def test_a_set_in_zip_files_of_a_korean_windows(tmp_path):
    def pack(name, files):
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as z:
            for k, content in enumerate(files.values()):
                z.writestr(f"@{k:0{len(list(files)[k].encode('cp949')) - 1}d}", content)
        raw = data.getvalue()
        for k, inner in enumerate(files):
            raw = raw.replace(f"@{k:0{len(inner.encode('cp949')) - 1}d}".encode(), inner.encode("cp949"))
        (tmp_path / name).write_bytes(raw)

    pack("TS_1.zip", {"폐렴/사진1.dcm": b"1", "폐렴/사진2.dcm": b"2"})
    pack("TL_1.zip", {"폐렴/사진1.json": '{"성별": "남", "label": "폐렴"}'.encode("cp949"), "폐렴/사진2.json": b"{}"})
    beside, scans = Sidecars(ALIAS), []
    for path in sorted(tmp_path.iterdir(), reverse=True):
        for member in members(str(path)):
            name = f"{path.name}!/{member.name}"
            if name.endswith(".json"):
                beside.add(name, open_member(str(path), member.name).read())
            else:
                scans.append(name)
    assert scans == ["TS_1.zip!/폐렴/사진1.dcm", "TS_1.zip!/폐렴/사진2.dcm"]
    out, _ = beside.join(rows(scans), scans)
    assert out[0] | {"label:label": "폐렴", "fact:sex": "M"} == out[0]
    assert labels(out) == ["폐렴", None]


PLANTED = {
    "name": "김민준",
    "patient": {"name": "Kim Minjun", "phone": "010-1234-5678", "patient_id": "88123456", "age": 97, "성별": "여성"},
    "diagnosis": "called 010-1234-5678",
    "finding": "환자 김민준 님은 3월 2일에 기침으로 내원하였고 흉부 사진에서 폐렴이 의심됨",
    "class": "2024-03-02",
    "target": "880101-1234567",
    "lesion": "kim@hospital.kr",
    "labels": ["폐렴", "기흉", "폐렴"],
    "memo": "보호자 연락처 01098765432",
}
SECRETS = ("김민준", "Minjun", "1234", "88123456", "2024", "kim@", "기침", "8765")


def test_only_allowed_values_are_kept():
    beside = sidecars({"kim_88123456.json": PLANTED})
    out, report = beside.join(rows(["kim_88123456.dcm"]), ["kim_88123456.dcm"])
    row = {k: v for k, v in out[0].items() if k != "scan"}
    assert row == {
        **ALIAS.person("88123456"),
        "fact:age": 90.0,
        "fact:sex": "F",
        "label:labels": "기흉|폐렴",
    }
    held = {k: v for k, v in vars(beside).items() if k not in {"pseudonyms", "_names"}}
    for secret in SECRETS:
        assert secret not in str(report)
        assert secret not in str(held)
    assert "label:finding not taken from 1 JSON files" in str(report)


@pytest.mark.parametrize(
    "data",
    [
        b'{"name": "Kim Minjun"',
        b'{"name": "Kim Minjun", }',
        b"\xff\xfe\x00 Kim",
        b"3",
        b'"Kim Minjun"',
        b"",
        b"[" * 100_000,
        b"[" * 80 + b"1" + b"]" * 80,
        b'{"a":' * 80 + b"1" + b"}" * 80,
        b"1" * 5000,
    ],
)
def test_json_that_cannot_be_used_is_refused_without_quoting_it(data):
    beside = Sidecars(ALIAS)
    with pytest.raises(Unreadable) as e:
        beside.add("kim.json", data)
    assert e.value.code == "BAD_SIDECAR"
    assert "im" not in str(e.value)
    assert e.value.__cause__ is None
    assert e.value.__context__ is None or e.value.__suppress_context__  # a decode error carries the document


def test_large_json():
    with pytest.raises(Unreadable, match="16 MB") as e:
        parse_json(b" " * (MAX_BYTES + 1))
    assert e.value.code == "TOO_LARGE"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949"])
def test_encodings(encoding):
    assert parse_json('{"진단": "폐렴"}'.encode(encoding))[0] == {"진단": "폐렴"}


def test_keys_are_found_by_name_at_any_depth():
    content = {"a": [{"Patient-ID": 7}], "b": {"c": {"GENDER": "male", "나이": "45세"}}, "Diagnosis": 3}
    assert values_of(content) == ({"patient": "7", "fact:sex": "M", "fact:age": 45.0, "label:diagnosis": "3"}, set())


def test_contradicting_values_are_not_taken():
    assert values_of({"a": {"age": 4}, "b": {"age": 5}, "sex": "M"}) == ({"fact:sex": "M"}, {"fact:age"})
    assert values_of({"patient_id": "1", "x": {"subject_id": "2"}}) == ({}, {"patient"})
    assert values_of({"patient_id": "1", "x": {"subject_id": "1"}}) == ({"patient": "1"}, set())
    assert values_of({"label": "a", "x": {"label": "b"}}) == ({}, {"label:label"})
    assert values_of({"label": "a", "x": {"label": "a"}}) == ({"label:label": "a"}, set())


def test_items_of_a_list_are_several_labels():
    content = {"annotations": [{"label": "b", "box": [1, 2]}, {"label": "a"}, {"label": "b"}]}
    assert values_of(content) == ({"label:label": "a|b"}, set())
    content["annotations"].append({"label": "x" * 65})
    assert values_of(content) == ({}, {"label:label"})


def test_named_keys_replace_the_usual_ones():
    content = {
        "a": {"id": "P1", "grade": 2},
        "b": {"id": "box", "grade": 9},
        "sex": "M",
        "label": "no",
        "score": 0.123456789,
    }
    assert values_of(content, {"patient": "a.id", "grade": "a.grade"})[0] == {
        "patient": "P1",
        "label:grade": "2",
        "fact:sex": "M",
    }
    assert values_of(content, targets=["score", "b.grade"])[0] == {
        "fact:sex": "M",
        "label:score": "0.123456789",
        "label:b.grade": "9",
    }


@pytest.mark.parametrize("nobody", ["", " ", "0", 0, None, "Unknown", "anonymous", "N/A", "unk", "ANON", "미상", "?"])
def test_placeholder_patients_are_not_taken(nobody):
    assert "patient" not in values_of({"patient_id": nobody})[0]


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=80),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(st.sampled_from(["label", "patient_id", "age", "sex", "name", "data"]), x, max_size=4)
        ),
        max_leaves=12,
    )
)
def test_only_short_words_are_taken_from_any_file(content):
    if isinstance(content, dict | list):
        out, lost = values_of(content)
        assert not out.keys() & lost
        assert out.get("fact:sex") in {None, "M", "F", "O"}
        assert 0 <= out.get("fact:age", 0) <= 90
        for word in out.get("label:label", "").split("|"):
            assert len(word) <= 64 and "\n" not in word  # noqa: PT018


def test_a_dicom_its_copy_and_its_json():
    paths = ["원천/DICOM/h/x.dcm", "원천/PNG/h/x.png", "원천/DICOM/h/y.dcm"]
    beside = sidecars({"라벨/JSON/h/x.json": {"label": "sick"}})
    assert labels(beside.join(rows(paths), paths)[0]) == ["sick", "sick", None]
    kinds = {
        paths[0]: "dicom",
        paths[1]: "image",
        paths[2]: "dicom",
        "원천/PNG/h/z.png": "image",
        "h/x.nii.gz": "nifti",
    }
    assert beside.renditions(kinds) == [(paths[1], paths[0])]


def test_two_hospitals_are_not_mistaken_for_two_halves():
    """One has no JSON files, the other no scans: equal file names do not make them halves of one set."""
    assert pair(["s/a/1.dcm", "s/b/2.dcm"], ["l/b/1.json", "l/b/2.json"]) == {"s/b/2.dcm": [1]}
    assert pair(["s/a/1.dcm"], ["l/b/1.json"]) == {"s/a/1.dcm": [0]}  # these need not be hospitals
    assert pair(["TS/1.dcm", "VS/2.dcm"], ["VL/1.json", "VL/2.json"]) == {"VS/2.dcm": [1]}
    assert pair(["a/1.dcm", "b/1.dcm"], ["1.json"]) == {}


def test_names_of_halves():
    for source, label in [
        ("원천_a", "라벨_a"),
        ("TS_a.zip!", "TL_a"),
        ("1.원천데이터/a", "2.라벨링데이터/a"),
        ("a/png", "json/a"),
    ]:
        scans = [f"{folder}/1.png" for folder in (source, source.replace("a", "b"))]
        others = [f"{folder}/1.json" for folder in (label, label.replace("a", "b"))]
        assert pair(scans, others) == {scans[0]: [0], scans[1]: [1]}
    assert pair(["원천/x.dcm", "DICOM/x.dcm"], ["라벨/x.json"]) == {}  # ambiguous


def test_parts_of_a_file_and_uids_and_volumes():
    uid = "1.2.840.1"
    paths = [f"s/{uid}.7", "s/m.dcm#frame/1", "s/m.dcm#frame/2", "원천/v/ct1"]
    files = {f"l/{uid}.7.json": "u", f"l/{uid}.8.json": "w", "l/m.json": "m"}
    slices = {f"라벨/v/ct1/{k}.json": {"label": "v", "age": 40 + k} for k in range(3)}
    out, report = sidecars({k: {"label": v} for k, v in files.items()} | slices).join(rows(paths), paths)
    assert labels(out) == ["u", "m", "m", "v"]
    assert "fact:age" not in out[3]  # its slices do not agree
    assert report[1] == "1 JSON files belong to no scan"


def test_a_pattern():
    pattern = r"(?P<patient>P\d+)_(?P<stem>\d+)(_(?P<label>sick|well))?"
    paths = ["가/P1_10_sick.dcm", "가/P2_11_well.png", "가/other.png"]
    beside = sidecars({"나/xP1_10.json": {"sex": "f"}}, pattern)
    out, _ = beside.join(rows(paths), paths)
    assert labels(out) == ["sick", "well", None]
    assert [r["patient"] for r in out] == [ALIAS.patient("P1"), ALIAS.patient("P2"), "own"]
    assert [r.get("fact:sex") for r in out] == ["F", None, None]
    kinds = {"P1_10.png": "image", "a/P9_10.dcm": "dicom", "P1_12.png": "image"}
    assert beside.renditions(kinds) == [("P1_10.png", "a/P9_10.dcm")]
    assert beside.renditions(kinds | {"b/P8_10.dcm": "dicom"}) == []


def test_files_of_one_stem_give_the_values_they_agree_on():
    beside = sidecars(
        {"a_1.json": {"label": "x", "sex": "m"}, "a_2.json": {"label": "y", "sex": "m"}}, r"(?P<stem>[a-z])_"
    )
    out, _ = beside.join(rows(["a_.dcm"]), ["a_.dcm"])
    assert (out[0].get("label:label"), out[0]["fact:sex"]) == (None, "M")


def test_an_unnamed_label_that_differs_for_every_scan_is_dropped():
    names = [f"n{k}" for k in range(30)]
    files = {f"{n}.json": {"label": n, "class": f"c{k % 5}"} for k, n in enumerate(names)}
    paths = [f"{n}.dcm" for n in names]
    out, report = sidecars(files).join(rows(paths), paths)
    assert not any("label:label" in r for r in out)
    assert [r["label:class"] for r in out[:3]] == ["c0", "c1", "c2"]
    assert "targets=[label]" in report[-1]
    assert labels(sidecars(files, targets=["label"]).join(rows(paths), paths)[0]) == names


def test_a_stray_json_file_is_reported():
    out, report = sidecars({"kim/dataset.json": {"label": "x"}}).join(rows(["x.dcm"]), ["x.dcm"])
    assert out == rows(["x.dcm"])
    assert report[0].startswith("none of the 1 JSON files belongs to a scan: their paths are like folder/name.json")
    assert "kim" not in str(report)


def test_wrong_options():
    with pytest.raises(UserError, match="not a regular expression"):
        Sidecars(ALIAS, "(")
    with pytest.raises(UserError, match="needs a group"):
        Sidecars(ALIAS, r"(\d+)")
    with pytest.raises(UserError, match=r"finds no stem in the paths of the scans, which are like folder/name$"):
        sidecars({}, r"(?P<stem>zzz)").join(rows(["kim/x.dcm"]), ["kim/x.dcm"])
    with pytest.raises(UserError, match=r"are like folder/name.json, those of scans like name.dcm") as e:
        sidecars({"kim/1.json": {}}, r"(?P<stem>[^/]+)$").join(rows(["x.dcm"]), ["x.dcm"])
    assert "kim" not in str(e.value)
    assert sidecars({}).join(rows(["x.dcm"]), ["x.dcm"])[0] == rows(["x.dcm"])


@pytest.fixture(scope="module")
def slices(shared):
    """Three slices of one head; the last two are close together."""
    from medssl.readers.dicom.header import parse

    out = []
    for path in sorted((shared / "dicom/ct_ge_variable_spacing_tilt").rglob("*.dcm"))[12:15]:
        with path.open("rb") as f:
            header = parse(f)
            f.seek(header.pixels[1])
            raw = f.read(header.pixels[2])
        shape = header.integer("Rows", 0), header.integer("Columns", 0)
        out.append(np.frombuffer(raw, "<i2").reshape(shape).astype(np.float32) - 1024)
    return out


def windowed(x, low, high, gamma=1.0):
    return (255 * np.clip((x - low) / (high - low), 0, 1) ** gamma).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("size", "low", "high", "gamma"),
    [
        (None, 0, 80, 1),
        (None, -1024, 3071, 0.5),
        ((256, 256), 0, 80, 1),
        ((300, 200), -160, 240, 2),
        ((700, 700), 0, 80, 1),
    ],
)
def test_copies_are_recognised_by_their_pixels(slices, size, low, high, gamma):
    x, other, _ = slices
    image = Image.fromarray(windowed(x, low, high, gamma))
    copy = np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC) if size else image)
    assert rendition.is_rendition(x, copy)
    assert rendition.is_rendition(x, 255 - copy)
    assert not rendition.is_rendition(other, copy)
    assert not rendition.is_rendition(x[::-1], copy)


def test_images_that_are_no_copies(slices):
    x = slices[0]
    assert not rendition.is_rendition(x, np.zeros(x.shape, np.uint8))
    assert not rendition.is_rendition(np.zeros_like(x), windowed(x, 0, 80))
    assert not rendition.is_rendition(x, np.random.default_rng(0).integers(0, 255, x.shape, np.uint8))


def test_a_neighbouring_slice_is_no_copy(slices):
    assert not rendition.is_rendition(slices[1], windowed(slices[2], 0, 80))
    assert not rendition.is_rendition(slices[2], windowed(slices[1], -160, 240))


def test_a_jpeg_copy(slices):
    data = io.BytesIO()
    Image.fromarray(windowed(slices[0], -160, 240)).save(data, "JPEG", quality=60)
    assert rendition.is_rendition(slices[0], np.asarray(Image.open(data)))


def test_the_picture_of_a_slice_is_found_in_its_volume():
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 2000, (5, 40, 30)).astype(float)  # slices along the first axis
    turned = volume[::-1].transpose(2, 0, 1)[::-1]  # as a store may hold it
    noise = rng.normal(0, 1000, turned.shape)
    turned = np.stack([turned + noise, turned - noise])  # only the mean of the channels shows the picture
    for k in range(5):
        image = np.clip(volume[k] / 8, 0, 255).astype(np.uint8)
        assert any(rendition.is_rendition(p, image) for p in rendition.slice_orientations(turned, k, 5))
        if k < 3:  # neither this slice nor its mirror image
            assert not any(
                rendition.is_rendition(p, image)
                for p in rendition.slice_orientations(turned, k + 1, 5)
                if k + 1 != 4 - k
            )
    [alone] = rendition.slice_orientations(np.stack([volume[0], volume[1]]), 0, 1)
    np.testing.assert_array_equal(alone, (volume[0] + volume[1]) / 2)


def test_a_whole_volume_is_never_copied_to_look_at_a_plane():
    volume = np.zeros((1, 20, 200, 200), np.int16)
    tracemalloc.start()
    assert len(list(rendition.slice_orientations(volume, 3, 20))) == 16
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < volume.nbytes
