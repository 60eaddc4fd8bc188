"""Two series of a study are paired, and a store without such a study is refused before training."""

import numpy as np
import pytest
from PIL import Image

import dicom_files
import medssl
import tiny
from medssl.errors import UserError
from medssl.pretraining.study_pairs import study_partners
from medssl.store.store import Store


def cohort(folder, patients, series):
    """Write one image for each of `series` series of each patient's only study; patient 0 has one series of two images."""
    folder.mkdir(parents=True)
    for patient in range(patients):
        draws = np.random.default_rng(patient)
        picture = draws.normal(0, 1, (24, 24)).cumsum(0).cumsum(1)
        for number in range(2 if patient == 0 else series):
            stored = (1000 + 20 * (number + 1) * picture + draws.normal(0, 5, picture.shape)).clip(0, 4000)
            data = dicom_files.make(
                stored.astype(int), PatientID=f"P{patient}", StudyInstanceUID=f"1.2.{patient + 1}",
                SeriesInstanceUID=f"1.2.{patient + 1}.{0 if patient == 0 else number}", SOPInstanceUID=f"1.2.{patient + 1}.{number}.7",
            )  # fmt: skip
            (folder / f"{patient}_{number}.dcm").write_bytes(data)


def ingested(folder, patients=24, series=2):
    cohort(folder / "files", patients, series)
    return medssl.ingest(folder / "files", folder / "store", key=tiny.secret(folder / "key"), workers=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.open(ingested(tmp_path_factory.mktemp("pairs")))


def test_partners_are_the_other_series_of_a_study_among_the_rows(store):
    rows = store.rows("train")
    paired, partners = study_partners(store, rows, "session_vae")
    study, series = store.column("study"), store.column("series")
    for row in range(len(store)):
        own = {r for r in rows.tolist() if row in rows and study[r] == study[row] and series[r] != series[row]}
        assert set(partners[row].tolist()) == own
    assert set(paired.tolist()) == {r for r in rows.tolist() if len(partners[r])}
    alone = [row for row in rows.tolist() if row not in paired]
    assert len(alone) in (0, 2)  # the study with one series, if its patient is for training


def test_images_of_unknown_studies_are_not_taken_for_one_study(tmp_path):
    (tmp_path / "files").mkdir()
    for k in range(20):
        picture = np.random.default_rng(k).integers(0, 255, (24, 24), np.uint8)
        Image.fromarray(picture).save(tmp_path / "files" / f"p{k}.png")
    made = medssl.ingest(tmp_path / "files", tmp_path / "store", key=tiny.secret(tmp_path / "key"), workers=1)
    store = Store.open(made)
    assert set(store.column("study")) == {""}
    with pytest.raises(UserError, match="no study of the training patients"):
        study_partners(store, store.rows("train"), "session_vae")


def test_session_vae_pretrains_on_pairs_and_resumes(store, tmp_path):
    options = {
        "method": "session_vae",
        "encoder": "cnn",
        "encoder_options": {"widths": [8, 16]},
        "size": 16,
        "batch": 8,
    }
    options |= {"method_options": {"width": 16}, "monitor_every": 0}
    run = medssl.pretrain(store.path, tmp_path / "run", steps=3, **options)
    again = medssl.pretrain(store.path, tmp_path / "again", steps=3, **options)
    assert (run / "encoder.safetensors").read_bytes() == (again / "encoder.safetensors").read_bytes()
    assert not (run / "decoder.safetensors").exists()


def test_one_series_per_study_is_refused_before_training(tmp_path):
    made = ingested(tmp_path, series=1)
    with pytest.raises(
        UserError, match="session_vae pairs two series of a study, and no study .* has two; ingest DICOM"
    ) as e:
        medssl.pretrain(made, tmp_path / "run", method="session_vae", encoder="cnn", size=16, steps=2)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()
