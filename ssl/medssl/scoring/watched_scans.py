"""The scans that `medssl watch` compares: new ones, and those that stand for the hospital a run was trained on."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from medssl.encoders.config import EncoderConfig
from medssl.errors import UserError
from medssl.leakage.leak_check import read_pretrained_on
from medssl.runs.run_folder import Run
from medssl.scoring.features import check_input
from medssl.scoring.targets import Subset
from medssl.store.intensity_windows import BY_MODALITY
from medssl.store.sampling import sample_of_patients
from medssl.store.store import Store

LEAST = 10  # patients of each group


@dataclass
class WatchedScans:
    """Scans of two groups without a common patient.

    Attributes:
        name: what the reference is, in words.
        flags: warnings about the comparison.
    """

    reference: Subset
    new: Subset
    name: str
    flags: list[str] = field(default_factory=list)


def watched_scans(
    run: Run,
    encoder: EncoderConfig,
    store: Store,
    reference: str | Path | Store | None,
    reference_where: str | None,
    most: int,
    seed: int,
) -> WatchedScans:
    """Return at most `most` scans of each group, of as many patients as possible.

    The reference is the validation patients of the run's training store, whom the encoder has not seen; its training patients
    if they are too few; or all scans of another store. New scans of patients, and copies of images, that the run was trained
    on or that the reference has are left out.

    Raises UserError if the training store is not there, for a store that the encoder cannot take or of another modality, for
    the training store itself, and for too few patients.
    """
    if most < LEAST:
        raise UserError(f"scans must be at least {LEAST}, got {most}")
    _check_kind(encoder, store)
    flags: list[str] = []
    if reference is None:
        home, rows, name = _training_store(run, store, reference_where, flags)
    else:
        home = Store.open(reference, reference_where)
        _check_kind(encoder, home)
        rows, name = home.rows(), f"scans of {home.path.name}"
    if home.fingerprint == store.fingerprint:
        raise UserError(f"{store.path} cannot be compared with itself; select scans with where= and reference_where=")
    if home.intensity != store.intensity:
        flags.append(
            f"the intensity window of the reference is {home.intensity} and that of the new scans {store.intensity}: drift may "
            f"come from this alone; ingest the new scans with intensity={home.intensity}"
        )
    left = _unseen(run, encoder, home, rows, store, flags)
    old, new = (
        Subset(s, sample_of_patients(s, r, most, seed), np.zeros(0), 0, 0) for s, r in ((home, rows), (store, left))
    )
    for subset, what in ((old, "reference scans"), (new, "new scans")):
        patients = len(set(subset.patient)) if len(subset) else 0
        if patients < LEAST:
            raise UserError(
                f"the {len(subset)} {what} of {subset.store.path} are of {patients} patients, and a test by patient needs "
                f"{LEAST}; ingest more scans"
            )
        if unnamed := int((subset.column("patient_known") == "False").sum()):
            flags.append(f"{unnamed} of the {len(subset)} {what} name no patient and count as a patient each")
    return WatchedScans(old, new, name, flags)


def _training_store(run: Run, store: Store, where: str | None, flags: list[str]) -> tuple[Store, np.ndarray, str]:
    """Return the run's training store, the rows of the reference, and its name."""
    config = run.config()
    try:
        home = Store.open(config.store, config.where)
    except UserError as e:
        raise UserError(
            f"{config.store}, which {run.path} was trained on, cannot be read; give reference=STORE, scans of that hospital"
        ) from e
    if store.fingerprint == config.fingerprint:
        raise UserError(
            f"{store.path} is what {run.path} was trained on; give a store of new scans, or select: where=\"split == 'test'\""
        )
    if home.fingerprint != config.fingerprint:
        flags.append(f"{home.path} has changed since the run was trained on it, and is the reference as it is now")
    if where is not None:
        home = Store.open(config.store, where if config.where is None else f"({config.where}) and ({where})")
    rows, name = home.rows("val"), "validation scans"
    if len({*home.column("patient")[rows]}) < LEAST:
        rows, name = home.rows("train"), "training scans"
        flags.append(
            f"fewer than {LEAST} validation patients, so the reference are scans the encoder was trained on: it may know them "
            "better than any others, and then scans of the same hospital seem to have drifted"
        )
    return home, rows, f"{name} of {home.path.name}"


def _unseen(
    run: Run, encoder: EncoderConfig, home: Store, rows: np.ndarray, store: Store, flags: list[str]
) -> np.ndarray:
    """Return the rows of `store` whose patients and images neither the run nor the reference `rows` of `home` has."""
    seen = read_pretrained_on(run.path / "pretrained_on.parquet", encoder.key_id)
    known, patient, image = (store.column(c) for c in ("patient_known", "patient", "hash"))
    other = home.column("patient")[rows][home.column("patient_known")[rows].astype(bool)]
    patients = set(seen.patient[seen.patient_known]) if store.info["key_id"] == encoder.key_id else set()
    patients |= set(other) if store.info["key_id"] == home.info["key_id"] else set()
    images = {*seen.hash, *home.column("hash")[rows]}
    again = np.array([(k and p in patients) or h in images for k, p, h in zip(known, patient, image, strict=True)])
    if again.any():
        flags.append(
            f"{again.sum()} of {len(store)} scans left out: their patient or image is in the training or in the reference"
        )
    if not {encoder.key_id, home.info["key_id"]} <= {store.info["key_id"]}:
        flags.append(
            "the stores have different keys, so patients who are in both are not recognised, only their images"
        )
    return np.flatnonzero(~again)


def _check_kind(encoder: EncoderConfig, store: Store) -> None:
    check_input(encoder.input, store)
    trained, given = (BY_MODALITY.get(m) for m in (encoder.modality, store.modality))
    if trained and given and trained != given:
        raise UserError(
            f"the run was trained on {encoder.modality}, and {store.path} has {store.modality}: another kind of scan, not "
            "drift; choose others with where="
        )
