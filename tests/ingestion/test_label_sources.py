"""Sources that contradict each other are counted and refused, unless one is preferred; changed labels are reported."""

import json

import numpy as np
import pytest
from PIL import Image

import tiny
from medssl.commands.data.ingest import ingest
from medssl.errors import UserError

NAMES = [f"s{k}" for k in range(6)]


@pytest.fixture
def source(tmp_path):
    """Six pictures, each with a JSON file that says A and names a patient."""
    folder = tmp_path / "scans"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (24, 24)).astype(np.uint8)).save(folder / f"{name}.png")
        (folder / f"{name}.json").write_text(json.dumps({"diagnosis": "A", "patient_id": f"J{name}"}))
    return folder


def table(tmp_path, labels, column="diagnosis", more=""):
    path = tmp_path / "labels.csv"
    rows = "".join(f"{name}.png,{label}{more and ',' + name}\n" for name, label in zip(NAMES, labels, strict=False))
    path.write_text(f"file,{column}{more and ',' + more}\n{rows}")
    return path


def made(tmp_path, source, out="store", **options):
    return ingest(source, tmp_path / out, key=tiny.secret(tmp_path / "key"), workers=1, **options)


def labels_of(store, name="diagnosis"):
    return [v for _, v in sorted(zip(store.column("scan"), store.column(f"label:{name}"), strict=True))]


def test_json_against_a_table(tmp_path, source):
    given = {"labels": table(tmp_path, "BBBA", more="patient_id"), "aihub": "auto"}
    with pytest.raises(UserError) as e:
        made(tmp_path, source, **given)
    assert "the JSON files and the table contradict each other: 'diagnosis' of 3 scans, patient of 4 scans" in str(
        e.value
    )
    assert "prefer=json or prefer=table" in str(e.value)
    assert not (tmp_path / "store").exists()
    by_table = made(tmp_path, source, **given, prefer="table")
    assert sorted(labels_of(by_table)) == ["A", "A", "A", "B", "B", "B"]
    assert (
        "'diagnosis' of 3 scans: the JSON files and the table contradict each other; table is preferred"
        in by_table.summary
    )
    by_json = made(tmp_path, source, "other", **given, prefer="json")
    assert labels_of(by_json) == ["A"] * 6
    assert by_json.column("patient_known").all()
    only_json = made(tmp_path, source, "third", aihub="auto")
    assert set(by_json.column("patient")) == set(only_json.column("patient"))


def test_sources_that_agree_or_say_nothing_are_joined(tmp_path, source):
    store = made(tmp_path, source, labels=table(tmp_path, ["a", "A ", "NA", ""]), aihub="auto")
    assert len(set(labels_of(store))) == 1
    assert "'A', 'a' of 'diagnosis' count as one value" in store.summary


def test_labels_in_the_file_against_a_table(tmp_path):
    source = tmp_path / "npz"
    source.mkdir()
    images = np.random.default_rng(0).integers(0, 255, (4, 28, 28)).astype(np.uint8)
    np.savez(source / "set.npz", train_images=images, train_labels=np.array([[0], [1], [0], [1]]))
    path = tmp_path / "labels.csv"
    path.write_text(
        "file,label\n" + "".join(f"set.npz#train/{k},{v}\n" for k, v in enumerate(["0.0", "1.0", "1", "true"]))
    )
    with pytest.raises(
        UserError, match=r"the files themselves and the table contradict each other: 'label' of 1 scans"
    ):
        made(tmp_path, source, labels=path)
    store = made(tmp_path, source, labels=path, prefer="file")
    assert sorted(map(float, store.column("label:label"))) == [0, 0, 1, 1]


def test_folders_against_json(tmp_path, source):
    (source / "s0.json").write_text('{"label": "sick"}')
    (source / "well").mkdir()
    for suffix in ("png", "json"):
        (source / f"s0.{suffix}").rename(source / "well" / f"s0.{suffix}")
    with pytest.raises(UserError, match="the JSON files and the folders contradict each other: 'label' of 1 scans"):
        made(tmp_path, source, aihub="auto", labels="folders")


def test_missing_words_of_every_source_are_no_labels(tmp_path, source):
    (source / "s0.json").write_text('{"diagnosis": "미상"}')
    (source / "s1.json").write_text('{"diagnosis": "9"}')
    store = made(tmp_path, source, aihub="auto", missing=[9])
    assert sorted(labels_of(store), key=str) == ["A"] * 4 + [None] * 2
    assert "2 values of 'diagnosis' count as missing: '9' 1, '미상' 1" in store.summary
    kept = made(tmp_path, source, "kept", aihub="auto", missing=False)
    assert sorted(labels_of(kept)) == ["9", "A", "A", "A", "A", "미상"]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"prefer": "csv"}, "Known: file, folders, json, table"), ({"missing": True}, "missing=false")],
)
def test_wrong_options(tmp_path, source, options, words):
    with pytest.raises(UserError, match=words):
        made(tmp_path, source, **options)


def test_changed_labels_are_reported(tmp_path, source):
    first = made(tmp_path, source, labels=table(tmp_path, "XXYYXX", "label"))
    again = made(tmp_path, source, labels=table(tmp_path, "XXYYXX", "label"))
    assert "nothing has changed" in again.summary
    assert again.fingerprint == first.fingerprint
    swapped = made(tmp_path, source, labels=table(tmp_path, "YYXXYX", "label"))
    assert "changes      changed: label 'label' of 5 scans\n" in swapped.summary
    assert sorted(labels_of(swapped, "label")) == ["X", "X", "X", "Y", "Y", "Y"]
    assert swapped.fingerprint != first.fingerprint
    gone = made(tmp_path, source)
    assert "changed: label 'label' of 6 scans" in gone.summary
    assert gone.labels == []
    site = made(tmp_path, source, site="A")
    assert "changed: site of 6 scans" in site.summary
