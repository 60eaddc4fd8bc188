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
