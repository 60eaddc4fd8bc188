"""Read a folder of scans into a store."""

from collections.abc import Sequence
from pathlib import Path

from medssl.ingestion.build import build_store
from medssl.ingestion.options import IngestOptions, key_path
from medssl.store.store import Store


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    intensity: str = "auto",
    labels: str | Path | None = None,
    targets: Sequence[str] = (),
    patient: str | None = None,
    strict_patients: bool = False,
    aihub: str | None = None,
    keys: dict[str, str] | None = None,
    missing: Sequence[str] | bool = (),
    prefer: str | None = None,
    archives: bool = False,
    masks: str | Path | None = None,
    site: str = "",
    key: str | Path | None = None,
    workers: int | None = None,
    memory: float = 4.0,
    engine: str = "local",
    address: str = "auto",
    overwrite: bool = False,
) -> Store:
    r"""Read every scan below `source` and write a store to `out`: arrays, pseudonyms and allow-listed metadata.

    Each scan keeps its physical values (HU for CT) in the smallest lossless type. Files that cannot be used are rejected, with
    the reason in `rejects.jsonl`; scans that a person should look at before training are quarantined
    (`medssl release`). A keyed hash assigns patients, together with all who share an image, to train (70 %), val (10 %) and
    test (20 %). Adding patients under the same key therefore moves no other patient, unless they share an image. The same
    source and key give the same store, however often it was interrupted and however many workers read it. If `out` is a
    store of the same source, only new and changed files are read, and scans whose files are gone are removed from it.

    Args:
        source: a folder with DICOM, NIfTI, PNG, JPEG, TIFF or npz files at any depth, or one such file.
        out: the store's folder, outside `source`.
        intensity: intensity window: auto (by modality), ct, mr, xray, us, fundus, pet, natural, neutral. NIfTI, image and npz
            files name no modality; auto then takes percentiles 0.5 to 99.5, and 0 to 255 for 8-bit images.
        labels: a CSV file (UTF-8, or CP949 in Korean) with one row per file or per patient, or "folders" if a scan's folder
            is its label. A table gives labels, and the columns patient, split (train, val, test), site, age, sex, view and
            laterality.
        targets: columns of the table, or keys of the JSON files, that are labels; by default those called label, target,
            class, diagnosis, finding or lesion.
        patient: a regular expression with one group that finds the patient in a file's path below `source`, like
            "person(\d+)". Without it the patient comes from the table or the scan; otherwise each file is a patient, and a
            pattern is proposed if parts of the names repeat.
        strict_patients: refuse scans that name no patient, instead of taking each file as one.
        aihub: for folders in which a DICOM, its PNG and a JSON file share a name, as in AI-Hub's: "auto" to match files by
            their names without suffix, or a regular expression with a group named stem that finds the shared part.
        keys: keys to use in the JSON files: {"patient": "info.id", "sex": …, "age": …, "label": …}; others are found by name.
        missing: words that mean no label, besides an empty cell and the usual ones (NA, N/A, nan, null, None, #N/A, ".", "-",
            미상, 없음, …; `medssl.store.label_values.MISSING`). They are counted. None and 없음 stay a class beside words for
            some of it, such as mild or 있음. False: only empty cells.
        prefer: the source to believe where two give a scan different labels, else refused: table, json, folders, or file
            for labels in the scan's own file.
        archives: also read the contents of zip files.
        masks: the folder below `source` that holds the label maps. By default, scans that look like label maps are paired
            with the image of the same name, apart from words such as labels or seg. Both must have the same grid; see
            `medssl.ingestion.mask_pairing`.
        site: a name for the scans' origin, for comparisons between sites.
        key: the file with the project's secret key, created if missing. Default: $MEDSSL_KEY, else ~/.config/medssl/key.
            Keep it safe, secret, and apart from the store: it links pseudonyms to patients.
        workers: number of processes that read; default: one per core. The result does not depend on it.
        memory: GB that each of them may use; a file that needs more is rejected.
        engine: local, or ray: the processes are on the nodes of a Ray cluster, which see the source and `out` under
            the same paths. The key travels to them.
        address: of the cluster: host:port, or auto for the one that this machine belongs to; it must belong to it.
        overwrite: replace a store at `out` once the new one is complete; nothing of the old one is used.

    Returns:
        The store, with quarantined scans; its `summary` is what the command line prints.

    Raises:
        UserError: an argument or the table is wrong, the disk is full, no file can be used, or with `strict_patients` a scan
            names no patient.
    """
    options = IngestOptions(
        source=Path(source).expanduser(),
        out=Path(out).expanduser(),
        key=key_path(key),
        intensity=intensity,
        table=None if labels is None or labels == "folders" else Path(labels).expanduser(),
        folder_labels=labels == "folders",
        targets=[targets] if isinstance(targets, str) else targets,
        patient=patient,
        strict_patients=strict_patients,
        aihub=aihub,
        keys=keys,
        missing=missing,
        prefer=prefer or "",
        archives=archives,
        masks=None if masks is None else Path(masks).expanduser(),
        site=site,
        workers=workers,
        memory=memory,
        engine=engine,
        address=address,
        overwrite=overwrite,
    )
    return build_store(options)
