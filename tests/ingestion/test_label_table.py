"""Rows of a table are joined to the right scans, and only the requested columns are copied."""

import io
import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl.errors import UserError
from medssl.ingestion.label_table import read_labels
from medssl.ingestion.path_match import match, normalised, stem
from medssl.readers.dicom.header import parse
from medssl.readers.dicom.identity import identify
from medssl.readers.pseudonyms import Pseudonyms

ALIAS = Pseudonyms(b"k" * 32)


def rows(paths):
    return [{"scan": p, "patient": "own", "patient_known": False, "site": "", "split": ""} for p in paths]


def join(tmp_path, text, paths, encoding="utf-8", **options):
    table = tmp_path / "table.csv"
    table.write_bytes(text.encode(encoding))
    return read_labels(table, ALIAS, paths=paths, **options).join(rows(paths), paths)


def test_paths_match_before_tails_before_names_before_stems():
    paths = ["a/x.png", "b/x.png", "c/d/y.png", "z.nii.gz", "lonely.png"]
    files = [normalised(f) for f in ["b/x.png", "other/a/x.png", "y.png", "z", "gone.png"]]
    assert match(paths, files) == {"b/x.png": 0, "a/x.png": 1, "c/d/y.png": 2, "z.nii.gz": 3}


def test_an_ambiguous_name_joins_nothing():
    assert match(["a/x.png", "b/x.png"], ["x.png"]) == {}
    assert match(["x.png"], ["a/x.png", "b/x.png"]) == {}
    assert match(["x.png", "x.dcm"], ["x"]) == {}


def test_several_scans_of_one_path_share_its_row():
    assert match(["case1", "case1", "case2"], ["case1"]) == {"case1": 0}


def test_names_compare_across_unicode_forms_case_and_slashes():
    korean = "환자/사진.PNG"
    assert match([unicodedata.normalize("NFD", korean)], [normalised("환자\\사진.png")])


def defined(paths, files):
    """The definition of `match`, by counting all tails of all names."""

    def tails(name):
        parts = name.split("/")
        return ["/".join(parts[i:]) for i in range(len(parts))] + ["stem of " + stem(name)]

    def apart(a, b):
        folders = [name.split("/")[:-1][-1:] for name in (a, b)]
        return all(folders) and folders[0] != folders[1]

    def count(names, tail):
        return sum(tail in tails(name) for name in names)

    out = {}
    for path in dict.fromkeys(paths):
        if path in files:
            out[path] = files.index(path)
            continue
        once = [t for t in tails(path) if count(dict.fromkeys(paths), t) == 1 and count(files, t) == 1]
        i = next((i for i, name in enumerate(files) if once and once[0] in tails(name)), None)
        if i is not None and not apart(path, files[i]):
            out[path] = i
    return out


NAMES = st.lists(st.sampled_from("ab"), max_size=2).flatmap(
    lambda folders: st.sampled_from(["x.png", "x.dcm", "y.png", "x", "z.nii.gz"]).map(lambda n: "/".join([*folders, n]))
)


@settings(max_examples=120, deadline=None)
@given(st.lists(NAMES, max_size=7), st.lists(NAMES, max_size=7, unique=True))
def test_match_against_its_definition(paths, files):
    assert match(paths, files) == defined(paths, files)


def test_the_row_of_a_damaged_file_goes_to_no_other():
    names = ["a/1.png", "B/1.png", "c/2.png", "1.json"]
    assert match(["a/1.png"], [normalised("B/1.png")], names) == {}
    assert match(["a/1.png"], ["1.png"], names) == {}
    assert match(["a/1.png"], ["1"], names) == {}
    assert match(["a/1.png", "c/2.png"], ["a/1.png", "2.png"], names) == {"a/1.png": 0, "c/2.png": 1}
    assert match(["a/1.png", "set.npz#train/0"], ["1.png", "set"], ["a/1.png", "a/1.dcm", "b/1.json", "set.npz"]) == {
        "a/1.png": 0,
        "set.npz#train/0": 1,
    }


def test_other_files_of_the_source_make_names_ambiguous(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,label\n1.png,sick\n2.png,well\n")
    beside = read_labels(table, ALIAS, paths=iter(["a/1.png", "B/1.png", "a/2.png"]))
    out, _ = beside.join(rows(["a/1.png", "a/2.png"]), ["a/1.png", "a/2.png"])
    assert [r.get("label:label") for r in out] == [None, "well"]


def test_folders_with_different_names_are_different_cases():
    assert match(["hospital_a/1.png"], ["hospital_b/1.png"]) == {}
    assert match(["hospital_a/1.png"], ["hospital_b/1"]) == {}
    assert match(["a/x.npz#train/1"], ["b/x.npz#train:1", "a/x.npz"]) == {"a/x.npz#train/1": 1}
    assert match(["a/1.png", "2.png", "s.zip!/3.png"], ["x/y/a/1.png", "x/2.png", "s/3.png"]) == {
        "a/1.png": 0,
        "2.png": 1,
        "s.zip!/3.png": 2,
    }


def test_names_in_archives_and_uids():
    files = [
        normalised(f) for f in ["a.zip/b/1.2.840.7", "a.zip!/1.dcm", "b.zip/1.dcm", "c\\set.npz", "d/set.npz#train/3"]
    ]
    paths = ["s/a.zip!/b/1.2.840.7.dcm", "s/a.zip!/1.dcm", "s/b.zip!/1.dcm", "c/set.npz#train/1", "d/set.npz#train/3"]
    assert match(paths, files) == {path: i for i, path in enumerate(paths)}


@pytest.mark.parametrize("column", ["label", "Diagnosis", "CLASS"])
def test_known_label_columns_are_found(tmp_path, column):
    out, report = join(tmp_path, f"file,{column}\na.png,sick\nb.png,\n", ["a.png", "b.png", "c.png"])
    assert [r.get(f"label:{column}") for r in out] == ["sick", None, None]
    assert report[0].startswith("2 of 3 scans")
    assert "1 scans have no row in the table" in report


def test_columns_that_were_not_named_are_not_copied_but_listed(tmp_path):
    text = "file,name,phone,label,grade\na.png,Kim Minjun,010-1234,1,4\n"
    out, report = join(tmp_path, text, ["a.png"], targets=["grade"])
    assert out[0]["label:grade"] == "4"
    assert "Kim Minjun" not in str(out)
    assert "010-1234" not in str(out)
    assert "columns not copied: name, phone, label " in report[-1]


def test_patients_become_pseudonyms(tmp_path):
    out, _ = join(tmp_path, "file,patient_id\na.png,P1\nb.png,P1\nc.png,\n", ["a.png", "b.png", "c.png"])
    assert [r["patient"] for r in out] == [ALIAS.patient("P1")] * 2 + ["own"]
    assert [r["patient_known"] for r in out] == [True, True, False]
    assert "P1" not in str(out)


def test_a_table_of_patients_joins_dicom(tmp_path):
    """By Patient ID as in the header, with the issuer before it if there is one."""
    table = tmp_path / "t.csv"
    table.write_text("patient_id,label\nP0,sick\nH1|P0,well\n")
    paths = ["a.dcm", "b.dcm", "c.dcm"]
    headers = [dataset(PatientID="P0 "), dataset(PatientID="P0", IssuerOfPatientID="H1"), dataset(PatientID="P2")]
    scans = [row | identify(h, ALIAS, p) for row, h, p in zip(rows(paths), headers, paths, strict=True)]
    out, _ = read_labels(table, ALIAS, paths=paths).join(scans, paths)
    assert [r.get("label:label") for r in out] == ["sick", "well", None]
    assert [r["patient"] for r in out] == [s["patient"] for s in scans]


def dataset(**elements):
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    ds.Rows = ds.Columns = 1
    ds.PixelData = b"\0\0"
    ds["PixelData"].VR = "OW"
    data = io.BytesIO()
    ds.save_as(data, enforce_file_format=True)
    return parse(io.BytesIO(data.getvalue()))


def test_equal_birth_dates_link_no_patients_but_tell_two_of_one_id_apart():
    def birth_hash(**elements):
        return identify(dataset(**elements), ALIAS, "a")["birth_date_hash"]

    assert birth_hash(PatientID="P0", PatientBirthDate="19570203") != birth_hash(
        PatientID="P1", PatientBirthDate="19570203"
    )
    assert birth_hash(PatientID="P0", PatientBirthDate="19570203") == birth_hash(
        PatientID="P0 ", PatientBirthDate="19570203"
    )
    assert birth_hash(PatientID="P0", PatientBirthDate="19570203") != birth_hash(
        PatientID="P0", PatientBirthDate="19570204"
    )
    assert birth_hash(PatientID="ANON", PatientBirthDate="19570203") == ""


def test_a_birth_date_hash_is_dropped_with_its_patient(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,patient_id\na.png,P1\nb.png,P2\n")
    scans = [row | {"born": "x", "patient": ALIAS.patient("P1")} for row in rows(["a.png", "b.png"])]
    out, _ = read_labels(table, ALIAS).join(scans, ["a.png", "b.png"])
    assert [r["born"] for r in out] == ["x", ""]


def test_a_table_may_have_one_row_per_patient(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("subject;label\n7;sick\n8;well\n")
    paths = ["p7/a.png", "p7/b.png", "p9/c.png"]
    out, report = read_labels(table, ALIAS, patient=r"p(\d)", paths=paths).join(rows(paths), paths)
    assert [r.get("label:label") for r in out] == ["sick", "sick", None]
    assert "1 rows match no scan" in report


def test_a_pattern_that_finds_a_word_for_nobody_finds_no_patient(tmp_path):
    paths = ["unknown_1.png", "unknown_2.png", "p7_1.png"]
    out, _ = join(tmp_path, "file,label\n" + "".join(f"{p},x\n" for p in paths), paths, patient=r"^(\w+)_")
    assert [r["patient_known"] for r in out] == [False, False, True]


def test_a_pattern_for_the_patient_overrides_the_table(tmp_path):
    out, _ = join(tmp_path, "file,patient\np7.png,other\n", ["p7.png"], patient=r"p(\d)")
    assert out[0]["patient"] == ALIAS.patient("7")


def test_folders_are_labels():
    paths = ["x/sick/a.png", "b.png", "set.npz#train/3", "x/well/y.nii.gz#volume/2", "x/mild.zip!/a.png"]
    out, _ = read_labels("folders", ALIAS).join(rows(paths), paths)
    assert [r.get("label:label") for r in out] == ["sick", None, None, "well", "mild"]


def test_an_empty_cell_is_no_split(tmp_path):
    out, _ = join(tmp_path, "file,split\na.png,Train\nb.png,\n", ["a.png", "b.png"])
    assert [r["split"] for r in out] == ["train", ""]


def test_metadata_columns_pass_no_free_text(tmp_path):
    text = "file,age,sex,view,laterality,site\na,097Y,male,pa,Left,A\nb,born 1931,Kim,see Dr. Lee,?,\nc,006M,F,AP,R,B\n"
    out, _ = join(tmp_path, text, ["a", "b", "c"])
    facts = [{k.removeprefix("fact:"): v for k, v in r.items() if k.startswith("fact:")} for r in out]
    assert facts[0] == {"age": 90.0, "sex": "M", "view": "PA", "laterality": "L"}
    assert facts[1] == {}
    assert facts[2] == {"age": 0.5, "sex": "F", "view": "AP", "laterality": "R"}
    assert [r["site"] for r in out] == ["A", "", "B"]


def test_views_are_those_of_a_list(tmp_path):
    out, _ = join(tmp_path, "file,view\na,minjun\nb,pa\n", ["a", "b"])
    assert [r.get("fact:view") for r in out] == [None, "PA"]


@pytest.mark.parametrize("column", ["finding", "site"])
@pytest.mark.parametrize(
    "text", ["010-1234-5678", "kim@hospital.kr", "2024-03-02", "Kim came in with a cough today", "88123456", "x" * 65]
)
def test_columns_that_look_like_free_text_are_dropped_and_reported(tmp_path, column, text):
    out, report = join(tmp_path, f"file,label,{column}\na,sick,ok\nb,well,{text}\n", ["a", "b"])
    assert [r["label:label"] for r in out] == ["sick", "well"]
    assert not any(f"label:{column}" in r or r["site"] for r in out)
    assert f"column '{column}' looks like free text" in str(report)
    assert f"targets=[{column}]" in str(report)
    assert text not in str(report)


def test_an_unnamed_label_that_differs_for_every_scan_is_dropped(tmp_path):
    names = [f"n{k}" for k in range(30)]
    text = "file,finding\n" + "".join(f"{n},word{n}\n" for n in names)
    out, report = join(tmp_path, text, names)
    assert not any("label:finding" in r for r in out)
    assert "targets=[finding]" in str(report)
    out, _ = join(tmp_path, text, names, targets=["finding"])
    assert [r["label:finding"] for r in out] == [f"word{n}" for n in names]


def test_single_values_of_a_named_label_are_refused_and_counted(tmp_path):
    text = "file,note\na,sick\nb,call 010-1234-5678\nc,0.123456789\nd,mild|effusion\ne,mild|880101\n"
    out, report = join(tmp_path, text, list("abcde"), targets=["note"])
    assert [r["label:note"] for r in out] == ["sick", None, "0.123456789", "mild|effusion", None]
    assert "2 values of column 'note' were not copied" in str(report)
    assert "1234" not in str(report)


@pytest.mark.parametrize(
    ("cell", "age"),
    [("45세", 45.0), ("6개월", 0.5), ("104", 90.0), ("999", None), ("999D", 999 / 365), ("45 Kim", None)],
)
def test_ages(tmp_path, cell, age):
    out, _ = join(tmp_path, f"file,age\na,{cell}\n", ["a"])
    assert out[0].get("fact:age") == age


def test_korean_and_differently_written_columns(tmp_path):
    out, report = join(tmp_path, "파일명;환자 번호;진단명;성별;View Position\na.png;7;폐렴;여;pa\n", ["a.png"])
    assert out[0] | {"label:진단명": "폐렴", "fact:sex": "F", "fact:view": "PA"} == out[0]
    assert out[0]["patient"] == ALIAS.patient("7")
    assert not any("not copied" in line for line in report)


def test_a_table_that_matches_no_scan(tmp_path):
    with pytest.raises(UserError, match=r"names files like folder/name.png, the source has paths like name.dcm;") as e:
        join(tmp_path, "file,label\nsecret/kim.png,1\n", ["lee.dcm"])
    assert not {"kim", "lee", "secret"} & set(re.findall(r"\w+", str(e.value)))
    with pytest.raises(UserError, match="no patient in the table") as e:
        join(tmp_path, "patient,label\n880101,1\n", ["lee.dcm"])
    assert "880101" not in str(e.value)


def test_repeated_rows_are_counted_and_contradicting_rows_are_refused(tmp_path):
    _, report = join(tmp_path, "file,label,box\na,1,3\nA,1,4\n", ["a"])
    assert "1 rows repeat another row" in report
    with pytest.raises(UserError, match="lines 2 and 4 contradict"):
        join(tmp_path, "file,label\na,1\nb,1\na,0\n", ["a"])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp949"])
def test_korean_tables(tmp_path, encoding):
    out, _ = join(tmp_path, "file,label\n사진.png,폐렴\n", ["사진.png"], encoding)
    assert out[0]["label:label"] == "폐렴"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"file,label\n", "is empty"),
        (b"\n\n", "is empty"),
        (b"a,b\n1,2\n", "no column that names a file"),
        (b"file,label\n,1\n", "no row that names a file"),
        (b"PK\x03\x04\xff\xff\x00\x81", "neither UTF-8 nor CP949"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, data, message):
    table = tmp_path / "t.csv"
    table.write_bytes(data)
    with pytest.raises(UserError, match=message):
        read_labels(table, ALIAS)


def test_wrong_options(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_labels(tmp_path / "none.csv", ALIAS)
    with pytest.raises(UserError, match="Did you mean 'grade'"):
        join(tmp_path, "file,grade\na,1\n", ["a"], targets=["grad"])
    with pytest.raises(UserError, match="needs a table"):
        read_labels("folders", ALIAS, targets=["x"])
    with pytest.raises(UserError, match="exactly one group"):
        read_labels(None, ALIAS, patient="person", paths=["person1"])
    with pytest.raises(UserError, match="not a regular expression"):
        read_labels(None, ALIAS, patient="person(", paths=["person1"])
    with pytest.raises(UserError, match="no path of the source"):
        read_labels(None, ALIAS, patient=r"person(\d)", paths=["patient1"])


@pytest.mark.parametrize("word", ["tst", "3", "Train set"])
def test_an_unknown_word_for_a_split_is_refused(tmp_path, word):
    path = tmp_path / "t.csv"
    path.write_text(f"file,split\na.png,train\nb.png,{word}\n")
    with pytest.raises(UserError, match=r"split .* line 3"):
        read_labels(path, Pseudonyms(bytes(32)))


def test_usual_words_for_splits(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,split\na.png,Training\nb.png,validation\nc.png,TEST\n")
    assert [row["split"] for row in read_labels(path, Pseudonyms(bytes(32))).rows] == ["train", "val", "test"]
