"""Which DICOM images a person must review before training: those that usually have text in the pixels, and localizers."""

import re

from medssl.readers.dicom.header import Header
from medssl.readers.dicom.metadata import image_type

# Modalities that usually have text in the image (PS3.3 C.7.3.1.1.1); the second line has retired and informal terms for
# Doppler and cardiac ultrasound, angiography and fluoroscopy. An unknown or absent modality is held as well.
BURNED_IN = frozenset("US IVUS IVOCT SC OT XA RF BMD BDUS PA HC".split())  # noqa: SIM905
BURNED_IN |= frozenset("CD CF DD DF DS DSA EC ECHO VF".split())  # noqa: SIM905
# Modalities in which colour means a screenshot or an overlay.
GREY = frozenset("CT MR PT NM CR DX MG RG IO PX".split())  # noqa: SIM905
# Modalities whose SOP classes hold measured values.
MEASURED = frozenset("CT MR PT".split())  # noqa: SIM905
# SOP classes that usually have text in the image, whatever the modality says: each with all classes below it (PS3.6 table A-1).
# They end in a dot, so that 1.77 is not below 1.7.
STORAGE = "1.2.840.10008.5.1.4.1.1."
TEXT_CLASSES = (
    *(f"{STORAGE}{n}." for n in (3, 6)),  # ultrasound, its volumes, photoacoustic
    f"{STORAGE}7.",  # secondary capture
    f"{STORAGE}12.",  # angiography and fluoroscopy
    f"{STORAGE}13.1.1.",  # angiography in 3D
    f"{STORAGE}14.",  # optical coherence tomography of vessels
    *(f"1.2.840.10008.5.1.1.{n}." for n in (27, 29, 30)),  # printed films
)
SLIDE_CLASSES = tuple(f"{STORAGE}77.1.{n}." for n in (2, 3, 6))  # microscopy
WHOLE_SLIDE = f"{STORAGE}77.1.6."
# Image Type of slides (PS3.3 C.8.12.4.1.1): pictures of the label, or of the slide with its label, against those of tissue.
SLIDE_LABEL, SLIDE_TISSUE = {"LABEL", "OVERVIEW"}, {"VOLUME", "THUMBNAIL"}
# Conversion types: video, digitized film, document scanners, workstations, drawings (PS3.3 C.8.6.1).
CAPTURED = frozenset("DV DF SD SI WSD DRW".split())  # noqa: SIM905
MONOCHROME = frozenset({"MONOCHROME1", "MONOCHROME2", ""})


def quarantine_reason(header: Header, modality: str) -> str:
    """Return why a person must review the image before training: "burned-in risk", "localizer", or "".

    A header cannot prove that the pixels contain no text, so kinds of images that usually do are always quarantined, and so are
    images of no known kind.

    modality: of the image, from a list of known ones; "" if unknown.
    """
    kind, sop, stated = image_type(header), header.word("SOPClassUID") + ".", header.word("Modality")
    if (
        stated == "OT" and modality in MEASURED
    ):  # "other" says nothing, and the SOP class says that these are measured values
        stated = modality
    in_colour = header.word("PhotometricInterpretation") not in MONOCHROME
    risky = (
        not modality
        or not {modality, stated}.isdisjoint(BURNED_IN)
        or sop.startswith(TEXT_CLASSES)
        or _shows_slide_label(header, {modality, stated}, kind, sop)
        or header.word("BurnedInAnnotation") == "YES"
        or header.word("ConversionType") in CAPTURED
        or any("SAVE" in w or "SCREEN" in w or "CAPTURE" in w for w in kind)
        or (in_colour and (modality in GREY or sop == "."))
    )
    if risky:
        return "burned-in risk"
    description = " ".join(header.words("SeriesDescription"))
    if "LOCALIZER" in kind or re.search(r"SCOUT|LOCALI[ZS]ER|TOPOGRAM|SURVIEW", description):
        return "localizer"
    return ""


def _shows_slide_label(header: Header, modality: set[str], kind: tuple[str, ...], sop: str) -> bool:
    """Return whether the label of a slide, with the patient's name or number, is or may be in the image."""
    if header.word("SpecimenLabelInImage") == "YES":
        return True
    if sop.startswith(WHOLE_SLIDE) and SLIDE_TISSUE.isdisjoint(kind):
        return True  # it does not say what it shows
    slide = not modality.isdisjoint({"SM", "GM"}) or sop.startswith(SLIDE_CLASSES)
    return slide and not SLIDE_LABEL.isdisjoint(kind)
