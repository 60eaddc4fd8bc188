"""Identifiers in every kind of input file reach neither the store, its exports nor the terminal."""

import gzip
import io
import itertools
import json
import sqlite3
import zipfile
import zlib

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, PngImagePlugin
from pydicom import Dataset, FileDataset
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from medssl.cli.main import main
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.reporting.privacy import privacy_page
from medssl.store.store import Store
from tiny import secret

# Standard elements with free text and names; each gets a word of its own.
pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
TEXTS = {
    **dict.fromkeys(["InstitutionName", "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber"], "LO"),
    **dict.fromkeys(
        ["StudyDescription", "SeriesDescription", "ProtocolName", "PatientComments", "ImageComments"], "LO"
    ),
    **dict.fromkeys(["AdditionalPatientHistory", "RequestedProcedureDescription", "PatientAddress"], "LO"),
    **dict.fromkeys(
        ["AccessionNumber", "StudyID", "OtherPatientIDs", "MedicalRecordLocator", "Occupation", "EthnicGroup"], "LO"
    ),
    **dict.fromkeys(["PatientTelephoneNumbers", "MilitaryRank", "CountryOfResidence", "RegionOfResidence"], "LO"),
    **dict.fromkeys(["DerivationDescription", "AcquisitionComments", "CommentsOnThePerformedProcedureStep"], "LO"),
    **dict.fromkeys(["BodyPartExamined", "ConvolutionKernel", "ManufacturerModelName", "SoftwareVersions"], "LO"),
    **dict.fromkeys(["ViewPosition", "PatientPosition", "AcquisitionDeviceProcessingDescription", "FilterType"], "LO"),
}
NAMES = [
    *("PatientName", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName", "ReferringPhysicianName"),
    *("OperatorsName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "ResponsiblePerson"),
    "RequestingPhysician",
]
ALLOWED = {"ManufacturerModelName"}  # the model is kept, so it gets no planted word


class Plant:
    """Return words that occur nowhere else, and remember them."""

    def __init__(self):
        self.words: list[str] = []
        self.count = itertools.count()

    def __call__(self, kind: str = "word") -> str:
        n = next(self.count)
        word = {
            "word": f"Zq{n:03d}Xw",
            "name": f"Qzvor{n:03d}^Wyxa",
            "date": f"19{31 + n % 60:02d}{n % 12 + 1:02d}27",
            "uid": f"1.2.826.0.1.7777{n:04d}.31337",
        }[kind]
        self.words += word.split("^")
        return word


def dicom(plant, path, sop, modality, k=0, ids=None):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = sop
    meta.MediaStorageSOPInstanceUID = plant("uid")
    meta.SourceApplicationEntityTitle = plant()
    meta.SendingApplicationEntityTitle = plant()
    preamble = plant().encode().ljust(128, b"\0")
    ds = FileDataset(str(path), {}, file_meta=meta, preamble=preamble)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = sop, meta.MediaStorageSOPInstanceUID, modality
    ds.update(ids)
    for keyword in TEXTS:
        if keyword not in ALLOWED:
            setattr(ds, keyword, plant())
    for keyword in NAMES:
        setattr(ds, keyword, plant("name"))
    for keyword in (
        "StudyDate",
        "SeriesDate",
        "AcquisitionDate",
        "ContentDate",
        "PatientBirthDate",
        "DateOfLastCalibration",
    ):
        setattr(ds, keyword, plant("date"))
    ds.PatientAge = "093Y"
    ds.Manufacturer, ds.ManufacturerModelName = "SIEMENS", "Definition"
    inner = Dataset()
    inner.PatientID, inner.PatientName, inner.Manufacturer = plant(), plant("name"), plant()
    deeper = Dataset()
    deeper.CodeMeaning, deeper.InstitutionName = plant(), plant()
    inner.RequestedProcedureCodeSequence = Sequence([deeper])
    ds.OriginalAttributesSequence = Sequence([inner])
    ds.RequestAttributesSequence = Sequence([deeper])
    block = ds.private_block(0x0029, "ZQPRIVATE " + plant(), create=True)
    block.add_new(0x10, "LO", plant())
    block.add_new(0x11, "UN", plant().encode())
    nested = Dataset()
    nested.PatientName = plant("name")
    block.add_new(0x12, "SQ", Sequence([nested]))
    ds.add_new(0x60000022, "LO", plant())  # overlay description
    ds.add_new(0x60003000, "OW", plant().encode().ljust(512, b"\0"))
    ds.Rows = ds.Columns = 64
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    rng = np.random.default_rng(k)
    ds.PixelData = rng.integers(0, 4096, (64, 64), np.uint16).tobytes()
    if modality == "CT":
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 2.5 * k], [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 2.5
    ds.save_as(path, enforce_file_format=True)


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Return (source, words): a folder in which every file and every file name identifies a person."""
    plant = Plant()
    source = tmp_path_factory.mktemp("source")
    ward = source / f"{plant()} 환자 {plant()}"
    ward.mkdir()

    def ids():
        return {"PatientID": plant(), "IssuerOfPatientID": plant(), "StudyInstanceUID": plant("uid")} | {
            "SeriesInstanceUID": plant("uid"),
            "FrameOfReferenceUID": plant("uid"),
        }

    def dataset(values):
        ds = Dataset()
        for k, v in values.items():
            setattr(ds, k, v)
        return ds

    for i in range(3):
        path = ward / f"{plant()}_{plant('date')}.dcm"
        dicom(plant, path, DigitalXRayImageStorageForPresentation, "DX", 100 + i, dataset(ids()))
    of_series = dataset(ids())
    (ward / plant()).mkdir()
    for k in range(6):
        dicom(plant, ward / f"{plant()}.dcm", CTImageStorage, "CT", k, of_series)
    for i, path in enumerate(sorted(ward.glob("*.dcm"))[:2]):  # truncated files: the reason must not repeat the words
        data = path.read_bytes()
        (ward / f"{plant()}.dcm").write_bytes(data[: len(data) // (2 + 8 * i)])
    image = nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 999, (20, 21, 22), np.int16), np.eye(4))
    image.header["descrip"], image.header["aux_file"] = plant(), plant()
    image.header["intent_name"], image.header["db_name"] = plant(), plant()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", plant().encode()))
    with (ward / f"{plant()}.nii.gz").open("wb") as f, gzip.GzipFile(plant(), "wb", fileobj=f) as z:
        z.write(image.to_bytes())
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64), np.uint8))
    info = PngImagePlugin.PngInfo()
    info.add_text("Author", plant())
    info.add_itxt("Comment", plant())
    of_picture = plant()
    picture.save(ward / f"{of_picture}.png", pnginfo=info)
    exif = Image.Exif()
    exif[0x9286], exif[0x013B] = plant(), plant()
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (64, 64), np.uint8)).save(
        ward / f"{plant()}.jpg", exif=exif, comment=plant()
    )
    (ward / f"{of_picture}.json").write_text(
        json.dumps({"patient_id": plant(), "name": plant(), "phone": plant(), "diagnosis": "normal", "note": plant()})
    )
    with zipfile.ZipFile(ward / f"{plant()}.zip", "w") as z:
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(3).integers(0, 255, (64, 64), np.uint8)).save(buffer, "png")
        z.writestr(f"{plant()}/{plant()}.png", buffer.getvalue())
        z.writestr(f"{plant()}.txt", plant())
        z.comment = plant().encode()
    (source / f"{plant()}.csv").write_text(
        f"file,label,comment\n{plant()}.png,yes,{plant()}\n{plant()}.png,no,{plant()}\n"
    )
    (source / f"{plant()}.txt").write_text(plant())
    return source, plant.words


def forms(word):
    return {word.encode(), word.encode("utf-16-le"), word.encode("utf-16-be"), word[::-1].encode()}


def bytes_of(folder):
    """Return every file name and every byte below a folder, also decompressed."""
    parts = []
    for path in sorted(folder.rglob("*")):
        parts.append(path.name.encode())
        if not path.is_file():
            continue
        data = path.read_bytes()
        parts.append(data)
        if data[:2] == b"\x1f\x8b":
            parts.append(gzip.decompress(data))
        if data.startswith(b"\x89PNG"):
            parts.append(np.asarray(Image.open(path)).tobytes())
        if path.suffix == ".parquet":
            parts.append(json.dumps(pq.read_table(path).to_pylist(), ensure_ascii=False, default=str).encode())
        if path.suffix == ".sqlite":
            dump = "\n".join(sqlite3.connect(path).iterdump())
            parts.append(dump.encode())
    return b"\0".join(parts)


def run(*args):
    with pytest.raises(SystemExit) as e:
        main(list(args))
    return e.value.code


def test_nothing_identifying_leaves(planted, tmp_path, capfd, monkeypatch):
    source, words = planted
    assert len(words) > 150
    monkeypatch.setenv("MEDSSL_KEY", str(secret(tmp_path / "key")))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    table = next(source.glob("*.csv"))
    store = f"store={out / 'store'}"
    assert run("ingest", f"source={source}", f"out={out / 'store'}", "archives=true", "aihub=auto") == 0
    assert (
        run("inspect", store, "quarantined=true", f"sheet={out / 'sheet.png'}", f"privacy={out / 'privacy.html'}") == 0
    )
    assert run("rejects", store) == 0
    assert run("nifti", store, f"out={out / 'nifti'}") == 0
    assert run("png", store, f"out={out / 'png'}", "where=modality == 'DX'", "window=auto") == 0
    said = capfd.readouterr()
    assert (
        run("ingest", f"source={source}", f"out={out / 'other'}", f"labels={table}") == 1
    )  # the table matches no scan
    wrong = capfd.readouterr()
    data = bytes_of(out)
    opened = Store.open(out / "store", quarantined=True)
    assert len(opened) >= 8
    data += b"".join(opened[i].tobytes() for i in range(len(opened)))
    found = {w for w in words for form in forms(w) if form in data}
    assert not found
    terminal = (said.out + said.err + wrong.err).replace(str(source), "").replace(str(table), "")
    assert not {w for w in words if w in terminal}
    assert b"093Y" not in data
    ages = opened.column("fact:age")
    assert np.nanmax(ages.astype(float)) == 90


def test_the_search_would_find_them(planted, tmp_path):
    """The search of the test above finds planted words, plain and gzipped."""
    _, words = planted
    (tmp_path / "a.gz").write_bytes(gzip.compress(words[0].encode()))
    (tmp_path / "b").write_bytes(zlib.compress(b"x") + words[1].encode("utf-16-le"))
    data = bytes_of(tmp_path)
    for word in words[:2]:
        assert any(form in data for form in forms(word))


def test_the_page_says_which_text_is_not_seen(tmp_path):
    shapes = [(1, 224, 200), (1, 300, 2048), (1, 4, 20, 20)]
    with StoreWriter(tmp_path / "s", Pseudonyms(bytes(32))) as writer:
        for k, shape in enumerate(shapes):
            ramp = np.broadcast_to(np.linspace(0, 255, shape[-1]).astype(np.uint8), shape)
            writer.add(Scan(ramp, scan=str(k), patient=str(k)), f"{k}.png")
        page = privacy_page(writer.finish())
    assert "0 of 2 images have a line of bright characters at their border" in page
    assert "Not seen are characters lower than 6 to 24 pixels (the larger the image, the higher)" in page
    assert "0 does not mean that there is no text" in page
