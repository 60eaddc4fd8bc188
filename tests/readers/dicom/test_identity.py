"""One person has one pseudonym in every character set; an ASCII id keeps the hash of its bytes."""

import io
import unicodedata
from itertools import pairwise

import pydicom
import pytest
from pydicom.data import get_charset_files
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medssl.readers.dicom.character_sets import decode
from medssl.readers.dicom.header import parse
from medssl.readers.dicom.identity import identifier, identify
from medssl.readers.dicom.slices import group_key
from medssl.readers.pseudonyms import Pseudonyms

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # about the invalid values it writes
PSEUDONYMS = Pseudonyms(bytes(32))
NFD = unicodedata.normalize("NFD", "환자1")
SPELLINGS = {
    "환자1": [
        ("ISO_IR 192", "환자1".encode()),
        ("ISO_IR 192", NFD.encode()),
        ("ISO IR-192", "환자1".encode()),
        ("ISO_IR 192", "환자1".encode("cp949")),
        ("\\ISO 2022 IR 149", b"\x1b$)C" + "환자1".encode("euc-kr")),
        ("ISO 2022 IR 6\\ISO 2022 IR 149", b"\x1b$)C" + "환자".encode("euc-kr") + b"\x1b(B1"),
        ("\\ISO 2022 IR 149", "환자1".encode("euc-kr")),
        ("ISO 2022 IR 149", "환자1".encode("euc-kr")),
        ("ISO_IR 149", "환자1".encode("euc-kr")),
        ("EUC-KR", "환자1".encode("euc-kr")),
        ("", b"\x1b$)C" + "환자1".encode("euc-kr")),
        ("GB18030", "환자1".encode("gb18030")),
        ("", "환자1".encode()),
        ("", "환자1".encode("cp949")),
        ("SMITH", "환자1".encode()),
        ("ISO_IR 100", "환자1".encode()),
        ("ISO_IR 192", "환자1\u3000".encode()),
    ],
    "똠방각하": [("ISO_IR 192", "똠방각하".encode()), ("\\ISO 2022 IR 149", b"\x1b$)C" + "똠방각하".encode("cp949"))],
    "Ü1": [
        ("ISO_IR 192", "Ü1".encode()),
        ("ISO_IR 192", "U\u03081".encode()),
        ("ISO_IR 100", b"\xdc1"),
        ("ISO_IR 100", "Ü1".encode()),
        ("ISO 2022 IR 100", b"\xdc1"),
        ("ISO 2022 IR 6\\ISO 2022 IR 100", b"\x1b-A\xdc1"),
        ("ISO_IR 101", "Ü1".encode("iso8859-2")),
        ("ISO_IR 148", "Ü1".encode("iso8859-9")),
        ("", b"\xdc1"),
    ],
    "Σ7": [("ISO_IR 192", "Σ7".encode()), ("ISO_IR 126", "Σ7".encode("iso8859-7")), ("", b"\x1b-F\xd37")],
    "ФИО7": [("ISO_IR 192", "ФИО7".encode()), ("ISO_IR 144", "ФИО7".encode("iso8859-5"))],
    "山田7": [
        ("ISO_IR 192", "山田7".encode()),
        ("\\ISO 2022 IR 87", "山田7".encode("iso2022_jp")),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\x1b$B;3ED\x1b(J7"),
        ("ISO_IR 13", "山田7".encode("shift_jis")),
        ("GB18030", "山田7".encode("gb18030")),
        ("GBK", "山田7".encode("gbk")),
    ],
    "ﾔﾏ山": [
        ("ISO_IR 192", "ﾔﾏ山".encode()),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", "ﾔﾏ".encode("shift_jis") + b"\x1b$B;3"),
        ("ISO 2022 IR 13\\ISO 2022 IR 87", b"\x1b)I" + "ﾔﾏ".encode("shift_jis") + b"\x1b$B;3\x1b(B"),
    ],
    "王小": [("GB18030", "王小".encode("gb18030")), ("\\ISO 2022 IR 58", b"\x1b$)A" + "王小".encode("gb2312"))],
}


def header(character_set="", **elements):
    """A header whose text elements have exactly these bytes."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3", "1.2.3.4", "CT"
    placed = {}
    for keyword, value in elements.items():
        placed[b"<" + keyword[:8].encode() * 9] = value  # a stand-in of a fixed length
        setattr(ds, keyword, next(reversed(placed)).decode())
    if character_set:
        ds.SpecificCharacterSet = character_set.split("\\")
    out = io.BytesIO()
    ds.save_as(out, enforce_file_format=True)
    data = out.getvalue()
    for stand_in, value in placed.items():
        size = len(stand_in) + len(stand_in) % 2
        at = data.index(stand_in)
        data = data[:at] + value.ljust(size) + data[at + size :]
    return parse(io.BytesIO(data))


CASES = [(text, *case) for text, cases in SPELLINGS.items() for case in cases]


@pytest.mark.parametrize(("text", "character_set", "raw"), CASES)
def test_one_id_has_one_pseudonym_in_every_character_set(text, character_set, raw):
    ids = identify(header(character_set, PatientID=raw), PSEUDONYMS, "a")
    assert ids["patient"] == PSEUDONYMS.patient(text) == PSEUDONYMS.of("patient", text)
    assert ids["patient_known"] is True


@pytest.mark.parametrize("text", SPELLINGS)
def test_issuer_birth_date_and_group_follow_the_same_rule(text):
    def about(character_set, raw):
        h = header(character_set, PatientID=raw, IssuerOfPatientID=raw, PatientBirthDate=b"19570203")
        return identify(h, PSEUDONYMS, "a"), group_key(h, "a/x.dcm")

    found = [about(*case) for case in SPELLINGS[text]]
    assert all(a == b for a, b in pairwise(found))
    assert found[0][0]["patient"] == PSEUDONYMS.patient(text, text) == PSEUDONYMS.patient(f"{text}|{text}")


@pytest.mark.parametrize("path", get_charset_files("chr[!S]*.dcm"))
def test_names_in_every_character_set_of_the_standard_equal_pydicoms(path):
    ds = pydicom.dcmread(path)
    raw = ds.get_item("PatientName").value
    character_sets = [ds.SpecificCharacterSet] if isinstance(ds.SpecificCharacterSet, str) else ds.SpecificCharacterSet
    assert decode(raw.strip(), [c.upper() for c in character_sets]).rstrip("=") == str(ds.PatientName)


@pytest.mark.parametrize("character_set", ["", "ISO_IR 192", "ISO_IR 100", "ISO_IR 13", "\\ISO 2022 IR 149", "GB18030"])
@pytest.mark.parametrize("raw", [b"P1", b"P 1\\2~", b"P\t1", b"P1 \0 ", b"~|^=\\"])
def test_ascii_ids_keep_the_pseudonym_of_their_bytes(character_set, raw):
    ids = identify(header(character_set, PatientID=raw), PSEUDONYMS, "a")
    assert ids["patient"] == PSEUDONYMS.of("patient", raw.strip(b" \0"))


@pytest.mark.parametrize("character_set", ["", "ISO_IR 192", "ISO_IR 100", "\\ISO 2022 IR 149"])
@pytest.mark.parametrize(
    "raw", [b"\xff\x81\x8d7", b"\x1b%/Gx", b"\x1b", b"\x1b$)C\xff\xff", b"\x1b$B\x21", b"\x81\x1b-A"]
)
def test_bytes_that_are_no_text_stand_for_themselves(character_set, raw):
    first, again = (identify(header(character_set, PatientID=raw), PSEUDONYMS, name) for name in "ab")
    other = identify(header(character_set, PatientID=raw + b"8"), PSEUDONYMS, "a")
    assert first == again
    assert first["patient"] == PSEUDONYMS.of("patient", raw)
    assert first["patient"] != other["patient"]


def test_different_people_stay_apart():
    ids = [identifier(header("ISO_IR 100", PatientID=bytes([0xC0 + k]) + b"1"), "PatientID") for k in range(64)]
    ids += [identifier(header("ISO_IR 144", PatientID=bytes([0xC0 + k]) + b"1"), "PatientID") for k in range(48)]
    assert len(set(ids)) == 64 + 48


@pytest.mark.parametrize("word", ["ＡＮＯＮ", "０", "\u3000", "unknown\u00a0"])
def test_placeholders_in_any_width_name_nobody(word):
    ids = identify(header("ISO_IR 192", PatientID=word.encode()), PSEUDONYMS, "a")
    assert ids["patient_known"] is False
    assert ids["patient"] == PSEUDONYMS.of("patient", b"study|1.2.3")


@pytest.mark.parametrize("date", [b"1957.02.03", b"1957-02-03"])
def test_a_birth_date_with_separators_is_the_same_date(date):
    born, plain = (
        identify(header(PatientID=b"P1", PatientBirthDate=d), PSEUDONYMS, "a")["birth_date_hash"]
        for d in (date, b"19570203")
    )
    assert born == plain == PSEUDONYMS.of("born", b"P1|19570203")
