"""A synthetic cohort of lung lesions in DICOM in which few patients have a label: the cohort of `medssl demo`."""

import csv
import json
import os
from pathlib import Path

from medssl.errors import UserError
from medssl.files import write_json
from medssl.progress import track
from medssl.synthetic.cohort import dicom_of, person, write_broken
from medssl.synthetic.lesion import draw_lesion

PREVALENCE = 0.5
SPLITS = {0: "test", 1: "test", 2: "val"}  # by the last digit of a patient's number; the others are for training


def write_lesion_cohort(out: Path, patients: int = 1300, labelled: int = 40, size: int = 28, seed: int = 0) -> Path:
    """Write `out`/scans/…/….dcm, three broken files in `out`/scans/broken, `out`/labels.csv and a key; return `out`.

    A cohort that was written whole with the same arguments stays as it is. `out`/medssl.key is a key of pseudonyms that
    everybody knows, with which results repeat: fit for patients who do not exist, and for nobody else.

    The table has the columns `file`, relative to `out`/scans, `split` and `malignant`, the same for all images of a patient.
    Of ten patients, two are for testing and one for validation. All test patients have a label (yes or no), and the first
    `labelled` of training and half as many of validation, with as many of either class; the others have none. The bytes
    depend only on the arguments.

    Args:
        out: a folder, created if absent.
        patients: number of patients.
        labelled: number of labelled patients for training, even.
        size: rows and columns.
        seed: seed of all random numbers.

    Raises:
        UserError: a number is out of range, or there are too few patients to label so many.
    """
    if patients < 10 or size < 24:
        raise UserError(f"this cohort needs patients >= 10 and size >= 24, not patients={patients}, size={size}")
    if labelled < 4 or labelled % 4:
        raise UserError(f"labelled must be a multiple of 4, of at least 4, not {labelled}")
    asked = {"patients": patients, "labelled": labelled, "size": size, "seed": seed}
    done = out / "cohort.json"
    if done.exists() and json.loads(done.read_text("utf-8")) == asked:
        return out
    scans = out / "scans"
    people = [person(seed, patient, PREVALENCE) for patient in range(patients)]
    splits = [SPLITS.get(patient % 10, "train") for patient in range(patients)]
    known = {patient for patient in range(patients) if splits[patient] == "test"}
    for split, each in (("train", labelled // 2), ("val", labelled // 4)):
        for lesion in (False, True):
            of = [i for i, who in enumerate(people) if splits[i] == split and who.lesion == lesion]
            if len(of) < each:
                raise UserError(
                    f"{patients} patients are too few to label {labelled} for training and half as many more"
                )
            known.update(of[:each])
    rows: list[tuple[str, str, str]] = []
    for patient, who in enumerate(track(people, "write cohort", unit="patient")):
        label = ("yes" if who.lesion else "no") if patient in known else ""
        folder = scans / f"{patient:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(who.images):
            pixels = draw_lesion(seed, patient, k, size, who.lesion, who.scanner)
            dicom_of(pixels, who, seed, patient, k).save_as(folder / f"{k}.dcm", enforce_file_format=True)
            rows.append((f"{patient:04d}/{k}.dcm", splits[patient], label))
    write_broken(scans)
    with (out / "labels.csv").open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("file", "split", "malignant"))
        writer.writerows(rows)
    with open(os.open(out / "medssl.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as f:
        f.write("0" * 64)
    write_json(done, asked)
    return out
