"""Ingest of all bad files at once: each file is used correctly or refused with the expected code.

No file is known that crashes one of the decoders, after tens of thousands of damaged ones; crashes of workers are tested
in test_worker_pool.py.
"""

import json
import sqlite3
from collections import Counter
from functools import cached_property
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import Dataset

import bad_files
from bad_files import CASES, USED, Case, ct, data, hounsfield, uid
from medssl.commands.data.ingest import ingest
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.reject_codes import CODES
from medssl.store.scan_bytes import read_array
from medssl.store.store import Store
from tiny import secret

# pydicom and Pillow warn when invalid files are written on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
PSEUDONYMS = Pseudonyms(bytes(32))
RAS = np.array([-1.0, -1.0, 1.0])
TOLERANCE = 0.1  # mm


class World:
    """The store of all cases, and the rejects."""

    def __init__(self, source: Path, store: Store):
        self.source, self.store = source, store
        self.rejects = [json.loads(line) for line in (store.path / "rejects.jsonl").read_text().splitlines()]
        self.rows = {row["scan"]: row for row in store.table.to_pylist()}
        db = sqlite3.connect(store.path / "ledger.sqlite")
        self.files = {f for (f,) in db.execute("SELECT file FROM files")}
        self.scans = {(f, part): json.loads(row) for f, part, row in db.execute("SELECT file, part, row FROM scans")}
        self.slices = {f for (f,) in db.execute("SELECT file FROM slices")}
        db.close()


class View:
    """The files of one case in the store.

    Attributes:
        codes: file name -> code, for refused files.
        used: names of the files in use.
    """

    def __init__(self, world: World, case: Case):
        self.world, self.store, self.folder = world, world.store, world.source / case.name
        refused = {r["file"]: r["code"] for r in world.rejects}
        names = {name: PSEUDONYMS.of("path", f"{case.name}/{name}") for name in case.expect}
        self.codes = {name: refused[f] for name, f in names.items() if f in refused}
        self.used = [n for n, f in names.items() if f not in refused and f in world.files]

    def scan(self, name: str, part: str = "") -> str:
        """Return the pseudonym of a scan that is not a volume of slices."""
        path = f"{self.folder.name}/{name}"
        file = PSEUDONYMS.of("path", path)
        if file in self.world.slices:
            return PSEUDONYMS.of("scan", uid(self.folder.name, name))
        return str(self.world.scans[file, part]["scan"])

    def row(self, name: str, part: str = "") -> dict:
        return self.world.rows[self.scan(name, part)]

    def image(self, name: str, part: str = "") -> np.ndarray:
        return read_array(self.store.path, self.row(name, part))

    @cached_property
    def rows(self) -> list[dict]:
        """Manifest rows of this case, by its patient or, without one, by its files."""
        patients = {PSEUDONYMS.patient(self.folder.name)}
        patients |= {PSEUDONYMS.of("patient", f"file|{self.folder.name}/{name}") for name in self.used}
        return [row for row in self.world.rows.values() if row["patient"] in patients]

    @property
    def images(self) -> list[dict]:
        return [row for row in self.rows if len(row["shape"]) == 3]

    @property
    def volumes(self) -> list[dict]:
        return [row for row in self.rows if len(row["shape"]) == 4]

    def expected_shapes(self, depths: tuple[int, ...]) -> list[list[int]]:
        """Check the depths of the volumes and return their shapes."""
        found = [row["shape"][1:] for row in self.volumes]
        sizes = sorted(int(np.prod(s)) // bad_files.SIDE**2 for s in found)
        assert sizes == sorted(depths)
        assert all(sorted(s)[1:] == [bad_files.SIDE] * 2 for s in found)
        return found

    def every_slice_is_in_place(self) -> None:
        """Check that the corners of every slice lie in a volume where the header of the slice places them."""
        truth = {}
        for name in self.used:
            for k, corners in _corners(self.folder / name):
                truth.setdefault(k, corners)
        seen: Counter[int] = Counter()
        for row in self.volumes:
            array = read_array(self.store.path, row)[0]
            affine = np.array(row["affine"]).reshape(4, 4)
            for k, corners in truth.items():
                places = [np.argwhere(array == 1000 + 3 * k + i) for i in range(3)]
                if any(len(p) for p in places):
                    assert [len(p) for p in places] == [1, 1, 1]
                    seen[k] += 1
                    for place, corner in zip(places, corners, strict=True):
                        assert np.linalg.norm((affine @ (*place[0], 1))[:3] - corner * RAS) <= TOLERANCE
        alone = len(self.images)
        assert set(seen.values()) <= {1}
        assert len(truth) - len(seen) == alone


def _corners(path: Path) -> list[tuple[int, list[np.ndarray]]]:
    """Return the number of every frame and the LPS positions of three of its corners."""
    ds = pydicom.dcmread(path, stop_before_pixels=True)
    if "PerFrameFunctionalGroupsSequence" not in ds:
        name = path.name if path.name.startswith("s") else COPIES[path.name]
        return [(int(name[1:3]), _three(ds, ds, ds, ds))]
    measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    return [
        (k, _three(ds, measures, item.PlanePositionSequence[0], item.PlaneOrientationSequence[0]))
        for k, item in enumerate(ds.PerFrameFunctionalGroupsSequence)
    ]


COPIES = {"copy.dcm": "s03.dcm", "again.dcm": "s04.dcm"}


def _three(ds: Dataset, measures: Dataset, position: Dataset, orientation: Dataset) -> list[np.ndarray]:
    """Return the positions of three corners (PS3.3 equation C.7.6.2.1-1)."""
    first = np.array(position.ImagePositionPatient, float)
    row, column = np.array(orientation.ImageOrientationPatient, float).reshape(2, 3)
    down, right = measures.PixelSpacing
    return [first, first + (ds.Columns - 1) * right * row, first + (ds.Rows - 1) * down * column]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Ingest all cases, each in its own folder, and one good scan."""
    folder = tmp_path_factory.mktemp("bad")
    source = folder / "source"
    (source / "good").mkdir(parents=True)
    (source / "good" / "good.dcm").write_bytes(data(ct(source / "good", "good.dcm")))
    for case in CASES:
        (source / case.name).mkdir()
        case.make(source / case.name)
    assert Pseudonyms(bytes.fromhex("00" * 32)).key_id == PSEUDONYMS.key_id
    store = ingest(
        source, folder / "store", key=secret(folder / "key"), workers=1, archives=True, aihub="auto", memory=2.0
    )
    return World(source, store)


def test_the_good_scan_is_used(world):
    good = View(world, Case("", bad_files.f00_control, {"good.dcm": USED}, None))
    good.folder = world.source / "good"
    np.testing.assert_array_equal(good.image("good.dcm"), hounsfield("good", "good.dcm")[None])
    assert good.row("good.dcm")["spacing"] == [0.5, 0.75]


def test_every_file_is_used_or_refused(world):
    expected = {f"{c.name}/{name}" for c in CASES for name in c.expect} | {"good/good.dcm"}
    assert world.files == {PSEUDONYMS.of("path", name) for name in expected}
    assert world.store.info["counts"]["files"] == len(expected)
    used = {f for f, _ in world.scans} | world.slices
    assert world.files == used | {r["file"] for r in world.rejects}
    world.store.verify()


def test_every_code_is_known(world):
    assert {r["code"] for r in world.rejects} <= CODES.keys()
    assert not [r for r in world.rejects if r["code"] == "READER_FAILED"]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_case(world, case):
    view = View(world, case)
    for name, allowed in case.expect.items():
        found = view.codes.get(name, USED if name in view.used else "unseen")
        assert found in ({allowed} if isinstance(allowed, str) else allowed), name
    if case.check is not None:
        case.check(view)


def test_the_list_is_complete():
    left_out = {70}
    assert {int(c.number) for c in CASES} - {0} == set(range(1, 70)) - left_out
