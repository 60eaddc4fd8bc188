"""What a DICOM header says: numbers read tolerantly, words from fixed lists, and how the pixels are laid out."""

import math
import re

from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from medssl.scans.scan import Unreadable

OLDEST = 90  # years; older patients are so few that their age identifies them
MODALITIES = frozenset(
    "CT MR PT NM CR DX MG RF XA US IO PX RG XC OP OPT ES GM SM BI BMD IVUS IVOCT DG OT TG HD SC".split()  # noqa: SIM905
)

BODY_PARTS = frozenset(
    """
    ABDOMEN ABDOMENPELVIS ANKLE ARM BRAIN BREAST CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE CSPINE ELBOW EXTREMITY EYE
    FEMUR FINGER FOOT FOREARM HAND HEAD HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG NECK PELVIS
    PROSTATE SHOULDER SKULL SPINE THORAX TIBIA TOE TSPINE WHOLEBODY WRIST
    """.split()  # noqa: SIM905
)

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


# Enhanced objects keep these in functional groups (PS3.3 C.7.6.16): the frame's own, the shared ones, then the top.
GROUPS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "SliceThickness": "PixelMeasuresSequence",
}


def lookup(ds: Dataset, keyword: str) -> tuple[Dataset, bool]:
    """The dataset that holds `keyword` for the first frame, and whether any does."""
    group = GROUPS.get(keyword)
    for outer in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence") if group else ():
        frames = ds.get(outer)
        items = frames[0].get(group) if frames else None
        if items and keyword in items[0]:
            return items[0], True
    return ds, keyword in ds


def numbers(ds: Dataset, keyword: str) -> tuple[float, ...]:
    """Finite numbers of an element, empty when it is absent or empty; a decimal comma is forgiven.

    Raises:
        Unreadable: BAD_HEADER when something is written there that is not a number.
    """
    holder, found = lookup(ds, keyword)
    if not found:
        return ()
    raw = holder.get_item(Tag(keyword))
    try:
        value = holder[keyword].value
    except Exception:  # pydicom refuses what a scanner has written; try to read it as text
        value = raw.value if isinstance(raw, RawDataElement) else None
    if isinstance(value, bytes):
        value = value.decode("latin-1").split("\\")
    if value is None or value == "":
        return ()
    items = [value] if isinstance(value, str | int | float) else list(value)
    try:
        found_numbers = tuple(float(str(v).strip(" \0").replace(",", ".")) for v in items if str(v).strip(" \0"))
    except ValueError:
        raise Unreadable("BAD_HEADER", f"{keyword} is not a number") from None
    return found_numbers if all(math.isfinite(v) for v in found_numbers) else ()


def integer(ds: Dataset, keyword: str, default: int) -> int:
    """The first number of an element as an integer, `default` when it is absent or empty."""
    found = numbers(ds, keyword)
    return int(found[0]) if found else default


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
        facts["age"] = float(
            min(int(age[1]) if age[2] == "Y" else int(age[1]) // {"M": 12, "W": 52, "D": 365}[age[2]], OLDEST)
        )
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
