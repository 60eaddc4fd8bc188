"""DICOM files made in memory, and what the reader makes of them."""

import io
import json

import numpy as np
import pydicom
import pytest
from pydicom import DataElement
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medssl.readers.dicom import reader
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Slice, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
NATIVE = [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
JPEG_LOSSLESS, JPEG_EXTENDED, JPEG_LS, JPEG_2000, HTJ2K = (
    UID(f"1.2.840.10008.1.2.4.{n}") for n in (70, 51, 80, 90, 201)
)
PLACED = {
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.7],
}


def element(key, value):
    return value if isinstance(value, DataElement) else DataElement(key, dictionary_VR(key), value)


def dataset(stored, *, bits=12, signed=False, modality="DX", syntax=ExplicitVRLittleEndian, garbage=0, **tags):
    """A DICOM image; `garbage` fills the bits above Bits Stored."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = syntax
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3.4", modality
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "P1", "1.2.3", "1.2.3.9"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = stored.shape[:2]
    ds.BitsAllocated = 8 if bits <= 8 else 16 if bits <= 16 else 32
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits - 1, int(signed)
    for key, value in tags.items():
        ds[key] = element(key, value)
    big = syntax == ExplicitVRBigEndian
    words = np.asarray(stored, np.int64) & (1 << bits) - 1 | (garbage << bits & (1 << ds.BitsAllocated) - 1)
    data = words.astype(f"{'>' if big else '<'}u{ds.BitsAllocated // 8}").tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def saved(ds):
    out = io.BytesIO()
    ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "1.2.3")
    ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "1.2.3")
    pydicom.dcmwrite(out, ds, enforce_file_format=True)
    return out.getvalue()


def make(stored, **how):
    return saved(dataset(stored, **how))


def compressed(codestreams, ds, syntax, table=True):
    """Return a file with the given header and compressed frames."""
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate(codestreams, has_bot=table)
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return saved(ds)


def scans(data, name="a/x.dcm"):
    """Return the scans of a file. A slice is passed through JSON, as by the ledger, and decoded alone."""
    found = reader.read(io.BytesIO(data), name, PSEUDONYMS)
    if isinstance(found, Slice):
        s = Slice.from_dict(json.loads(json.dumps(found.as_dict())))
        return [reader.single(s, io.BytesIO(data))]
    return [scan for scan, _ in found]


def only(data) -> Scan:
    [scan] = scans(data)
    assert isinstance(scan, Scan)
    return scan


def refusal(data):
    with pytest.raises(Unreadable) as why:
        scans(data)
    return why.value.code


def coloured(rgb, photometric="RGB", planar=0, **how):
    ds = dataset(rgb[..., 0], bits=8, modality=how.pop("modality", "US"), **how)
    ds.SamplesPerPixel, ds.PlanarConfiguration, ds.PhotometricInterpretation = 3, planar, photometric
    data = np.ascontiguousarray(rgb if planar == 0 else np.moveaxis(rgb, -1, 0)).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    return ds
