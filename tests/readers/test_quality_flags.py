"""Good scans have no flags; each kind of defect has its own."""

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from medssl.readers.quality_flags import FLAGS, flags, seen_text_height

TEXT = [
    "person1214_virus_2059.jpeg",
    "person125_virus_254.jpeg",
    "person1266_virus_2158.jpeg",
    "person1269_virus_2162.jpeg",
    "person1270_virus_2163.jpeg",
]
NO_TEXT = [
    "IM-0115-0001.jpeg",
    "NORMAL2-IM-0798-0001.jpeg",
    "person1201_bacteria_3151.jpeg",
    "person1567_bacteria_4100.jpeg",
    "person337_bacteria_1557.jpeg",
]


@pytest.fixture(scope="module")
def xrays(shared):
    files = sorted((shared / "cxr_nih" / "images").iterdir())[::13]
    return [np.asarray(Image.open(f).convert("L")) for f in files]


@pytest.fixture(scope="module")
def ct(shared):
    read = [pydicom.dcmread(f) for f in (shared / "dicom" / "ct_ge_variable_spacing_tilt").glob("*.dcm")]
    read.sort(key=lambda d: float(d.ImagePositionPatient[2]))
    return np.stack([d.pixel_array * int(d.RescaleSlope) + int(d.RescaleIntercept) for d in read]).astype(np.int16)


def eight_bits(x):
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def written(x, text="KIM 1234"):
    image = Image.fromarray(x)
    ImageDraw.Draw(image).text((4, 4), text, fill=255, font=ImageFont.load_default(12))
    return np.asarray(image)


def share(images, flag, low=0, high=255, modality="DX"):
    return np.mean([flag in flags(x[None], low, high, modality) for x in images])


def test_good_xrays_have_no_flags(xrays):
    assert [flags(x[None], 0, 255, "DX") for x in xrays] == [()] * len(xrays)


@pytest.mark.parametrize(
    ("flag", "corrupt", "least"),
    [
        ("blurred", lambda x: eight_bits(gaussian_filter(x.astype(float), 1.5)), 1),
        ("saturated", lambda x: eight_bits(x * 1.8), 1),
        ("low contrast", lambda x: eight_bits(128 + (x - 128.0) * 0.2), 0.95),
        ("blank", lambda x: eight_bits(100 + x / 128), 1),
        ("text in border", written, 0.85),
    ],
)
def test_defective_xrays_are_flagged(xrays, flag, corrupt, least):
    assert share([corrupt(x) for x in xrays], flag) >= least


def test_a_single_letter_is_not_text(xrays):
    assert share([written(x, "R") for x in xrays], "text in border") == 0


def test_real_text_in_real_xrays_is_found(shared):
    """Checked by eye: the first five show the time or kV of the exposure in the border, the others do not."""
    folder = shared / "cxr_guangzhou" / "images"
    names = TEXT + NO_TEXT
    found = [flags(np.asarray(Image.open(folder / n).convert("L"))[None], 0, 255, "DX") for n in names]
    assert ["text in border" in f for f in found] == [True] * len(TEXT) + [False] * len(NO_TEXT)


@pytest.mark.parametrize(("side", "seen"), [(224, 6), (512, 6), (1023, 6), (1024, 12), (2048, 24)])
def test_text_is_seen_from_the_stated_height_on(xrays, side, seen):
    """PORTABLE in white letters, at twice the stated height and at half of it."""
    assert seen_text_height((1, side, side // 2)) == seen_text_height((1, side // 2, side)) == seen
    images = [np.asarray(Image.fromarray(x).resize((side, side))) for x in xrays[:10]]

    def found(height):
        fonts = (ImageFont.load_default(size) for size in np.arange(3, 100, 0.5))
        font, box = next((f, b) for f in fonts if (b := f.getbbox("PORTABLE"))[3] - b[1] >= height)
        assert box[3] - box[1] <= height + 1
        drawn = [Image.fromarray(x) for x in images]
        for image in drawn:
            ImageDraw.Draw(image).text((4 - box[0], 4 - box[1]), "PORTABLE", fill=255, font=font)
        return share([np.asarray(image) for image in drawn], "text in border")

    assert found(2 * seen) >= 0.9
    assert found(seen // 2) == 0
    assert f"lower than {seen_text_height((1, 224, 224))} pixels" in FLAGS["text in border"].replace("\n", " ")


def test_text_in_the_middle_is_anatomy(xrays):
    x = np.roll(written(xrays[0]), (100, 60), (0, 1))
    x[:20] = x[20]
    assert "text in border" not in flags(x[None], 0, 255, "DX")


def test_a_good_ct_has_no_flags_as_volume_or_slices(ct):
    assert flags(ct[None], -1024, 1500, "CT") == ()
    assert [flags(x[None], -1024, 1500, "CT") for x in ct[::5]] == [()] * len(ct[::5])


def test_a_cropped_ct_is_cut_off(ct):
    assert flags(ct[None, :, 150:350, 150:350], -1024, 1500, "CT") == ("cut off",)


def test_a_limb_across_two_opposite_borders_is_not_cut_off():
    x = np.full((1, 200, 200), -1000, np.int16)
    x[:, :, 60:140] = 100 + np.random.default_rng(0).integers(-200, 200, (1, 200, 80))
    assert "cut off" not in flags(x, -1024, 1500, "CT")
    x[:, 60:140] = 100
    assert "cut off" in flags(x, -1024, 1500, "CT")


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda ct: np.clip(ct // 16 + 64, 0, 255),  # a screenshot
        lambda ct: ct - 1024,  # intercept applied twice
        lambda ct: (ct + 1024).astype(np.uint16),  # no intercept
    ],
    ids=["screenshot", "twice", "none"],
)
def test_a_ct_that_is_not_in_hu_is_flagged(ct, corrupt):
    assert "wrong modality" in flags(corrupt(np.maximum(ct, -1024))[None], -1024, 1500, "CT")


def test_negative_mr_is_flagged(ct):
    assert "wrong modality" in flags(ct[None], -1500, 1500, "MR")


def test_mr_and_its_labels(shared):
    for name in sorted(f.name for f in (shared / "hippocampus" / "labels").glob("*.nii.gz"))[:5]:
        image, label = (
            np.asarray(nibabel.load(shared / "hippocampus" / kind / name).dataobj)[None]
            for kind in ("images", "labels")
        )
        assert flags(image, *np.percentile(image, (0.5, 99.5)), "MR") == ("cut off",)  # a crop around the hippocampus
        assert "label map" in flags(label, 0, 2, "MR")
        assert "label map" in flags(label.astype(np.float32), 0, 2, "")


def test_few_grey_values_alone_are_not_a_label_map(xrays):
    assert "label map" not in flags((xrays[0] // 16)[None], 0, 15, "DX")


def test_colour_and_unusual_shapes(xrays):
    colour = np.stack([xrays[0]] * 3)
    assert flags(colour, 0, 255, "") == flags(xrays[0][None], 0, 255, "")
    rng = np.random.default_rng(0)
    for shape in [(1, 1, 1), (1, 3, 200), (1, 1, 5, 5), (3, 2, 40, 1)]:
        assert set(flags(rng.random(shape).astype(np.float32), 0, 1, "MR")) <= set(FLAGS)


def test_flags_are_sorted_and_documented(xrays):
    x = gaussian_filter(100 + xrays[0] * 0.05, 2)
    found = flags(x[None], 0, 255, "DX")
    assert list(found) == sorted(found)
    assert len(found) > 1
    assert set(found) <= set(FLAGS)
