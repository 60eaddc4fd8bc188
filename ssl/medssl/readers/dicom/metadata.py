"""Read the metadata kept from a DICOM header: only numbers and words from fixed lists."""

import re

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import JPEG, JPEG_2000, JPEG_LS, NATIVE, RLE
from medssl.readers.dicom.pet import suv_factor
from medssl.readers.scan import Unreadable

MAX_AGE = 90  # years; older patients are so rare that their age could identify them
IMAGE_CLASSES = "1.2.840.10008.5.1.4.1.1."
# SOP classes of one modality (after IMAGE_CLASSES), each with the classes below it
CLASSES = {
    "1.2": "MG",
    "1.3": "IO",
    "1.1": "DX",
    "1": "CR",
    "2": "CT",
    "3": "US",
    "4": "MR",
    "5": "NM",
    "6": "US",
    "12.1": "XA",
    "12.2": "RF",
    "13.1.1": "XA",
    "13.1.3": "MG",
    "13.1.4": "MG",
    "13.1.5": "MG",
    "14": "IVOCT",
    "20": "NM",
    "77.1.1": "ES",
    "77.1.2": "GM",
    "77.1.3": "SM",
    "77.1.4": "XC",
    "77.1.5.1": "OP",
    "77.1.5.2": "OP",
    "77.1.5.4": "OPT",
    "77.1.6": "SM",
    "128": "PT",
    "130": "PT",
}
MODALITIES = frozenset(
    """
    CT MR PT NM CR DX MG RF XA US IO PX RG XC OP OPT OPTENF OPTBSV OCT ES GM SM DMS CFM BI BMD IVUS IVOCT DG OT TG HD SC
    """.split()  # noqa: SIM905
)
BODY_PARTS = frozenset(
    """
    ABDOMEN ABDOMENPELVIS ANKLE ARM BRAIN BREAST CHEST CHESTABDOMEN CHESTABDPELVIS CLAVICLE CSPINE ELBOW EXTREMITY EYE
    FEMUR FINGER FOOT FOREARM HAND HEAD HEADNECK HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG NECK PELVIS
    PROSTATE SHOULDER SKULL SPINE THORAX TIBIA TOE TSPINE WHOLEBODY WRIST
    """.split()  # noqa: SIM905
)
VIEWS = frozenset("AP PA LL RL RLD LLD RLO LLO LATERAL LAT CC MLO ML LM XCCL ROLL".split())  # noqa: SIM905
POSITIONS = frozenset(f"{a}{b}" for a in ("HF", "FF") for b in ("P", "S", "DR", "DL"))
POSITIONS |= {f"{a}F{b}" for a in "LRAP" for b in ("P", "S", "DR", "DL")}
COLOURS = frozenset(
    """
    MONOCHROME1 MONOCHROME2 RGB YBR_FULL YBR_FULL_422 YBR_RCT YBR_ICT PALETTE_COLOR
    """.split()  # noqa: SIM905
)
# PS3.3 C.8.9.1.1.2
CORRECTIONS = frozenset("DECY ATTN SCAT DTIM MOTN PMOT CLN RAN RADL DCAL NORM".split())  # noqa: SIM905
LOSSY = frozenset(f"ISO_{n}" for n in ("10918_1", "14495_1", "15444_1", "15444_15", "13818_2", "14496_10"))

# metadata field -> numeric element
NUMBERS = {
    "kvp": "KVP",
    "field_strength": "MagneticFieldStrength",
    "thickness": "SliceThickness",
    "echo_time": "EchoTime",
    "repetition_time": "RepetitionTime",
    "inversion_time": "InversionTime",
    "flip_angle": "FlipAngle",
    "b_value": "DiffusionBValue",
    "bits_stored": "BitsStored",
    "lossy_ratio": "LossyImageCompressionRatio",
    "voi_center": "WindowCenter",
    "voi_width": "WindowWidth",
}
# metadata field -> text elements, in order of preference, and the allowed words
WORDS: dict[str, tuple[tuple[str, ...], frozenset[str]]] = {
    "view": (("ViewPosition",), VIEWS),
    "laterality": (("ImageLaterality", "Laterality", "FrameLaterality"), frozenset("LRBU")),
    "sex": (("PatientSex",), frozenset("FMO")),
    "body_part": (("BodyPartExamined",), BODY_PARTS),
    "patient_position": (("PatientPosition",), POSITIONS),
    "burned_in": (("BurnedInAnnotation",), frozenset({"YES", "NO"})),
    "deidentified": (("PatientIdentityRemoved",), frozenset({"YES", "NO"})),
    "intent": (("PresentationIntentType",), frozenset({"FOR PRESENTATION", "FOR PROCESSING"})),
    "photometric": (("PhotometricInterpretation",), COLOURS),
    "lossy_method": (("LossyImageCompressionMethod",), LOSSY),
}
# Transfer syntaxes that are always, or nearly always, lossy.
LOSSY_SYNTAXES = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 203))
# Rescale Types (PS3.3 C.11.1.1.2) other than Hounsfield units; US is unspecified.
HU = "HU"
OTHER_UNITS = frozenset("OD US MGML Z_EFF ED EDW PCT".split())  # noqa: SIM905
# Blood flow, blood volume and times of passage, as makers name them in Image Type
PERFUSION = frozenset("CBF CBV RCBF RCBV PBV MTT RMTT TTP TTD TTS TMAX".split())  # noqa: SIM905
SPLIT = re.compile(r"[^A-Z0-9]+")
# Convolution kernels: GE words; codes of Siemens (B30f, Br40d, I31f), Philips (YC) and Canon (FC08).
KERNELS = frozenset("STANDARD STND STD STD+ SOFT DETAIL EDGE BONE BONEPLUS LUNG CHST ULTRA".split())  # noqa: SIM905
KERNEL = re.compile(r"[A-Z][a-z]?[0-9]{2}[a-z]?|FC[0-9]{2}|[A-Z]{1,2}")
SYNTAXES = NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}


def numbers(header: Header, keyword: str) -> tuple[float, ...]:
    """Return `header.numbers(keyword)`, () if the value is not a number. For elements that are not essential."""
    try:
        return header.numbers(keyword)
    except Unreadable:
        return ()


def image_plane(header: Header) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]] | None:
    """Return Image Position, Image Orientation and Pixel Spacing (PS3.3 C.7.6.2), None if one is missing or invalid."""
    position, orientation, spacing = (
        numbers(header, k) for k in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    )
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2) or min(spacing) <= 0:
        return None
    return position, orientation, spacing


def modality_of(header: Header) -> str:
    """Return the DICOM code of the modality, "" if it is not in the list.

    If the header says nothing, nothing known, or "other", the SOP class decides (PS3.4 B.5).
    """
    word = header.word("Modality")
    if word in MODALITIES and word != "OT":
        return word
    sop = f"{header.word('SOPClassUID')}."
    found = next((m for kind, m in CLASSES.items() if sop.startswith(f"{IMAGE_CLASSES}{kind}.")), "")
    return found or (word if word == "OT" else "")


def is_lossy(header: Header) -> bool:
    """Return whether the pixels have been compressed with loss, according to the header."""
    return header.word("LossyImageCompression") == "01" or header.syntax in LOSSY_SYNTAXES


def rescale_type(header: Header) -> str:
    """Return the units of a CT image: "HU", a word of `OTHER_UNITS`, or "other".

    Rescale Type is required if the units are not Hounsfield units (PS3.3 C.8.2.1), and is missing in some derived perfusion
    maps. A slope without an intercept gives no Hounsfield units, because these start at -1024.
    """
    try:
        tables = [item for item in header.items("ModalityLUTSequence") if item.raw("LUTData")]
    except Unreadable:
        tables = []
    word = tables[0].word("ModalityLUTType") if tables else header.word("RescaleType")
    if not word:
        if "DERIVED" in image_type(header)[:1] and PERFUSION & {
            w for v in image_type(header)[2:] for w in SPLIT.split(v)
        }:
            return "other"
        lone = numbers(header, "RescaleSlope") and not numbers(header, "RescaleIntercept")
        return "US" if lone and not tables else HU
    if word in {HU, "HU_MOD"} or word.startswith("HOUNSFIELD"):
        return HU
    return word if word in OTHER_UNITS else "other"


def image_type(header: Header) -> tuple[str, ...]:
    """Return the values of Image Type, in upper case."""
    return header.words("ImageType")


def scanner_of(header: Header) -> str:
    """Return manufacturer and model, restricted to letters, digits and "+-.", at most 48 characters."""
    words = [header.raw(k).decode("latin-1") for k in ("Manufacturer", "ManufacturerModelName")]
    return re.sub(r"[^A-Za-z0-9.+-]+", " ", " ".join(words)).strip()[:48].strip()


def metadata_of(header: Header) -> dict[str, str | float]:
    """Return the allow-listed acquisition metadata of a data set: numbers, and words in the lists of this file."""
    metadata: dict[str, str | float] = {
        name: round(found[0], 4) for name, keyword in NUMBERS.items() if (found := numbers(header, keyword))
    }
    for name, (keywords, allowed) in WORDS.items():
        words = (header.word(k).replace("PALETTE COLOR", "PALETTE_COLOR") for k in keywords)
        if known := [w for w in words if w in allowed]:
            metadata[name] = known[0]
    age = re.fullmatch(r"(\d{3})([YMWD])", header.word("PatientAge"))
    if age:
        years = int(age[1]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[age[2]]
        metadata["age"] = float(min(years, MAX_AGE))
    kernel = header.raw("ConvolutionKernel").decode("latin-1").split("\\")[0].strip()
    if kernel.upper() in KERNELS or KERNEL.fullmatch(kernel):
        metadata["kernel"] = kernel
    if is_lossy(header):
        metadata["lossy"] = "yes"
    if modality_of(header) == "CT" and (units := rescale_type(header)) != HU:
        metadata["rescale_type"] = units
    if header.syntax and header.syntax in SYNTAXES:
        metadata["transfer_syntax"] = header.syntax
    sop = header.word("SOPClassUID")
    if re.fullmatch(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9.]{1,20}", sop):
        metadata["sop_class"] = sop
    corrections = [w for w in header.words("CorrectedImage") if w in CORRECTIONS]
    if corrections:
        metadata["corrected"] = " ".join(corrections)
    methods = [w for w in _method_codes(header) if re.fullmatch(r"1131[0-9]{2}", w)]  # PS3.16 CID 7050
    if methods:
        metadata["deidentified_by"] = " ".join(methods)
    suv = suv_factor(header) if modality_of(header) == "PT" else None
    if suv is not None:
        metadata["suv_factor"] = suv
    metadata |= {name.lower(): "yes" for name in ("DERIVED", "LOCALIZER") if name in image_type(header)}
    if "PixelSpacing" not in header and "ImagerPixelSpacing" in header:
        metadata["spacing_at"] = "detector"
    return metadata


def _method_codes(header: Header) -> list[str]:
    try:
        return [item.word("CodeValue") for item in header.items("DeidentificationMethodCodeSequence")]
    except Unreadable:
        return []


def common(every: list[dict[str, str | float]]) -> dict[str, str | float]:
    """Return the entries that all dictionaries share. One lossy image, or one in other units, makes all of them so."""
    found = {k: v for k, v in every[0].items() if all(d.get(k) == v for d in every)}
    for key in ("lossy", "rescale_type"):
        found |= next(({key: d[key]} for d in every if key in d), {})
    return found
