"""Reject codes: why a file is not used, and what to do about it."""

# Code -> (reason, remedy).
CODES: dict[str, tuple[str, str]] = {
    # listing files
    "CANNOT_OPEN": ("the file or folder cannot be read", "check its permissions and the disk, then ingest again"),
    "NOT_A_FILE": ("a link, a pipe or a device", "copy the real file into the source if it is needed"),
    "EMPTY": ("the file has no bytes", "copy it again from its source"),
    "NOT_A_SCAN": (
        "none of the supported formats",
        "nothing, unless it should be a scan; then convert it as the reason says",
    ),
    "ARCHIVE": ("a zip archive", "extract it, or add archives=true"),
    "BAD_ARCHIVE": ("an archive that is damaged, encrypted, nested or unsafe", "extract and check it by hand"),
    "LITTER": ("a hidden file or folder, or a file of the operating system", "nothing"),
    "SIDECAR": ("a JSON file; its metadata are used", "nothing"),
    # reading
    "BAD_HEADER": ("the header is invalid", "export the file again"),
    "HEADER_PAIR": ("a NIfTI header with the voxels in a second file", "convert the pair to one .nii file"),
    "TRUNCATED": ("the file is incomplete", "copy or export it again from its source"),
    "BAD_LENGTH": ("the length of the pixel data contradicts the header", "export the file again"),
    "NO_PIXELS": ("the file contains no image", "export it again, if it should have one"),
    "NOT_DICOM": ("the header is not a DICOM header", "nothing, unless it should be a scan"),
    "NOT_AN_IMAGE": ("an object without an image, such as a report, a plan or a segmentation", "nothing"),
    "TOO_LARGE": (
        "larger than what is read, see the reason for the limit",
        "cut it into tiles or parts; if it should be small, it is damaged",
    ),
    "TOO_BIG_TO_READ": ("reading it needs more memory than allowed", "allow more with memory=GB"),
    "TOO_SLOW": ("reading it made no progress for longer than allowed", "check the file; ingest again to retry"),
    "DECODER_CRASHED": ("a decoder crashed on it", "check the file; it is not read again unless it changes"),
    "UNSUPPORTED_SYNTAX": (
        "no decoder for this transfer syntax",
        "convert it, e.g. with gdcmconv; export the frames of a video as images",
    ),
    "UNSUPPORTED_PIXELS": ("an unsupported kind of pixels", "convert the file"),
    "DECODE_FAILED": ("the compressed image is damaged or contradicts the header", "export the file again"),
    "READER_FAILED": ("an unexpected error in the reader", "please report it, with the type of scanner"),
    "NO_RESCALE": (
        "a CT image in colour or without a rescale to Hounsfield units",
        "export the original series: no screenshot, and with its Rescale Slope and Intercept",
    ),
    "NON_FINITE": (
        "values are missing (NaN, infinite) inside the image",
        "check how the file was made, or set them to a number",
    ),
    "CONSTANT": ("every pixel has the same value", "nothing"),
    # volumes
    "BAD_GEOMETRY": (
        "positions and orientations do not span a volume",
        "export the series again; if its positions are right, convert its images to PNG to use them one by one",
    ),
    "TOO_FEW_SLICES": (
        "fewer than four slices beside a position with several images",
        "export the images at that position as a series of their own",
    ),
    "MISSING_SLICES": ("gaps leave fragments of fewer than four slices", "export the whole series"),
    "VARYING_SPACING": (
        "the distance between slices varies irregularly",
        "export the whole series; if nothing is missing, convert its images to PNG to use them one by one",
    ),
    "REPEATED_POSITIONS": (
        "several images at some positions of a series",
        "export these images as a series of their own, with their instance numbers",
    ),
    "DUPLICATE": ("a copy of another image", "nothing"),
    # label maps; they stay in the store, quarantined
    "MASK_ALONE": ("a label map without an image", "name it like its image, or give the folder with masks=DIR"),
    "MASK_SEVERAL": ("a label map or an image with several partners", "keep one of each name, and ingest again"),
    "MASK_GRID": ("a label map on another grid than its image", "resample it onto the image's grid, nearest neighbour"),
    "MASK_VALUES": (
        "a label map with values that cannot be labels",
        "save whole numbers from 0 to 255 in one channel, in a format without loss and not smoothed",
    ),
    # files next to scans
    "BAD_SIDECAR": ("an invalid JSON file", "save it as UTF-8 JSON, at most 16 MB"),
    "RENDITION": ("an 8-bit copy of a DICOM image in the store", "nothing"),
}


def remedy(code: str) -> str:
    """Return what to do about a reject code."""
    return CODES[code][1]
