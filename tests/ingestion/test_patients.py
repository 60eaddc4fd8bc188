"""The patients of a store: ids in several character sets, spellings of one id, and scans that name no patient."""

import hashlib
import json
import re

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medssl.cli.main import main
from medssl.commands.data.ingest import ingest
from medssl.errors import UserError
from medssl.ingestion.patient_pattern import propose
from medssl.readers.pseudonyms import Pseudonyms, open_key, simplified
from medssl.reporting.privacy import privacy_page
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


PATTERNS = {
    "radiographs": ([f"{p:08d}_{k:03d}.png" for p in range(1, 101) for k in range(3)], r"^(\d+)_", 300, 100, 3),
    "in a folder": ([f"x/{p:05d}_{k}.png" for p in range(20) for k in range(2)], r"/(\d+)_[^/]*$", 40, 20, 2),
    "in folders of a batch": (
        [f"images_{p % 12 + 1:03d}/{p:08d}_{k:03d}.png" for p in range(100) for k in range(3)],
        *(r"/(\d+)_[^/]*$", 300, 100, 3),
    ),
    "one folder per patient": (
        [f"train/patient{p:05d}/study{s}/view{v}_frontal.jpg" for p in range(39) for s in (1, 2) for v in (1, 2)],
        *(r"^[^/]+/([^/]+)/", 156, 39, 4),
    ),
    "BIDS": ([f"sub-{p:02d}/anat/sub-{p:02d}_T{t}w.nii.gz" for p in range(19) for t in (1, 2)], None, 38, 19, 2),
    "slices": ([f"P{p:03d}_slice_{k:03d}.png" for p in range(4) for k in range(150)], r"^P(\d+)_", 600, 4, 150),
    "two eyes": ([f"{p}_{s}.jpeg" for p in range(10, 80) for s in ("left", "right")], r"^(\d+)_", 140, 70, 2),
    "two hospitals": (
        [f"site{h}/{p:03d}_{k}.png" for h in "AB" for p in range(60) for k in (1, 2)],
        *(r"^((?:.*/)?\d+)_[^/]*$", 240, 120, 2),
    ),
    "words that may be names": (
        [f"kim{chr(97 + p // 26)}{chr(97 + p % 26)}_{k}.png" for p in range(70) for k in range(3)],
        *(r"^([^\W\d_]+)_", 210, 70, 3),
    ),
    "a year before the number": (
        [f"Kim2020_{p:03d}_{m}.nii" for p in range(19) for m in ("t1", "t2")],
        None,
        38,
        19,
        2,
    ),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_a_pattern_is_proposed_for_names_that_repeat(case):
    paths, pattern, scans, patients, largest = PATTERNS[case]
    found = propose(paths)
    assert found[1:] == (scans, patients, largest)
    assert pattern in {None, found.pattern}
    assert not re.search("kim|Kim", found.pattern)
    tied = {re.search(found.pattern, path)[1] for path in paths}
    assert len(tied) == patients


@pytest.mark.parametrize(
    "paths",
    [
        [f"ISIC_{k:07d}.jpg" for k in range(100)],
        [f"{kind}/{k:04d}.png" for kind in ("benign", "malignant") for k in range(100)],
        [f"{kind}_{k:04d}.png" for kind in ("benign", "malignant") for k in range(100)],
        [f"{kind}_{k:04d}.png" for kind in (0, 1) for k in range(100)],
        [f"IMG_202401{d:02d}_{k:06d}.jpg" for d in range(1, 20) for k in range(4)],
        [f"fold{f}/{k:04d}.png" for f in range(5) for k in range(4)],
        [f"1.2.840.113.{k // 3}.{k}.png" for k in range(60)],
        [hashlib.sha1(bytes([k])).hexdigest() + ".png" for k in range(250)],
        [f"x.npz#train/{k}" for k in range(60)],
        ["a.png"],
        [],
    ],
)
def test_no_pattern_is_proposed_for_other_names(paths):
    assert propose(paths) is None


def pictures(folder, names):
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 256, (24, 24), dtype=np.uint8)).save(path)
    return folder


def test_what_a_pattern_would_group_is_said_recorded_and_done(tmp_path, key):
    source = pictures(tmp_path / "s", [f"{p:08d}_{k:03d}.png" for p in range(6) for k in range(2)])
    loose = ingest(source, tmp_path / "loose", key=key, workers=1)
    assert loose.info["counts"]["patients"] == 12
    assert (
        'patient="^(\\d+)_" would group 12 of them by patient, into 6 patients of at most 2 scans each' in loose.summary
    )
    about = loose.info["uncertain_patients"]
    assert (about["unnamed"], about["pattern"], about["pattern_patients"]) == (12, r"^(\d+)_", 6)
    page = privacy_page(loose)
    assert r"<code>^(\d+)_</code> would have grouped 12 of them by patient, into 6 patients" in page
    tied = ingest(source, tmp_path / "tied", key=key, workers=1, patient=about["pattern"], strict_patients=True)
    assert tied.info["counts"]["patients"] == 6
    assert tied.info["uncertain_patients"]["unnamed"] == 0
    assert "would group" not in tied.summary + privacy_page(tied)


def test_strict_patients_refuses_scans_without_a_patient_and_keeps_what_was_read(tmp_path, key):
    source = pictures(tmp_path / "s", [f"{p:08d}_{k:03d}.png" for p in range(3) for k in range(2)])
    radiograph(source / "known.dcm", "P1")
    with pytest.raises(
        UserError,
        match=r'6 of 7 scans name no patient.*; patient="\^\(\\d\+\)_" would group 6 of them by patient, into 3',
    ):
        ingest(source, tmp_path / "store", key=key, workers=1, strict_patients=True)
    assert not (tmp_path / "store").exists()
    table = tmp_path / "t.csv"
    table.write_text("file,patient\n" + "".join(f"{p:08d}_{k:03d}.png,{p}\n" for p in range(3) for k in range(2)))
    store = ingest(source, tmp_path / "store", key=key, workers=1, strict_patients=True, labels=table)
    assert store.info["counts"]["patients"] == 4


def test_strict_patients_from_the_command_line(tmp_path, key, capsys):
    source = pictures(tmp_path / "s", ["a.png", "b.png"])
    args = [f"source={source}", f"out={tmp_path / 'store'}", f"key={key}", "workers=1", "strict_patients=true"]
    with pytest.raises(SystemExit) as stop:
        main(["ingest", *args])
    assert stop.value.code != 0
    assert (
        "2 of 2 scans name no patient, so each file or study would count as one; give patient=PATTERN"
        in capsys.readouterr().err
    )


SPELLINGS = [
    ("7", "007"),
    ("P7", "p7"),
    ("P 7", "P7"),
    ("P-7", "P7"),
    ("7", "7.0"),
    ("7", "７"),
    ("P-007", "ｐ7"),
    ("A\u20107", "A-7"),
    ("A_7", "a7"),
    ("A\u200b7", "A7"),
]


@pytest.mark.parametrize(("a", "b"), SPELLINGS)
def test_spellings_of_one_number_are_similar(a, b):
    pseudonyms = Pseudonyms(bytes(32))
    one, other = pseudonyms.person(a), pseudonyms.person(b)
    assert one["similar_id"] == other["similar_id"]
    assert one["patient"] != other["patient"]
    assert pseudonyms.person(a, "H1")["similar_id"] == pseudonyms.person(f"H1|{b}")["similar_id"] != one["similar_id"]


@pytest.mark.parametrize(
    ("a", "b"), [("7", "70"), ("P7", "Q7"), ("1007", "107"), ("7", "7.5"), ("0", "00x"), ("7.05", "7.5")]
)
def test_other_numbers_are_not_similar(a, b):
    assert simplified(a) != simplified(b)


def test_ids_that_differ_in_spelling_are_counted_recorded_and_can_be_grouped(tmp_path, key):
    for k, patient in enumerate(["007", "7", "P-1", "p1", "other"]):
        radiograph(tmp_path / f"s/{k}.dcm", patient)
    store = ingest(tmp_path / "s", tmp_path / "store", key=key, workers=1)
    about = store.info["uncertain_patients"]
    assert (about["similar_ids"], about["similar_id_people"]) == (4, 2)
    split = dict(zip(store.column("patient"), store.column("split"), strict=True))
    pairs = ((open_key(key).patient(a), open_key(key).patient(b)) for a, b in (("007", "7"), ("P-1", "p1")))
    assert about["similar_id_across_splits"] == sum(split[a] != split[b] for a, b in pairs)
    assert "4 patients would be 2 if zeros before a number" in store.summary
    assert "4 patients would be 2 if zeros before a number" in privacy_page(store)
    table = tmp_path / "t.csv"
    table.write_text("file,patient\n0.dcm,7\n1.dcm,7\n2.dcm,p1\n3.dcm,p1\n")
    tied = ingest(tmp_path / "s", tmp_path / "store", key=key, workers=1, labels=table)
    assert tied.info["counts"]["patients"] == 3
    assert tied.info["uncertain_patients"]["similar_ids"] == 0
    assert "would be" not in tied.summary


def test_similar_ids_never_reach_the_manifest(tmp_path, key):
    radiograph(tmp_path / "s/a.dcm", "007")
    store = ingest(tmp_path / "s", tmp_path / "store", key=key, workers=1)
    similar = open_key(key).person("007")["similar_id"]
    assert similar not in (store.path / "manifest.parquet").read_bytes().decode("latin-1")
    assert "similar_id" not in store.table.column_names
