"""Values of labels that count as one, words that stand for none, and numbers with units."""

import pytest

from medssl.store.label_values import (
    MISSING,
    canonical_value,
    chosen_spellings,
    clean,
    findings,
    missing_words,
    number,
    quantity,
    several_spellings,
)


@pytest.mark.parametrize(
    "alike",
    [
        (
            1,
            1.0,
            "1",
            "1.0",
            "01",
            "+1",
            "1.",
            "1e0",
            "10e-1",
            "１",
            "１．０",
            " 1\u00a0",
            "\u200b1",
            "true",
            "True",
            "TRUE",
            "١",
        ),
        (0, "0", "0.0", "-0", "0e5", "false", "False"),
        ("-1", "-1.0", "−1", "－１"),
        ("Mass", "mass", "mass ", "\u00a0MASS\ufeff", "ｍａｓｓ"),
        ("stage II", "Stage  II", "stage\u00a0Ⅱ", "stage\u3000II"),
        ("폐렴", "폐렴", "폐렴 "),
        ("12345678901234567890", "12345678901234567890.0"),
    ],
)
def test_values_that_count_as_one(alike):
    assert len(set(map(canonical_value, alike))) == 1


@pytest.mark.parametrize(
    "different",
    [
        ("1", "2", "10", "1.01", "-1", "1_0", "1a", "1,0", "yes"),
        ("10²", "102", "10₂", "1½"),
        ("12345678901234567890", "12345678901234567891"),
        ("T1a", "T1b", "1a", "2a"),
        ("nan", "inf", "infinity", "0"),
    ],
)
def test_values_that_differ(different):
    assert len(set(map(canonical_value, different))) == len(different)


def test_ascii_text_without_doubled_spaces_is_clean():
    for text in ("Grade 2", "a-b_c.d", "", "<5", "A/B"):
        assert clean(text) == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [("2.5", 2.5), ("２．５", 2.5), (" 1e3 ", 1000.0), (".5", 0.5), (3, 3.0), ("−2", -2.0)]
    + [
        (v, None)
        for v in ("nan", "inf", "1_000", "2,5", "<5", "2.5 mm", "", "10²", "true", None, float("nan"), "1e999")
    ],
)
def test_what_is_a_number(value, expected):
    assert number(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2.5 mm", (2.5, "mm")),
        ("2.5mm", (2.5, "mm")),
        ("2.5\u00a0㎜", (2.5, "mm")),
        ("12 ng/mL", (12.0, "ng/mL")),
        ("45 %", (45.0, "%")),
        ("37.5°C", (37.5, "°C")),
        ("3 cm³", (3.0, "cm³")),
        ("7", (7.0, "")),
        ("<5", None),
        ("5-10", None),
        ("mild", None),
        ("2 mm 3", None),
    ],
)
def test_numbers_with_units(value, expected):
    assert quantity(value) == expected


@pytest.mark.parametrize("word", ["NA", "N/A", "n/a", "nan", "null", "None", "#N/A", ".", "-", "미상", "없음"])
def test_words_for_missing(word):
    assert missing_words([word, "NORMAL", "PNEUMONIA"]) == {word}


def test_none_beside_some_of_it_is_a_class():
    assert missing_words(["None", "Mild", "Severe", "NA"]) == {"NA"}
    assert missing_words(["있음", "없음", "미상"]) == {"미상"}
    assert missing_words(["none", "fluid"]) == set()  # a word, not what a program writes


def test_words_of_the_user():
    assert missing_words(["9", "9.0", "1", "ND"], {canonical_value(9), canonical_value("nd")}) == {"9", "9.0", "ND"}
    assert "NORMAL" not in MISSING


def test_the_most_frequent_spelling_stands_for_a_value():
    words = ["1.0", "1", "1", "Mass", "mass", "mass", "x"]
    assert chosen_spellings(words) == {"1.0": "1", "1": "1", "Mass": "mass", "mass": "mass", "x": "x"}
    assert several_spellings(words) == [["1", "1.0"], ["Mass", "mass"]]


def test_findings():
    assert findings("Mass | Nodule||") == ["Mass", "Nodule"]
    assert findings(1.0) == ["1"]
