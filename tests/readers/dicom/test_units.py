"""CT whose values are not Hounsfield units: it says so, and neither its window nor its padding is that of HU."""

import numpy as np
import pytest
from pydicom import DataElement
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicom_files import PLACED, make, only
from medssl.store.intensity_windows import CT_RANGE, window
from medssl.store.manifest_columns import manifest_row

STORED = np.random.default_rng(0).integers(0, 1000, (40, 40))


def ct(slope="1", intercept="-1024", kind=None, **tags):
    how = PLACED | tags
    for key, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept), ("RescaleType", kind)):
        how |= {} if value is None else {key: value}
    return only(make(STORED, modality="CT", **how))


@pytest.mark.parametrize("kind", [None, "", "HU", "hu", "HU_MOD", "Hounsfield units"])
def test_hounsfield_units(kind):
    scan = ct(kind=kind)
    assert "rescale_type" not in scan.metadata
    assert window(scan, "auto") == CT_RANGE


@pytest.mark.parametrize(
    ("kind", "fact"),
    [(k, k) for k in ("Z_EFF", "ED", "EDW", "MGML", "PCT", "US", "OD")] + [("ml/100g of KIM", "other")],
)
def test_other_units_are_named_and_have_another_window(kind, fact):
    scan = ct(".01", "0", kind)
    assert scan.modality == "CT"
    assert scan.metadata["rescale_type"] == fact
    low, high = window(scan, "auto")
    np.testing.assert_allclose([low, high], np.percentile(scan.array, [0.5, 99.5]))
    assert window(scan, "ct") == CT_RANGE  # a user's word is taken
    row = manifest_row(scan, np.ascontiguousarray(scan.array), "auto")
    assert "wrong modality" not in row["flags"]
    assert "KIM" not in str(row)


def test_a_slope_without_an_intercept_gives_no_hounsfield_units():
    assert ct("2", None).metadata["rescale_type"] == "US"
    assert "rescale_type" not in ct(None, "-1024").metadata
    assert "rescale_type" not in ct("2", None, "HU").metadata


@pytest.mark.parametrize(
    ("words", "kind", "fact"),
    [
        (["DERIVED", "PRIMARY", "AXIAL", "CBF"], None, "other"),
        (["DERIVED", "SECONDARY", "PERF_MTT"], None, "other"),
        (["DERIVED", "PRIMARY", "AXIAL", "CBF"], "HU", None),
        (["DERIVED", "PRIMARY", "AXIAL", "PERFUSION"], None, None),  # the contrast passing by, in HU
        (["ORIGINAL", "PRIMARY", "AXIAL", "TTP"], None, None),
        (["DERIVED", "PRIMARY", "AXIAL", "CBFX"], None, None),
    ],
)
def test_derived_perfusion_maps_without_a_rescale_type_are_not_in_hounsfield_units(words, kind, fact):
    scan = ct(".1", "0", kind, ImageType=words)
    assert scan.metadata.get("rescale_type") == fact
    assert (window(scan, "auto") == CT_RANGE) == (fact is None)


@pytest.mark.parametrize(("kind", "fact"), [("HU", None), (None, None), ("MGML", "MGML")])
def test_a_modality_lut_names_its_own_units(kind, fact):
    lut = Dataset()
    lut["LUTDescriptor"] = DataElement("LUTDescriptor", "US", [4, 0, 16])
    lut["LUTData"] = DataElement("LUTData", "US", [10, 20, 40, 80])
    if kind:
        lut.ModalityLUTType = kind
    assert ct(None, None, ModalityLUTSequence=Sequence([lut])).metadata.get("rescale_type") == fact


def test_padding_in_other_units_is_the_darkest_value():
    pad = DataElement("PixelPaddingValue", "US", int(STORED[0, 0]))
    scan = ct(".01", "0", "Z_EFF", PixelPaddingValue=pad)
    assert scan.array.min() >= 0
    assert ct(PixelPaddingValue=pad).array[0, 0, 0] == -1024
