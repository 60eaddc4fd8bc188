"""Who is who in a store: ids in several character sets, spellings of one id, and scans that name no patient."""

import json

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medssl.commands.data.ingest import ingest
from tiny import secret

ISO_2022, UTF_8 = ["", "ISO 2022 IR 149"], "ISO_IR 192"


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    return secret(tmp_path_factory.mktemp("key") / "key")


def radiograph(path, patient, character_set=None, **tags):
    """A radiograph (CR) of its own study, with pixels that no other file has."""
    ds, meta = Dataset(), FileMetaDataset()
    ds.file_meta, meta.TransferSyntaxUID = meta, ExplicitVRLittleEndian
    ds.SOPClassUID = meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.StudyInstanceUID, ds.Modality = generate_uid(), "CR"
    if character_set:
        ds.SpecificCharacterSet = character_set
    ds.PatientID = patient
    for keyword, value in tags.items():
        setattr(ds, keyword, value)
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.PhotometricInterpretation = 32, 32, 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    pixels = np.random.default_rng(list(path.name.encode())).integers(0, 4096, (32, 32))
    ds.PixelData = pixels.astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds, enforce_file_format=True)


def test_a_patient_in_two_character_sets_is_one_patient(tmp_path, key):
    for k in range(12):
        radiograph(tmp_path / f"s/old{k}.dcm", f"환자{k}", ISO_2022, IssuerOfPatientID="병원")
        radiograph(tmp_path / f"s/new{k}.dcm", f"환자{k}", UTF_8, IssuerOfPatientID="병원")
    lines = [f"병원|환자{k},{'정상' if k % 2 else '폐렴'}" for k in range(12)]
    (tmp_path / "table.csv").write_bytes("\n".join(["patient,label", *lines]).encode("cp949"))
    store = ingest(tmp_path / "s", tmp_path / "store", key=key, labels=tmp_path / "table.csv", workers=1)
    patients, splits = store.column("patient"), store.column("split")
    assert store.info["counts"]["patients"] == len(set(patients)) == 12
    assert len(set(zip(patients, splits, strict=True))) == 12
    assert sorted(store.column("label:label")) == ["정상"] * 12 + ["폐렴"] * 12


def test_a_patient_of_a_json_file_is_that_of_the_header(tmp_path, key):
    radiograph(tmp_path / "s/a.dcm", "환자7", ISO_2022)
    radiograph(tmp_path / "s/b.dcm", "other", UTF_8)
    (tmp_path / "s/b.json").write_text(json.dumps({"patient_id": "환자7"}))
    store = ingest(tmp_path / "s", tmp_path / "store", key=key, aihub="auto", workers=1)
    assert len(store) == 2
    assert store.info["counts"]["patients"] == 1
