"""The cohort of the demo: who has a label, what the label depends on, and that its files are read back."""

import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import medssl
import tiny
from medssl.errors import UserError
from medssl.store.store import Store
from medssl.synthetic.cohort import identifiers, person
from medssl.synthetic.lesion import BENIGN, MALIGNANT, draw_lesion, lesion_shape
from medssl.synthetic.lesion_cohort import PREVALENCE, write_lesion_cohort

PATIENTS, LABELLED, SIZE = 120, 4, 32


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_lesion_cohort(tmp_path_factory.mktemp("lesions"), PATIENTS, LABELLED, SIZE)


def table(cohort):
    with (cohort / "labels.csv").open(newline="") as f:
        return list(csv.DictReader(f))


def test_same_arguments_give_same_bytes(cohort, tmp_path):
    again = write_lesion_cohort(tmp_path / "again", PATIENTS, LABELLED, SIZE)
    names = sorted(p.relative_to(cohort) for p in cohort.rglob("*") if p.is_file())
    assert len(names) > 2 * PATIENTS
    assert all((cohort / n).read_bytes() == (again / n).read_bytes() for n in names)
    other = write_lesion_cohort(tmp_path / "other", PATIENTS, LABELLED, SIZE, seed=1)
    assert (other / "scans/0000/0.dcm").read_bytes() != (cohort / "scans/0000/0.dcm").read_bytes()


def test_few_patients_have_a_label_but_all_for_testing(cohort):
    rows = {}
    for row in table(cohort):
        patient = int(row["file"][:4])
        assert rows.setdefault(patient, (row["split"], row["malignant"])) == (row["split"], row["malignant"])
    assert sorted(rows) == list(range(PATIENTS))
    counts = Counter(rows.values())
    assert counts["train", "yes"] == counts["train", "no"] == LABELLED // 2
    assert counts["val", "yes"] == counts["val", "no"] == LABELLED // 4
    assert counts["test", ""] == 0
    assert Counter(split for split, _ in rows.values()) == {"train": 84, "test": 24, "val": 12}
    for patient, (_, label) in rows.items():
        assert label in ("", "yes" if person(0, patient, PREVALENCE).lesion else "no")


def test_the_files_are_read_back_without_identifiers(cohort, tmp_path):
    made = medssl.ingest(
        cohort / "scans", tmp_path / "store", labels=cohort / "labels.csv", targets="malignant",
        key=tiny.secret(tmp_path / "key"), workers=1,
    )  # fmt: skip
    store = Store.open(made)
    assert len(store) == len(table(cohort))
    assert len(set(store.column("patient"))) == PATIENTS
    assert Counter(v or "" for v in store.column("label:malignant")) == Counter(
        row["malignant"] for row in table(cohort)
    )
    words = [word.encode() for word in identifiers(PATIENTS)]
    files = [p.read_bytes() for p in (tmp_path / "store").rglob("*") if p.is_file()]
    assert not [word for word in words if any(word in data for data in files)]


def test_the_label_decides_the_shape_and_nothing_else(tmp_path):
    shapes = {lesion: Counter(lesion_shape(0, i, lesion) for i in range(400)) for lesion in (False, True)}
    assert set(shapes[False]) == set(BENIGN)
    assert set(shapes[True]) == set(MALIGNANT)
    assert min(min(c.values()) for c in shapes.values()) > 60  # of 100 expected
    benign, malignant = (
        np.array([draw_lesion(0, i, 0, 28, lesion, "A") for i in range(400)]) / 4095 for lesion in (False, True)
    )
    # the same background, exposure and noise: the lesions alone differ, and their brightness tells little
    brightness = np.concatenate([benign.mean((1, 2)), malignant.mean((1, 2))])
    assert 0.3 < roc_auc_score(np.arange(800) >= 400, brightness) < 0.7
    corner = np.abs(benign - malignant)[:, :3, :3].max((1, 2))
    assert (corner < 0.1).mean() > 0.9


def test_images_of_a_patient_show_one_shape_from_several_angles():
    first, second = (draw_lesion(2, 7, k, 28, True, "A").astype(float) for k in (0, 1))
    assert np.corrcoef(first.ravel(), second.ravel())[0, 1] < 0.9
    assert (draw_lesion(2, 7, 0, 28, True, "A") == first).all()


def test_drawn_pixels_never_change():
    """The images are fixed to the bit, so that results on the cohort stay comparable."""
    drawn = [draw_lesion(3, p, k, 28, p % 2 == 0, scanner) for p in range(8) for k in (0, 1) for scanner in "AB"]
    digest = hashlib.sha256(b"".join(d.astype("<u2").tobytes() for d in drawn)).hexdigest()
    assert digest == "4e68c046432bdce9d43da297fd7bba41b2e53c5e3c7533f93911f33ef861a964"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"patients": 5}, "needs patients >= 10"),
        ({"size": 8}, "size >= 24"),
        ({"labelled": 6}, "multiple of 4"),
        ({"patients": 30, "labelled": 40}, "30 patients are too few to label 40"),
    ],
)
def test_impossible_cohorts_are_refused_before_anything_is_written(tmp_path, wrong, words):
    with pytest.raises(UserError, match=words):
        write_lesion_cohort(tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_a_whole_cohort_stays_and_one_that_was_cut_short_is_written_again(tmp_path):
    out = write_lesion_cohort(tmp_path / "c", PATIENTS, LABELLED, SIZE)
    first = out / "scans/0000/0.dcm"
    whole = first.read_bytes()
    first.write_bytes(b"")
    write_lesion_cohort(out, PATIENTS, LABELLED, SIZE)
    assert first.read_bytes() == b""
    (out / "cohort.json").unlink()
    write_lesion_cohort(out, PATIENTS, LABELLED, SIZE)
    assert first.read_bytes() == whole
    write_lesion_cohort(out, PATIENTS, LABELLED, SIZE, seed=1)
    assert first.read_bytes() not in (b"", whole)
