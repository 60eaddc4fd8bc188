"""The format of a file is recognised by its content, never by its name."""

import gzip
import io
import zipfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from medssl.readers.formats import FORMATS, format_of, read
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Unreadable
from medssl.readers.walk import open_file, walk


def test_the_format_is_recognised_by_content(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "n.nii.gz")
    nibabel.save(nibabel.Nifti2Image(np.zeros((3, 4, 5), np.int16), np.eye(4)), tmp_path / "n2.nii")
    for suffix in ("png", "jpg", "tiff", "gif"):
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / f"i.{suffix}")
    np.savez(tmp_path / "a.npz", train_images=np.zeros((1, 2, 2)))
    (tmp_path / "d").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "bare").write_bytes(b"\x08\0\x05\0CS\x0a\0ISO_IR 192")
    (tmp_path / "big").write_bytes(b"\0\x08\0\x05CS\0\x0aISO_IR 192")
    (tmp_path / "t.gz").write_bytes(gzip.compress(b"text", mtime=0))
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"text" * 999)[:20])
    (tmp_path / "t.txt").write_bytes(b"text")
    formats = {}
    for file in walk(tmp_path):
        with open_file(file) as stream:
            found = format_of(stream)
            formats[file.name] = found and found.name
            assert stream.tell() == 0
    assert formats == {
        **dict.fromkeys(("n.nii.gz", "n2.nii"), "NIfTI"),
        **dict.fromkeys(("i.png", "i.jpg", "i.tiff"), "PNG, JPEG, TIFF"),
        "a.npz": "MedMNIST npz",
        **dict.fromkeys(("d", "bare", "big"), "DICOM"),
        **dict.fromkeys(("t.gz", "cut.gz", "t.txt", "i.gif"), None),
    }


def zipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as z:
        z.writestr("a.dcm", b"1")
    return data.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("a.nii.gz", b"text", "BAD_HEADER"),
        ("a.NII", gzip.compress(b"text", mtime=0), "BAD_HEADER"),
        ("a.dcm", b"text", "NOT_A_SCAN"),
        ("a.png", gzip.compress(b"\x89PNG\r\n\x1a\n", mtime=0), "NOT_A_SCAN"),
        ("a.dcm", zipped(), "ARCHIVE"),
        ("a.dcm", b"", "NOT_A_SCAN"),
    ],
)
def test_other_files_are_refused(name, data, code):
    with pytest.raises(Unreadable) as why:
        read(io.BytesIO(data), name, Pseudonyms(bytes(32)))
    assert why.value.code == code
    if code == "NOT_A_SCAN":
        assert all(f.name in str(why.value) for f in FORMATS)


def header(sample: bytes) -> bytes:
    return sample.ljust(600, b"\x55")


def picture(kind):
    out = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "what", "advice"),
    [
        (picture("GIF"), "a GIF", "export its frames as PNG"),
        (picture("BMP"), "a BMP image", "save it as PNG"),
        (picture("WEBP"), "a WebP image", "save it as PNG"),
        (picture("PPM"), "a PBM, PGM or PPM image", "save it as PNG"),
        (header(b"\0\0\0\x0cjP  \r\n\x87\n"), "a JPEG 2000", "save it as PNG"),
        (header(b"\0\0\0\x18ftypheic\0\0\0\0"), "an HEIF", "save it as PNG"),
        (header(b"\0\0\0\x18ftypmp42\0\0\0\0"), "an MP4", "export its frames"),
        (header(b"\0\0\0\x14ftypqt  \0\0\0\0"), "an MP4 or QuickTime", "export its frames"),
        (header(b"RIFF\xff\xff\0\0AVI LIST"), "an AVI video", "export its frames"),
        (header(b"\x1a\x45\xdf\xa3\x01"), "a Matroska or WebM video", "export its frames"),
        (header(b"\0\0\x01\xba\x44"), "an MPEG video", "export its frames"),
        ((b"\x47" + bytes(187)) * 4, "an MPEG video", "export its frames"),
        (header(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11"), "a Windows Media", "export its frames"),
        (header(b"ObjectType = Image\nNDims = 3\n"), "a MetaImage volume", "to NIfTI"),
        (header(b"NRRD0004\ntype: short\n"), "an NRRD volume", "to NIfTI"),
        (gzip.compress(header(b"\0\0\0\x01\0\0\x01\0\0\0\x01\0"), mtime=0), "a FreeSurfer volume", "to NIfTI"),
        (header(b"\x89HDF\r\n\x1a\n"), "a MINC volume or another HDF5", "to NIfTI"),
        (header(b"\x93NUMPY\x01\0"), "a NumPy array", "PNG, TIFF or NIfTI"),
        (header(b'<?xml version="1.0"?>\n<!DOCTYPE GIFTI>\n<GIFTI Version="1.0">'), "a GIFTI surface", "no image"),
        (b"\x5c\x01\0\0" + bytes(344), "an Analyze 7.5 header", "to NIfTI"),
        (header(b"II+\0\x08\0\0\0"), "a BigTIFF image", "in tiles"),
        (header(b"%PDF-1.7"), "a PDF document", "export the images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_formats_that_are_not_read_are_named_with_what_to_do(data, what, advice):
    with pytest.raises(Unreadable) as why:
        read(io.BytesIO(data), "ward/x.bin", Pseudonyms(bytes(32)))
    assert why.value.code == "NOT_A_SCAN"
    assert str(why.value).startswith(what)
    assert advice in str(why.value)
    assert format_of(io.BytesIO(data)) is None


@pytest.mark.parametrize(
    "data", [b"BMI of the patients: 23.4, 25.1\n" * 20, b"P1;P2;P3\n" * 80, b"Comment: none\n" * 40]
)
def test_texts_are_no_images(data):
    with pytest.raises(Unreadable, match="the format is none of"):
        read(io.BytesIO(data), "x.txt", Pseudonyms(bytes(32)))
