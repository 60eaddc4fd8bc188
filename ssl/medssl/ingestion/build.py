"""Build a store, or update it: begin or resume the ledger, run the pipeline, write the manifest, publish."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from medssl.errors import UserError
from medssl.files import disk_errors, is_empty_folder, write_json
from medssl.ingestion.json_sidecars import Sidecars
from medssl.ingestion.label_table import read_labels
from medssl.ingestion.ledger import Ledger
from medssl.ingestion.manifest import build_manifest
from medssl.ingestion.manifest_table import FoundScan, Manifest
from medssl.ingestion.options import IngestOptions, available_cores
from medssl.ingestion.patients import require_patients
from medssl.ingestion.pipeline import TRANSIENT, VERSION, IngestPipeline
from medssl.ingestion.ray_pool import RayPool
from medssl.ingestion.staged_store import StagedStore
from medssl.ingestion.summary import changes, summary
from medssl.ingestion.worker_pool import Message, WorkerPool
from medssl.readers.pseudonyms import open_key
from medssl.store.release import read_released
from medssl.store.store import Store

GIGABYTE = 1 << 30


def build_store(options: IngestOptions) -> Store:
    """Build the store at `options.out`, or update it. Returns it opened, with quarantined scans and a summary.

    Raises:
        UserError: see `medssl.ingest`.
    """
    pseudonyms = open_key(options.key)
    sidecars = None
    if options.aihub is not None:
        targets = () if options.table else options.targets
        sidecars = Sidecars(pseudonyms, options.aihub, options.keys or {}, targets, options.missing)
    settings = {"readers": VERSION, "recipe": options.intensity, "key_id": pseudonyms.key_id}
    with StagedStore(options.out) as staged:
        try:
            old = None if options.overwrite else _open_old(options, pseudonyms.key_id)
            before = None if old is None else old.table  # in memory: publishing replaces the files
            with _begin(staged, old, settings, options.overwrite) as ledger:
                pipeline = IngestPipeline(ledger, staged, pseudonyms)
                pipeline.find_files(options.source.absolute(), options.archives, options.table, sidecars)
                gone = _forget_gone(ledger, options.source, old)
                unread = ledger.count("unread")
                manifest = _read(options, pipeline, sidecars)
                rejects = [*ledger.rejects(), *manifest.rejects]
            if old is None or unread or gone or _differs(old, manifest.info["fingerprint"], rejects):
                store = staged.publish(manifest, rejects, pseudonyms.key_id, options.intensity)
            else:
                store, staged.keep = old, False
        except sqlite3.OperationalError as e:
            raise UserError(f"cannot write {staged.folder}: {e}; free some space and run the same command again") from e
        except sqlite3.DatabaseError as e:
            path = options.out / "ledger.sqlite"
            raise UserError(f"{path} is damaged; make the store again with overwrite=true") from e
    changed = None if before is None else changes(before, store.table, unread, gone)
    store.summary = summary(store, manifest.report, options.key, changed)
    return store


def _read(options: IngestOptions, pipeline: IngestPipeline, sidecars: Sidecars | None) -> Manifest:
    """Read all new files, build the volumes and the manifest."""
    ledger, staged, pseudonyms = pipeline.ledger, pipeline.staged, pipeline.pseudonyms
    if not ledger.count("seen"):
        raise UserError(f"source={options.source} has no files")
    table = read_labels(
        "folders" if options.folder_labels else options.table,
        pseudonyms,
        options.targets if options.table or not sidecars else (),
        options.patient,
        ledger.names(),
        options.missing,
    )
    init_message = {"key": pseudonyms.secret(), "intensity": options.intensity, "out": str(staged.folder.absolute())}
    with _pool(options, init_message | {"memory": int(options.memory * GIGABYTE)}) as pool:
        pipeline.read_files(pool)
        pipeline.build_volumes(pool)
    ledger.forget_unplanned()
    if ledger.empty():
        staged.keep = False
        reasons = "; ".join(f"{n} × {code} ({reason})" for code, reason, n in ledger.frequent_rejects())
        raise UserError(f"none of the files can be used: {reasons}; nothing was written to {options.out}")
    with disk_errors(options.out):
        staged.compact(ledger)
    released = read_released(options.out) | read_released(staged.folder)
    write_json(staged.folder / "released.json", released)

    def found() -> Iterator[FoundScan]:
        return (FoundScan(*scan) for scan in ledger.rows())

    manifest = build_manifest(
        found,
        pseudonyms,
        staged.folder,
        released,
        table,
        sidecars,
        options.site,
        options.mask_folder,
        options.missing,
        options.prefer,
    )
    if options.strict_patients:
        require_patients(manifest.info["uncertain_patients"])
    manifest.info["counts"]["files"] = ledger.count("seen")
    return manifest


def _pool(options: IngestOptions, init_message: Message) -> WorkerPool | RayPool:
    if options.engine == "local":
        return WorkerPool(options.workers or available_cores(), init_message)
    paths = [str(options.source.absolute()), f"{init_message['out']}/lock"]
    return RayPool(options.address, options.workers, init_message, paths, VERSION)


def _open_old(options: IngestOptions, key_id: str) -> Store | None:
    """Return the store to update, None if there is none. Raises UserError if it was made with other settings."""
    out = options.out
    if not out.exists() or is_empty_folder(out):
        return None
    store = Store.open(out, quarantined=True)
    if not (out / "ledger.sqlite").exists():
        raise UserError(
            f"{out} is final (it has no ledger) and cannot be updated; choose another out=, or overwrite=true"
        )
    if store.info["key_id"] != key_id:
        raise UserError(f"{out} was made with another key; give that key, or make the store again with overwrite=true")
    if (was := store.info["recipe"]) != options.intensity:
        raise UserError(f"{out} was made with intensity={was}; keep that, or make the store again with overwrite=true")
    return store


def _begin(staged: StagedStore, old: Store | None, settings: dict[str, str], overwrite: bool) -> Ledger:
    """Return the ledger of an interrupted ingest, else a copy of the old store's, else an empty one."""
    settings = settings | {"base": "" if old is None else old.info["fingerprint"], "overwrite": str(overwrite)}
    path = staged.folder / "ledger.sqlite"
    if path.exists():
        try:
            ledger = Ledger(path)
            if ledger.meta() == settings:
                staged.keep = not ledger.empty()
                ledger.retry(TRANSIENT)
                return ledger
            ledger.close()
        except sqlite3.OperationalError:  # for example a full disk: keep the ledger
            raise
        except sqlite3.DatabaseError:
            pass
    staged.clear()
    if old is not None:
        staged.link(old.path)
    ledger = Ledger(path)
    if ledger.meta().get("readers", VERSION) != VERSION:
        ledger.close()
        staged.clear()
        ledger = Ledger(path)
    ledger.set_meta(settings)
    ledger.retry(TRANSIENT)
    return ledger


def _forget_gone(ledger: Ledger, source: Path, old: Store | None) -> int:
    """Forget files that are gone or have changed. Returns their number. Raises UserError if that is implausible."""
    before, still = ledger.count("known"), ledger.count("seen again")
    inaccessible = ledger.count("inaccessible")
    if inaccessible and still < before and old is not None:
        raise UserError(
            f"{inaccessible} folders or files below source={source} cannot be read, and {before - still} files of the last "
            "ingest are not found; check permissions and mounts and run again, so that no scan leaves the store by mistake"
        )
    if before and not still:
        raise UserError(
            f"none of the {before} files of the {'last' if old is not None else 'unfinished'} ingest is below "
            f"source={source}; name that source (more files in it are added), choose another out=, or overwrite=true"
        )
    return ledger.forget_gone()


def _differs(old: Store, fingerprint: str, rejects: list[dict[str, str]]) -> bool:
    path = old.path / "rejects.jsonl"
    before = path.read_text("utf-8") if path.exists() else ""
    return old.info["fingerprint"] != fingerprint or before != "".join(json.dumps(r) + "\n" for r in rejects)
