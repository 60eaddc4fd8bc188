"""A synthetic chest X-ray cohort in DICOM, for demos and tests without real patients.

Each patient has 1 to 4 images; some have lung nodules. Two scanners differ in noise, blur, contrast and encoding. Headers
contain invented identifiers, which ingest must remove. Masks of the nodules and lungs are written next to the scans.
"""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medssl.errors import UserError
from medssl.progress import track
from medssl.rng import seed_from
from medssl.synthetic.chest import BITS, MAX, SCANNERS, draw_mask, draw_scan

DX = UID("1.2.840.10008.5.1.4.1.1.1.1")  # Digital X-Ray Image Storage - For Presentation
INSTITUTION = "Saint Brennick Hospital"
PHYSICIAN = "Ostrava^Wilhemine"
FAMILY = ("Qorvath", "Brzenska", "Umeadi", "Tiolent", "Hakkavar", "Jeverson", "Lindqvarn", "Moretsu", "김", "박", "최")
GIVEN = ("Zelimir", "Odrosia", "Wenfred", "Ixchelle", "Tamsinda", "Bertolde", "Yevgenna", "Callomir", "서준", "하윤")
BROKEN = ("broken/cut.dcm", "broken/empty.dcm", "broken/notes.dcm")


@dataclass(frozen=True)
class Person:
    """An invented patient, as described in a header."""

    name: str
    id: str
    birth: str
    accession: str
    age: int
    sex: str
    lesion: bool
    scanner: str
    images: int


def person(seed: int, patient: int, prevalence: float = 0.4, scanner_label_correlation: float = 0.0) -> Person:
    """Return the patient with this index. Depends only on the arguments."""
    rng = np.random.default_rng(seed_from(seed, patient, 0))
    lesion = bool(rng.random() < prevalence)
    p_scanner_b = 0.5 + scanner_label_correlation / 2 * (1 if lesion else -1)
    scanner = "B" if rng.random() < p_scanner_b else "A"
    age = int(rng.integers(20, 95))
    return Person(
        name=f"{FAMILY[rng.integers(len(FAMILY))]}^{GIVEN[rng.integers(len(GIVEN))]}{patient:04d}",
        id=f"HN{rng.integers(10**7, 10**8)}{patient:04d}",
        birth=f"{2024 - age}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}",
        accession=f"ACC{rng.integers(10**7, 10**8)}{patient:04d}",
        age=age,
        sex="FM"[rng.integers(2)],
        lesion=lesion,
        scanner=scanner,
        images=int(rng.integers(1, 5)),
    )


def identifiers(patients: int = 240, seed: int = 0) -> list[str]:
    """Return every identifier that `write_cohort` writes into headers. None may occur in an ingested store."""
    people = [person(seed, i) for i in range(patients)]
    words = {INSTITUTION, PHYSICIAN, *PHYSICIAN.split("^")}
    for i, p in enumerate(people):
        words |= {p.name, *p.name.split("^"), p.id, p.birth, p.accession, _description(p), _secret(p)}
        words |= {_uid(seed, i, 0), *(_uid(seed, i, 1 + k) for k in range(p.images)), _uid(seed, i, 99)}
    return sorted(w for w in words if len(w) > 1)


def write_cohort(
    out: Path,
    patients: int = 240,
    size: int = 96,
    seed: int = 0,
    prevalence: float = 0.4,
    scanner_label_correlation: float = 0.0,
) -> Path:
    """Write `out`/scans/…/….dcm, three broken files in `out`/scans/broken, and `out`/labels.csv; return `out`.

    The table has the columns `file`, relative to `out`/scans, and `lesion`, yes or no, the same for all images of a
    patient. The mask of each image is `out`/masks/…/….png (see `draw_mask`). The bytes depend only on the arguments.

    Args:
        out: a folder, created if absent.
        patients: number of patients.
        size: rows and columns.
        seed: seed of all random numbers.
        prevalence: expected share of patients with nodules.
        scanner_label_correlation: -1 to 1; 0 makes the scanner independent of the label, 1 determines it.

    Raises:
        UserError: a number is out of range.
    """
    if patients < 1 or size < 32:
        raise UserError(f"a cohort needs patients >= 1 and size >= 32, not patients={patients}, size={size}")
    if not (0 <= prevalence <= 1 and -1 <= scanner_label_correlation <= 1):
        raise UserError("prevalence must lie in [0, 1] and scanner_label_correlation in [-1, 1]")
    scans = out / "scans"
    rows: list[tuple[str, str]] = []
    for patient in track(range(patients), "write cohort", unit="patient"):
        who = person(seed, patient, prevalence, scanner_label_correlation)
        folder, masks = scans / f"{patient:04d}", out / "masks" / f"{patient:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        masks.mkdir(parents=True, exist_ok=True)
        for k in range(who.images):
            pixels = draw_scan(seed, patient, k, size, who.lesion, who.scanner)
            dicom_of(pixels, who, seed, patient, k).save_as(folder / f"{k}.dcm", enforce_file_format=True)
            Image.fromarray(draw_mask(seed, patient, k, size, who.lesion)).save(masks / f"{k}.png")
            rows.append((f"{patient:04d}/{k}.dcm", "yes" if who.lesion else "no"))
    write_broken(scans)
    with (out / "labels.csv").open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("file", "lesion"))
        writer.writerows(rows)
    return out


def dicom_of(pixels: np.ndarray, who: Person, seed: int, patient: int, image: int) -> FileDataset:
    """Return a DX object. Scanner A: explicit VR; B: implicit VR, MONOCHROME1. Sign and rescale vary by patient."""
    maker, model, *_ = SCANNERS[who.scanner]
    inverse, signed, rescaled = who.scanner == "B", patient % 2 == 1, patient % 3 == 0
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DX
    meta.MediaStorageSOPInstanceUID = _uid(seed, patient, 1 + image)
    meta.TransferSyntaxUID = ImplicitVRLittleEndian if who.scanner == "B" else ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.SOPClassUID, ds.SOPInstanceUID = DX, meta.MediaStorageSOPInstanceUID
    ds.StudyDate = ds.ContentDate = f"2024{1 + patient % 12:02d}{1 + image:02d}"
    ds.StudyTime = ds.ContentTime = "101500"
    ds.AccessionNumber, ds.Modality, ds.PresentationIntentType = who.accession, "DX", "FOR PRESENTATION"
    ds.Manufacturer, ds.ManufacturerModelName = maker, model
    ds.InstitutionName, ds.ReferringPhysicianName = INSTITUTION, PHYSICIAN
    ds.StudyDescription = ds.SeriesDescription = _description(who)
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = who.name, who.id, who.birth
    ds.PatientSex, ds.PatientAge, ds.PatientComments = who.sex, f"{who.age:03d}Y", _description(who)
    ds.BodyPartExamined, ds.KVP, ds.ViewPosition = "CHEST", "120", "PA"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = _uid(seed, patient, 0), _uid(seed, patient, 99)
    ds.InstanceNumber, ds.BurnedInAnnotation, ds.LossyImageCompression = str(1 + image), "NO", "00"
    ds.ImagerPixelSpacing = [round(350 / pixels.shape[0], 4)] * 2
    inner = Dataset()
    inner.PatientName = who.name
    ds.RequestAttributesSequence = [inner]
    block = ds.private_block(0x0011, "SYNTHETIC PRIVATE", create=True)
    block.add_new(0x01, "LO", _secret(who))
    _encode(ds, pixels, inverse, signed, rescaled)
    return ds


def _encode(ds: FileDataset, pixels: np.ndarray, inverse: bool, signed: bool, rescaled: bool) -> None:
    """Store 12 bits in 16, with or without sign, inversion and a rescale slope of 2, which the reader reverses."""
    stored = pixels.astype(np.int32)
    if inverse:
        stored = MAX - stored
    if signed:
        stored -= 1 << BITS - 1
    if rescaled:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1000", "2", "US"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1" if inverse else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, BITS, BITS - 1, int(signed)
    # Like some scanners, omit the sign bits above Bits Stored.
    ds.PixelData = (stored & MAX).astype("<u2").tobytes()


def write_broken(scans: Path) -> None:
    """Write a truncated file, an empty one, and a text file named .dcm."""
    whole = (scans / "0000" / "0.dcm").read_bytes()
    for name, data in zip(
        BROKEN, (whole[: 2 * len(whole) // 3], b"", b"call the ward about the last film\n"), strict=True
    ):
        path = scans / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _description(who: Person) -> str:
    return f"CHEST PA {who.name.replace('^', ' ')}"


def _secret(who: Person) -> str:
    return f"referred {who.id} by {PHYSICIAN.split('^')[0]}"


def _uid(seed: int, patient: int, what: int) -> UID:
    """Return a UID under the root for UUIDs (PS3.5 B.2), from a hash."""
    digest = hashlib.blake2b(f"{seed}|{patient}|{what}".encode(), digest_size=15).digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big') | 1 << 119}")
