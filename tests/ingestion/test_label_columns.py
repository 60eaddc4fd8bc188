"""Columns of labels before they are stored: what is missing, which numbers are meant, and what must not be kept."""

import pytest

from medssl.ingestion.label_columns import LabelColumn, MissingWords, looks_like_identifiers, unified


def column(*cells):
    return LabelColumn("x", list(cells))


def test_missing_values_are_emptied_and_counted():
    c = column("NORMAL", "NA", "미상", "NA", "Mass|nan", "")
    c.drop_missing(MissingWords())
    assert c.cells == ["NORMAL", "", "", "", "Mass", ""]
    assert c.notes == [
        "4 values of 'x' count as missing: 'NA' 2, 'nan' 1, '미상' 1 (missing=false keeps them as values)"
    ]


@pytest.mark.parametrize(
    ("missing", "cells"),
    [
        ([9], ["", "", ""]),
        ("9", ["", "", ""]),
        ((), ["9", "9.0", ""]),
        (False, ["9", "9.0", "NA"]),
        ([None], ["9", "9.0", ""]),
    ],
)
def test_the_option_missing(missing, cells):
    c = column("9", "9.0", "NA")
    c.drop_missing(MissingWords.of(missing))
    assert c.cells == cells


@pytest.mark.parametrize(
    ("separator", "cells", "read"),
    [
        (";", ["2,5", "3", "-1,25"], ["2.5", "3", "-1.25"]),
        (";", ["1,234", "2,500"], ["1.234", "2.500"]),
        (",", ["1,234", "2,500"], ["1234", "2500"]),
        (",", ["1,234.5", "2"], ["1234.5", "2"]),
        (",", ["2,5", "1,25"], ["2.5", "1.25"]),
        (";", ["1.234,5", "1.234"], ["1234.5", "1234"]),
        (";", ["1 234,5", "12"], ["1234.5", "12"]),
        ("\t", ["2,5", "10,75"], ["2.5", "10.75"]),
        ("", ["1,234", "2,500"], ["1,234", "2,500"]),  # thousands or decimals: unclear without a table
        (";", ["2,5", "mild"], ["2,5", "mild"]),
        (";", ["a,b", "c"], ["a,b", "c"]),
        (";", ["2.5", "3.25"], ["2.5", "3.25"]),
    ],
)
def test_decimal_commas_and_thousands(separator, cells, read):
    c = column(*cells)
    c.read_commas(separator)
    assert c.cells == read
    assert bool(c.notes) == (cells != read or "1,234" in cells)


@pytest.mark.parametrize(
    "cells",
    [
        ["99999", "100000"],
        ["123456", "99", "0.5", "2500000"],
        ["123456 mm3", "99 mm3"],
        ["1234567.25", "2345678.5"],
        ["100000", "<5", "250000"],
    ],
)
def test_a_named_column_of_numbers_is_kept_whole(cells):
    c = column(*cells)
    c.screen()
    assert c.cells == cells
    assert not c.notes


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["88123456", "88123457", "88123458"], "patients' numbers"),
        (["20240131", "20231224"], "dates"),
        (["900101", "851231"], "dates"),
        (["31122020", "11022021"], "dates"),
        (["01012345678", "01087654321"], "telephone or identity"),
        (["9001011234567", "5"], "telephone or identity"),
        (["000123", "000456"], "leading zeros"),
    ],
)
def test_a_named_column_of_identifiers_is_refused_whole(cells, why):
    c = column(*cells)
    c.screen()
    assert c.cells == [""] * len(cells)
    assert len(c.notes) == 1
    assert why in c.notes[0]
    assert not any(v in c.notes[0] for v in cells if len(v) > 1)


def test_words_after_many_numbers_may_be_names():
    names = [
        f"{n} {name}"
        for n, name in zip(range(123456, 123462), ["kim", "lee", "park", "choi", "jung", "kang"], strict=True)
    ]
    c = column(*names)
    c.screen()
    assert c.cells == [""] * 6


def test_measurements_are_no_identifiers():
    assert not looks_like_identifiers(["100000", "250000", "300000"])
    assert not looks_like_identifiers(["1000000"] * 30 + ["2000000"] * 30)


def test_values_that_count_as_one_are_written_alike():
    rows = [{"label:x": v, "scan": str(i)} for i, v in enumerate(["1", "1.0", "1", None, "true", "0"])] + [
        {"scan": "6"}
    ]
    out, notes = unified(rows)
    assert [row.get("label:x") for row in out] == ["1", "1", "1", None, "1", "0", None]
    assert "label:x" not in out[-1]
    assert notes == ["'1', '1.0', 'true' of 'x' count as one value, '1'"]
    out, _ = unified([{"label:x": v} for v in ("Mass|nodule", "mass|Nodule", "mass")])
    assert [row["label:x"] for row in out] == ["mass|Nodule", "mass|Nodule", "mass"]


def test_labels_that_were_fine_stay_as_they_are():
    rows = [{"label:x": v} for v in ("0.0", "1.0", "Grade 2", "a|b", "<5", "2.5 mm")]
    assert unified(rows) == (rows, [])
