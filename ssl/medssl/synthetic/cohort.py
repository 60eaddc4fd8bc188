"""A synthetic chest X-ray cohort, written as DICOM: something to ingest, learn and score where no data may be shared.

Patients have lungs, ribs, a spine, a heart and 1 to 4 images of them; some have nodules in a lung. Two scanners differ
in noise, blur, contrast and encoding. Headers are full of invented identifiers, which must not survive ingestion. Beside
the scans lie their masks: where the nodules and the lungs are.
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
from scipy import ndimage

from medssl.errors import UserError
from medssl.progress import track
from medssl.rng import seed_from

DX = UID("1.2.840.10008.5.1.4.1.1.1.1")  # Digital X-Ray Image Storage - For Presentation
BITS = 12
TOP = (1 << BITS) - 1
INSTITUTION = "Saint Brennick Hospital"
PHYSICIAN = "Ostrava^Wilhemine"
FAMILY = ("Qorvath", "Brzenska", "Umeadi", "Tiolent", "Hakkavar", "Jeverson", "Lindqvarn", "Moretsu", "김", "박", "최")
GIVEN = ("Zelimir", "Odrosia", "Wenfred", "Ixchelle", "Tamsinda", "Bertolde", "Yevgenna", "Callomir", "서준", "하윤")
SCANNERS = {  # name -> (manufacturer, model, noise, blur in pixels, contrast, brightness)
    "A": ("Synthetic A", "Clarity 100", 0.030, 0.0, 1.0, 0.0),
    "B": ("Synthetic B", "Nimbus 7", 0.050, 0.6, 0.8, 0.08),
}
NODULE, LUNG = 1, 2  # labels of a mask; a nodule's pixels are not lung as well
BROKEN = ("broken/cut.dcm", "broken/empty.dcm", "broken/notes.dcm")


@dataclass(frozen=True)
class Person:
    """What a header says of a patient. All of it is invented."""

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
    """A patient, from (seed, patient) alone."""
    rng = np.random.default_rng(seed_from(seed, patient, 0))
    lesion = bool(rng.random() < prevalence)
    likely = 0.5 + scanner_label_correlation / 2 * (1 if lesion else -1)
    scanner = "B" if rng.random() < likely else "A"
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


def planted(patients: int = 240, seed: int = 0) -> list[str]:
    """Every identifier that `write_cohort` writes into headers: none of them may be found in what ingestion writes."""
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
    """Writes `out`/scans/…/….dcm, three broken files in `out`/scans/broken and `out`/labels.csv; returns `out`.

    The table has a column `file`, relative to `out`/scans, and a column `lesion`, yes or no, the same for all images of
    a patient. `out`/masks/…/….png has the mask of every image under the same name (see `outlines`). The bytes depend on
    the arguments alone.

    Args:
        out: a folder, made when absent.
        patients: how many.
        size: rows and columns.
        seed: what everything is drawn from.
        prevalence: share of patients with nodules, in expectation.
        scanner_label_correlation: -1 to 1; 0 makes the scanner useless for guessing the label, 1 gives it away.

    Raises:
        UserError: a number is out of range.
    """
    if patients < 1 or size < 32:
        raise UserError(f"a cohort needs patients >= 1 and size >= 32, got patients={patients}, size={size}")
    if not (0 <= prevalence <= 1 and -1 <= scanner_label_correlation <= 1):
        raise UserError("prevalence must lie in [0, 1] and scanner_label_correlation in [-1, 1]")
    scans = out / "scans"
    rows: list[tuple[str, str]] = []
    for patient in track(range(patients), "write cohort", unit="patient"):
        who = person(seed, patient, prevalence, scanner_label_correlation)
        folder, beside = scans / f"{patient:04d}", out / "masks" / f"{patient:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        beside.mkdir(parents=True, exist_ok=True)
        for k in range(who.images):
            pixels = draw(seed, patient, k, size, who.lesion, who.scanner)
            _dataset(pixels, who, seed, patient, k).save_as(folder / f"{k}.dcm", enforce_file_format=True)
            Image.fromarray(outlines(seed, patient, k, size, who.lesion)).save(beside / f"{k}.png")
            rows.append((f"{patient:04d}/{k}.dcm", "yes" if who.lesion else "no"))
    _write_broken(scans)
    with (out / "labels.csv").open("w", newline="") as f:
        writer = csv.writer(f, lineterminator="\n")
        writer.writerow(("file", "lesion"))
        writer.writerows(rows)
    return out


def draw(seed: int, patient: int, image: int, size: int, lesion: bool, scanner: str) -> np.ndarray:
    """(size, size) uint16 in [0, 4095], bone bright: the patient's anatomy as one scanner shows it on one day."""
    picture, _, day = _anatomy(seed, patient, image, size, lesion)
    _, _, noise, blur, contrast, brightness = SCANNERS[scanner]
    if blur:
        picture = ndimage.gaussian_filter(picture, blur * size / 96)
    picture = (picture - 0.4) * contrast * day.uniform(0.85, 1.15) + 0.4 + brightness + day.uniform(-0.06, 0.06)
    picture += noise * day.standard_normal((size, size))
    return np.clip(np.round(picture * TOP), 0, TOP).astype(np.uint16)


def outlines(seed: int, patient: int, image: int, size: int, lesion: bool) -> np.ndarray:
    """(size, size) uint8, the mask of what `draw` draws: LUNG inside the lungs' edges, NODULE within a nodule's half
    maximum, 0 elsewhere."""
    return _anatomy(seed, patient, image, size, lesion)[1]


def _anatomy(
    seed: int, patient: int, image: int, size: int, lesion: bool
) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """The picture before a scanner sees it, its mask, and the generator of what else differs from day to day."""
    anatomy = np.random.default_rng(seed_from(seed, patient, 1))
    day = np.random.default_rng(seed_from(seed, patient, 2 + image))
    x, y = _pose(day, size)
    wide, tall, apart = anatomy.uniform(0.30, 0.38), anatomy.uniform(0.56, 0.68), anatomy.uniform(0.40, 0.46)
    lungs = [_ellipse(x - side * apart, y + 0.05, wide, tall) for side in (-1, 1)]
    lung = np.maximum(*lungs)
    body = _ellipse(x, y - 0.1, 0.95, 1.15)
    heart = _ellipse(
        x - anatomy.uniform(0.08, 0.16), y - 0.28, anatomy.uniform(0.22, 0.36), anatomy.uniform(0.26, 0.36)
    )
    spine = np.exp(-((x / 0.09) ** 2)) * (1 + 0.15 * np.sin(y * anatomy.uniform(22, 28)))
    bend, pitch, phase = anatomy.uniform(0.35, 0.6), anatomy.uniform(17, 23), anatomy.uniform(0, 6.3)
    ribs = np.maximum(np.sin(pitch * (y - bend * x**2) + phase), 0) ** 3
    vessels = ndimage.gaussian_filter(anatomy.standard_normal((size, size)), size / 60) * lung
    picture = (
        0.15
        + 0.45 * body
        - 0.34 * lung * body
        + 0.22 * heart
        + 0.13 * spine
        + anatomy.uniform(0.06, 0.12) * ribs * body
    )
    picture += anatomy.uniform(0.06, 0.12) * vessels
    mask = np.where(lung >= 0.5, LUNG, 0).astype(np.uint8)
    if lesion:
        added, inside = _nodules(anatomy, x, y, wide, tall, apart)
        picture += added
        mask[inside] = NODULE
    return picture, mask, day


def _pose(day: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in about [-1, 1] after a small shift, turn and zoom."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")
    angle, zoom = np.radians(day.uniform(-5, 5)), day.uniform(0.94, 1.06)
    dx, dy = day.uniform(-0.06, 0.06, 2)
    return (
        (np.cos(angle) * x - np.sin(angle) * y) / zoom + dx,
        (np.sin(angle) * x + np.cos(angle) * y) / zoom + dy,
    )


def _ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """1 inside, 0 outside, a soft edge between."""
    return 1 / (1 + np.exp((np.hypot(x / a, y / b) - 1) * 14))


def _nodules(
    anatomy: np.random.Generator, x: np.ndarray, y: np.ndarray, wide: float, tall: float, apart: float
) -> tuple[np.ndarray, np.ndarray]:
    """One to three Gaussian nodules, mostly in the upper half of a lung, of differing size and contrast; where they are."""
    added, inside = np.zeros_like(x), np.zeros(x.shape, bool)
    for _ in range(anatomy.integers(1, 4)):
        side = 1 if anatomy.random() < 0.6 else -1
        radius, angle = 0.75 * np.sqrt(anatomy.random()), anatomy.uniform(0, 2 * np.pi)
        cx = side * apart + wide * radius * np.cos(angle)
        cy = -0.05 + tall * radius * np.sin(angle) * 0.8 - 0.12
        width, contrast = anatomy.uniform(0.045, 0.085), anatomy.uniform(0.10, 0.24)
        nodule = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
        added += contrast * nodule
        inside |= nodule >= 0.5
    return added, inside


def _dataset(pixels: np.ndarray, who: Person, seed: int, patient: int, image: int) -> FileDataset:
    """A DX object. Scanner A: explicit VR; B: implicit VR, MONOCHROME1; sign and rescale by patient."""
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
    """12 bits in 16, with or without sign, inversion and a rescale of slope 2 (all of which ingestion undoes)."""
    stored = pixels.astype(np.int32)
    if inverse:
        stored = TOP - stored
    if signed:
        stored -= 1 << BITS - 1
    if rescaled:
        ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = "-1000", "2", "US"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1" if inverse else "MONOCHROME2"
    ds.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, BITS, BITS - 1, int(signed)
    ds.PixelData = (
        (stored & TOP).astype("<u2").tobytes()
    )  # sign bits above Bits Stored are left out, as some scanners do


def _write_broken(scans: Path) -> None:
    """A truncated file, an empty one, and a note that calls itself DICOM."""
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
    """A UID under the root for UUIDs (PS3.5 B.2), from a hash."""
    digest = hashlib.blake2b(f"{seed}|{patient}|{what}".encode(), digest_size=15).digest()
    return UID(f"2.25.{int.from_bytes(digest, 'big') | 1 << 119}")
