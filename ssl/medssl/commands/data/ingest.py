"""A folder of scans becomes a store: `ingest("scans", "store")`. Killed anywhere, the same call goes on; later, it adds."""

import json
import os
import sqlite3
import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from medssl.errors import UserError
from medssl.files import disk_errors, write_json
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.label_table import read_labels
from medssl.ingestion.ledger import Ledger
from medssl.ingestion.manifest import Found, build_manifest
from medssl.ingestion.pipeline import FLEETING, VERSION, Reading
from medssl.ingestion.worker_pool import WorkerPool
from medssl.ingestion.writer import StagedStore, check_out
from medssl.readers.pseudonyms import open_key
from medssl.store.intensity import check_intensity
from medssl.store.release import read_released
from medssl.store.schema import MASK, Row
from medssl.store.splits import SPLITS, empty_split_warning
from medssl.store.store import Store

GIGABYTE = 1 << 30


def ingest(
    source: str | Path,
    out: str | Path,
    *,
    intensity: str = "auto",
    labels: str | Path | None = None,
    targets: Sequence[str] = (),
    patient: str | None = None,
    aihub: str | None = None,
    keys: dict[str, str] | None = None,
    archives: bool = False,
    masks: str | Path | None = None,
    site: str = "",
    key: str | Path | None = None,
    workers: int | None = None,
    memory: float = 4.0,
    overwrite: bool = False,
) -> Store:
    r"""Reads every scan below `source` and writes a store at `out`: arrays, pseudonyms, allow-listed facts.

    Each scan keeps its physical values (HU for CT) in the smallest type that loses nothing. Files that cannot be used
    are left out and listed with a reason in `rejects.jsonl`; scans that a human should see first are held back
    (`medssl release`). A keyed hash divides the patients, with all who share an image, into train (70 %), val (10 %)
    and test (20 %), so more patients under the same key move nobody but whom they share an image with. The same source
    and key give the same store, whatever was interrupted and however many workers read. Where `out` is a store of the
    same source already, only files that are new or have changed are read, and scans whose files are gone leave it.
    Prints a summary.

    Args:
        source: a folder with DICOM, NIfTI, PNG, JPEG, TIFF or npz files at any depth, or one such file.
        out: the store's folder; it must not lie in `source`.
        recipe: which values count as black and white: auto (by modality), ct, mr, xray, us, fundus, pet, natural, neutral.
        labels: a CSV file with one row per file or per patient, or "folders" when a scan's folder is its label. From a
            table come labels, and the columns patient, split (train, val, test), site, age, sex, view and laterality.
        targets: columns of the table, or keys of the JSON files, that are labels; by default those called label, target,
            class, diagnosis, finding or lesion.
        patient: a regular expression with one group that finds the patient in a file's path below `source`, like
            "person(\d+)". Without it the patient comes from the table or from the scan; else each file is a patient.
        aihub: for folders where a DICOM, its PNG and a JSON belong together by name, as AI-Hub's: "auto" to pair files by
            their name without suffix, or a regular expression with a group named stem that finds what they share.
        keys: where in the JSON files to look: {"patient": "info.id", "sex": …, "age": …, "label": …}; else found by name.
        archives: also read what is inside zip files.
        masks: the folder below `source` that holds the label maps. By default whatever looks like one is paired with the
            image of the same name, words such as labels or seg apart. The two must share a grid; see store.pairing.
        site: a word for where the scans come from, for comparisons across sites.
        key: the file of the project's secret key, made when absent. Default: $MEDSSL_KEY, else ~/.config/medssl/key.
            Keep it, keep it secret, and keep it apart from the store: it links pseudonyms to patients.
        workers: processes that read; default: one per core. The result does not depend on it.
        memory: GB that one of them may use; a file that needs more is left out.
        overwrite: replace a store at `out` by a new one, once that is whole; nothing of the old one is used.

    Raises:
        UserError: for whatever is wrong with the arguments, the table, the disk, or when no file can be used.
    """
    source, out, key = Path(source).expanduser(), Path(out).expanduser(), _key(key)
    check_intensity(intensity)
    workers = cores() if workers is None else workers
    if workers < 1 or memory < 0.5:
        raise UserError(f"workers={workers} must be at least 1, and memory={memory} at least 0.5 GB")
    _check_places(source, out, key)
    folder = "" if masks is None else _below(source, Path(masks).expanduser())
    check_out(out, overwrite=True)
    table = None if labels is None or labels == "folders" else Path(labels).expanduser()
    wanted = [targets] if isinstance(targets, str) else targets
    sidecars = None
    if (out / "store.json").exists() and not overwrite and not key.exists():
        raise UserError(f"there is no key at {key}, and {out} was made with one; give that one with key=")
    alias = open_key(key)
    if aihub is not None:
        sidecars = Sidecars(alias, aihub, keys or {}, () if table else wanted)
    elif keys:
        raise UserError(f"keys={keys} are looked up in JSON files: add aihub=auto")
    made_with = {"readers": VERSION, "recipe": intensity, "key_id": alias.key_id}
    draft = StagedStore(out)
    ledger: Ledger | None = None
    old, started, whole = None, False, False
    try:
        draft.open(fresh=False)
        old = None if overwrite else _old_store(out, made_with)
        ledger = _begin(draft, old, made_with, overwrite)
        reading = Reading(ledger, draft, alias)
        reading.look(source, archives, table, sidecars)
        gone = _mirror(ledger, source, old)
        if not ledger.seen():
            raise UserError(f"source={source} has no files")
        beside = read_labels(table or labels, alias, wanted if table or not sidecars else (), patient, ledger.names())
        unread, _ = ledger.count_unread()
        init_message = {
            "key": alias.secret(),
            "intensity": intensity,
            "memory": int(memory * GIGABYTE),
            "out": str(draft.folder),
        }
        with WorkerPool(workers, init_message) as children:
            reading.read(children)
            started = not ledger.empty()
            reading.stack(children)
        ledger.forget_unplanned()
        if ledger.empty():
            raise UserError(f"none of the files can be used: {_reasons(ledger)}; nothing was written to {out}")
        started = True
        with disk_errors(out):
            draft.compact(ledger)
        released = read_released(out) | read_released(draft.folder)
        write_json(draft.folder / "released.json", released)
        found = ledger.rows
        settled = build_manifest(
            lambda: (Found(*f) for f in found()), alias, draft.folder, released, beside, sidecars, site, folder
        )
        settled.info["counts"]["files"] = ledger.seen()
        rejects = [*ledger.rejects(), *settled.rejects]
        ledger.close()
        ledger = None
        before = {} if old is None else dict(zip(old.column("patient"), old.column("split"), strict=True))
        news = old is None or bool(unread or gone) or _differs(old, settled.info["fingerprint"], rejects)
        store = draft.publish(settled, iter(rejects), alias, intensity) if news or old is None else old
        whole = True
    except sqlite3.OperationalError as e:
        raise UserError(f"cannot write {draft.folder}: {e}; free some space and run the same command again") from e
    finally:
        if ledger is not None:
            with suppress(sqlite3.OperationalError):
                ledger.close()
        draft.close(keep=started and not whole)
        if started and not whole:
            print(f"what was read is kept for the next try, in {draft.folder}", file=sys.stderr)
    lines = _summary(store, settled.report, key)
    if old is not None:
        lines.insert(1, f"since then   {_since(store, before, unread, gone)}")
    print("\n".join(lines))
    return store


def _since(store: Store, before: dict[str, str], read: int, gone: int) -> str:
    """What an ingest into a store that was there has changed."""
    if not read and not gone:
        return "nothing has changed"
    now = dict(zip(store.column("patient"), store.column("split"), strict=True))
    moved = sum(now.get(patient, split) != split for patient, split in before.items())
    tied = f"; {moved} patients changed their split, because new scans tie them to others" if moved else ""
    return f"{read} files read, {gone} gone or changed{tied}"


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _old_store(out: Path, made_with: dict[str, str]) -> Store | None:
    """The store to go on from. Raises UserError when what is there was made in another way."""
    if not out.exists():
        return None
    store = Store.open(out, quarantined=True)
    if not (out / "ledger.sqlite").exists():
        raise UserError(
            f"{out} is final (it has no ledger), nothing is added to it; choose another out=, or overwrite=true"
        )
    db = sqlite3.connect(f"{(out / 'ledger.sqlite').resolve().as_uri()}?mode=ro", uri=True)
    try:
        before = dict(db.execute("SELECT name, value FROM meta").fetchall())
    except sqlite3.DatabaseError:
        raise UserError(f"{out / 'ledger.sqlite'} is damaged; make the store anew with overwrite=true") from None
    finally:
        db.close()
    if before.get("key_id") != made_with["key_id"]:
        raise UserError(
            f"{out} was made with another key; give that one with key=, or make it anew with overwrite=true"
        )
    if before.get("recipe") != made_with["recipe"]:
        was = before.get("recipe")
        raise UserError(f"{out} was made with intensity={was}; keep that, or make it anew with overwrite=true")
    return store


def _begin(draft: StagedStore, old: Store | None, made_with: dict[str, str], overwrite: bool) -> Ledger:
    """The ledger of an interrupted ingest, or else of the store that is there, or else an empty one."""
    made_with = made_with | {"base": "" if old is None else old.info["fingerprint"], "overwrite": str(overwrite)}
    path = draft.folder / "ledger.sqlite"
    if path.exists():
        try:
            ledger = Ledger(path)
            if ledger.meta() == made_with:
                ledger.retry(FLEETING)
                return ledger
            ledger.close()
        except sqlite3.OperationalError:  # a full disk, say: no reason to begin anew
            raise
        except sqlite3.DatabaseError:
            pass
    draft.empty()
    draft.make()
    if old is not None:
        draft.link(old.path)
    ledger = Ledger(path)
    if ledger.meta().get("readers", VERSION) != VERSION:
        ledger.close()
        draft.empty()
        draft.make()
        ledger = Ledger(path)
    ledger.set_meta(made_with)
    ledger.retry(FLEETING)
    return ledger


def _mirror(ledger: Ledger, source: Path, old: Store | None) -> int:
    """Forgets files that are gone or have changed; how many. Raises UserError when that is all of them."""
    before, still = ledger.known()
    closed = ledger.unlisted()
    if closed and still < before and old is not None:
        raise UserError(
            f"{closed} folders or files below source={source} cannot be read, and {before - still} files of the last ingest "
            "are not found; check permissions and mounts and run again, so that scans do not leave the store by mistake"
        )
    if before and not still:
        raise UserError(
            f"none of the {before} files of the {'last' if old is not None else 'unfinished'} ingest is below "
            f"source={source}; name that source (more files in it are added), choose another out=, or overwrite=true"
        )
    return ledger.forget_gone()


def _differs(old: Store, fingerprint: str, rejects: list[Row]) -> bool:
    path = old.path / "rejects.jsonl"
    before = path.read_text() if path.exists() else ""
    return old.info["fingerprint"] != fingerprint or before != "".join(json.dumps(r) + "\n" for r in rejects)


def _reasons(ledger: Ledger) -> str:
    return "; ".join(f"{n} × {code} ({reason})" for code, reason, n in ledger.worst()) or "there are none"


def _key(key: str | Path | None) -> Path:
    return Path(key or os.environ.get("MEDSSL_KEY") or "~/.config/medssl/key").expanduser()


def _check_places(source: Path, out: Path, key: Path) -> None:
    """Raises UserError when the three places are in each other's way."""
    if not source.exists():
        raise UserError(f"source={source} does not exist")
    real, store, secret = source.resolve(), out.resolve(), key.resolve()
    if store.is_relative_to(real):
        raise UserError(f"out={out} lies in the source, where the next ingest would read it; choose another out=")
    if real.is_relative_to(store):
        raise UserError(f"source={source} lies in out={out}; choose another out=")
    for place, name in ((store, "out"), (real, "source")):
        if secret.is_relative_to(place):
            raise UserError(
                f"the key {key} would lie in {name}: whoever gets that folder could undo the pseudonyms; "
                "choose another key= (or MEDSSL_KEY)"
            )


def _below(source: Path, masks: Path) -> str:
    """The folder of the masks, relative to the source. Raises UserError when it is not below it."""
    top = source.resolve()
    for folder in ((source / masks).resolve(), masks.resolve()):
        if folder.is_dir() and folder != top and folder.is_relative_to(top):
            return unicodedata.normalize("NFC", folder.relative_to(top).as_posix())
    raise UserError(f"masks={masks} is no folder below source={source}; the source must hold images and masks")


def _summary(store: Store, report: list[str], key: Path) -> list[str]:
    """What a researcher wants to know, in lines."""
    info, counts = store.info, store.info["counts"]
    splits = ", ".join(f"{s} {counts['scans_by_split'][s]} ({counts['patients_by_split'][s]} patients)" for s in SPLITS)
    unknown = int((~store.column("patient_known")).sum())
    alone = f" ({unknown} scans name none: each stands alone)" if unknown else ""
    rejected = ", ".join(f"{code} {n}" for code, n in counts["rejected"].items())
    rejected = f": {rejected} (medssl rejects store={store.path})" if rejected else ""
    lines = [
        f"store        {store.path} ({size_on_disk(store.path) / 1e6:.1f} MB)",
        f"files        {counts['files']}",
        *(f"scans        {kind}" for kind in store.kinds),
        f"patients     {counts['patients']}{alone}",
        f"splits       {splits}",
        f"intensity    {info['recipe']}: {store.intensity_description}",
        f"left out     {sum(counts['rejected'].values())}{rejected}",
    ]
    if info["masks"]:
        n = int((store.column("mask") != "").sum())
        lines.append(f"masks        {info['masks']} of these scans are the masks of {n} images")
    if waiting := {reason: n for reason, n in counts["held"].items() if reason != MASK}:
        held = ", ".join(f"{reason} {n}" for reason, n in waiting.items())
        lines.append(
            f"held back    {held} (look: medssl inspect store={store.path} quarantined=true sheet=sheet.png; then medssl release)"
        )
    lines += [f"table        {line}" for line in report]
    copies = info["duplicates"]
    if any(copies.values()):
        lines.append(
            f"duplicates   {copies['within']} within a split, {copies['between']} images in more than one split, "
            f"{copies['near']} pairs nearly the same"
        )
    for warning in (empty_split_warning(store.column("split"), counts["patients"]), info["grouping"]["warning"]):
        if warning:
            lines.append(f"warning      {warning}")
    return [*lines, f"key          {key} (id {info['key_id']})", f"fingerprint  {info['fingerprint']}"]


def size_on_disk(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
