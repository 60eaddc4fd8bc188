"""What a file becomes once it has been read rightly, and before it is stored."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scan:
    """One image or volume in physical values, with pseudonymous ids only.

    Attributes:
        array: (C, H, W) or (C, D, H, W). HU for CT, values after the modality LUT otherwise, in the smallest type that
            loses nothing (uint8, int16, uint16, float32). Higher is brighter.
        spacing: mm per voxel along each spatial axis, in array order; None when the file does not say.
        affine: (4, 4) float64 from voxel indices (in array order of the spatial axes) to RAS+ mm; None when unknown.
        modality: DICOM's code (CT, MR, DX, CR, US, …), or "" when unknown.
        patient, study, series, scan: pseudonyms.
        patient_known: False when no patient id was found and the patient is the study or the file itself.
        site, scanner: allow-listed words, or "".
        facts: allow-listed acquisition facts (view, laterality, sex, age in years up to 90, kvp, …).
        labels: name -> value, from the file itself (npz); tables are joined later.
        split: "train", "val" or "test" where the source says so, else "".
        steps: what was done to the pixels, in order ("rescale", "invert MONOCHROME1", …).
        held: why a human must look before anybody trains on it ("burned-in risk", "localizer", "label map"), or "".
        born: pseudonym of the birth date, to tell a patient id that several people share; never stored in a manifest.
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
    facts: dict[str, str | float] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    split: str = ""
    steps: tuple[str, ...] = ()
    held: str = ""
    born: str = ""


@dataclass(frozen=True)
class Slice:
    """What grouping and reading need to know of one DICOM file that is a slice of a volume. Plain values: it is JSON.

    Attributes:
        file: pseudonym of the file.
        uid: pseudonym of the SOP Instance UID.
        key: pseudonym of what slices of one volume share.
        position: Image Position (Patient), mm, LPS.
        orientation: row and column direction cosines, LPS, of unit length.
        spacing: mm between rows, mm between columns.
        order: sorts repeats at one position: temporal position, acquisition, instance number.
        frame: how to get at the pixels without parsing the header again; see `dicom`.
        about: the fields of `Scan` that every slice of the series shares (patient, study, modality, facts, …).
    """

    file: str
    uid: str
    key: str
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    order: tuple[float, ...] = (0.0, 0.0, 0.0)
    frame: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `Slice.of` takes it back."""
        return dict(vars(self))

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Slice":
        """From JSON, where tuples have become lists."""
        tuples = {k: tuple(values[k]) for k in ("position", "orientation", "spacing", "order")}
        return cls(**values | tuples)


class Unreadable(Exception):
    """A file that cannot be used. `code` is machine-readable (TRUNCATED, NOT_AN_IMAGE, …), the message has no identifiers."""

    def __init__(self, code: str, reason: str):
        super().__init__(reason)
        self.code = code
