"""Two series of a study, or two scans of a patient, are paired, and a store without such a study is refused before training."""

import json

import numpy as np
import pytest
import torch

import dicom_files
import medssl
import tiny
from medssl.errors import UserError
from medssl.methods.contrastive.simclr import SimCLR
from medssl.methods.volumes.session_vae import SessionVAE
from medssl.pretraining.replay_batch import replay_batch
from medssl.runs.alarms import batch_of, write_alarm
from medssl.runs.run_folder import Run
from medssl.store.partners import scan_partners, series_partners
from medssl.store.store import Store


def write(folder, patient, number, series, **tags):
    """Write one image of a patient: the anatomy is the patient's, the contrast and noise are those of image `number`."""
    draws = np.random.default_rng(patient)
    anatomy = draws.normal(0, 1, (24, 24)).cumsum(0).cumsum(1)
    stored = 1000 + 20 * (number + 1) * anatomy + np.random.default_rng([patient, number]).normal(0, 5, anatomy.shape)
    study = f"1.2.{patient + 1}"
    tags = {"PatientID": f"P{patient}", "StudyInstanceUID": study} | tags
    tags |= {"SeriesInstanceUID": f"{study}.{series}", "SOPInstanceUID": f"{study}.{number}.7"}
    (folder / f"{patient}_{number}.dcm").write_bytes(dicom_files.make(stored.clip(0, 4000).astype(int), **tags))


def ingested(folder, patients=24, series=2, **tags):
    """Ingest patients with one study of `series` series of an image each; patient 0 has one series of two images."""
    (folder / "files").mkdir()
    for patient in range(patients):
        for number in range(series if patient else 2):
            write(folder / "files", patient, number, number if patient else 0, **tags)
    return medssl.ingest(folder / "files", folder / "store", key=tiny.secret(folder / "key"), workers=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store.open(ingested(tmp_path_factory.mktemp("pairs")))


def test_partners_are_the_other_series_of_a_study_among_the_rows(store):
    rows = store.rows("train")
    paired, partners = series_partners(store, rows, "session_vae")
    study, series = store.column("study"), store.column("series")
    for row in range(len(store)):
        own = {r for r in rows.tolist() if row in rows and study[r] == study[row] and series[r] != series[row]}
        assert set(partners.rows[row].tolist()) == own
    assert partners.aligned
    assert set(paired.tolist()) == {r for r in rows.tolist() if len(partners.rows[r])}
    alone = [row for row in rows.tolist() if row not in paired]
    assert len(alone) in (0, 2)  # the study with one series, if its patient is for training


def test_series_of_unknown_studies_are_not_taken_for_one_study(tmp_path):
    store = Store.open(ingested(tmp_path, StudyInstanceUID=""))
    assert set(store.column("study")) == {""}
    assert len(set(store.column("series"))) > 2
    with pytest.raises(UserError, match="no study of the training patients"):
        series_partners(store, store.rows("train"), "session_vae")


@pytest.mark.parametrize("within", ["patient", "study"])
def test_partners_are_the_other_scans_of_a_patient_and_a_scan_alone_is_its_own(store, within):
    rows = store.rows("train")
    of = store.column(within)
    kept = np.delete(rows, np.flatnonzero(of[rows] == of[rows[0]])[1:])  # the first patient keeps one scan
    partners = scan_partners(store, kept, within)
    assert not partners.aligned
    for row in range(len(store)):
        others = {r for r in kept.tolist() if row in kept and of[r] == of[row] and r != row}
        assert set(partners.rows[row].tolist()) == (others or {row})
    assert partners.rows[kept[0]].tolist() == [kept[0]]
    with pytest.raises(
        UserError, match=f"no {within} among the training patients of .* has two; take method.pairs=scan"
    ):
        scan_partners(store, kept[:1], within)


OPTIONS = {
    "method": "session_vae", "method_options": {"width": 16}, "encoder": "cnn", "encoder_options": {"widths": [8, 16]},
    "size": 16, "batch": 8, "steps": 3, "monitor_every": 0,
}  # fmt: skip


PAIRS = OPTIONS | {"method": "simclr", "method_options": {"pairs": "patient", "hidden": 16, "out": 8}}


@pytest.mark.parametrize(("method", "options"), [(SessionVAE, OPTIONS), (SimCLR, PAIRS)], ids=["series", "patient"])
def test_a_run_on_pairs_is_exact_and_its_batches_can_be_made_again(store, tmp_path, monkeypatch, method, options):
    seen, plain = [], method.forward

    def watched(self, batch, clock):
        seen.append((self, batch))
        return plain(self, batch, clock)

    monkeypatch.setattr(method, "forward", watched)
    run = medssl.pretrain(store.path, tmp_path / "run", **options)
    again = medssl.pretrain(store.path, tmp_path / "again", **options)
    assert (run / "encoder.safetensors").read_bytes() == (again / "encoder.safetensors").read_bytes()
    assert not (run / "decoder.safetensors").exists()
    trained, batch = seen[2]
    write_alarm(run, {"step": 3, "cause": "constant", "batch": batch_of(store, Run(run).config(), trained, 2)})
    ((views, key),) = replay_batch(run, store)
    assert torch.equal(key.scan, batch["key"].scan)
    assert all(torch.equal(a, b) for a, b in zip(views, batch["views"], strict=True))


def test_one_series_per_study_is_refused_before_training(tmp_path):
    made = ingested(tmp_path, series=1)
    with pytest.raises(
        UserError, match=r"session_vae pairs two series of a study, and no study .* has two; ingest DICOM"
    ) as e:
        medssl.pretrain(made, tmp_path / "run", method="session_vae", encoder="cnn", size=16, steps=2)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("pairs", "warned"), [("scan", True), ("patient", False)])
def test_views_without_augmentation_are_the_same_only_within_a_scan(store, tmp_path, pairs, warned):
    options = PAIRS | {
        "augment": "plain",
        "augment_options": {},
        "method_options": PAIRS["method_options"] | {"pairs": pairs},
    }
    run = medssl.pretrain(store, tmp_path / "run", **options | {"steps": 2, "monitor_every": 1, "log_every": 1})
    said = [json.loads(line).get("warning", "") for line in (run / "metrics.jsonl").open()]
    assert any("are the same image" in words for words in said) == warned
