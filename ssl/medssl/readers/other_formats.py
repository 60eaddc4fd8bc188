"""Images and videos in formats that are not read: what they are, and what to convert them to."""

import re
from dataclasses import dataclass

SAVE = "save it as PNG or TIFF"
NIFTI = "convert it to NIfTI (.nii.gz), for example with SimpleITK"
FRAMES = "export its frames as PNG files, in a folder for each video"


@dataclass(frozen=True)
class OtherFormat:
    """A format that is recognised and not read.

    Attributes:
        name: what a file in it is.
        pattern: regular expression that its first bytes match; "." is any byte.
        advice: what to do with it.
        suffixes: usual ends of its file names, lower case.
    """

    name: str
    pattern: bytes
    advice: str
    suffixes: tuple[str, ...] = ()


OTHER_FORMATS = (
    OtherFormat("a GIF image or animation", rb"GIF8[79]a", FRAMES, (".gif",)),
    OtherFormat("a BMP image", rb"BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", SAVE, (".bmp",)),
    OtherFormat("a WebP image", rb"RIFF.{4}WEBP", SAVE, (".webp",)),
    OtherFormat("a JPEG 2000 image", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", SAVE, (".jp2", ".j2k")),
    OtherFormat("a JPEG XL image", rb"\0\0\0\x0cJXL ", SAVE, (".jxl",)),
    OtherFormat("an HEIF or AVIF image", rb".{4}ftyp(hei|hev|mif1|msf1|avif)", SAVE, (".heic", ".avif")),
    OtherFormat(
        "a BigTIFF image",
        rb"II\+\0\x08\0|MM\0\+\0\x08",
        "save it as TIFF, in tiles if it has more than 134 million pixels",
    ),
    OtherFormat(
        "a Zeiss CZI image",
        rb"ZISRAWFILE",
        "export it as TIFF, in tiles if it has more than 134 million pixels",
        (".czi",),
    ),
    OtherFormat("a PBM, PGM or PPM image", rb"P[1-6]\s", SAVE, (".pgm", ".ppm")),
    OtherFormat("a Photoshop image", rb"8BPS", SAVE, (".psd",)),
    OtherFormat("a PDF document", rb"%PDF", "export the images in it as PNG"),
    OtherFormat("an MP4 or QuickTime video", rb".{4}(ftyp|moov|mdat|wide)", FRAMES, (".mp4", ".mov")),
    OtherFormat("an AVI video", rb"RIFF.{4}AVI ", FRAMES, (".avi",)),
    OtherFormat("a Matroska or WebM video", rb"\x1a\x45\xdf\xa3", FRAMES, (".mkv", ".webm")),
    OtherFormat("an MPEG video", rb"\0\0\x01[\xba\xb3]|\x47.{187}\x47.{187}\x47", FRAMES, (".mpg", ".mpeg")),
    OtherFormat(
        "a Windows Media or Flash video", rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11|FLV\x01", FRAMES, (".wmv", ".flv")
    ),
    OtherFormat("a MetaImage volume", rb"\s*(ObjectType|NDims|Comment)\s*=", NIFTI, (".mha", ".mhd")),
    OtherFormat("an NRRD volume", rb"NRRD000", NIFTI, (".nrrd", ".nhdr")),
    OtherFormat("a MINC volume or another HDF5 or netCDF file", rb"CDF[\x01\x02]|\x89HDF\r\n\x1a\n", NIFTI, (".mnc",)),
    OtherFormat("a FreeSurfer volume or surface", rb"\0\0\0\x01\0\0.{26}", NIFTI, (".mgz", ".mgh")),
    OtherFormat(
        "a NumPy array", rb"\x93NUMPY", "save each image as PNG, TIFF or NIfTI, or all as MedMNIST npz", (".npy",)
    ),
    OtherFormat("a MATLAB file", rb"MATLAB 5\.0 MAT-file", "save each image as PNG, TIFF or NIfTI"),
    OtherFormat("a GIFTI surface", rb".{0,200}<GIFTI", "no image can be made of it", (".gii",)),
    OtherFormat("a VTK data set", rb"# vtk DataFile", NIFTI, (".vtk",)),
    OtherFormat("an Analyze 7.5 header", rb"(\x5c\x01\0\0|\0\0\x01\x5c).{340}\0{4}", NIFTI),
)


def other_format(head: bytes) -> OtherFormat | None:
    """Return the format of a file by its first 540 bytes, None if it is not in the table."""
    return next((f for f in OTHER_FORMATS if re.match(f.pattern, head, re.DOTALL)), None)
