"""Lookup tables as writers leave them: empty items, and palettes whose entries have other bits than stated."""

import numpy as np
import pytest
from pydicom import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import PLACED, dataset, make, only, refusal, saved

COLOURS = ("Red", "Green", "Blue")


def item(filled):
    lut = Dataset()
    if filled is not None:
        lut["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [] if not filled else [4, 0, 16])
        lut["LUTData"] = DataElement("LUTData", "OW", np.array([7, 8, 9, 10], "<u2").tobytes() if filled else b"")
    return lut


@pytest.mark.parametrize("empty", [False, None], ids=["no values", "no elements"])
@pytest.mark.parametrize("placed", [{}, PLACED], ids=["image", "slice"])
def test_an_empty_modality_lut_is_none(empty, placed):
    stored = np.arange(20).reshape(4, 5)
    how = {"ModalityLUTSequence": Sequence([item(empty)]), "RescaleSlope": "2", "RescaleIntercept": "-1024"} | placed
    np.testing.assert_array_equal(only(make(stored, modality="CT", **how)).array[0], 2 * stored - 1024)
    both = {"ModalityLUTSequence": Sequence([item(empty), item(True)])}
    np.testing.assert_array_equal(only(make(stored % 4, modality="CR", **both)).array[0], stored % 4 + 7)


def test_ct_with_an_empty_modality_lut_alone_has_no_hounsfield_units():
    how = {"ModalityLUTSequence": Sequence([item(None)])}
    assert refusal(make(np.arange(20).reshape(4, 5), modality="CT", **how)) == "NO_RESCALE"


def test_an_empty_voi_lut_leaves_the_window():
    how = {"VOILUTSequence": Sequence([item(False)]), "WindowCenter": "1000.5", "WindowWidth": "201"}
    metadata = only(make(np.arange(20).reshape(4, 5), **how)).metadata
    assert (metadata["voi_low"], metadata["voi_high"]) == (900, 1100)


def coloured_by(palette, bits):
    """Return the RGB of an image of the indices 0 to 255 with palettes of these bytes."""
    ds = dataset(np.arange(256).reshape(16, 16), bits=8, modality="US", PhotometricInterpretation="PALETTE COLOR")
    for colour, data in zip(COLOURS, palette, strict=True):
        key = f"{colour}PaletteColorLookupTable"
        ds[f"{key}Descriptor"] = DataElement(f"{key}Descriptor", "US", [256, 0, bits])
        ds[f"{key}Data"] = DataElement(f"{key}Data", "OW", data)
    return only(saved(ds)).array.reshape(3, -1)


RAMPS = np.stack([np.arange(256), np.arange(256)[::-1], np.arange(256) // 2]).astype(np.uint8)


@pytest.mark.parametrize("stated", [8, 16])
@pytest.mark.parametrize("packing", ["bytes", "low byte", "high byte", "both bytes"])
def test_entries_of_eight_bits_are_found_whatever_the_descriptor_says(packing, stated):
    words = RAMPS.astype("<u2")
    data = {"bytes": RAMPS, "low byte": words, "high byte": words << 8, "both bytes": words * 257}[packing]
    np.testing.assert_array_equal(coloured_by([d.astype(data.dtype).tobytes() for d in data], stated), RAMPS)


def test_one_dark_colour_does_not_make_sixteen_bits_eight():
    tables = [(RAMPS[0].astype("<u2") * 257).tobytes(), bytes(512), np.full(256, 200, "<u2").tobytes()]
    found = coloured_by(tables, 16)
    np.testing.assert_array_equal(found[0], RAMPS[0])
    assert not found[1:].any()
