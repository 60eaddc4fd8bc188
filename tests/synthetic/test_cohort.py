import csv
import hashlib
from collections import Counter

import numpy as np
import pydicom
import pytest
from PIL import Image

from medssl.errors import UserError
from medssl.readers import formats
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Unreadable
from medssl.readers.walk import open_file, walk
from medssl.synthetic.chest import LUNG, NODULE, SCANNERS, draw_mask, draw_scan
from medssl.synthetic.cohort import BROKEN, identifiers, person, write_cohort

PATIENTS, SIZE = 16, 48


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=PATIENTS, size=SIZE)


@pytest.fixture(scope="module")
def ingested(cohort):
    scans, rejects = [], {}
    for file in walk(cohort / "scans"):
        if file.problem:
            rejects[file.name] = file.problem
            continue
        with open_file(file) as stream:
            try:
                scans += formats.read(stream, file.name, Pseudonyms(b"k" * 32))
            except Unreadable as why:
                rejects[file.name] = why.code
    return scans, rejects


def table(cohort):
    with (cohort / "labels.csv").open(newline="") as f:
        return {row["file"]: row["lesion"] for row in csv.DictReader(f)}


def test_same_arguments_give_same_bytes(cohort, tmp_path):
    again = write_cohort(tmp_path / "again", patients=PATIENTS, size=SIZE)
    other = write_cohort(tmp_path / "other", patients=PATIENTS, size=SIZE, seed=1)

    def hashes(folder):
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        return [(p.relative_to(folder), hashlib.sha256(p.read_bytes()).hexdigest()) for p in files]

    assert hashes(again) == hashes(cohort)
    assert hashes(other) != hashes(cohort)


def test_patients_do_not_depend_on_how_many_there_are(cohort, tmp_path):
    fewer = write_cohort(tmp_path / "fewer", patients=3, size=SIZE)
    for path in (fewer / "scans" / "0002").iterdir():
        assert path.read_bytes() == (cohort / "scans" / "0002" / path.name).read_bytes()


def test_every_file_is_a_scan_or_a_reject(cohort, ingested):
    scans, rejects = ingested
    assert sorted(name for _, name in scans) == sorted(table(cohort))
    assert rejects == dict(zip(BROKEN, ("TRUNCATED", "EMPTY", "NOT_A_SCAN"), strict=True))


def test_pixels_survive_every_encoding(ingested):
    """Sign, inversion, implicit VR and rescale are reversed, so the drawn image is read back, scaled by the header."""
    seen = Counter()
    for scan, name in ingested[0]:
        patient, image = int(name[:4]), int(name[5])
        who = person(0, patient)
        drawn = draw_scan(0, patient, image, SIZE, who.lesion, who.scanner).astype(int)
        signed, rescaled, inverse = patient % 2 == 1, patient % 3 == 0, who.scanner == "B"
        expected = drawn - 2048 if signed else drawn
        expected = 2 * expected - 1000 if rescaled else expected
        assert scan.array.shape == (1, SIZE, SIZE)
        np.testing.assert_array_equal(scan.array[0].astype(int), expected)
        assert ("invert MONOCHROME1" in scan.steps) == inverse
        seen[signed, rescaled, inverse] += 1
    assert len(seen) >= 6  # of eight combinations


def test_patients_scanners_and_metadata(ingested):
    by_patient = {}
    for scan, name in ingested[0]:
        who = person(0, int(name[:4]))
        assert scan.patient_known
        assert by_patient.setdefault(name[:4], scan.patient) == scan.patient
        assert scan.modality == "DX"
        assert scan.scanner == " ".join(SCANNERS[who.scanner][:2])
        assert scan.metadata["age"] == min(who.age, 90)
        assert scan.metadata["sex"] == who.sex
        assert scan.metadata["view"] == "PA"
    assert len(set(by_patient.values())) == len(by_patient) == PATIENTS


def test_no_planted_identifier_reaches_a_scan(cohort, ingested):
    words = identifiers(PATIENTS)
    headers = b"".join(p.read_bytes() for p in (cohort / "scans").rglob("*.dcm"))
    for word in words:
        assert word.encode() in headers, "the word is not in the headers"
    with np.printoptions(threshold=10**9):
        text = "\n".join(repr(scan) for scan, _ in ingested[0])
    data = text.encode() + b"".join(scan.array.tobytes() for scan, _ in ingested[0])
    assert [word for word in words if word.encode() in data] == []


def test_the_label_table_contains_no_identifiers(cohort):
    rows = table(cohort)
    for file in rows:
        assert pydicom.dcmread(cohort / "scans" / file, stop_before_pixels=True).Modality == "DX"
    text = (cohort / "labels.csv").read_text()
    assert [word for word in identifiers(PATIENTS) if word in text] == []
    assert {file[:4]: label for file, label in rows.items()} == {
        f"{i:04d}": "yes" if person(0, i).lesion else "no" for i in range(PATIENTS)
    }


def test_prevalence_and_scanner_correlation_are_as_requested():
    n = 400
    sd = (0.25 / n) ** 0.5
    people = [person(3, i, 0.4) for i in range(n)]
    lesion = np.array([p.lesion for p in people], float)
    b = np.array([p.scanner == "B" for p in people], float)
    assert abs(lesion.mean() - 0.4) < 4 * sd
    assert abs(np.corrcoef(lesion, b)[0, 1]) < 4 / n**0.5
    fully_correlated = [person(3, i, 0.4, 1.0) for i in range(50)]
    assert all(p.lesion == (p.scanner == "B") for p in fully_correlated)


def test_a_nodule_is_the_only_difference_a_lesion_makes():
    healthy = draw_scan(0, 5, 0, 96, False, "A").astype(int)
    sick = draw_scan(0, 5, 0, 96, True, "A").astype(int)
    gain = sick - healthy
    assert gain.max() > 200  # of 4095, well above the noise of 123
    assert (np.abs(gain) <= 40).mean() > 0.6  # most of the image is unchanged
    assert gain.min() >= -1


def test_drawn_pixels_never_change():
    """The images are fixed to the bit, so that results on the cohort stay comparable."""
    drawn = [draw_scan(3, p, k, 48, p % 2 == 0, scanner) for p in range(4) for k in (0, 1) for scanner in SCANNERS]
    digest = hashlib.sha256(b"".join(d.astype("<u2").tobytes() for d in drawn)).hexdigest()
    assert digest == "17b40475f8f0bd256a741c52bf1e3b5fe4049bbda98e1f38fdecc4b7b6c89575"


def test_every_image_has_a_mask(cohort):
    """Masks have the same names under masks/, so that ingest finds them; broken files have none."""
    scans = sorted(p.relative_to(cohort / "scans").with_suffix("") for p in (cohort / "scans").rglob("[0-9].dcm"))
    masks = sorted(p.relative_to(cohort / "masks").with_suffix("") for p in (cohort / "masks").rglob("*"))
    assert [m for m in masks if len(m.parts) == 2] == scans
    for name in scans:
        patient, image = int(name.parts[0]), int(name.parts[1])
        with Image.open((cohort / "masks" / name).with_suffix(".png")) as file:
            mask = np.asarray(file)
        who = person(0, patient)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, draw_mask(0, patient, image, SIZE, who.lesion))
        assert set(np.unique(mask)) == ({0, NODULE, LUNG} if who.lesion else {0, LUNG})


def test_a_mask_lies_where_the_nodules_are():
    """The difference between the images with and without nodules is at least half a peak inside the mask, and at most
    the sum of three tails outside."""
    for patient in range(6):
        mask = draw_mask(1, patient, 0, 96, True)
        gain = draw_scan(1, patient, 0, 96, True, "A").astype(float) - draw_scan(1, patient, 0, 96, False, "A")
        inside = mask == NODULE
        assert 0.0005 < inside.mean() < 0.08
        assert gain[inside].min() > 0.4 * 0.10 * 4095 * 0.85  # half of the faintest nodule, at the lowest contrast
        assert gain[inside].mean() > 8 * gain[~inside].mean()
        assert np.unravel_index(gain.argmax(), gain.shape) in set(zip(*np.nonzero(inside), strict=True))


def test_lungs_are_darker_than_the_rest():
    """The lung mask is darker than the rest by more than bones and noise account for."""
    for patient in range(4):
        mask, picture = draw_mask(1, patient, 0, 96, False), draw_scan(1, patient, 0, 96, False, "A")
        assert 0.1 < (mask == LUNG).mean() < 0.45
        assert np.median(picture[mask == LUNG]) < np.median(picture[mask == 0]) - 300


@pytest.mark.parametrize(
    "wrong", [{"patients": 0}, {"size": 8}, {"prevalence": 1.5}, {"scanner_label_correlation": -2}]
)
def test_impossible_cohorts_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        write_cohort(tmp_path, **wrong)
