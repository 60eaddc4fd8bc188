"""DICOM files to scans. Only allow-listed facts leave a header; identifiers leave it as pseudonyms or not at all."""

import hashlib
import logging
import re
import warnings
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medssl.scans.alias import Alias
from medssl.scans.pixels import AIR, Pixels, lookup, numbers, one_channel, read_pixels, smallest
from medssl.scans.scan import Scan, Unreadable
from medssl.scans.series import Slice, canonical, geometry, spacing_of

STACKED = {"CT", "MR", "PT"}  # modalities whose single images are slices of a volume
DEFLATED = b"1.2.840.10008.1.2.1.99"
PLACEHOLDERS = {"", "ANON", "ANONYMOUS", "ANONYMIZED", "0", "UNKNOWN", "NONE"}
OLDEST = 90  # years; older patients are so few that their age identifies them
MODALITIES = {
    *("CT MR PT NM CR DX MG RF XA US IO PX RG XC OP OPT ES GM SM BI BMD IVUS IVOCT DG OT TG HD SC".split()),
}
BODY_PARTS = {
    *("ABDOMEN ANKLE ARM BRAIN BREAST CHEST CSPINE ELBOW EXTREMITY EYE FINGER FOOT FOREARM HAND HEAD HEART HIP".split()),
    *("HUMERUS KNEE LEG LSPINE LUNG NECK PELVIS PROSTATE SHOULDER SKULL SPINE TSPINE THORAX TOE WHOLEBODY WRIST".split()),
    *("KIDNEY LIVER JAW TIBIA FEMUR CLAVICLE HEADNECK CHESTABDOMEN ABDOMENPELVIS CHESTABDPELVIS".split()),
}
VIEWS = {"AP", "PA", "LL", "RL", "RLD", "LLD", "RLO", "LLO", "LATERAL", "LAT", "CC", "MLO", "ML", "LM", "XCCL", "ROLL"}
NUMBERS = {
    "kvp": "KVP",
    "field_strength": "MagneticFieldStrength",
    "thickness": "SliceThickness",
    "echo_time": "EchoTime",
    "repetition_time": "RepetitionTime",
    "inversion_time": "InversionTime",
    "flip_angle": "FlipAngle",
    "b_value": "DiffusionBValue",
}
NOT_IMAGES = (  # SOP classes (prefixes) without an image to learn from: reports, plans, waveforms, segmentations, documents
    "1.2.840.10008.1.3.10",
    *(f"1.2.840.10008.5.1.4.1.1.{n}" for n in ("9.", "11.", "66", "88.", "104.", "481.")),
)


@contextmanager
def opened(path: Path) -> Iterator[tuple[Dataset, BinaryIO]]:
    """The header of `path`, and a stream that stands at its pixel data. Nothing a library says about it is printed.

    Raises:
        Unreadable: EMPTY, NOT_DICOM, UNSUPPORTED_SYNTAX, NOT_AN_IMAGE.
    """
    with path.open("rb") as stream:
        start = stream.read(2048)
        if not start:
            raise Unreadable("EMPTY", "the file has no bytes")
        if DEFLATED in start:
            raise Unreadable("UNSUPPORTED_SYNTAX", "deflated files are not read: they may inflate without limit")
        stream.seek(0)
        with quiet():
            try:
                ds = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
            except (EOFError, OSError):
                raise Unreadable("TRUNCATED", "the file ends inside the header") from None
            sop = str(ds.get("SOPClassUID", "") or "")
            if any(sop.startswith(prefix) for prefix in NOT_IMAGES):
                raise Unreadable("NOT_AN_IMAGE", "this kind of DICOM object has no image")
            if "Rows" not in ds:
                raise Unreadable("NO_PIXELS" if sop else "NOT_DICOM", "the header describes no image")
            yield ds, stream


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what readers warn about and log: their words quote the header."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel", "nibabel.global", "PIL")]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


def look(path: Path) -> Slice | None:
    """What grouping needs to know, if this file is a slice of a volume; None for an image that stands alone."""
    with opened(path) as (ds, _):
        position, orientation = (numbers(ds, k) for k in ("ImagePositionPatient", "ImageOrientationPatient"))
        spacing, frames = numbers(ds, "PixelSpacing"), numbers(ds, "NumberOfFrames")
        kind = image_type(ds)
        if "MOSAIC" in kind:
            raise Unreadable("MOSAIC_UNSUPPORTED", "slices tiled into one image are not read yet")
        if modality_of(ds) not in STACKED or (len(position), len(orientation), len(spacing)) != (3, 6, 2):
            return None
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        lengths = np.linalg.norm(row), np.linalg.norm(column)
        if min(spacing) <= 0 or max(abs(v - 1) for v in lengths) > 1e-3 or abs(row @ column) > 1e-3:
            return None  # pixels are fine, the place is not known
        if frames and frames[0] > 1:
            return None  # refused later, with its own code
        return Slice(
            path=path,
            uid=raw(ds, "SOPInstanceUID"),
            key=group_key(ds, orientation, spacing, kind),
            position=position,
            orientation=(*(row / lengths[0]).tolist(), *(column / lengths[1]).tolist()),
            spacing=spacing,
            order=tuple(
                (numbers(ds, k) or (0.0,))[0]
                for k in ("TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
            ),
        )


def group_key(
    ds: Dataset, orientation: tuple[float, ...], spacing: tuple[float, ...], kind: tuple[str, ...]
) -> tuple[Hashable, ...]:
    """What slices of one volume share. Tube current and acquisition number differ inside volumes, so they are not in it."""
    return (
        raw(ds, "StudyInstanceUID"),
        raw(ds, "SeriesInstanceUID"),
        modality_of(ds),
        *(int(v) for k in ("Rows", "Columns", "SamplesPerPixel") for v in numbers(ds, k)[:1]),
        str(ds.get("PhotometricInterpretation", "")),
        tuple(round(v, 3) + 0.0 for v in orientation),
        tuple(round(v, 4) for v in spacing),
        kind[:4],
        *(
            numbers(ds, k)
            for k in ("EchoTime", "EchoNumbers", "DiffusionBValue", "FlipAngle", "InversionTime", "ReconstructionDiameter")
        ),
        str(ds.get("ConvolutionKernel", "")),
    )


def image(path: Path, alias: Alias, relative: str) -> Scan:
    """One file that stands alone, as (C, H, W)."""
    with opened(path) as (ds, stream):
        modality = modality_of(ds)
        if "MOSAIC" in image_type(ds):
            raise Unreadable("MOSAIC_UNSUPPORTED", "slices tiled into one image are not read yet")
        frame = read_pixels(ds, stream, modality)
        array, steps = assemble([frame], modality)
        spacing = numbers(ds, "PixelSpacing") or numbers(ds, "ImagerPixelSpacing")
        known = len(spacing) == 2 and min(spacing) > 0
        ids = identify(ds, alias, relative)
        return Scan(
            array=array[:, 0],
            scan=alias.alias("scan", raw(ds, "SOPInstanceUID") or b"file|" + relative.encode()),
            spacing=spacing if known else None,
            modality=modality,
            scanner=scanner_of(ds),
            facts=facts_of(ds),
            steps=steps,
            **ids,  # type: ignore[arg-type]
        )


def volume(stack: list[Slice], repeat: int, alias: Alias, relative: str) -> Scan:
    """A sorted stack as (C, D, H, W), axes pointing to superior, anterior and right."""
    affine, tilt = geometry(stack)
    with opened(stack[0].path) as (ds, _):
        modality, ids, facts, scanner = modality_of(ds), identify(ds, alias, relative), facts_of(ds), scanner_of(ds)
    frames = []
    for s in stack:
        with opened(s.path) as (ds, stream):
            frames.append(_compact(read_pixels(ds, stream, modality)))
    array, steps = assemble(frames, modality)
    array, affine = canonical(array, affine)
    if tilt > 0.1:
        facts["tilt"] = round(tilt, 1)
    return Scan(
        array=array,
        scan=alias.alias("scan", f"{stack[0].key!r}|{repeat}"),
        affine=affine,
        spacing=spacing_of(affine),
        modality=modality,
        scanner=scanner,
        facts=facts,
        steps=(*steps, "reorient to RAS"),
        **ids,  # type: ignore[arg-type]
    )


def _compact(p: Pixels) -> Pixels:
    """The same frame in few bytes: all frames of a volume are held at once."""
    return Pixels(p.values.astype(smallest(p.values.min(), p.values.max(), p.preferred)), p.preferred, p.padding, p.steps)


def assemble(frames: list[Pixels], modality: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Frames to (C, D, H, W) in one type, padding filled, grey written as colour reduced to one channel."""
    if len({f.values.shape for f in frames}) > 1:
        raise Unreadable("BAD_GEOMETRY", "the slices of a stack differ in size")
    low, high = min(f.values.min() for f in frames), max(f.values.max() for f in frames)
    preferred = next((f.preferred for f in frames if f.preferred.kind == "f"), frames[0].preferred)
    padded = any(f.padding is not None for f in frames)
    if padded and modality == "CT":
        low = min(low, AIR)
    array = np.empty((frames[0].values.shape[0], len(frames), *frames[0].values.shape[1:]), smallest(low, high, preferred))
    for d, f in enumerate(frames):
        array[:, d] = f.values
    steps = list(dict.fromkeys(step for f in frames for step in f.steps))
    if padded:
        _fill(array, frames, modality)
        steps.append("padding filled")
    if one_channel(array):
        array = array[:1].copy()
        steps.append("grey from colour")
    return array, tuple(steps)


def _fill(array: np.ndarray, frames: list[Pixels], modality: str) -> None:
    """Padding becomes air in CT, else the darkest real value."""
    mask = np.stack([np.zeros(f.values.shape[1:], bool) if f.padding is None else f.padding for f in frames])
    if mask.all():
        raise Unreadable("NO_PIXELS", "every pixel is padding")
    array[:, mask] = AIR if modality == "CT" else array[:, ~mask].min()


def pixel_digest(s: Slice) -> bytes:
    """Hash of everything from the pixel data on, to tell a copy from a repeat."""
    with opened(s.path) as (_, stream):
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).digest()


def identify(ds: Dataset, alias: Alias, relative: str) -> dict[str, str | bool]:
    """Pseudonyms of patient, study and series. Without a patient id the study, or else the file, stands for the patient."""
    issuer, patient = raw(ds, "IssuerOfPatientID"), raw(ds, "PatientID")
    study, series = raw(ds, "StudyInstanceUID"), raw(ds, "SeriesInstanceUID")
    known = patient.decode("latin-1").strip().upper() not in PLACEHOLDERS
    if known:
        who = issuer + b"|" + patient
    else:
        who = b"study|" + study if study else b"file|" + relative.encode()
    return {
        "patient": alias.alias("patient", who),
        "patient_known": known,
        "study": alias.alias("study", study) if study else "",
        "series": alias.alias("series", series) if series else "",
    }


def raw(ds: Dataset, keyword: str) -> bytes:
    """An element's bytes as written (so no character set can change a pseudonym), without its padding."""
    if keyword not in ds:
        return b""
    element = ds.get_item(Tag(keyword))
    value = element.value if isinstance(element, RawDataElement) else ds[keyword].value
    return (value if isinstance(value, bytes) else str(value or "").encode()).strip(b" \0")


def modality_of(ds: Dataset) -> str:
    """DICOM's code, or "" for one that is not in the list."""
    word = str(ds.get("Modality", "") or "").strip().upper()
    return word if word in MODALITIES else ""


def image_type(ds: Dataset) -> tuple[str, ...]:
    """Image Type, upper case."""
    value = ds.get("ImageType", "") or ""
    return tuple(str(v).strip().upper() for v in ([value] if isinstance(value, str) else value))


def scanner_of(ds: Dataset) -> str:
    """Manufacturer and model, letters and digits only, at most 48 characters."""
    words = [str(ds.get(k, "") or "") for k in ("Manufacturer", "ManufacturerModelName")]
    return re.sub(r"[^A-Za-z0-9.+-]+", " ", " ".join(words)).strip()[:48]


def facts_of(ds: Dataset) -> dict[str, str | float]:
    """The allow-list: nothing is copied but numbers, and words that stand in a list of this file."""
    facts: dict[str, str | float] = {}
    for name, keyword in NUMBERS.items():
        found = numbers(ds, keyword)
        if found:
            facts[name] = round(found[0], 4)
    words = {
        "view": (("ViewPosition",), VIEWS),
        "laterality": (("ImageLaterality", "Laterality", "FrameLaterality"), {"L", "R", "B", "U"}),
        "sex": (("PatientSex",), {"F", "M", "O"}),
        "body_part": (("BodyPartExamined",), BODY_PARTS),
        "burned_in": (("BurnedInAnnotation",), {"YES", "NO"}),
        "intent": (("PresentationIntentType",), {"FOR PRESENTATION", "FOR PROCESSING"}),
    }
    for name, (keywords, allowed) in words.items():
        found_words = [w for w in (str(ds.get(k, "") or "").strip().upper() for k in keywords) if w in allowed]
        if found_words:
            facts[name] = found_words[0]
    age = re.fullmatch(r"(\d{3})([YMWD])", str(ds.get("PatientAge", "") or "").strip())
    if age:
        facts["age"] = float(min(int(age[1]) if age[2] == "Y" else int(age[1]) // {"M": 12, "W": 52, "D": 365}[age[2]], OLDEST))
    kernel = str(ds.get("ConvolutionKernel", "") or "").strip()
    if re.fullmatch(r"[A-Z][A-Za-z]{0,9}[0-9]{0,3}[a-z]?[+]{0,2}", kernel):
        facts["kernel"] = kernel
    if str(ds.get("LossyImageCompression", "") or "").strip() == "01":
        facts["lossy"] = "yes"
    kind = image_type(ds)
    facts |= {name.lower(): "yes" for name in ("DERIVED", "LOCALIZER") if name in kind}
    if lookup(ds, "PixelSpacing")[1]:
        return facts
    if "ImagerPixelSpacing" in ds:
        facts["spacing_at"] = "detector"
    return facts


