"""Inspecting a store: correct numbers, pictures of the right scans, and no identifier or path."""

import csv
import json
import re
import shlex
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import tiny
from medssl.cli.main import main
from medssl.commands.data.ingest import ingest
from medssl.commands.data.inspect import inspect
from medssl.commands.data.rejects import rejects
from medssl.commands.data.release import release
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import open_key
from medssl.readers.reject_codes import remedy
from medssl.readers.scan import Scan, Unreadable
from medssl.reporting.contact_sheet import CAPTION, CELL, GAP, MOST, _captions, contact_sheet
from medssl.reporting.privacy import faces, privacy_page
from medssl.reporting.store_tables import tilts
from medssl.reporting.text_table import aligned
from medssl.store.manifest_columns import MASK
from medssl.store.query import evenly_spaced
from medssl.store.store import Store

N, PER_PATIENT = 24, 2
SHAPES = [(1, 8, 40, 36), (1, 64, 50), (3, 40, 44), (1, 6, 30, 30)]
KINDS = ["CT 3D", "DX 2D", "US 2D, 3 channels", "unknown 3D"]
SPACING = [(2.5, 0.7, 0.8), (0.2, 0.3), None, (1.0, 1.0, 1.0)]
HELD = ["", "", "burned-in risk", ""]
LOST = ["clinic a/KIM^MINSU 1.dcm", "clinic a/KIM^MINSU 2.dcm", "한글 b.png"]
SHEARED = np.array(
    [[0, 0, 0.8, 0], [0.5, 0.7, 0, 0], [2.5, 0, 0, 0], [0, 0, 0, 1.0]]
)  # each slice is shifted by 0.5 mm per 2.5 mm
ID = re.compile(r"\b[a-z2-7]{26}\b")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source that the store claims to be made from. Only the names matter."""
    folder = tmp_path_factory.mktemp("scans")
    for name in LOST:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not a scan")
    return folder


def drawn(rng, shape):
    """Noise; in a volume each slice is brighter than the one before."""
    noise = rng.integers(0, 200, shape)
    return noise if len(shape) == 3 else noise // 4 + 25 * np.arange(shape[1])[:, None, None]


def build(out, key):
    alias, rng = open_key(tiny.secret(key)), np.random.default_rng(0)
    with StoreWriter(out, alias) as writer:
        for i in range(N):
            k = i % 4
            writer.add(
                Scan(
                    array=drawn(rng, SHAPES[k]).astype(np.int16 if k == 0 else np.uint8),
                    scan=alias.of("scan", str(i)),
                    patient=alias.of("patient", str(i // PER_PATIENT)),
                    study=alias.of("study", str(i // PER_PATIENT)),
                    series=alias.of("series", str(i)),
                    patient_known=i >= 4,
                    modality=["CT", "DX", "US", ""][k],
                    spacing=SPACING[k],
                    affine=[SHEARED if i < 8 else np.diag([2.5, 0.7, 0.8, 1.0]), None, None, None][k],
                    scanner="SIEMENS Force" if k == 0 else "",
                    site="north",
                    quarantined=HELD[k],
                    metadata=[{"body_part": "HEAD", "age": 40.0 + i}, {}, {}, {"kvp": 120.0}][k],
                    labels={"finding": "폐렴" if i % 3 else "normal"},
                    steps=("rescale", "padding") if k == 0 else (),
                ),
                f"{i}.png",
            )
        for name, code in zip(LOST, ("TRUNCATED", "TRUNCATED", "NO_PIXELS"), strict=True):
            writer.reject(name, Unreadable(code, f"because of {code.lower()}"))
        return writer.finish()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return build(folder / "store", folder / "key").path


@pytest.fixture
def fresh(tmp_path):
    return build(tmp_path / "store", tmp_path / "key").path


def by(rows, name):
    return {row[name]: row for row in rows}


def test_counts_agree_with_the_manifest(store):
    found = inspect(store)
    opened = Store.open(store)
    assert len(opened) == N - N // 4
    scans = by(found["scans"], "kind")
    assert {k: row["scans"] for k, row in scans.items()} == dict.fromkeys([KINDS[k] for k in (0, 1, 3)], 6) | {
        "all": 18
    }
    assert scans["CT 3D"]["types"] == "int16"
    assert scans["all"]["patients"] == len(set(opened.column("patient")))
    assert scans["all"]["patient unknown"] == 3
    for row in found["splits"]:
        here = opened.rows(row["split"])
        assert (row["scans"], row["patients"]) == (len(here), len(set(opened.column("patient")[here])))
    spacing = {(r["kind"], r["axis"]): r for r in found["spacing, mm"]}
    assert spacing["CT 3D", "z"]["50 %"] == pytest.approx(2.5)
    assert spacing["DX 2D", "x"]["largest"] == pytest.approx(0.3)
    assert ("DX 2D", "z") not in spacing
    assert {(r["kind"], r["axis"]): r["smallest"] for r in found["size, voxels"]}["unknown 3D", "z"] == 6
    assert by(found["left out"], "code") == {
        "TRUNCATED": {
            "code": "TRUNCATED",
            "files": 2,
            "meaning": "the file is incomplete",
            "remedy": remedy("TRUNCATED"),
        },
        "NO_PIXELS": by(found["left out"], "code")["NO_PIXELS"],
    }
    assert by(found["scanners"], "scanner") == {
        "not recorded": {"scanner": "not recorded", "scans": 12, "share": "66.7%"},
        "SIEMENS Force": {"scanner": "SIEMENS Force", "scans": 6, "share": "33.3%"},
    }
    assert {r["step"]: r["scans"] for r in found["pixel processing"]} == {"rescale": 6, "padding": 6}
    flags = Counter(f for flags in opened.column("flags") for f in flags)
    assert {r["flag"]: r["scans"] for r in found["flags"]} == dict(flags)
    columns = {(r["kind"], r["name"]): r for r in found["columns"]}
    assert columns["fact", "age"]["values"] == "40 to 60, median 50"
    finding = opened.column("label:finding")
    assert columns["label", "finding"]["known"] == 18
    assert f"폐렴 {(finding == '폐렴').sum()}" in columns["label", "finding"]["values"]
    said = str(found)
    assert not ID.search(said), "a pseudonym got out"
    assert all(topic in said for topic in found)


def test_intensity_agrees_with_the_pixels(store):
    found = by(inspect(store)["intensity"], "kind")
    opened = Store.open(store)
    for k in (0, 1, 3):
        moments = []
        for i in np.flatnonzero([len(s) == len(SHAPES[k]) and s == SHAPES[k] for s in opened.column("shape")]):
            low, high = opened.column("low")[i], opened.column("high")[i]
            x = np.clip((opened[i].astype(np.float64) - low) / (high - low), 0, 1)
            moments.append((x.mean(), (x**2).mean()))
        mean, square = np.mean(moments, axis=0)
        assert found[KINDS[k]]["mean"] == pytest.approx(mean, abs=1e-6)
        assert found[KINDS[k]]["standard deviation"] == pytest.approx(np.sqrt(square - mean**2), abs=1e-5)


def test_geometry_counts_known_positions_and_tilted_volumes(store):
    rows = {r["what"]: r["scans"] for r in inspect(store)["geometry"]}
    assert rows.pop("position in space known") == 6
    assert rows.pop("voxel size known, position unknown") == 12
    assert rows.pop("neither known") == 0
    (tilted,) = rows
    assert (rows[tilted], tilted[-4:]) == (2, "11.3")  # arctan(0.5 / 2.5)
    assert tilts(np.stack([SHEARED, np.eye(4), np.diag([-3.0, 1, 1, 1])])) == pytest.approx([11.3099, 0, 0], abs=1e-3)


def test_quarantined_scans_are_excluded_unless_requested(store):
    found = inspect(store)
    assert [(r["reason"], r["scans"]) for r in found["quarantined"]] == [("burned-in risk", 6)]
    assert "medssl release" in found["quarantined"][0]["look at them, then release them"]
    assert by(inspect(store, quarantined=True)["scans"], "kind")[KINDS[2]]["scans"] == 6
    assert by(inspect(store, where="dims == 3")["scans"], "kind")["all"]["scans"] == 12
    with pytest.raises(UserError, match="6 are quarantined: look at them with quarantined=true"):
        inspect(store, where='modality == "US"')
    with pytest.raises(UserError, match="choose another where"):
        inspect(store, where="dims == 4")


def test_what_is_advised_for_quarantined_scans_works(tmp_path, capsys):
    """Every command in the table ends well, in a folder whose name has a space; masks are never released."""
    alias, rng, out = open_key(tiny.secret(tmp_path / "key")), np.random.default_rng(0), tmp_path / "a store"
    with StoreWriter(out, alias) as writer:
        for i, held in enumerate(["", "", MASK, MASK, "localizer", "label map", "burned-in risk", "burned-in risk"]):
            ids = {name: alias.of(name, str(i)) for name in ("scan", "patient", "study", "series")}
            writer.add(
                Scan(array=rng.integers(0, 200, (1, 20, 20)).astype(np.uint8), quarantined=held, **ids), f"{i}.png"
            )
        writer.finish()
    advice = {r["reason"]: r["look at them, then release them"] for r in inspect(out)["quarantined"]}
    assert set(advice) == {MASK, "localizer", "label map", "burned-in risk"}
    assert "medssl release" not in advice[MASK]
    for reason, action in advice.items():
        commands = [shlex.split(part) for part in action.split("; ") if part.startswith("medssl ")]
        assert [words[1] for words in commands] == ["inspect", "release"][: 1 + (reason != MASK)]
        for words in commands:
            sheet = [f"sheet={tmp_path / 'look.png'}" if w.startswith("sheet=") else w for w in words[1:]]
            with pytest.raises(SystemExit) as done:
                main(sheet)
            assert done.value.code == 0, capsys.readouterr().err
    assert set(Store.open(out, quarantined=True).column("held")) == {"", MASK}


def test_equal_pixels_are_counted_within_and_between_splits(fresh):
    table = Store.open(fresh, quarantined=True).table
    split, code = (table[c].to_pylist() for c in ("split", "hash"))
    a, b = split.index("train"), len(split) - 1 - split[::-1].index("train")
    other = next(i for i, s in enumerate(split) if s != "train")
    code[b] = code[other] = code[a]
    rewrite(fresh, table, "hash", code)
    found = {r["what"]: r["count"] for r in inspect(fresh, quarantined=True)["duplicates"]}
    assert list(found.values())[:2] == [1, 1]


def rewrite(path, table, name, values):
    import pyarrow.parquet as pq

    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array(values)), path / "manifest.parquet")


def test_the_sheet_shows_the_middle_slices_of_the_chosen_scans(store, tmp_path):
    inspect(store, sheet=tmp_path / "a.png", where="dims == 3", quarantined=True)
    with Image.open(tmp_path / "a.png") as image:
        assert image.info == {}  # no metadata
        pixels = np.asarray(image.convert("RGB")).astype(float)
    opened = Store.open(store, where="dims == 3", quarantined=True)
    columns = (pixels.shape[1] - GAP) // (CELL + GAP)
    for row in range(len(opened)):
        x, y = GAP + row % columns * (CELL + GAP), GAP + row // columns * (CELL + CAPTION + GAP)
        cell = pixels[y : y + CELL, x : x + CELL].mean(2)
        scan, low, high = opened[row][0], opened.column("low")[row], opened.column("high")[row]
        middle = np.clip((scan[len(scan) // 2] - low) / (high - low), 0, 1) * 255
        inside = cell[CELL // 2 - 40 : CELL // 2 + 40, CELL // 2 - 40 : CELL // 2 + 40]
        assert inside.mean() == pytest.approx(middle.mean(), abs=12)


def test_captions_have_row_modality_split_flags_and_labels_and_masks_are_outlined(tmp_path):
    rng, disc = np.random.default_rng(0), np.hypot(*np.mgrid[-20:20, -20:20]) < 9
    noise, white = rng.integers(0, 200, (2, 40, 40)), rng.random((40, 40)) < 0.3
    files = {"images/a": noise[0], "images/b": np.where(white, 255, noise[1]), "masks/a": 255 * disc}
    for name, pixels in files.items():
        path = tmp_path / f"source/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (tmp_path / "labels.csv").write_text("file,label\na.png,폐렴\nb.png,healthy\n", "utf-8")
    key = tiny.secret(tmp_path / "key")
    made = ingest(tmp_path / "source", tmp_path / "store", labels=tmp_path / "labels.csv", key=key, workers=1)
    store = Store.open(made.path)
    labels, rows = store.column("label:label").tolist(), np.arange(2)
    a, b = labels.index("폐렴"), labels.index("healthy")
    split = store.column("split")
    captions = _captions(store, rows)
    assert captions[a] == (f"{a}, {split[a]}", "폐렴", False)
    assert captions[b][0] == f"{b}, {split[b]}"
    assert captions[b][1:] == ("saturated; healthy", True)
    pixels = np.asarray(contact_sheet(store, rows))
    outline = [(pixels[:CELL, GAP + i * (GAP + CELL) :][:, :CELL] == (0, 229, 255)).all(-1).sum() for i in (a, b)]
    assert outline[0] > 2 * np.pi * 9 * CELL / 40 * 0.8  # the circumference of the disc, in pixels of the sheet
    assert outline[1] == 0


def test_the_sheet_reads_only_what_it_shows(fresh):
    opened = Store.open(fresh, where="dims == 3")
    for path in opened.column("file")[1:]:
        (fresh / path).write_bytes(b"damaged")
    assert contact_sheet(opened, np.array([0])).size == (CELL + 2 * GAP, CELL + CAPTION + 2 * GAP)
    with pytest.raises(UserError, match="damaged"):
        contact_sheet(opened, np.array([0, 1]))


@pytest.mark.parametrize("n", [1, 2, 199, 200, 201, 100_000])
def test_chosen_scans_are_evenly_spread(n):
    rows = evenly_spaced(n, MOST)
    assert (len(rows), rows[0], rows[-1]) == (min(n, 200), 0, n - 1)
    assert np.ptp(np.diff(rows)) <= 1 if n > 1 else True


def test_rejects_are_listed_with_their_remedy(store, tmp_path):
    alias = open_key(store.parent / "key")
    result = rejects(store)
    found = result["rejects"]
    assert sorted((r["file"], r["code"]) for r in found) == sorted(
        zip((alias.of("path", name) for name in LOST), ("TRUNCATED", "TRUNCATED", "NO_PIXELS"), strict=True)
    )
    assert all(r["remedy"] == remedy(r["code"]) and r["reason"] == f"because of {r['code'].lower()}" for r in found)
    said = str(result)
    assert all(r["file"] in said for r in found)
    assert re.search(r"TRUNCATED +2 ", said)
    assert [r["code"] for r in rejects(store, code="NO_PIXELS")["rejects"]] == ["NO_PIXELS"]
    rejects(store, csv=tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="", encoding="utf-8") as f:
        assert list(csv.DictReader(f)) == found


def test_paths_are_shown_with_source_and_key_and_nowhere_else(store, source, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSSL_KEY", str(store.parent / "key"))
    found = rejects(store, source=source)
    said = str(found)
    assert all(name in said for name in LOST)
    assert not any(name in json.dumps(found, ensure_ascii=False) for name in LOST)
    assert not ID.search(said)
    with pytest.raises(UserError, match="never holds paths"):
        rejects(store, source=source, csv=tmp_path / "r.csv")
    with pytest.raises(UserError, match="no key at"):
        rejects(store, source=source, key=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(UserError, match="the store was made with key"):
        rejects(store, source=source, key=tiny.secret(tmp_path / "other", "1"))


def test_a_wrong_code_and_a_damaged_list_say_so(fresh):
    with pytest.raises(UserError, match="Did you mean 'TRUNCATED'"):
        rejects(fresh, code="TRUNCATE")
    with pytest.raises(UserError, match="no file was left out with code EMPTY"):
        rejects(fresh, code="EMPTY")
    (fresh / "rejects.jsonl").write_text('{"file": ')
    with pytest.raises(UserError, match=r"rejects\.jsonl is damaged"):
        rejects(fresh)


def test_released_scans_train_and_are_recorded(fresh):
    before = Store.open(fresh)
    held = Store.open(fresh, where='held == "burned-in risk"', quarantined=True)
    some = held.column("patient")[0]
    result = release(fresh, where=f'patient == "{some}"')
    (n,) = result["released"].values()
    assert n == (held.column("patient") == some).sum()
    after = Store.open(fresh)
    assert len(after) == len(before) + n
    assert after.fingerprint != before.fingerprint
    assert Store.open(fresh, quarantined=True).fingerprint == result["fingerprint"]
    assert after.info["counts"]["held"] == {"burned-in risk": 6 - n}
    Store.open(fresh, quarantined=True).verify()  # manifest and store.json agree
    for name in before.table.column_names:
        rows = [after.column("scan").tolist().index(s) for s in before.column("scan")]
        assert after.table[name].take(rows).equals(before.table[name]), name
    assert json.loads((fresh / "released.json").read_text()) == {
        s: {"held": "burned-in risk", "hash": h}
        for s, p, h in zip(*(held.column(c) for c in ("scan", "patient", "hash")), strict=True)
        if p == some
    }
    release(fresh, where="dims == 2")
    assert set(json.loads((fresh / "released.json").read_text())) == set(held.column("scan"))
    assert len(Store.open(fresh)) == N
    assert not list(fresh.glob(".*"))


def test_release_refuses_scans_that_are_not_quarantined(fresh):
    files = {p: p.read_bytes() for p in fresh.glob("*.*")}
    for where in ("dims == 3", "dims == 7"):
        with pytest.raises(UserError, match="none of which is quarantined"):
            release(fresh, where=where)
    assert {p: p.read_bytes() for p in fresh.glob("*.*")} == files


class Nesting(HTMLParser):
    """Every tag is closed, in order."""

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in {"meta", "img"}:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_privacy_page_is_closed_and_counts(store):
    opened = Store.open(store, quarantined=True)
    page = privacy_page(opened)
    Nesting(page)
    assert not re.search(r"https?:|<script|<img", page)
    for column in ("scan", "patient", "study", "series", "group", "hash", "phash"):
        assert not any(v in page for v in opened.column(column)), column
    assert str(store) not in page
    text = re.sub(r"<[^>]+>", "|", page)
    assert "The pixels were not inspected by a human." in text
    assert re.search(r"burned-in risk\|+6\|+0\|", text)
    assert re.search(r"body_part\|+6\|", text)
    assert re.search(r"TRUNCATED\|+the file is incomplete\|+2\|", text)
    assert re.search(r"113101\|+Clean Pixel Data\|+no\|", text)
    assert re.search(r"113112\|+[^|]+\|+partly\|", text)
    assert opened.info["key_id"] in text
    assert page.count('<span class="line"></span>') >= 4  # to be filled in by hand
    assert "ledger.sqlite" in text
    assert "(PNG, JPEG, TIFF) do not declare their kind and are not quarantined by class" in text


def test_faces_are_counted_by_part_and_thickness(store):
    opened = Store.open(store, quarantined=True)
    assert faces(opened) == {"possible": 6, "cannot be excluded": 6}
    part = opened.table.column_names.index("fact:body_part")
    chest = ["CHEST" if v else v for v in opened.table["fact:body_part"].to_pylist()]
    opened.table = opened.table.set_column(part, "fact:body_part", pa.array(chest))
    assert faces(opened) == {"possible": 0, "cannot be excluded": 6}
    spacing = [v and [5.0] * len(v) for v in opened.table["spacing"].to_pylist()]
    at = opened.table.column_names.index("spacing")
    opened.table = opened.table.set_column(at, "spacing", pa.array(spacing, pa.list_(pa.float32())))
    assert faces(opened) == {"possible": 0, "cannot be excluded": 0}


def test_the_privacy_page_reports_a_release(fresh, tmp_path):
    release(fresh, where="held == 'burned-in risk'")
    inspect(fresh, privacy=tmp_path / "p.html")
    text = re.sub(r"<[^>]+>", "|", (tmp_path / "p.html").read_text("utf-8"))
    assert re.search(r"burned-in risk\|+0\|+6\|", text)
    assert "A human released 6 scans" in text
    assert "The pixels were not inspected by a human." not in text


def test_columns_are_aligned():
    lines = aligned(("word", "n"), [["폐렴", 1234567], ["a", 5]], "")
    assert lines == ["word          n", "폐렴  1,234,567", "a             5"]
    assert aligned(("a",), [["two\nlines"], [None]], "") == ["a", "two lines", "–"]
