"""Tables join the right scan, copy what was asked for and nothing else."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssl.errors import UserError
from medssl.scans.alias import Alias
from medssl.store.labels import read_labels
from medssl.store.match import match, normal, stem

ALIAS = Alias(b"k" * 32)


def rows(paths):
    return [{"scan": p, "patient": "own", "patient_known": False, "site": "", "split": ""} for p in paths]


def join(tmp_path, text, paths, encoding="utf-8", **options):
    table = tmp_path / "table.csv"
    table.write_bytes(text.encode(encoding))
    return read_labels(table, ALIAS, paths=paths, **options).join(rows(paths), paths)


def test_path_then_tail_then_name_then_stem():
    paths = ["a/x.png", "b/x.png", "c/d/y.png", "z.nii.gz", "lonely.png"]
    files = [normal(f) for f in ["b/x.png", "other/a/x.png", "y.png", "z", "gone.png"]]
    assert match(paths, files) == {"b/x.png": 0, "a/x.png": 1, "c/d/y.png": 2, "z.nii.gz": 3}


def test_an_ambiguous_name_joins_nothing():
    assert match(["a/x.png", "b/x.png"], ["x.png"]) == {}
    assert match(["x.png"], ["a/x.png", "b/x.png"]) == {}
    assert match(["x.png", "x.dcm"], ["x"]) == {}


def test_several_scans_of_one_path_share_its_row():
    assert match(["case1", "case1", "case2"], ["case1"]) == {"case1": 0}


def test_names_compare_across_unicode_forms_case_and_slashes():
    korean = "환자/사진.PNG"
    assert match([unicodedata.normalize("NFD", korean)], [normal("환자\\사진.png")])


def defined(paths, files):
    """What `match` promises, by counting every tail of everything."""

    def tails(name):
        parts = name.split("/")
        return ["/".join(parts[i:]) for i in range(len(parts))] + ["stem of " + stem(name)]

    def count(names, tail):
        return sum(tail in tails(name) for name in names)

    out = {}
    for path in dict.fromkeys(paths):
        if path in files:
            out[path] = files.index(path)
            continue
        once = [t for t in tails(path) if count(dict.fromkeys(paths), t) == 1 and count(files, t) == 1]
        if once:
            out[path] = next(i for i, name in enumerate(files) if once[0] in tails(name))
    return out


NAMES = st.lists(st.sampled_from("ab"), max_size=2).flatmap(
    lambda folders: st.sampled_from(["x.png", "x.dcm", "y.png", "x", "z.nii.gz"]).map(lambda n: "/".join([*folders, n]))
)


@settings(max_examples=120, deadline=None)
@given(st.lists(NAMES, max_size=7), st.lists(NAMES, max_size=7, unique=True))
def test_match_against_its_definition(paths, files):
    assert match(paths, files) == defined(paths, files)


def test_names_in_archives_and_uids():
    files = [normal(f) for f in ["a.zip/b/1.2.840.7", "a.zip!/1.dcm", "b.zip/1.dcm", "c\\set.npz", "d/set.npz#train/3"]]
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
    assert [r["patient"] for r in out] == [ALIAS.alias("patient", "P1")] * 2 + ["own"]
    assert [r["patient_known"] for r in out] == [True, True, False]
    assert "P1" not in str(out)


def test_a_table_may_go_by_patient(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("subject;label\n7;sick\n8;well\n")
    paths = ["p7/a.png", "p7/b.png", "p9/c.png"]
    out, report = read_labels(table, ALIAS, patient=r"p(\d)", paths=paths).join(rows(paths), paths)
    assert [r.get("label:label") for r in out] == ["sick", "sick", None]
    assert "1 rows match no scan" in report


def test_a_pattern_names_the_patient_before_the_table_does(tmp_path):
    out, _ = join(tmp_path, "file,patient\np7.png,other\n", ["p7.png"], patient=r"p(\d)")
    assert out[0]["patient"] == ALIAS.alias("patient", "7")


def test_folders_are_labels():
    paths = ["x/sick/a.png", "b.png", "set.npz#train/3", "x/well/y.nii.gz#volume/2", "x/mild.zip!/a.png"]
    out, _ = read_labels("folders", ALIAS).join(rows(paths), paths)
    assert [r.get("label:label") for r in out] == ["sick", None, None, "well", "mild"]


def test_splits_count_only_when_all_are_splits(tmp_path):
    out, _ = join(tmp_path, "file,split\na.png,Train\nb.png,\n", ["a.png", "b.png"])
    assert [r["split"] for r in out] == ["train", ""]
    out, report = join(tmp_path, "file,split\na.png,train\nb.png,fold 3\n", ["a.png", "b.png"])
    assert [r["split"] for r in out] == ["", ""]
    assert "split" in report[-1]


def test_facts_let_no_free_text_through(tmp_path):
    text = "file,age,sex,view,laterality,site\na,097Y,male,pa,Left,A\nb,born 1931,Kim,see Dr. Lee,?,\nc,006M,F,AP,R,B\n"
    out, _ = join(tmp_path, text, ["a", "b", "c"])
    facts = [{k.removeprefix("fact:"): v for k, v in r.items() if k.startswith("fact:")} for r in out]
    assert facts[0] == {"age": 90.0, "sex": "M", "view": "PA", "laterality": "L"}
    assert facts[1] == {}
    assert facts[2] == {"age": 0.5, "sex": "F", "view": "AP", "laterality": "R"}
    assert [r["site"] for r in out] == ["A", "", "B"]


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
    assert out[0]["patient"] == ALIAS.alias("patient", "7")
    assert not any("not copied" in line for line in report)


def test_a_table_that_means_no_scan(tmp_path):
    with pytest.raises(UserError, match=r"names files like folder/name.png, the source has paths like name.dcm;") as e:
        join(tmp_path, "file,label\nsecret/kim.png,1\n", ["lee.dcm"])
    assert not {"kim", "lee", "secret"} & set(re.findall(r"\w+", str(e.value)))
    with pytest.raises(UserError, match="no patient in the table") as e:
        join(tmp_path, "patient,label\n880101,1\n", ["lee.dcm"])
    assert "880101" not in str(e.value)


def test_rows_that_repeat_are_counted_and_rows_that_disagree_are_refused(tmp_path):
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
