"""What the sets of an evaluation share: counts, examples and warnings; and their file in a store's cache."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from medssl.errors import UserError
from medssl.files import atomic
from medssl.leakage import image_sets, transformed_duplicates
from medssl.leakage.image_sets import ScanSet

UNDECIDED = "similar, but their pixels cannot be read or do not decide"
VERSION = 1  # of everything that decides about a pair and has no version of its own; reports of others are made anew
MANY, MANY_SHARE = 5, 0.03  # possible copies, and share of a set, from which chance does not explain them


@dataclass(frozen=True)
class SetOverlap:
    """The overlap of set `b` with set `a`; within one set, the scans that repeat an earlier scan of another patient.

    Attributes:
        a, b: names of the sets.
        scans, patients: how many `b` has.
        shared_patients: named patients of b that are in a; None if the sets were made with different keys, 0 inside one set.
        exact, near, maybe: numbers of scans of b, see `near_duplicates.Duplicates`; there may be more that were not found.
        examples: (kind, scan of a, scan of b), pseudonyms, a few of each kind.
    """

    a: str
    b: str
    scans: int
    patients: int
    shared_patients: int | None
    exact: int
    near: int
    maybe: int
    examples: tuple[tuple[str, str, str], ...]

    def __bool__(self) -> bool:
        return self.certain or bool(self.maybe)

    @property
    def certain(self) -> bool:
        """Return whether something is certainly shared."""
        return bool(self.shared_patients or self.exact or self.near)

    @property
    def refuses(self) -> bool:
        """Return whether so much is shared that a score on b would be too high: something certain, or many possible copies."""
        return self.certain or self.maybe >= max(MANY, MANY_SHARE * self.scans)

    def __str__(self) -> str:
        images = f"at least {self.exact + self.near} of the {self.scans} {self.b} images ({self.near} near-duplicates)"
        if self.a == self.b:
            more = f", and possibly {self.maybe} more" if self.maybe else ""
            once = ", and count as one patient in intervals" if self.a == "test" and self.certain else ""
            return f"{images} repeat another patient's image in {self.a}{more}{once}"
        shared = [f"{self.shared_patients} of the {self.patients} {self.b} patients"] if self.shared_patients else []
        if self.exact or self.near:
            shared.append(images)
        if self.maybe and not shared:
            return f"{self.a} may include {self.maybe} of the {self.scans} {self.b} images ({UNDECIDED})"
        if self.maybe:
            shared.append(f"possibly {self.maybe} more ({UNDECIDED})")
        return f"{self.a} includes {' and '.join(shared) or f'none of the {self.scans} {self.b} images'}"


@dataclass(frozen=True)
class LeakReport:
    """The overlap of each pair of sets, and notes on checks that were not possible.

    repeats: (scan, scan) of the last set that certainly show the same image, of two patients.
    """

    pairs: tuple[SetOverlap, ...]
    unchecked: tuple[str, ...]
    repeats: tuple[tuple[str, str], ...] = ()

    def __getitem__(self, names: tuple[str, str]) -> SetOverlap:
        return next(pair for pair in self.pairs if (pair.a, pair.b) == names)

    @property
    def refusal(self) -> str:
        """Reasons why a score on this test set would be too high, in one line; "" if there are none."""
        return "; ".join(str(p) for p in self.pairs if p.b == "test" and p.a != "test" and p.refuses)

    def warnings(self) -> list[str]:
        """Return a line for each pair of sets that share something, with an example, then what could not be checked."""
        lines = []
        for pair in filter(None, self.pairs):
            example = next((f", for example {a} and {b}" for _, a, b in pair.examples), "")
            lines.append(f"{pair}{example}")
        return [*lines, *self.unchecked]


def report_file(folder: Path, sets: Iterable[ScanSet]) -> Path:
    """Return the file in `folder` of the report on these sets; another one if a scan, a patient or a way of comparing differs."""
    versions = VERSION, image_sets.VERSION, transformed_duplicates.VERSION
    text = hashlib.blake2b(repr(versions).encode(), digest_size=12)
    for part in sets:
        columns = (part.patient, part.scan, part.hash, part.phash, part.patient_known, part.side)
        known = [part.name, part.key, sorted(part.volumes), *(column.tolist() for column in columns)]
        text.update(json.dumps(known).encode())
    return folder / f"leaks_{text.hexdigest()}.json"


def read_report(file: Path) -> LeakReport | None:
    """Return a kept report; None if the file is absent or damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(file.read_text())
        pairs = [SetOverlap(**pair | {"examples": tuple(map(tuple, pair["examples"]))}) for pair in found["pairs"]]
        return LeakReport(tuple(pairs), tuple(found["unchecked"]), tuple((a, b) for a, b in found["repeats"]))
    return None


def keep_report(file: Path, report: LeakReport) -> None:
    """Write the report, if the folder can be written."""
    with suppress(UserError, OSError), atomic(file) as part:
        part.write_text(json.dumps(asdict(report)))
