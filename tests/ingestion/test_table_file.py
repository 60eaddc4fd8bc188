"""The column that names the files is found by its name or by its content, and the separator is the table's."""

import pytest

from medssl.errors import UserError
from medssl.ingestion.label_table import read_labels
from medssl.ingestion.table_file import read_table
from medssl.readers.pseudonyms import Pseudonyms

ALIAS = Pseudonyms(b"k" * 32)
PATHS = [f"images/00002505_{k:03d}.png" for k in range(4)]


def join(tmp_path, text, paths=PATHS, **options):
    table = tmp_path / "table.csv"
    table.write_bytes(text.encode())
    rows = [{"scan": p, "patient": "own", "patient_known": False, "site": "", "split": ""} for p in paths]
    out, report = read_labels(table, ALIAS, paths=paths, **options).join(rows, paths)
    return [row.get("label:Finding Labels") for row in out], [row["patient_known"] for row in out], report


def table_of(column, names, patients="1111"):
    rows = (f"{name},{'ABCD'[k]},{p}\n" for k, (name, p) in enumerate(zip(names, patients, strict=True)))
    return f"{column},Finding Labels,Patient ID\n" + "".join(rows)


@pytest.mark.parametrize(
    "column", ["Image Index", "image_name", "image_id", "dicom_id", "ImageID", "File Path", "file"]
)
@pytest.mark.parametrize("suffix", [".png", ""])
def test_a_table_by_image_goes_by_image(tmp_path, column, suffix):
    text = table_of(column, [f"00002505_{k:03d}{suffix}" for k in range(4)])
    labels, known, _ = join(tmp_path, text, targets=["Finding Labels"])
    assert labels == ["A", "B", "C", "D"]
    assert known == [True] * 4


def test_a_column_of_another_name_is_found_by_what_it_names(tmp_path):
    text = table_of("bild", [f"00002505_{k:03d}" for k in range(4)])
    labels, _, report = join(tmp_path, text, targets=["Finding Labels"])
    assert labels == ["A", "B", "C", "D"]
    assert "column 'bild' names 4 files of the source: its rows are joined to them" in report


def test_among_several_usual_names_the_one_that_names_files_is_taken(tmp_path):
    rows = "".join(f"{900 + k},00002505_{k:03d},{'ABCD'[k]}\n" for k in range(4))
    labels, _, _ = join(tmp_path, f"scan,dicom_id,Finding Labels\n{rows}", targets=["Finding Labels"])
    assert labels == ["A", "B", "C", "D"]


def test_a_folder_of_slices_counts_as_a_file(tmp_path):
    paths = ["s1/a.dcm", "s1/b.dcm", "s2/a.dcm"]
    table = tmp_path / "t.csv"
    table.write_text("series,label\ns1,sick\ns2,well\n")
    assert read_labels(table, ALIAS, paths=paths).files == ["s1", "s2"]


def test_numbers_of_rows_name_no_file_but_are_pointed_out(tmp_path):
    paths = [f"{k}.png" for k in range(4)]
    text = "row,Finding Labels,patient\n" + "".join(f"{k},{'ABCD'[k]},P\n" for k in range(4))
    with pytest.raises(UserError, match=r"lines 2 and 3 contradict .* column 'row' names 4 files .* call it file"):
        join(tmp_path, text, paths, targets=["Finding Labels"])


def test_contradictions_of_a_table_by_patient_are_counted_with_a_remedy(tmp_path):
    text = "patient,Finding Labels\nP,A\nP,B\nQ,A\nQ,B\n"
    with pytest.raises(
        UserError, match=r"on one patient \(2 patients in all\); call the column with the names of the files file"
    ):
        join(tmp_path, text, targets=["Finding Labels"])


def test_one_value_in_two_spellings_and_an_empty_cell_contradict_nothing(tmp_path):
    text = "file,Finding Labels\n00002505_000,1\n00002505_000,1.0\n00002505_000,\n00002505_001,NA\n00002505_001,x\n"
    labels, _, report = join(tmp_path, text, targets=["Finding Labels"])
    assert labels == ["1", "x", None, None]
    assert "3 rows repeat another row" in report


@pytest.mark.parametrize(
    ("paths", "hint"),
    [
        (["sub-01/anat/t1.nii.gz", "sub-02/anat/t1.nii.gz"], "they are names of folders: add patient=^([^/]+)/"),
        (["raw/sub-01/t1.nii.gz", "raw/sub-02/t1.nii.gz"], "add patient=^[^/]+/([^/]+)/"),
        (["sub-01.nii.gz", "sub-02.nii.gz"], "they are names of files: call the column file"),
    ],
)
def test_participants_without_a_known_patient_get_a_remedy_that_works(tmp_path, paths, hint):
    text = "participant_id\tFinding Labels\nsub-01\tA\nsub-02\tB\n"
    with pytest.raises(UserError) as e:
        join(tmp_path, text, paths, targets=["Finding Labels"])
    assert hint in str(e.value)
    pattern = hint.partition("patient=")[2] or r"([^/]+)[.]nii[.]gz$"
    labels, _, _ = join(tmp_path, text, paths, targets=["Finding Labels"], patient=pattern)
    assert labels == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "separator", "line"),
    [
        ("sep=;\nfile;label\na;1,5\n", ";", 3),
        ("SEP=,\r\nfile,label\r\na,1\r\n", ",", 3),
        ('"sep=\t"\nfile\tlabel\na\t1\n', "\t", 3),
        ("sep=;\nfile,x;label\na;1\n", ";", 3),
        ("file;label\na;1,5\n", ";", 2),
    ],
)
def test_the_line_of_excel_with_the_separator_is_skipped(tmp_path, text, separator, line):
    path = tmp_path / "t.csv"
    path.write_text(text)
    table = read_table(path)
    assert table.separator == separator
    assert table.header[-1] == "label"
    assert list(table.cells) == [line]


def test_the_encoding_is_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("파일명,진단명\na.png,폐렴\n".encode("cp949"))
    assert read_table(path).notes == ["the table was read as CP949"]
    path.write_bytes("file,label\na.png,肺炎\nb.png,正常\n".encode("gbk"))
    with pytest.raises(UserError, match=r"may be GBK, Shift-JIS or Latin-1.*save it as CSV UTF-8"):
        read_table(path)
    path.write_bytes(b"PK\x03\x04\xff\xff")
    with pytest.raises(UserError, match="looks like an Excel"):
        read_table(path)


def test_missing_patients_and_splits_are_none(tmp_path):
    text = "file,patient_id,split,label\n00002505_000,N/A,NA,x\n00002505_001,N/A,train,y\n00002505_002,7,-,z\n"
    table = tmp_path / "t.csv"
    table.write_text(text)
    rows = read_labels(table, ALIAS, paths=PATHS).rows
    assert ["patient" in row for row in rows] == [False, False, True]
    assert [row.get("split") for row in rows] == [None, "train", None]


@pytest.mark.parametrize(
    "word",
    [
        "NA",
        "na",
        "N/A",
        "nan",
        "unknown",
        "UNKNOWN ",
        "none",
        "None",
        "NONE",
        "Null",
        "UNK",
        "-",
        "?",
        "anonymous",
        "ANON",
        "미상",
        "불명",
        "익명",
        "不明",
        "ＮＡ",
    ],
)
@pytest.mark.parametrize("missing", [None, False])
def test_a_word_for_missing_is_no_patient(tmp_path, word, missing):
    """Its rows are not one patient, whatever counts as missing among the labels, and they are counted aloud."""
    text = (
        f"file,patient_id,label\n00002505_000,{word},x\n00002505_001,{word},y\n00002505_002,0,z\n00002505_003,Nam,z\n"
    )
    table = tmp_path / "t.csv"
    table.write_text(text, "utf-8")
    labels = read_labels(table, ALIAS, paths=PATHS, missing=missing)
    assert ["patient" in row for row in labels.rows] == [False, False, True, True]
    notes = " ".join(labels.notes)
    assert "2 rows name no patient in 'patient_id'" in notes
    assert "missing=false" not in notes


def test_a_table_by_patient_has_no_row_of_nobody(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("patient_id,label\nunknown,x\nunknown,y\nP1,z\n")
    assert [row["label:label"] for row in read_labels(table, ALIAS, paths=PATHS).rows] == ["z"]


def test_numbers_of_a_database_are_no_file_names(tmp_path):
    """With a column that could name files and does not, the table goes by patient."""
    table = tmp_path / "t.csv"
    table.write_text("image_id,patient_id,label\n17,P1,sick\n18,P2,well\n")
    labels = read_labels(table, ALIAS, paths=PATHS)
    assert labels.files is None
    assert len(labels.rows) == 2


def test_a_row_with_more_cells_than_the_header_is_refused(tmp_path):
    """A comma without quotes would move the cells after it into the wrong columns."""
    table = tmp_path / "t.csv"
    table.write_text("file,note,label\na.png,fine,sick\nb.png,old, then new,well\n")
    with pytest.raises(
        UserError, match=r"line 3 has more cells than the header in line 1 \(3\); put cells that contain"
    ):
        read_table(table)
    table.write_text("Export of 3 May\n\nfile,label\na.png,sick\nb.png,well\n")
    with pytest.raises(UserError, match=r"3 lines, the first of them line 3, .* delete lines above the header"):
        read_table(table)
    table.write_text('file,note,label\na.png,"old, then\nnew",sick,,\nb.png,,well\n')
    assert list(read_table(table).cells.values()) == [["a.png", "old, then\nnew", "sick"], ["b.png", "", "well"]]


def test_two_columns_of_one_name_are_refused_unless_they_agree(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("file,label,Label\na.png,sick,well\nb.png,well,well\n")
    with pytest.raises(UserError, match="several columns 'label' with different cells; rename or delete all but one"):
        read_labels(table, ALIAS)
    assert [row["label:Label"] for row in read_labels(table, ALIAS, targets=["Label"]).rows] == ["well", "well"]
    table.write_text("file,label,label,note,note\na.png,sick,sick,1,2\nb.png,well,well,3,4\n")
    assert [row["label:label"] for row in read_labels(table, ALIAS).rows] == ["sick", "well"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_named(tmp_path, encoding):
    table = tmp_path / "t.csv"
    table.write_bytes("file,label\na.png,sick\n".encode(encoding))
    with pytest.raises(UserError, match="has zero bytes: it is UTF-16 without a byte order mark"):
        read_table(table)


def test_rows_with_fewer_cells_than_the_header_are_counted_aloud(tmp_path):
    """Their last cells are empty, which changes no other cell. Columns without a name may be missing."""
    table = tmp_path / "t.csv"
    table.write_text("file,patient,label,\na.png,P1,sick\nb.png,P2\nc.png,P3,well,\nd.png\n")
    found = read_table(table)
    assert found.cells[3] == ["b.png", "P2", "", ""]
    assert found.cells[4] == ["c.png", "P3", "well", ""]
    (note,) = found.notes
    assert note.startswith("2 rows have fewer cells than the header, the first of them in line 3: ")
