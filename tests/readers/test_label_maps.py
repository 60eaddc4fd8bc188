import io

import nibabel
import numpy as np
import pytest
from PIL import Image, ImageDraw

from medssl.readers import image, nifti
from medssl.readers.label_maps import as_label_map, two_levels
from medssl.readers.pseudonyms import Pseudonyms

PSEUDONYMS = Pseudonyms(bytes(32))
Y, X = np.indices((64, 64))
DISC = np.hypot(Y - 30, X - 28) < 17
REGIONS = np.select([DISC & (Y < 25), DISC], [1, 2], 0).astype(np.uint8)
COLOURS = [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
PHOTO = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def read(picture, name, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    [(scan, _)] = image.read(io.BytesIO(buffer.getvalue()), name, PSEUDONYMS)
    return scan


def volume(labels, dtype, name):
    """Return a file in which nibabel has scaled the labels, because its header is that of an image of `dtype`."""
    header = nibabel.Nifti1Image(np.zeros(labels.shape, dtype), np.eye(4)).header
    data = nibabel.Nifti1Image(labels.astype(np.float64), np.eye(4), header).to_bytes()
    [(scan, _)] = nifti.read(io.BytesIO(data), name, PSEUDONYMS)
    return scan


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16])
@pytest.mark.parametrize("highest", [2, 6, 14, 104])
def test_labels_that_nibabel_has_scaled_are_whole_numbers_again(dtype, highest):
    labels = np.linspace(0, highest, 7).round().repeat(49).reshape(7, 7, 7)
    scan = volume(labels, dtype, "case_seg.nii")
    assert scan.quarantined == "label map"
    assert np.array_equal(np.unique(scan.array), np.unique(labels))
    assert "labels restored" in scan.steps
    assert volume(labels, dtype, "case.nii").steps[0] == "rescale"
    assert "labels restored" not in volume(labels, dtype, "case.nii").steps  # the name of an image


def test_probabilities_are_not_rounded_to_labels():
    rng = np.random.default_rng(0)
    for values in (rng.uniform(0, 1, (1, 6, 7, 8)), rng.uniform(0, 0.04, (1, 6, 7, 8))):
        assert as_label_map(values.astype(np.float32), "case_seg.nii", 256, step=1 / 255) is None


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_mask_saved_as_jpeg_has_two_values_again(quality, mode):
    scan = read(Image.fromarray(DISC.astype(np.uint8) * 255).convert(mode), "masks/1.jpg", "JPEG", quality=quality)
    assert scan.quarantined == "label map"
    assert np.array_equal(scan.array[0], DISC * 255)


def test_a_mask_with_smoothed_borders_has_two_values_again():
    drawn = Image.new("L", (2048, 2048))
    ImageDraw.Draw(drawn).ellipse((400, 500, 1500, 1700), fill=255)
    smooth = drawn.resize((512, 512), Image.Resampling.LANCZOS)
    scan = read(smooth, "1_mask.png")
    assert scan.quarantined == "label map"
    assert np.unique(scan.array).tolist() == [0, 255]
    assert len(np.unique(read(smooth, "1.png").array)) > 32  # not a mask by its name: as it is


def test_labels_beside_a_border_class_stay():
    """PASCAL VOC: classes 0 to 20, and 255 between them."""
    labels = np.where(DISC, 255, X // 4).astype(np.uint8)
    assert two_levels(labels) is None
    assert np.array_equal(read(Image.fromarray(labels), "1_mask.png").array[0], labels)


def palette(indices):
    picture = Image.fromarray(indices)
    picture.putpalette(np.ravel(COLOURS).tolist())
    return picture


def test_a_label_map_with_a_palette_has_its_indices():
    scan = read(palette(REGIONS), "SegmentationClass/masks/1.png")
    assert (scan.quarantined, scan.steps) == ("label map", ("palette indices",))
    assert np.array_equal(scan.array[0], REGIONS)
    shown = read(palette(REGIONS), "1.png")  # the name of an image: its colours
    assert (shown.quarantined, shown.steps) == ("", ("palette to RGB",))
    assert np.array_equal(shown.array, np.moveaxis(np.array(COLOURS, np.uint8)[REGIONS], -1, 0))


def test_a_label_map_in_colour_is_held_and_a_photograph_is_not():
    coloured = Image.fromarray(np.array(COLOURS, np.uint8)[REGIONS])
    assert read(coloured, "masks/1.png").quarantined == "label map"
    assert read(coloured, "images/1.png").quarantined == ""
    assert read(Image.fromarray(PHOTO), "annotations/1.png").quarantined == ""
    assert read(Image.fromarray(PHOTO).quantize(16), "tumor_seg/1.png").quarantined == ""
