"""What leaves a DICOM header: numbers, words from fixed lists, and pseudonyms. Nothing else does."""

import re

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.layout import JPEG, JPEG_2000, JPEG_LS, NATIVE, RLE
from medssl.readers.dicom.pet import suv_factor
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Unreadable

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

# name of the fact -> element with a number
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
# name of the fact -> elements with a word, in order of preference, and the words that may leave
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
LOSSY_SYNTAXES = frozenset(
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81, 203)
)  # these can be nothing else, or mostly
# Convolution kernels: GE's words; letters and numbers of Siemens (B30f, Br40d, I31f), Philips (YC) and Canon (FC08).
KERNELS = frozenset("STANDARD STND STD STD+ SOFT DETAIL EDGE BONE BONEPLUS LUNG CHST ULTRA".split())  # noqa: SIM905
KERNEL = re.compile(r"[A-Z][a-z]?[0-9]{2}[a-z]?|FC[0-9]{2}|[A-Z]{1,2}")
SYNTAXES = NATIVE | JPEG | JPEG_LS | JPEG_2000 | {RLE}
PLACEHOLDERS = frozenset({"", "ANON", "ANONYMOUS", "ANONYMIZED", "0", "UNKNOWN", "NONE"})

BURNED_IN = frozenset("US IVUS SC OT XA RF".split())  # noqa: SIM905  these write text into the picture as a rule
GREY = frozenset("CT MR PT NM CR DX MG RG IO PX".split())  # noqa: SIM905  colour in these is a screenshot or an overlay
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
CAPTURED = frozenset("DV DF SD SI WSD DRW".split())  # noqa: SIM905  C.8.6.1: video, film, scanners, work stations, drawings


def numbers(header: Header, keyword: str) -> tuple[float, ...]:
    """`header.numbers`, but () where something is written that is no number: for elements that need not be right."""
    try:
        return header.numbers(keyword)
    except Unreadable:
        return ()


def modality_of(header: Header) -> str:
    """DICOM's code, or "" for one that is not in the list."""
    word = header.word("Modality")
    return word if word in MODALITIES else ""


def image_type(header: Header) -> tuple[str, ...]:
    """Image Type, upper case."""
    return header.words("ImageType")


def scanner_of(header: Header) -> str:
    """Manufacturer and model, letters and digits only, at most 48 characters."""
    words = [header.raw(k).decode("latin-1") for k in ("Manufacturer", "ManufacturerModelName")]
    return re.sub(r"[^A-Za-z0-9.+-]+", " ", " ".join(words)).strip()[:48].strip()


def metadata_of(header: Header) -> dict[str, str | float]:
    """The allow-list, from one data set: numbers, and words that stand in a list of this file."""
    facts: dict[str, str | float] = {
        name: round(found[0], 4) for name, keyword in NUMBERS.items() if (found := numbers(header, keyword))
    }
    for name, (keywords, allowed) in WORDS.items():
        said = [w for w in (header.word(k).replace("PALETTE COLOR", "PALETTE_COLOR") for k in keywords) if w in allowed]
        if said:
            facts[name] = said[0]
    age = re.fullmatch(r"(\d{3})([YMWD])", header.word("PatientAge"))
    if age:
        years = int(age[1]) // {"Y": 1, "M": 12, "W": 52, "D": 365}[age[2]]
        facts["age"] = float(min(years, OLDEST))
    kernel = header.raw("ConvolutionKernel").decode("latin-1").split("\\")[0].strip()
    if kernel.upper() in KERNELS or KERNEL.fullmatch(kernel):
        facts["kernel"] = kernel
    if header.word("LossyImageCompression") == "01" or header.syntax in LOSSY_SYNTAXES:
        facts["lossy"] = "yes"
    if header.syntax and header.syntax in SYNTAXES:
        facts["transfer_syntax"] = header.syntax
    sop = header.word("SOPClassUID")
    if re.fullmatch(r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.[0-9.]{1,20}", sop):
        facts["sop_class"] = sop
    corrections = [w for w in header.words("CorrectedImage") if w in CORRECTIONS]
    if corrections:
        facts["corrected"] = " ".join(corrections)
    methods = [w for w in _method_codes(header) if re.fullmatch(r"1131[0-9]{2}", w)]  # PS3.16 CID 7050
    if methods:
        facts["deidentified_by"] = " ".join(methods)
    suv = suv_factor(header) if modality_of(header) == "PT" else None
    if suv is not None:
        facts["suv_factor"] = suv
    facts |= {name.lower(): "yes" for name in ("DERIVED", "LOCALIZER") if name in image_type(header)}
    if "PixelSpacing" not in header and "ImagerPixelSpacing" in header:
        facts["spacing_at"] = "detector"
    return facts


def _method_codes(header: Header) -> list[str]:
    try:
        return [item.word("CodeValue") for item in header.items("DeidentificationMethodCodeSequence")]
    except Unreadable:
        return []


def identify(header: Header, pseudonyms: Pseudonyms, name: str) -> dict[str, str | bool]:
    """Pseudonyms: patient, patient_known, study, series, born. Without a patient id the study, or else the file, stands in.

    born tells people apart who share one patient id; two ids of people born on one day have nothing in common.
    """
    issuer, patient = header.raw("IssuerOfPatientID"), header.raw("PatientID")
    study, series, born = (header.raw(k) for k in ("StudyInstanceUID", "SeriesInstanceUID", "PatientBirthDate"))
    known = patient.decode("latin-1").strip().upper() not in PLACEHOLDERS
    stand_in = b"study|" + study if study else b"file|" + name.encode()
    return {
        "patient": pseudonyms.patient(patient, issuer) if known else pseudonyms.of("patient", stand_in),
        "patient_known": known,
        "study": pseudonyms.of("study", study) if study else "",
        "series": pseudonyms.of("series", series) if series else "",
        "birth_date_hash": pseudonyms.of("born", patient + b"|" + born) if born and known else "",
    }


def quarantine_reason(header: Header, modality: str) -> str:
    """Why a human must look before anybody trains on it: "burned-in risk", "localizer", or "".

    A header cannot prove that nothing is written into the pixels, so what usually has text in it is held, whatever it
    says of itself.
    """
    kind = image_type(header)
    risky = (
        modality in BURNED_IN
        or header.word("SOPClassUID").startswith(SECONDARY_CAPTURE)
        or header.word("BurnedInAnnotation") == "YES"
        or header.word("ConversionType") in CAPTURED
        or any("SAVE" in w or "SCREEN" in w or "CAPTURE" in w for w in kind)
        or (modality in GREY and header.word("PhotometricInterpretation") not in {"MONOCHROME1", "MONOCHROME2", ""})
    )
    if risky:
        return "burned-in risk"
    said = " ".join(header.words("SeriesDescription"))
    if "LOCALIZER" in kind or re.search(r"SCOUT|LOCALI[ZS]ER|TOPOGRAM|SURVIEW", said):
        return "localizer"
    return ""
