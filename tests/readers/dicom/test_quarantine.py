"""Images that usually have text in the pixels are held by modality and by SOP class; those of no known kind too."""

import io

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian

from medssl.readers.dicom.header import parse
from medssl.readers.dicom.metadata import modality_of
from medssl.readers.dicom.quarantine import quarantine_reason

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # about retired modalities
STORAGE = "1.2.840.10008.5.1.4.1.1."
HELD = "burned-in risk"
DX, CT, MR, WHOLE_SLIDE = (STORAGE + n for n in ("1.1", "2", "4", "77.1.6"))


def reason(modality, sop=DX, **tags):
    """Why an image is held. No modality or SOP class is written if it is None."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2"
    for keyword, value in ({"Modality": modality, "SOPClassUID": sop, "PatientID": "P1"} | tags).items():
        if value is not None:
            setattr(ds, keyword, value)
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    header = parse(io.BytesIO(out.getvalue()))
    return quarantine_reason(header, modality_of(header))


@pytest.mark.parametrize(
    ("modality", "tags", "held"),
    [
        ("CT", {}, ""),
        ("DX", {}, ""),
        *((kind, {}, HELD) for kind in ("US", "XA", "RF", "SC", "OT", "IVUS", "IVOCT", "BMD", "BDUS", "HC")),
        ("MG", {"BurnedInAnnotation": "YES"}, HELD),
        ("US", {"BurnedInAnnotation": "NO"}, HELD),
        ("CR", {"ConversionType": "WSD"}, HELD),
        ("CR", {"ConversionType": "DI"}, ""),
        ("CT", {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, HELD),
        ("CT", {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, ""),
        ("MR", {"PhotometricInterpretation": "RGB"}, HELD),
        ("CT", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ("CT", {"SeriesDescription": "Scout AP"}, "localizer"),
    ],
)
def test_modalities_and_declarations(modality, tags, held):
    assert reason(modality, **tags) == held


@pytest.mark.parametrize(("sop", "held"), [(CT, ""), (MR, ""), (DX, HELD), ("1.2.3", HELD)])
def test_other_as_a_modality_is_held_unless_the_class_says_that_values_were_measured(sop, held):
    assert reason("OT", sop) == held


@pytest.mark.parametrize("modality", [None, "", "CT", "DX", "OP", "XYZ"])
@pytest.mark.parametrize(
    "sop", ["3", "3.1", "6", "6.1", "6.2", "6.3", "7", "7.1", "7.4", "12.1", "12.2.1", "12.3", "13.1.1", "14.1", "14.2"]
)
def test_classes_with_text_are_held_whatever_the_modality_says(sop, modality):
    """Ultrasound, secondary capture, angiography, fluoroscopy."""
    assert UID(STORAGE + sop).name != STORAGE + sop
    assert reason(modality, STORAGE + sop) == HELD


@pytest.mark.parametrize("sop", ["1.2.840.10008.5.1.1.29", "1.2.840.10008.5.1.1.30"])
def test_printed_films_are_held(sop):
    assert reason("DX", sop) == HELD


@pytest.mark.parametrize("modality", ["DD", "EC", "DS", "DSA", "VF", "CD", "CF", "DF"])
@pytest.mark.parametrize("sop", [None, DX, CT])
def test_retired_modalities_with_text_are_held(modality, sop):
    assert reason(modality, sop) == HELD


@pytest.mark.parametrize("tags", [{}, {"PhotometricInterpretation": "RGB"}])
@pytest.mark.parametrize("modality", [None, "", "XYZ"])
@pytest.mark.parametrize("sop", [None, "1.3.12.2.1107.5.9.1"])
def test_images_of_no_known_kind_are_held(modality, sop, tags):
    assert reason(modality, sop, **tags) == HELD


def test_colour_without_a_class_is_held():
    assert reason("OP", None, PhotometricInterpretation="RGB") == HELD
    assert reason("DX", None, PhotometricInterpretation="MONOCHROME2") == ""


@pytest.mark.parametrize(
    ("modality", "sop"),
    [
        ("OP", "77.1.5.1"),  # fundus
        ("OP", "77.1.5.2"),
        ("OPT", "77.1.5.4"),  # OCT
        ("OCT", "77.1.5.4"),
        ("OPTENF", "77.1.5.7"),
        ("OPTBSV", "77.1.5.8"),
        ("XC", "77.1.4"),
        ("DMS", "77.1.7"),  # skin
        ("ES", "77.1.1"),  # endoscopy
        ("GM", "77.1.2"),  # microscopy
        ("SM", "77.1.3"),
        ("CFM", "77.1.8"),
    ],
)
@pytest.mark.parametrize("colour", ["RGB", "YBR_FULL_422", "MONOCHROME2"])
def test_visible_light_is_no_secondary_capture(modality, sop, colour):
    assert reason(modality, STORAGE + sop, PhotometricInterpretation=colour) == ""
    assert reason(modality, STORAGE + sop, BurnedInAnnotation="YES") == HELD


@pytest.mark.parametrize(
    ("kind", "tags", "held"),
    [
        ("VOLUME", {}, ""),
        ("THUMBNAIL", {}, ""),
        ("LABEL", {}, HELD),
        ("OVERVIEW", {}, HELD),
        ("VOLUME", {"SpecimenLabelInImage": "YES"}, HELD),
        ("VOLUME", {"SpecimenLabelInImage": "NO"}, ""),
    ],
)
@pytest.mark.parametrize("sop", ["77.1.2", "77.1.3", "77.1.6"])
def test_labels_and_overviews_of_slides_are_held(sop, kind, tags, held):
    image_type = ["ORIGINAL", "PRIMARY", kind, "NONE"]
    assert reason("SM", STORAGE + sop, ImageType=image_type, PhotometricInterpretation="RGB", **tags) == held


def test_a_slide_that_does_not_say_what_it_shows_is_held():
    assert reason("SM", WHOLE_SLIDE, ImageType=["ORIGINAL", "PRIMARY"]) == HELD
    assert reason("SM", WHOLE_SLIDE) == HELD
    assert reason("SM", None, ImageType=["DERIVED", "PRIMARY", "LABEL", "NONE"]) == HELD
    assert reason("OP", STORAGE + "77.1.5.1", SpecimenLabelInImage="YES") == HELD


def test_a_label_is_held_among_slides_only():
    assert reason("MR", MR, ImageType=["DERIVED", "PRIMARY", "OVERVIEW"]) == ""
