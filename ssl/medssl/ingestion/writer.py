"""Write arrays as a store."""

from pathlib import Path

from medssl.errors import UserError
from medssl.files import disk_errors
from medssl.ingestion.manifest import build_manifest
from medssl.ingestion.manifest_table import FoundScan
from medssl.ingestion.staged_store import StagedStore, check_destination, write_synced
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan, Unreadable
from medssl.store.chunks import pack
from medssl.store.intensity_windows import check_intensity
from medssl.store.manifest_columns import Row, manifest_row, prepare_array
from medssl.store.store import Store


class StoreWriter:
    """`with StoreWriter(out, pseudonyms) as writer: writer.add(scan, name); store = writer.finish()`.

    Nothing is written to `out`, and an old store stays there, until `finish` returns. Leaving the block in any other way
    removes what was written.

    Args:
        out: the store's folder.
        pseudonyms: those of the project; their key also decides the splits.
        intensity: the intensity window, a name in `intensity_windows.INTENSITIES`.
        overwrite: replace a store at `out`.
    """

    def __init__(self, out: str | Path, pseudonyms: Pseudonyms, intensity: str = "auto", overwrite: bool = False):
        self.pseudonyms, self.intensity = pseudonyms, check_intensity(intensity)
        check_destination(Path(out).absolute(), overwrite)
        self.staged = StagedStore(Path(out), fresh=True)
        self.found: list[FoundScan] = []
        self.rejects: list[Row] = []

    def __enter__(self) -> "StoreWriter":
        self.staged.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.staged.__exit__(*exception)

    def reject(self, name: str, why: Unreadable) -> None:
        """Record a rejected scan, under a pseudonym of its name."""
        file = self.pseudonyms.of("path", name)
        self.rejects.append({"file": file, "part": "", "code": why.code, "stage": "store", "reason": str(why)})

    def add(self, scan: Scan, name: str) -> None:
        """Write one scan. `name` identifies it in a table of labels, and is not stored.

        Raises:
            Unreadable: the array cannot be stored (NO_PIXELS, NON_FINITE).
            UserError: the disk is full.
        """
        array = prepare_array(scan)
        row = manifest_row(scan, array, self.intensity)
        if array.ndim == 3:
            address = self.staged.put(pack(array))
        else:
            address = f"volumes/{row['hash']}.vol", 0, 0
            with disk_errors(self.staged.out):
                write_synced(self.staged.folder / address[0], pack(array))
        row |= dict(zip(("file", "offset", "length"), address, strict=True))
        self.found.append(FoundScan(self.pseudonyms.of("path", name), "", [name], row))

    def finish(self) -> Store:
        """Assign groups and splits, write the manifest, move the store to `out` and open it.

        Raises:
            UserError: no scan is left, a patient is in two given splits, or the disk is full.
        """
        if not self.found:
            raise UserError(f"no scan was added; nothing was written to {self.staged.out}")
        self.staged.sync()
        manifest = build_manifest(lambda: iter(self.found), self.pseudonyms, self.staged.folder, {})
        return self.staged.publish(manifest, [*self.rejects, *manifest.rejects], self.pseudonyms.key_id, self.intensity)
