"""The results of the readers: scans, slices of volumes, and the exception for files that cannot be read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Keys of `Slice.about` in memory, and the older names under which ledgers store them.
ON_DISK = {"metadata": "facts", "quarantined": "held", "birth_date_hash": "born"}


@dataclass(frozen=True)
class Scan:
    """One image or volume in physical values, with pseudonymous ids only.

    Attributes:
        array: (C, H, W) or (C, D, H, W). HU for CT, otherwise values after the modality LUT, in the smallest lossless
            type (uint8, int16, uint16, float32). Higher is brighter.
        scan, patient, study, series: pseudonyms.
        patient_known: False if the file has no patient ID; the study or the file then stands for the patient.
        spacing: mm per voxel along each spatial axis, in array order; None if unknown.
        affine: (4, 4) float64 from voxel indices (in array order of the spatial axes) to RAS+ mm; None if unknown.
        modality: DICOM code (CT, MR, DX, CR, US, …), "" if unknown.
        site, scanner: allow-listed words, or "".
        metadata: allow-listed acquisition metadata (view, laterality, sex, age in years up to 90, kvp, …).
        labels: name -> value, from the file itself (npz); label tables are joined later.
        split: "train", "val" or "test" if the source defines splits, else "".
        steps: processing applied to the pixels, in order ("rescale", "invert MONOCHROME1", …).
        quarantined: why a person must review the scan before it is used for training ("burned-in risk", "localizer",
            "label map"), or "".
        birth_date_hash: pseudonym of the birth date, which tells apart people who share a patient ID. It is never
            written to a manifest.
        similar_id: pseudonym of the simplified patient ID, equal for spellings of one number; "" if there is no ID. It is
            never written to a manifest.
    """

    array: np.ndarray
    scan: str
    patient: str
    study: str = ""
    series: str = ""
    patient_known: bool = True
    spacing: tuple[float, ...] | None = None
    affine: np.ndarray | None = None
    modality: str = ""
    site: str = ""
    scanner: str = ""
    metadata: dict[str, str | float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    steps: tuple[str, ...] = ()
    quarantined: str = ""
    birth_date_hash: str = ""
    similar_id: str = ""


@dataclass(frozen=True)
class Slice:
    """A DICOM file that is one slice of a volume: what is needed to group, sort and decode it, in JSON-compatible values.

    Attributes:
        file: pseudonym of the file.
        uid: pseudonym of the SOP Instance UID.
        key: pseudonym of what all slices of one volume have in common; slices with different keys are never compared.
        position: Image Position (Patient), mm, LPS.
        orientation: unit direction cosines of rows and columns, LPS.
        spacing: mm between rows, mm between columns.
        order: (temporal position, acquisition number, instance number), to sort repeats at one position.
        series, series_number, frame_of_reference, stack: pseudonyms of the identifiers, "" if absent. Slices of one volume
            usually share them.
        contrast: echo time, b-value, …, each as a tuple, () if absent; see `slices.CONTRAST`.
        frame: where and how the pixels are stored, so that the header need not be parsed again.
        about: fields of `Scan` shared by all slices of the series (patient, study, modality, metadata, …).
    """

    file: str
    uid: str
    key: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    order: tuple[float, ...] = (0.0, 0.0, 0.0)
    series: str = ""
    series_number: str = ""
    frame_of_reference: str = ""
    stack: str = ""
    contrast: tuple[tuple[float, ...], ...] = ()
    frame: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON-compatible values, with the names that ledgers use; `Slice.from_dict` reverses it."""
        return vars(self) | {"about": {ON_DISK.get(k, k): v for k, v in self.about.items()}}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Slice":
        """Return the slice described by the result of `as_dict`, also after a round trip through JSON."""
        tuples = {k: tuple(values[k]) for k in ("position", "orientation", "spacing", "order")}
        tuples["contrast"] = tuple(map(tuple, values["contrast"]))
        in_memory = {old: new for new, old in ON_DISK.items()}
        return cls(**values | tuples | {"about": {in_memory.get(k, k): v for k, v in values["about"].items()}})


class Unreadable(Exception):
    """A file that cannot be used. `code` is one of `reject_codes.CODES`; the message contains no identifiers."""

    def __init__(self, code: str, reason: str):
        super().__init__(reason)
        self.code = code
