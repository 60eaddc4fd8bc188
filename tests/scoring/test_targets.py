"""Columns of a store become the targets of a task, or an error that names the column and the reason."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import medssl
import tiny
from medssl.errors import UserError
from medssl.leakage.leak_check import check_leaks, scan_set_from_store
from medssl.scoring.targets import Subset, resolve_target, value_notes, values
from medssl.store.store import Store

FINDINGS = ["none", "fluid", "fluid|nodule", "nodule"]
COLUMNS = ("lesion", "found", "grade", "volume", "days", "died", "odd", "same")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Forty pictures of twenty patients, two each, with a table of every kind of target."""
    folder = tmp_path_factory.mktemp("targets")
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", "sex", *COLUMNS))
        for i in range(40):
            Image.fromarray(rng.integers(0, 255, (16, 16)).astype(np.uint8)).save(folder / f"scans/{i}.png")
            p = i // 2
            split = "train" if p < 12 else "val" if p < 15 else "test"
            lesion = "" if i == 3 else ("yes" if p % 2 else "no")
            grade = "7" if i == 39 else str(p % 3)
            row = (
                lesion,
                FINDINGS[p % 4],
                grade,
                f"{i}.5",
                str(10 + i),
                str(p % 2),
                ["yes", "no", "maybe"][p % 3],
                "1",
            )
            writer.writerow((f"{i}.png", f"P{p:03d}", split, "FM"[p % 2], *row))
    return medssl.ingest(
        folder / "scans",
        folder / "store",
        labels=folder / "table.csv",
        targets=list(COLUMNS),
        key=tiny.secret(folder / "key"),
    )


def part(store, names, split="train", **kwargs):
    target = resolve_target(store, store.rows("train"), names, **kwargs)
    return target, Subset.of(target, store, store.rows(split))


def truth_of(store, name, p):
    return store.column(name)[p.rows]


def test_classes_are_the_values_and_a_missing_one_is_counted(store):
    target, p = part(store, "lesion")
    assert (target.task, target.names) == ("classification", ("no", "yes"))
    assert [target.names[i] for i in p.y] == truth_of(store, "label:lesion", p).tolist()
    assert (len(p), p.missing, p.unknown) == (23, 1, 0)
    assert p.patients == 12


def test_the_named_class_is_the_second_one(store):
    target, p = part(store, "lesion", positive="NO")
    assert target.names == ("not NO", "NO")
    assert (p.y == (truth_of(store, "label:lesion", p) == "no")).all()


def test_findings_joined_by_a_bar_are_labels(store):
    target, p = part(store, "found")
    assert (target.task, target.names) == ("multilabel", ("fluid", "nodule", "none"))
    said = [{n for n, y in zip(target.names, row, strict=True) if y} for row in p.y]
    assert said == [set(v.split("|")) for v in truth_of(store, "label:found", p)]


def test_several_columns_are_labels_with_unknown_ones(store):
    target, p = part(store, ["lesion", "died"])
    assert target.task == "multilabel"
    assert len(p) == 24
    assert np.isnan(p.y[:, 0]).sum() == 1
    died = truth_of(store, "label:died", p)
    assert (p.y[:, 1] == (died == "1")).all()


def test_levels_have_the_order_of_their_numbers_and_a_new_one_is_excluded(store):
    target, test = part(store, "grade", "test", task="ordinal")
    assert target.names == ("0", "1", "2")
    assert (len(test), test.missing, test.unknown) == (9, 0, 1)
    assert test.y.tolist() == truth_of(store, "label:grade", test).astype(int).tolist()


def test_numbers_and_survival(store):
    target, p = part(store, "volume", task="regression")
    assert target.names == ()
    assert p.y.tolist() == truth_of(store, "label:volume", p).astype(float).tolist()
    _, p = part(store, ["days", "died"], task="survival")
    assert p.y[:, 0].tolist() == truth_of(store, "label:days", p).astype(float).tolist()
    assert p.y[:, 1].tolist() == truth_of(store, "label:died", p).astype(float).tolist()


def test_a_metadata_field_can_be_a_target(store):
    assert set(values(store, "sex")) == {"F", "M"}
    target, p = part(store, "fact:sex")
    assert target.names == ("F", "M")
    assert len(p) == 24


@pytest.mark.parametrize(
    ("names", "kwargs", "words"),
    [
        ("lesoin", {}, "Did you mean 'lesion'"),
        ("label:sex", {}, "no label 'label:sex'"),
        ("same", {}, "has 1 classes (1)"),
        ("lesion", {"positive": ["maybe"]}, "no training scan has lesion=maybe"),
        ("lesion", {"task": "ordinal"}, "must be numbers"),
        ("died", {"task": "ordinal"}, "has 2 levels"),
        ("odd", {"task": "regression"}, "must be numbers, and one is"),
        (["odd", "died"], {}, "the value 'maybe'; say which values count"),
        (["odd", "died"], {"task": "classification"}, "takes one target, got 2"),
        ("days", {"task": "survival"}, "the time and the event"),
        ("same", {"task": "multilabel"}, "is there in some training scans and not in others"),
        ("lesion", {"task": "classificaton"}, "Did you mean 'classification'"),
        ("lesion", {"task": "classes"}, "task=classes is now task=classification"),
        ("lesion", {"task": "per_case"}, "no target column"),
    ],
)
def test_what_cannot_be_scored_is_said(store, names, kwargs, words):
    with pytest.raises(UserError) as e:
        part(store, names, **kwargs)
    assert words in str(e.value)


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Twelve patients with two pictures each; the first picture of patient 3 is also patient 7's, of 7 the second also 9's."""
    folder = tmp_path_factory.mktemp("copies")
    rng = np.random.default_rng(1)
    (folder / "scans").mkdir()
    pictures = rng.integers(0, 255, (24, 32, 32)).astype(np.uint8)
    pictures[14], pictures[18] = pictures[6], pictures[15]
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", "lesion"))
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"scans/{i:02}.png")
            writer.writerow((f"{i:02}.png", f"p{i // 2:02}", "test", i % 2))
    return medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "table.csv", key=tiny.secret(folder / "key")
    )


def test_patients_with_the_same_image_count_once(copies):
    """In chains, too: 3, 7 and 9 are one. All others stay who they are, and the number of patients that is told stays 12."""
    store = Store.open(copies)
    subset = Subset(store, np.arange(len(store)), np.zeros(len(store)), 0, 0)
    pseudonym = subset.column("patient")
    assert len(set(pseudonym)) == subset.patients == 12
    assert len(set(subset.patient)) == 10
    (one,) = [
        set(pseudonym[subset.patient == name]) for name in set(subset.patient) if (subset.patient == name).sum() > 2
    ]
    assert len(one) == 3
    alone = ~np.isin(pseudonym, list(one))
    np.testing.assert_array_equal(subset.patient[alone], pseudonym[alone])
    assert set(subset.patient[~alone]) == {min(one)}


def test_copies_found_later_count_once(copies):
    store = Store.open(copies)
    subset = Subset(store, np.arange(len(store)), np.zeros(len(store)), 0, 0)
    a, b = [
        np.flatnonzero(subset.patient == name)
        for name in sorted(set(subset.patient))
        if (subset.patient == name).sum() == 2
    ][:2]
    scan = subset.column("scan")
    tied = replace(subset, tied=((scan[a[0]], scan[b[1]]), ("another set", scan[0])))
    assert len(set(tied.patient)) == 9
    assert set(tied.patient[[*a, *b]]) == {subset.patient[a[0]]}
    assert len(set(tied.take(np.r_[a[0], b[1]]).patient)) == 1


def test_the_leak_check_names_the_copies_within_the_test_set(copies):
    """Equal images of two patients are tied in the test set that is scored, whatever the store's groups say."""
    store = Store.open(copies)
    none, test = (scan_set_from_store(name, store, rows) for name, rows in (("a", []), ("test", np.arange(len(store)))))
    report = check_leaks(none, none, none, test)
    patient = dict(zip(store.column("scan"), store.column("patient"), strict=True))
    assert len(report.repeats) == 2
    assert all(patient[a] != patient[b] for a, b in report.repeats)
    assert "and count as one patient in intervals" in report.warnings()[0]


# values that are written in other ways


def hospital(name, **labels):
    """Return a store, without its pixels, with one scan of one patient for each value."""
    n = len(next(iter(labels.values())))
    columns = {"scan": [f"{name}{i}" for i in range(n)], "patient": [f"P{i}" for i in range(n)]}
    columns |= {"held": [""] * n, "file": [""] * n, "offset": [0] * n, "length": [0] * n, "shape": [[1, 2, 2]] * n}
    columns |= {"dtype": ["uint8"] * n, "patient_known": [i % 2 == 0 for i in range(n)], "split": ["train"] * n}
    columns |= {"group": columns["patient"]}
    table = pa.table(columns | {f"label:{k}": pa.array(v, pa.string()) for k, v in labels.items()})
    return Store(Path(name), {"fingerprint": name, "key_id": "k"}, table)


def both(home, away, columns, **options):
    """Return the target from the first store, its scans, and those of the second."""
    target = resolve_target(home, home.rows(), columns, **options)
    return target, Subset.of(target, home, home.rows()), Subset.of(target, away, away.rows())


@pytest.mark.parametrize(
    "away",
    [["0", "1", "1"], ["0.0", "1.0", "1.0"], ["false", "true", "True"], ["0", "１", "1\u00a0"], ["00", "01", "1e0"]],
)
@pytest.mark.parametrize(
    "home", [["0", "1", "0"], ["0.0", "1.0", "0.0"], ["False", "True", "False"], ["0", "1", "0.0"]]
)
@pytest.mark.parametrize("options", [{}, {"positive": "1"}, {"positive": ["1.0"]}, {"positive": ["true"]}])
def test_numbers_are_compared_as_numbers(home, away, options):
    _, ours, theirs = both(hospital("home", y=home), hospital("away", y=away), "y", **options)
    assert ours.y.tolist() == [0, 1, 0]
    assert theirs.y.tolist() == [0, 1, 1]
    assert (theirs.missing, theirs.unknown) == (0, 0)


def test_words_are_compared_without_case_width_and_spaces():
    home, away = (
        hospital("home", y=["Normal", "폐렴", "Normal"]),
        hospital("away", y=["normal ", "폐렴", "ＮＯＲＭＡＬ"]),
    )
    target, ours, theirs = both(home, away, "y")
    assert target.names == ("Normal", "폐렴")
    assert ours.y.tolist() == [0, 1, 0]
    assert theirs.y.tolist() == [0, 1, 0]
    _, _, theirs = both(home, away, "y", positive="NORMAL")
    assert theirs.y.tolist() == [1, 0, 1]


def test_levels_findings_and_events_are_compared_as_numbers_too():
    home = hospital("home", y=["0", "1", "2"], f=["Mass", "Mass|Nodule", "x"], t=["1", "2", "3"], e=["0", "1", "1"])
    away = hospital(
        "away",
        y=["2.0", "0.0", "1.0"],
        f=["mass|nodule", "x", "NODULE"],
        t=["1.5", "2.0", "3"],
        e=["1.0", "false", "0"],
    )
    _, _, theirs = both(home, away, "y", task="ordinal")
    assert theirs.y.tolist() == [2, 0, 1]
    target, _, theirs = both(home, away, "f")
    assert target.names == ("Mass", "Nodule", "x")
    assert theirs.y.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]]
    for positive in (None, ["1"]):
        _, _, theirs = both(home, away, ["t", "e"], task="survival", positive=positive)
        assert theirs.y.tolist() == [[1.5, 1], [2, 0], [3, 0]]
    _, _, theirs = both(home, away, ["e", "y"], positive=[1])
    assert theirs.y.tolist() == [[1, 0], [0, 0], [0, 1]]


def test_an_unknown_value_is_left_out_and_counted():
    home = hospital("home", y=["0", "1", "-1", "1.0", None], z=["1", "0", "-1", "-1.0", "1"])
    away = hospital("away", y=["-1.0", "0", "1"], z=["0", "1", "1"])
    with pytest.raises(UserError, match=r"unknown=\[-1\]"):
        both(home, away, ["y", "z"])
    target, ours, theirs = both(home, away, "y", unknown=[-1])
    assert target.names == ("0", "1")
    assert (ours.y.tolist(), ours.missing, ours.unknown) == ([0, 1, 1], 2, 0)
    assert (theirs.y.tolist(), theirs.missing) == ([0, 1], 1)
    lines = value_notes(target, ours, home.rows(), away, away.rows())
    assert "unknown=['-1']: 1 training and 1 test values left out" in lines
    target, ours, _ = both(home, away, ["y", "z"], unknown="-1")
    assert np.isnan(ours.y).tolist() == [[False, False], [False, False], [False, True], [True, False]]
    target, ours, _ = both(home, away, "y")
    assert target.names == ("-1", "0", "1")
    assert any("unknown=[-1]" in line for line in value_notes(target, ours, home.rows(), away, away.rows()))


def test_both_spellings_are_named_when_they_meet():
    home, away = hospital("home", y=["0", "1", "1.0"]), hospital("away", y=["0.0", "true", "PNA"])
    target, ours, _ = both(home, away, "y")
    lines = value_notes(target, ours, home.rows(), away, away.rows())
    assert "y: '0' and '0.0'; '1' and '1.0' and 'true' count as one value each" in lines
    assert "1 test values of y are in no training scan and are not scored: 'PNA'" in lines
    target, ours, _ = both(home, away, "y", positive="1")
    lines = value_notes(target, ours, home.rows(), away, away.rows())
    assert "1 test values of y are in no training scan and count as not 1: 'PNA'" in lines
    assert value_notes(target, ours, home.rows(), home, home.rows()) == ["y: '1' and '1.0' count as one value"]


def test_yes_and_1_are_named_when_they_meet():
    """In two stores, or in one. They are different classes, unless both are positive; findings and events know both."""
    home, away = hospital("home", y=["0", "1", "1"]), hospital("away", y=["no", "yes", "YES"])
    said = "y: '1', 'yes' are different values; if not, add positive=[1, yes]"

    def notes(ours, theirs, columns="y", **options):
        target, train, _ = both(ours, theirs, columns, **options)
        return value_notes(target, train, ours.rows(), theirs, theirs.rows())

    assert said in notes(home, away)
    assert said in notes(home, away, positive=["1"])
    assert "are different values" not in " ".join(notes(home, away, positive=["1", "yes"]))
    mixed = hospital("home", y=["0", "1", "no", "yes"])
    assert any("'1', 'yes' are different values" in line for line in notes(mixed, mixed))
    several = hospital("home", y=["0", "1", "1"], z=["no", "yes", "no"]), hospital("away", y=["no"], z=["1"])
    assert notes(*several, ["y", "z"]) == []
    assert "are different values" not in " ".join(notes(home, hospital("away", y=["0.0", "true"])))


def test_a_positive_value_that_a_finding_never_has_is_refused():
    home = hospital("home", a=["1", "0"], b=["yes", "no"])
    with pytest.raises(UserError, match="no training scan has b=1; it has 'no', 'yes'"):
        both(home, home, ["a", "b"], positive=[1])
    absent = hospital("home", a=["1", "0"], b=["0", "0"])
    assert both(absent, home, ["a", "b"], positive=["1", "yes"])[0].names == ("a", "b")


def test_numbers_with_a_unit_and_what_is_no_number():
    home = hospital(
        "home", d=["2.5 mm", "3 mm", "4mm"], u=["2 mm", "1 cm", "3 mm"], lod=["<5", "7", "8"], n=["1", "2", "3"]
    )
    target, ours, _ = both(home, home, "d", task="regression")
    assert ours.y.tolist() == [2.5, 3, 4]
    assert target.unit == "mm"
    with pytest.raises(UserError, match=r"several units \(cm, mm\)"):
        both(home, home, "u", task="regression")
    with pytest.raises(UserError, match=r"one is '<5' .*unknown=\['<5'\]"):
        both(home, home, "lod", task="regression")
    _, ours, _ = both(home, home, "lod", task="regression", unknown=["<5"])
    assert ours.y.tolist() == [7, 8]
    with pytest.raises(UserError, match="d is cm here and mm in training"):
        both(home, hospital("away", d=["1 cm", "2 cm"]), "d", task="regression")
    with pytest.raises(UserError, match="n is mm here and without a unit in training"):
        both(home, hospital("away", n=["1 mm"]), "n", task="regression")
    many = hospital("home", d=[f"{i}.5 mm" for i in range(60)])
    assert resolve_target(many, many.rows(), "d").task == "regression"


def test_patients_without_a_name_are_nobody_in_another_store():
    home, away = hospital("home", y=["0", "1"]), hospital("away", y=["0", "1"])
    _, ours, theirs = both(home, away, "y")
    assert theirs.patient.tolist() == ["P0", "P1"]
    assert theirs.patient_beside(ours).tolist() == ["P0", "P1 of away"]
    assert ours.patient_beside(ours).tolist() == ["P0", "P1"]


def test_a_class_without_a_test_scan_is_named(store):
    target, _ = part(store, "lesion")
    with pytest.raises(
        UserError, match=r"^no test scan of 'lesion' is 'yes', and AUROC would be undefined; leave such"
    ):
        target.kind.check_splits(np.array([0, 1, 1]), np.array([0, 0]), "lesion", target.names)
