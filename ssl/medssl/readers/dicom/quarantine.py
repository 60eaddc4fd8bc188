"""Which DICOM images a person must review before training: those that usually have text in the pixels, and localizers."""

import re

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import image_type

# Modalities that usually have text in the image, and modalities in which colour means a screenshot or an overlay.
BURNED_IN = frozenset("US IVUS SC OT XA RF".split())  # noqa: SIM905
GREY = frozenset("CT MR PT NM CR DX MG RG IO PX".split())  # noqa: SIM905
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Conversion types: video, digitized film, document scanners, workstations, drawings (PS3.3 C.8.6.1).
CAPTURED = frozenset("DV DF SD SI WSD DRW".split())  # noqa: SIM905


def quarantine_reason(header: Header, modality: str) -> str:
    """Return why a person must review the image before training: "burned-in risk", "localizer", or "".

    A header cannot prove that the pixels contain no text, so kinds of images that usually do are always quarantined.
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
    description = " ".join(header.words("SeriesDescription"))
    if "LOCALIZER" in kind or re.search(r"SCOUT|LOCALI[ZS]ER|TOPOGRAM|SURVIEW", description):
        return "localizer"
    return ""
