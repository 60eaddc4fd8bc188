"""Why a file is left out: every code a reader may give, in words, with what to do about it."""

CODES: dict[str, tuple[str, str]] = {
    # the walk
    "CANNOT_OPEN": ("the file or folder cannot be read", "check its permissions and the disk, then ingest again"),
    "NOT_A_FILE": ("a link, a pipe or a device", "copy the real file into the source if it should count"),
    "EMPTY": ("the file has no bytes", "copy it again from where it came"),
    "NOT_A_SCAN": ("neither DICOM, NIfTI, PNG, JPEG nor an archive of images", "nothing, unless it should be a scan"),
    "ARCHIVE": ("a zip archive", "unpack it, or add archives=true"),
    "BAD_ARCHIVE": ("an archive that is damaged, encrypted, nested or unsafe", "unpack it by hand and look at it"),
    "LITTER": ("a hidden file or folder, or one an operating system left", "nothing"),
    "SIDECAR": ("a JSON file: its facts were taken, it is no scan", "nothing"),
    # reading
    "BAD_HEADER": ("the header cannot be understood", "export the file again"),
    "HEADER_PAIR": ("a NIfTI header whose voxels are in a second file", "convert the pair to one .nii file"),
    "TRUNCATED": ("the file ends too early", "copy it again from where it came"),
    "BAD_LENGTH": ("the pixel data is not as long as the header says", "export the file again"),
    "NO_PIXELS": ("the file has no image in it", "nothing"),
    "NOT_DICOM": ("the header is not DICOM's", "nothing, unless it should be a scan"),
    "NOT_AN_IMAGE": ("an object without an image: a report, a plan, a segmentation", "nothing"),
    "TOO_LARGE": ("the header asks for more than any scan has", "look at the file; it may be a bomb"),
    "TOO_BIG_TO_READ": ("reading it took more memory than allowed", "give more with memory=GB"),
    "TOO_SLOW": ("reading it took longer than allowed", "look at the file; ingest again for a second try"),
    "DECODER_CRASHED": ("a decoder died on it", "look at the file; it is not tried again unless it changes"),
    "UNSUPPORTED_SYNTAX": ("no decoder for this transfer syntax", "convert it, e.g. with dcmdjpeg or gdcmconv"),
    "UNSUPPORTED_PIXELS": ("pixels of a kind that is not read", "convert the file"),
    "DECODE_FAILED": ("the compressed image is damaged or contradicts the header", "export the file again"),
    "READER_FAILED": ("the reader met what it did not expect", "please report it, with the kind of scanner"),
    "NO_RESCALE": ("a CT image that is not in Hounsfield units", "export the original series, not a screenshot"),
    "NON_FINITE": ("too many values are not finite", "look at how the file was made"),
    "CONSTANT": ("every pixel has the same value", "nothing"),
    # volumes
    "BAD_GEOMETRY": ("positions and orientations do not span a volume", "export the series again"),
    "TOO_FEW_SLICES": ("a fragment of less than four slices", "export the whole series"),
    "MISSING_SLICES": ("what is left of a stack between its gaps is less than four slices", "export the whole series"),
    "VARYING_SPACING": ("slice steps vary without a pattern", "export the series again"),
    "REPEATED_POSITIONS": ("several images at one position that cannot be told apart", "export the series again"),
    "DUPLICATE": ("the same image is there already", "nothing"),
    # label maps: they stay in the store, held
    "MASK_ALONE": ("a label map that fits no image", "name it as its image, or give the folder with masks=DIR"),
    "MASK_SEVERAL": ("a label map and an image that have several partners", "leave one of each name, and ingest again"),
    "MASK_GRID": ("a label map on another grid than its image", "resample it onto the image's grid, nearest neighbour"),
    "MASK_VALUES": ("a label map with other values than 0 to 255", "renumber its labels, and save it in one channel"),
    # beside scans
    "BAD_SIDECAR": ("a JSON file that cannot be understood", "save it as UTF-8 JSON, at most 16 MB"),
    "RENDITION": ("an 8-bit copy of a DICOM image that is there", "nothing"),
}


def remedy(code: str) -> str:
    """What to do about a code."""
    return CODES[code][1]
