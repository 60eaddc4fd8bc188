import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, TiffImagePlugin

from medssl.readers import image
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.readers.scan import Scan, Unreadable

PSEUDONYMS = Pseudonyms(bytes(32))
X = np.random.default_rng(0).integers(0, 256, (5, 8, 3), np.uint8)
GREY = X[..., 0]
DEEP = np.random.default_rng(1).integers(0, 1 << 16, (5, 8), np.uint16)


def saved(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, kind, **options)
    return buffer.getvalue()


def run(data, name="x"):
    return list(image.read(io.BytesIO(data), name, PSEUDONYMS))


def only(data, name="x"):
    [(scan, part)] = run(data, name)
    assert isinstance(scan, Scan), (scan, scan.code)
    assert part == name
    return scan


def code(data):
    """Return the reject code of a file that contains no scan."""
    try:
        [(why, _)] = run(data)
    except Unreadable as e:
        why = e
    assert isinstance(why, Unreadable)
    assert why.code in CODES
    return why.code


def png(width, height, depth, colour, rows, extra=()):
    """Return a hand-made PNG file (https://www.w3.org/TR/png-3/): per row, a filter byte and the packed pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    parts = [(b"IHDR", struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)), *extra]
    parts += [(b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*p) for p in parts)


def tiff(array, tags):
    """Return a hand-made little-endian TIFF file of one strip. `tags` updates the directory."""
    data = array.tobytes()
    height, width = array.shape[:2]
    entries = {256: width, 257: height, 258: array.dtype.itemsize * 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    entries |= {279: len(data)} | tags
    packed = b"".join(struct.pack("<2H2I", tag, 4, 1, value) for tag, value in sorted(entries.items()))
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + bytes(4)


def test_chest_xrays_of_two_hospitals(shared):
    for folder, suffix in (("cxr_guangzhou", ".jpeg"), ("cxr_nih", ".png")):
        files = sorted(p for p in (shared / folder / "images").iterdir() if p.suffix == suffix)[:15]
        assert files
        for path in files:
            scan = only(path.read_bytes())
            assert (scan.array.shape, scan.array.dtype, scan.spacing) == ((1, 224, 224), np.uint8, None)
            assert scan.array.flags.writeable
            with Image.open(path) as opened:
                np.testing.assert_array_equal(scan.array[0], np.asarray(opened.convert("L")))
            assert (scan.patient_known, scan.quarantined, scan.metadata) == (False, "", {})


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize(
    ("picture", "expected", "step"),
    [
        (Image.fromarray(GREY), GREY[None], None),
        (Image.fromarray(X), X.transpose(2, 0, 1), None),
        (Image.fromarray(X).convert("RGBA"), X.transpose(2, 0, 1), "alpha dropped"),
        (Image.fromarray(np.repeat(GREY[..., None], 3, -1)), GREY[None], "grey from colour"),
        (Image.fromarray(GREY).convert("LA"), GREY[None], "alpha dropped"),
        (Image.fromarray(DEEP), DEEP[None], None),
        (Image.fromarray(GREY > 99), np.uint8(255) * (GREY[None] > 99), "1 bit to 8"),
    ],
    ids=["L", "RGB", "RGBA", "grey RGB", "LA", "I;16", "1"],
)
def test_modes(kind, picture, expected, step):
    scan = only(saved(picture, kind))
    np.testing.assert_array_equal(scan.array, expected)
    assert scan.array.dtype == expected.dtype
    assert scan.steps == (() if step is None else (step,))


def test_transparent_pixels_keep_their_colour():
    rgba = np.dstack([X, np.zeros_like(GREY)])
    np.testing.assert_array_equal(only(saved(rgba)).array, X.transpose(2, 0, 1))
    la = np.dstack([GREY, np.zeros_like(GREY)])
    np.testing.assert_array_equal(only(saved(Image.fromarray(la, "LA"))).array, GREY[None])


def test_a_palette_is_expanded():
    indexed = Image.fromarray(X).quantize(16)
    expected = np.asarray(indexed.convert("RGB")).transpose(2, 0, 1)
    for data in (saved(indexed), saved(indexed, "TIFF"), saved(indexed, transparency=3)):
        scan = only(data)
        np.testing.assert_array_equal(scan.array, expected)
        assert scan.steps == ("palette to RGB",)
    bit = Image.fromarray(GREY).quantize(2)
    assert only(saved(bit, bits=1)).array.max() <= 255


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_low_bit_grey_is_scaled_to_8_bits(depth):
    values = np.arange(8) % (1 << depth)
    bits = "".join(f"{v:0{depth}b}" for v in values)
    row = b"\0" + int(bits, 2).to_bytes(depth, "big")
    np.testing.assert_array_equal(only(png(8, 1, depth, 0, row * 1)).array[0, 0], values * 255 // ((1 << depth) - 1))


def test_16_bits():
    big = (X.astype(np.uint16) * 256 + 7).astype(">u2")
    scan = only(png(8, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in big)))
    np.testing.assert_array_equal(scan.array, X.transpose(2, 0, 1))
    assert "16-bit colour to 8" in scan.steps
    alpha = np.dstack([DEEP, DEEP]).astype(">u2")
    assert code(png(8, 5, 16, 4, b"".join(b"\0" + row.tobytes() for row in alpha))) == "UNSUPPORTED_PIXELS"


def test_cmyk_is_inverted_once():
    """R = (255 - C)(255 - K) / 255; Adobe JPEG files store 255 - C, and have a marker."""
    cmyk = np.random.default_rng(0).integers(0, 256, (16, 16, 4), np.uint8)
    cmyk[:] = cmyk[:1, :1]  # one colour, so that JPEG keeps it
    c, k = (cmyk[0, 0, i].astype(float) for i in (slice(3), 3))
    expected = (255 - c) * (255 - k) / 255
    picture = Image.fromarray(cmyk, "CMYK")
    for data, near in ((saved(picture, "TIFF"), 1), (saved(picture, "JPEG", quality=100), 3)):
        scan = only(data)
        assert np.abs(scan.array[:, 3, 3] - expected).max() <= near
        assert scan.steps[0] == "CMYK to RGB"
    jpeg = saved(picture, "JPEG", quality=100)
    at = jpeg.index(b"\xff\xee")
    assert code(jpeg[:at] + jpeg[at + 16 :]) == "UNSUPPORTED_PIXELS"  # no marker


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind):
    x = np.zeros((16, 32), np.uint8)
    x[:, :16] = 200
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    scan = only(saved(x, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {})))
    assert scan.array.shape == (1, 32, 16)
    assert scan.array[0, :16].min() > 190
    assert scan.array[0, 16:].max() < 10
    assert scan.steps == ("EXIF orientation",)
    if kind == "TIFF":  # Pillow decodes compressed strips differently
        packed = only(saved(x, kind, exif=exif, compression="tiff_lzw"))
        np.testing.assert_array_equal(packed.array, scan.array)


def test_tiff_number_types():
    signed = DEEP.astype(np.int32) - 40000
    np.testing.assert_array_equal(only(saved(Image.fromarray(signed), "TIFF")).array[0], signed)
    real = (DEEP / 7).astype(np.float32)
    scan = only(saved(Image.fromarray(real), "TIFF"))
    np.testing.assert_array_equal(scan.array[0], real)
    assert scan.array.dtype == np.float32
    real[:] = np.nan
    assert code(saved(Image.fromarray(real), "TIFF")) == "NON_FINITE"
    np.testing.assert_array_equal(only(tiff(DEEP, {})).array[0], DEEP)
    inverted = only(tiff(DEEP, {262: 0}))
    np.testing.assert_array_equal(inverted.array[0], 65535 - DEEP)
    assert inverted.steps == ("white is zero inverted",)
    np.testing.assert_array_equal(only(tiff(GREY, {262: 0})).array[0], 255 - GREY)
    np.testing.assert_array_equal(only(tiff(DEEP.view(np.int16), {339: 2})).array[0], DEEP.view(np.int16))
    assert code(tiff(GREY, {339: 2})) == "UNSUPPORTED_PIXELS"
    assert code(tiff((DEEP / 7).astype(np.float32), {262: 0, 339: 3})) == "UNSUPPORTED_PIXELS"


def test_pages_of_a_tiff():
    pages = [Image.fromarray(GREY + k) for k in range(4)]
    reduced = TiffImagePlugin.ImageFileDirectory_v2()
    reduced[254] = 1
    pages[2].encoderinfo = {"tiffinfo": reduced}
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    found = run(data, "a/x.tif")
    assert [part for _, part in found] == ["a/x.tif#page/0", "a/x.tif#page/1", "a/x.tif#page/3"]
    for (scan, part), k in zip(found, (0, 1, 3), strict=True):
        np.testing.assert_array_equal(scan.array[0], GREY + k)
        assert scan.scan == PSEUDONYMS.of("scan", f"file|{part}")
        assert scan.patient == PSEUDONYMS.of("patient", "file|a/x.tif")
    assert len({scan.scan for scan, _ in found}) == 3


def stack(pages, description):
    """Return a TIFF file of these pages with ImageJ's description on the first."""
    first, *others = (Image.fromarray(x) for x in pages)
    return saved(first, "TIFF", save_all=True, append_images=others, description=description)


def test_slices_of_an_imagej_stack_are_one_volume():
    pages = [GREY + k for k in range(4)]
    volume = only(stack(pages, "ImageJ=1.54f\nimages=4\nslices=4\nunit=micron\nloop=false\n"), "a/x.tif")
    np.testing.assert_array_equal(volume.array, np.stack(pages)[None])
    assert volume.scan == PSEUDONYMS.of("scan", "file|a/x.tif")
    colour = only(stack([X, X[::-1]], "ImageJ=1.54f\nimages=2\nslices=2\n"))
    np.testing.assert_array_equal(colour.array, np.stack([X, X[::-1]]).transpose(3, 0, 1, 2))


@pytest.mark.parametrize(
    "words", ["a stack of slices=4", "ImageJ=1\nimages=4\nframes=4\n", "ImageJ=1\nimages=4\nchannels=2\nslices=2\n"]
)
def test_other_pages_are_images(words):
    assert [part for _, part in run(stack([GREY] * 4, words))] == [f"x#page/{k}" for k in range(4)]


def test_an_imagej_stack_that_cannot_be_read_whole_is_refused():
    [(why, part)] = run(stack([GREY, GREY[:3]], "ImageJ=1\nimages=2\nslices=2\n"))
    assert (why.code, str(why), part) == ("UNSUPPORTED_PIXELS", "the slices of the stack differ in size or type", "x")
    [(why, part)] = run(stack([GREY, np.full((5, 8), np.nan, np.float32)], "ImageJ=1\nimages=2\nslices=2\n"))
    assert (why.code, part) == ("NON_FINITE", "x")
    with pytest.raises(
        Unreadable, match="an ImageJ stack of 900 images, of which the file lists 1; save it as NIfTI"
    ) as e:
        run(saved(GREY, "TIFF", description="ImageJ=1\nimages=900\nslices=900\n"))
    assert e.value.code == "UNSUPPORTED_PIXELS"


def test_a_bad_page_does_not_affect_the_others():
    good, bad = Image.fromarray(GREY), Image.fromarray(np.full((5, 8), np.nan, np.float32))
    first, second, third = run(saved(good, "TIFF", save_all=True, append_images=[bad, good]))
    assert second[0].code == "NON_FINITE"
    assert (second[1], third[1]) == ("x#page/1", "x#page/2")
    np.testing.assert_array_equal(first[0].array, third[0].array)


def test_the_preview_in_a_jpeg_is_not_a_second_image():
    x = np.zeros((32, 32), np.uint8)
    x[8:, 8:] = 200
    scan = only(saved(Image.fromarray(x), "MPO", save_all=True, append_images=[Image.fromarray(255 - x)]))
    assert np.abs(scan.array[0].astype(int) - x).max() < 40


def test_animations_and_other_formats_are_refused():
    frames = [Image.fromarray(GREY + k) for k in range(3)]
    assert code(saved(frames[0], save_all=True, append_images=frames[1:])) == "UNSUPPORTED_PIXELS"
    assert code(saved(frames[0], "GIF")) == "NOT_A_SCAN"
    assert code(saved(frames[0], "BMP")) == "NOT_A_SCAN"
    assert code(b"") == "EMPTY"


def test_resolution_is_not_spacing():
    for kind in ("PNG", "JPEG", "TIFF"):
        assert only(saved(np.tile(GREY, (4, 4)), kind, dpi=(25.4, 25.4))).spacing is None


def test_bombs():
    tracemalloc.start()
    for width, height in ((40000, 40000), (40000, 20000), (20000, 8000), (1 << 31, 1)):
        assert code(png(width, height, 1, 0, bytes(5001))) in {"TOO_LARGE", "BAD_HEADER"}
    assert code(png(40000, 40000, 1, 0, bytes(5001))) == code(png(20000, 8000, 1, 0, bytes(5001))) == "TOO_LARGE"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    text = (b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 25)))
    assert code(png(2, 1, 8, 0, b"\0\1\2", extra=[text])) in {"DECODE_FAILED", "BAD_HEADER"}
    assert Image.MAX_IMAGE_PIXELS is not None


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_a_truncated_file_never_gives_an_image(kind):
    whole = saved(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8), kind)
    codes = {code(whole[:end]) for end in [*range(9, len(whole), 29), len(whole) - 6]}
    assert codes <= {"TRUNCATED", "BAD_HEADER", "DECODE_FAILED"}
    assert "TRUNCATED" in codes


def test_a_damaged_png_never_gives_an_image():
    whole = saved(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8))
    for at in range(16, len(whole) - 12, 7):
        flipped = bytearray(whole)
        flipped[at] ^= 0x10
        assert code(bytes(flipped)) in {"DECODE_FAILED", "BAD_HEADER", "TRUNCATED", "TOO_LARGE", "UNSUPPORTED_PIXELS"}


def test_label_maps_are_quarantined():
    labels = saved(GREY % 3)
    assert only(labels, "masks/1.png").quarantined == "label map"
    assert only(labels, "1_mask.png").quarantined == "label map"
    assert only(labels, "환자/라벨링데이터/1.png").quarantined == "label map"
    assert only(labels, "1.png").quarantined == ""
    assert only(saved(np.arange(40, dtype=np.uint8).reshape(5, 8)), "1_mask.png").quarantined == ""


def test_reasons_and_scans_contain_no_text_of_the_file():
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = "Qorvath^Zelimir"
    data = saved(np.tile(GREY, (4, 4)), "JPEG", exif=exif)
    assert "Qorvath" not in repr(only(data, "Qorvath.jpg"))
    for end in range(20, len(data), 50):
        with pytest.raises(Unreadable) as e:
            raise next(image.read(io.BytesIO(data[:end]), "Qorvath.jpg", PSEUDONYMS))[0]
        assert "Qorvath" not in str(e.value)


@given(
    flips=st.lists(st.tuples(st.integers(0, 4000) | st.integers(0, 60), st.integers(0, 255)), min_size=1, max_size=4),
    cut=st.just(0) | st.integers(0, 4000),
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "LZW"]),
)
@settings(max_examples=300, deadline=None)
def test_damage_gives_a_code_or_a_valid_scan(flips, cut, kind):
    x = np.random.default_rng(0).integers(0, 256, (24, 30), np.uint8)
    data = bytearray(saved(x, "TIFF", compression="tiff_lzw") if kind == "LZW" else saved(x, kind))
    for at, value in flips:
        data[at % len(data)] = value
    data = bytes(data[: len(data) - cut % len(data)])
    try:
        found = run(data)
    except Unreadable as e:
        found = [(e, "")]
    for scan, _ in found:
        if isinstance(scan, Unreadable):
            assert scan.code in CODES
        else:
            assert scan.array.ndim == 3
            assert np.isfinite(scan.array).all()
            if kind == "PNG":  # PNG has checksums
                assert np.array_equal(scan.array[0], x)


def test_greys_in_a_folder_that_is_named_after_labels():
    """Images of few greys in the folder of a data set are images; regions of one value are label maps."""
    y, x = np.indices((40, 50))
    greys = ((y + x + np.random.default_rng(0).integers(0, 4, (40, 50))) % 30).astype(np.uint8) * 8
    mask = (np.hypot(y - 20, x - 25) < 12).astype(np.uint8) * 255
    assert only(saved(Image.fromarray(greys)), "tumor_seg/1.png").quarantined == ""
    assert only(saved(Image.fromarray(mask)), "tumor_seg/1.png").quarantined == "label map"
    assert only(saved(Image.fromarray(greys)), "tumor_seg/masks/1.png").quarantined == "label map"


@pytest.mark.parametrize(("width", "height"), [(12_000, 12_000), (100_000, 60_000)])
def test_an_image_with_too_many_pixels_is_refused_with_its_size_and_the_limit(width, height):
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(
        Unreadable, match=f"{width:,} x {height:,} pixels; images of at most 134,217,728 pixels are read"
    ) as why:
        raise run(png(width, height, 8, 0, bytes(5001)))[0][0]
    assert why.value.code == "TOO_LARGE"
    assert "tiles" in CODES["TOO_LARGE"][1]
    assert before == Image.MAX_IMAGE_PIXELS
