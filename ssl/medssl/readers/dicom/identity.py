"""Who is on a DICOM image: the identifiers of a header as pseudonyms."""

import re
import unicodedata

from medssl.readers.dicom.character_sets import ESCAPE, decode
from medssl.readers.dicom.header import Header
from medssl.readers.pseudonyms import Pseudonyms, names_nobody

PADDING = " \t\r\n\0\u00a0\u3000"  # the last two are the no-break and the ideographic space


def identifier(header: Header, keyword: str) -> bytes:
    """Return a text element as UTF-8 in NFC without padding: the same bytes in every character set.

    ASCII is returned as it is, and so are bytes that are text in no character set, which compare equal to themselves only.
    """
    raw = header.raw(keyword)
    if raw.isascii() and ESCAPE not in raw:
        return raw
    text = decode(raw, header.words("SpecificCharacterSet"))
    return raw if text is None else unicodedata.normalize("NFC", text).strip(PADDING).encode()


def identify(header: Header, pseudonyms: Pseudonyms, name: str) -> dict[str, str | bool]:
    """Return the pseudonyms: patient, patient_known, similar_id, study, series, birth_date_hash.

    Without a Patient ID the study, or else the file, stands for the patient. The hash of the birth date includes the
    Patient ID: it separates people who share one, but does not link people born on the same day.
    """
    issuer, patient = identifier(header, "IssuerOfPatientID"), identifier(header, "PatientID")
    study, series = header.raw("StudyInstanceUID"), header.raw("SeriesInstanceUID")
    birth_date = _digits(identifier(header, "PatientBirthDate"))
    stand_in = b"study|" + study if study else b"file|" + name.encode()
    known = not is_placeholder(patient)
    return {
        **(pseudonyms.person(patient, issuer) if known else {"patient": pseudonyms.of("patient", stand_in)}),
        "patient_known": known,
        "study": pseudonyms.of("study", study) if study else "",
        "series": pseudonyms.of("series", series) if series else "",
        "birth_date_hash": pseudonyms.of("born", patient + b"|" + birth_date) if birth_date and known else "",
    }


def is_placeholder(patient: bytes) -> bool:
    """Return whether an id, as from `identifier`, is 0 or names nobody."""
    text = patient.decode("utf-8", "replace")
    return names_nobody(text) or unicodedata.normalize("NFKC", text).strip() == "0"


def _digits(date: bytes) -> bytes:
    """Return a date as YYYYMMDD if it is written with separators, as in ACR-NEMA files (PS3.5 table 6.2-1, DA)."""
    found = re.fullmatch(rb"(\d{4})[-./](\d\d)[-./](\d\d)", date)
    return b"".join(found.groups()) if found else date
