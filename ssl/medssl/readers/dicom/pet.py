"""The factor from activity to SUV of a PET image (PS3.3 C.8.9.1 and C.8.9.2).

SUVbw = activity concentration / (injected dose, decayed to the start of the scan / body weight), with 1 g of tissue as
1 ml, as in QIBA's vendor-neutral pseudo-code. If anything is missing or implausible there is no factor; the store keeps
Bq/ml.
"""

from datetime import datetime, timedelta

from medssl.readers.dicom.header import Header
from medssl.readers.scan import Unreadable

CORRECTIONS = {"ATTN", "DECY"}
MIN_DOSE = 1e5  # Bq; smaller numbers are in MBq, against the standard
MAX_DELAY = timedelta(days=1)  # from series to acquisition; otherwise the dates were shifted separately
MAX_HALF_LIVES = 10.0  # from injection to scan; otherwise the times are inconsistent


def suv_factor(header: Header) -> float | None:
    """Return the factor (g/Bq) from a voxel in Bq/ml to SUVbw, None if the header does not determine it.

    Required: Units BQML, Decay Correction START, attenuation and decay correction, weight (kg), dose (Bq), half-life
    (s), time of injection, and a series time that was not overwritten by later processing.
    """
    try:
        return _factor(header)
    except Unreadable:  # no reason to refuse the scan
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
    if weight <= 0 or dose < MIN_DOSE or half_life <= 0 or injected is None or start is None:
        return None
    elapsed = (start - injected).total_seconds()
    if not 0 <= elapsed <= MAX_HALF_LIVES * half_life:
        return None
    return weight * 1000 / (dose * 2 ** (-elapsed / half_life))


def _start(header: Header) -> datetime | None:
    """Return the start of the scan: the series time, unless processing replaced it by one after the acquisition."""
    series = _moment(header.raw("SeriesDate"), header.raw("SeriesTime"))
    acquired = _moment(header.raw("AcquisitionDate"), header.raw("AcquisitionTime"))
    if series is None or acquired is None:
        return None
    return series if timedelta(0) <= acquired - series <= MAX_DELAY else None


def _injected(header: Header, drug: Header) -> datetime | None:
    """Return the time of injection. A time without a date is on the day of the scan, or on the evening before."""
    whole = drug.raw("RadiopharmaceuticalStartDateTime")
    if whole:
        return _moment(whole[:8], whole[8:].split(b"+")[0].split(b"-")[0])
    found = _moment(header.raw("SeriesDate"), drug.raw("RadiopharmaceuticalStartTime"))
    start = _start(header)
    return found - timedelta(days=1) if found is not None and start is not None and found > start else found


def _moment(date: bytes, time: bytes) -> datetime | None:
    """Return a date YYYYMMDD and time HHMMSS.FFFFFF (PS3.5 table 6.2-1) as a datetime, None if it is invalid."""
    text, _, fraction = (date + time.replace(b":", b"")).decode("latin-1").partition(".")
    try:
        moment = datetime.strptime(text, "%Y%m%d%H%M%S" if len(text) == 14 else "%Y%m%d%H%M")
        return moment + timedelta(seconds=float(f"0.{fraction or 0}"))
    except ValueError:
        return None
