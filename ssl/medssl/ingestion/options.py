"""Options of an ingest, checked before anything is read."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medssl.errors import UserError, nearest
from medssl.files import follow_links
from medssl.ingestion.label_sources import SOURCES
from medssl.ingestion.staged_store import check_destination
from medssl.store.intensity_windows import check_intensity

ENGINES = ("local", "ray")


@dataclass(frozen=True)
class IngestOptions:
    """The arguments of `medssl.ingest`, which explains them.

    Attributes:
        table: the CSV file with labels, if there is one.
        folder_labels: use the name of the folder that holds a scan as its label.

    Raises:
        UserError: a value is out of range, or source, out, key or masks are in each other's way.
    """

    source: Path
    out: Path
    key: Path
    intensity: str = "auto"
    table: Path | None = None
    folder_labels: bool = False
    targets: Sequence[str] = ()
    patient: str | None = None
    strict_patients: bool = False
    aihub: str | None = None
    keys: Mapping[str, str] | None = None
    missing: Sequence[str] | bool = ()
    prefer: str = ""
    archives: bool = False
    masks: Path | None = None
    site: str = ""
    workers: int | None = None
    engine: str = "local"
    address: str = "auto"
    memory: float = 4.0
    overwrite: bool = False

    def __post_init__(self) -> None:
        check_intensity(self.intensity)
        if self.engine not in ENGINES:
            raise UserError(f"engine is {self.engine!r}.{nearest(self.engine, ENGINES)}")
        if self.engine == "local" and self.address != "auto":
            raise UserError(f"address={self.address} is that of a Ray cluster: add engine=ray")
        if (self.workers is not None and self.workers < 1) or self.memory < 0.5:
            raise UserError(f"workers={self.workers} must be at least 1, and memory={self.memory} at least 0.5 GB")
        if self.keys and self.aihub is None:
            raise UserError(f"keys={dict(self.keys)} are looked up in JSON files: add aihub=auto")
        if self.missing is True:
            raise UserError("missing=true says nothing: give words, missing=[…], or missing=false for empty cells only")
        if self.prefer and self.prefer not in SOURCES:
            raise UserError(f"prefer is {self.prefer!r}.{nearest(self.prefer, SOURCES)}")
        if not self.source.exists():
            raise UserError(f"source={self.source} does not exist")
        source, out, key = self.source.resolve(), follow_links(self.out), self.key.resolve()
        if out.is_relative_to(source):
            raise UserError(
                f"out={self.out} lies in the source, where the next ingest would read it; choose another out="
            )
        if source.is_relative_to(out):
            raise UserError(f"source={self.source} lies in out={self.out}; choose another out=")
        for place, name in ((out, "out"), (source, "source")):
            if key.is_relative_to(place):
                raise UserError(
                    f"the key {self.key} would lie in {name}: whoever gets that folder could undo the pseudonyms; "
                    "choose another key= (or MEDSSL_KEY)"
                )
        _ = self.mask_folder
        check_destination(self.out, overwrite=True)
        if (self.out / "store.json").exists() and not self.overwrite and not self.key.exists():
            raise UserError(f"there is no key at {self.key}, but {self.out} was made with one; give its path as key=")

    @property
    def mask_folder(self) -> str:
        """The folder of the masks relative to the source, "" if none is given. Raises UserError if it is not below it."""
        if self.masks is None:
            return ""
        source = self.source.resolve()
        for folder in ((self.source / self.masks).resolve(), self.masks.resolve()):
            if folder.is_dir() and folder != source and folder.is_relative_to(source):
                return unicodedata.normalize("NFC", folder.relative_to(source).as_posix())
        raise UserError(
            f"masks={self.masks} is not a folder below source={self.source}; the source must hold both images and masks"
        )


def key_path(key: str | Path | None) -> Path:
    """Return the file of the project's secret key: `key`, else $MEDSSL_KEY, else ~/.config/medssl/key."""
    return Path(key or os.environ.get("MEDSSL_KEY") or "~/.config/medssl/key").expanduser()


def available_cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
