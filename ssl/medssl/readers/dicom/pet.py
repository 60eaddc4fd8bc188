"""From activity to SUV: the factor that a PET header allows (PS3.3 C.8.9.1 and C.8.9.2).

SUVbw = activity concentration / (injected dose, decayed to the start of the scan / body weight), with 1 g of tissue as
1 ml. The steps are those of QIBA's vendor-neutral pseudo-code for SUV. Whatever is missing or odd gives no factor:
a store keeps Bq/ml, so nothing is lost.
"""

from datetime import datetime, timedelta

from medssl.readers.dicom.header import Header
from medssl.readers.scan import Unreadable

CORRECTIONS = {"ATTN", "DECY"}
LEAST_DOSE = 1e5  # Bq; a smaller number was written in MBq, against the standard
LONGEST = timedelta(days=1)  # a scan; else the dates were changed apart
MOST_HALF_LIVES = 10.0  # after so many nothing is left to see: the times do not belong together


def suv_factor(header: Header) -> float | None:
    """SUVbw of a voxel = its value in Bq/ml x this factor (g/Bq); None when the header does not support one.

    Asked for: Units BQML, Decay Correction START, attenuation and decay corrected, weight (kg), dose (Bq), half-life
    (s), the time of injection, and a series time that no later processing has overwritten.
    """
    try:
        return _factor(header)
    except Unreadable:  # a fact that cannot be read is no reason to refuse the scan
        return None


def _factor(header: Header) -> float | None:
    if header.word("Units") != "BQML" or header.word("DecayCorrection") != "START":
        return None
    if not set(header.words("CorrectedImage")) >= CORRECTIONS:
        return None
    drugs = header.items("RadiopharmaceuticalInformationSequence")
    if len(drugs) != 1:
        return None
    drug = drugs[0]
    weight, dose, half_life = (
        next(iter(h.numbers(k)), 0.0)
        for h, k in (
            (header, "PatientWeight"),
            (drug, "RadionuclideTotalDose"),
            (drug, "RadionuclideHalfLife"),
        )
    )
    injected, start = _injected(header, drug), _start(header)
    if weight <= 0 or dose < LEAST_DOSE or half_life <= 0 or injected is None or start is None:
        return None
    elapsed = (start - injected).total_seconds()
    if not 0 <= elapsed <= MOST_HALF_LIVES * half_life:
        return None
    return weight * 1000 / (dose * 2 ** (-elapsed / half_life))


def _start(header: Header) -> datetime | None:
    """When the scan began: the series time. Processing sets a new one, which is later than the acquisition's."""
    series = _moment(header.raw("SeriesDate"), header.raw("SeriesTime"))
    acquired = _moment(header.raw("AcquisitionDate"), header.raw("AcquisitionTime"))
    if series is None or acquired is None:
        return None
    return series if timedelta(0) <= acquired - series <= LONGEST else None


def _injected(header: Header, drug: Header) -> datetime | None:
    """When the dose was given. A time without a date is that of the day of the scan, or of the evening before it."""
    whole = drug.raw("RadiopharmaceuticalStartDateTime")
    if whole:
        return _moment(whole[:8], whole[8:].split(b"+")[0].split(b"-")[0])
    found = _moment(header.raw("SeriesDate"), drug.raw("RadiopharmaceuticalStartTime"))
    start = _start(header)
    return found - timedelta(days=1) if found is not None and start is not None and found > start else found


def _moment(date: bytes, time: bytes) -> datetime | None:
    """A date YYYYMMDD and a time HHMMSS.FFFFFF (PS3.5 table 6.2-1; minutes at least), None when either is neither."""
    text, _, fraction = (date + time.replace(b":", b"")).decode("latin-1").partition(".")
    try:
        moment = datetime.strptime(text, "%Y%m%d%H%M%S" if len(text) == 14 else "%Y%m%d%H%M")
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError:
        return None
