"""SUV factors compared with hand-calculated values."""

import io

import pydicom
import pytest
from pydicom.dataset import Dataset

from medssl.readers.dicom.header import parse
from medssl.readers.dicom.pet import suv_factor


def factor(drug: dict | None = None, **changes) -> float | None:
    """Return the factor of a study with 400 MBq injected one half-life (100 minutes) before the scan of an 80 kg patient."""
    values = {
        "Modality": "PT",
        "SeriesDate": "20200101",
        "SeriesTime": "120000",
        "AcquisitionDate": "20200101",
        "AcquisitionTime": "120500.25",
        "Units": "BQML",
        "DecayCorrection": "START",
        "CorrectedImage": ["NORM", "DTIM", "ATTN", "SCAT", "DECY"],
        "PatientWeight": 80,
    }
    given = {
        "RadionuclideTotalDose": 4e8,
        "RadionuclideHalfLife": 6000,
        "RadiopharmaceuticalStartTime": "102000",
    }
    item, ds = Dataset(), Dataset()
    for target, wanted in ((item, given | (drug or {})), (ds, values | changes)):
        for keyword, value in wanted.items():
            if value is not None:
                setattr(target, keyword, value)
    ds.RadiopharmaceuticalInformationSequence = [item]
    out = io.BytesIO()
    pydicom.dcmwrite(out, ds, implicit_vr=False, little_endian=True)
    return suv_factor(parse(out))


HALF = 80_000 / 2e8  # 80 kg in g / half of 400 MBq


@pytest.mark.parametrize(
    ("drug", "changes", "expected"),
    [
        ({}, {}, HALF),
        ({"RadiopharmaceuticalStartTime": "102000.00"}, {}, HALF),
        ({"RadiopharmaceuticalStartTime": "084000"}, {}, 2 * HALF),  # two half-lives
        ({"RadiopharmaceuticalStartDateTime": "20200101102000.000000+0900"}, {}, HALF),
        ({"RadiopharmaceuticalStartDateTime": "20200101120000"}, {}, HALF / 2),  # preferred to the time alone
        ({"RadiopharmaceuticalStartTime": "230000"}, {"SeriesTime": "004000", "AcquisitionTime": "004000"}, HALF),
        ({}, {"PatientWeight": 40}, HALF / 2),
    ],
)
def test_the_factor_equals_hand_calculated_values(drug, changes, expected):
    assert factor(drug, **changes) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("drug", "changes"),
    [
        ({}, {"Units": "CNTS"}),
        ({}, {"Units": None}),
        ({}, {"DecayCorrection": "ADMIN"}),
        ({}, {"DecayCorrection": "NONE"}),
        ({}, {"CorrectedImage": ["DECY"]}),
        ({}, {"CorrectedImage": ["ATTN"]}),
        ({}, {"PatientWeight": 0}),
        ({}, {"PatientWeight": None}),
        ({}, {"SeriesTime": None}),
        ({}, {"SeriesTime": "130000"}),  # later than the acquisition: a processed series
        ({}, {"SeriesDate": "20190101"}),  # dates shifted separately
        ({"RadionuclideTotalDose": None}, {}),
        ({"RadionuclideTotalDose": 400}, {}),  # MBq
        ({"RadionuclideHalfLife": None}, {}),
        ({"RadionuclideHalfLife": 0}, {}),
        ({"RadiopharmaceuticalStartTime": None}, {}),
        ({"RadiopharmaceuticalStartTime": "soon"}, {}),
        ({"RadiopharmaceuticalStartDateTime": "20191201102000"}, {}),
    ],
)
def test_doubtful_headers_give_no_factor(drug, changes):
    assert factor(drug, **changes) is None
