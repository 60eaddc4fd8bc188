"""Export to NIfTI, PNG and tar shards: the same voxels at the same positions, and nothing else in the files."""

import csv
import gzip
import json
import tarfile

import nibabel
import numpy as np
import pytest
from PIL import Image

from medssl.commands.data.nifti import nifti
from medssl.commands.data.png import png
from medssl.commands.data.shard import shard
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers import nifti as nifti_scans
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.export import window_loss
from medssl.store.shard import shard as lay_out
from medssl.store.store import Store

TURN = np.array([[0.0, 0.6, 0.8], [0.0, 0.8, -0.6], [-1.0, 0.0, 0.0]])  # a rotation
SHEAR = np.array([[1.0, 0, 0], [0.3, 1, 0], [0, 0, 1]])


def affine(spacing=(3.0, 0.5, 0.75), shear=False):
    out = np.eye(4)
    out[:3, :3] = TURN @ (SHEAR if shear else np.eye(3)) @ np.diag(spacing)
    out[:3, 3] = 10.5, -20.25, 7
    return out


def scans():
    """One scan of every kind."""
    rng = np.random.default_rng(0)

    def volume(dtype, channels=1, top=200):
        return rng.integers(0, top, (channels, 9, 11, 13)).astype(dtype)

    def about(i, modality, **more):
        return {"scan": f"scan{i}", "patient": f"patient{i % 3}", "modality": modality, **more}

    spacing = (3.0, 0.5, 0.75)
    ct = rng.integers(-1024, 2000, (1, 9, 11, 13)).astype(np.int16)
    yield Scan(ct, **about(0, "CT", spacing=spacing, affine=affine(), labels={"side": "left"}))
    tilted = rng.integers(-1024, 2000, (1, 9, 11, 13)).astype(np.int16)
    yield Scan(tilted, **about(1, "CT", spacing=(3.13, 0.5, 0.75), affine=affine(shear=True)))
    yield Scan(volume(np.float32) / 7, **about(2, "PT", spacing=spacing, affine=affine()))
    yield Scan(volume(np.uint16, top=60000), **about(3, "MR", spacing=spacing))
    yield Scan(volume(np.uint8, 3), **about(4, "US"))
    yield Scan(volume(np.int16, 2), **about(5, "MR", spacing=spacing, affine=affine()))
    yield Scan(rng.integers(0, 256, (1, 300, 270)).astype(np.uint8), **about(6, "DX", spacing=(0.2, 0.2)))
    yield Scan(rng.integers(0, 256, (3, 30, 27)).astype(np.uint8), **about(7, "ES"))
    yield Scan(rng.integers(0, 256, (1, 30, 27)).astype(np.uint8), **about(8, "US", quarantined="burned-in risk"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of all `scans()`, the last one quarantined."""
    with StoreWriter(tmp_path_factory.mktemp("exports") / "store", Pseudonyms(bytes(32))) as writer:
        for scan in scans():
            writer.add(scan, scan.scan)
        writer.finish()
    return Store.open(writer.staged.out)


def row_of(store, scan):
    return store.column("scan").tolist().index(scan)


def table(folder):
    with (folder / "index.csv").open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


# NIfTI


@pytest.fixture(scope="module")
def volumes(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nifti")
    nifti(store, folder)
    return folder


@pytest.mark.parametrize("scan", [f"scan{i}" for i in range(6)])
def test_nifti_has_the_same_voxels_at_the_same_positions(store, volumes, scan):
    row = row_of(store, scan)
    array, image = store[row], nibabel.load(volumes / f"{scan}.nii.gz")
    voxels = np.asarray(image.dataobj)
    if scan == "scan4":
        voxels = np.stack([voxels[c] for c in "RGB"], -1)
        assert image.header["datatype"] == 128  # RGB24
    elif scan == "scan5":
        assert voxels.shape == (13, 11, 9, 1, 2)
        voxels = voxels[..., 0, :]
    else:
        assert image.get_data_dtype() == array.dtype
        voxels = voxels[..., None]
    np.testing.assert_array_equal(voxels, array.transpose(3, 2, 1, 0))
    place = store.column("affine")[row]
    if place is not None:
        dhw = np.random.default_rng(0).uniform(0, 9, (20, 3))
        ours = nibabel.affines.apply_affine(np.reshape(place, (4, 4)), dhw)
        theirs = nibabel.affines.apply_affine(image.affine, dhw[:, ::-1])
        np.testing.assert_allclose(theirs, ours, atol=1e-4)  # float32 in the header


def test_nifti_form_codes_and_units_match_the_known_geometry(volumes):
    codes = {}
    for i in range(6):
        header = nibabel.load(volumes / f"scan{i}.nii.gz").header
        codes[i] = int(header["sform_code"]), int(header["qform_code"]), header.get_xyzt_units()[0]
        if codes[i][1]:
            np.testing.assert_allclose(header.get_qform(), header.get_sform(), atol=1e-4)
    assert codes == {
        0: (1, 1, "mm"),
        1: (1, 0, "mm"),  # sheared: a qform cannot represent it
        2: (1, 1, "mm"),
        3: (0, 0, "mm"),
        4: (0, 0, "unknown"),
        5: (1, 1, "mm"),
    }
    zooms = {i: nibabel.load(volumes / f"scan{i}.nii.gz").header.get_zooms()[:3] for i in (0, 1, 3, 4)}
    for i, expected in {0: (0.75, 0.5, 3), 1: (0.75, 0.5, 3 * np.sqrt(1.09)), 3: (0.75, 0.5, 3), 4: (1, 1, 1)}.items():
        np.testing.assert_allclose(zooms[i], expected, rtol=1e-6)


def test_nifti_files_hold_nothing_else(volumes):
    for path in volumes.glob("*.nii.gz"):
        raw = path.read_bytes()
        assert raw[:4] == b"\x1f\x8b\x08\x00", "gzip with a name or a comment"
        assert raw[4:8] == bytes(4), "gzip with a time"
        header = nibabel.load(path).header
        for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            assert header[field].tobytes().strip(b"\0") == b"", field
        inside = gzip.decompress(raw)
        assert inside[348:352] == bytes(4), "extensions"
        assert len(inside) == 352 + np.prod(header.get_data_shape()) * header.get_data_dtype().itemsize


def test_nifti_table_and_skipped_scans(store, volumes, tmp_path):
    lines = {line["scan"]: line for line in table(volumes)}
    assert sorted(lines) == [f"scan{i}" for i in range(6)]
    first = lines["scan0"]
    row = row_of(store, "scan0")
    assert (first["file"], first["patient"], first["modality"]) == ("scan0.nii.gz", "patient0", "CT")
    assert (first["split"], first["spacing"], first["label:side"]) == (store.column("split")[row], "3 0.5 0.75", "left")
    assert lines["scan4"]["spacing"] == lines["scan4"]["label:side"] == ""
    text = str(nifti(store, tmp_path))
    assert text == f"6 volumes written, 0 were there, 2 images in 2D without a position in space left out: {tmp_path}"
    with pytest.raises(UserError, match="none of the 2 scans is a volume"):
        nifti(store, tmp_path / "b", where="dims == 2")
    assert not (tmp_path / "b").exists()


def test_nifti_continues_a_stopped_export(store, tmp_path):
    nifti(store, tmp_path, where='modality == "CT"')
    paths = sorted(tmp_path.glob("*.nii.gz"))
    assert [p.name for p in paths] == ["scan0.nii.gz", "scan1.nii.gz"]
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[:-20])
    kept = paths[1].stat().st_mtime_ns
    result = nifti(store, tmp_path, where='modality == "CT"')
    assert paths[0].read_bytes() == whole
    assert paths[1].stat().st_mtime_ns == kept
    assert "1 volumes written, 1 were there" in str(result)
    assert (result["written"], result["kept"]) == (1, 1)
    assert len(list(tmp_path.iterdir())) == 3


def test_nifti_of_real_volumes_agrees_with_the_source(shared, tmp_path):
    """Read, stored and exported: the same values at the same positions in space."""
    sources = sorted((shared / "hippocampus" / "images").glob("*.nii.gz"))[:3]
    alias = Pseudonyms(bytes(32))
    names = {}
    with StoreWriter(tmp_path / "store", alias) as writer:
        for path in sources:
            with path.open("rb") as f:
                for scan, part in nifti_scans.read(f, path.name, alias):
                    writer.add(scan, part)
                    names[scan.scan] = path
        writer.finish()
    nifti(tmp_path / "store", tmp_path / "out")
    assert len(names) == 3
    for scan, path in names.items():
        ours = nibabel.as_closest_canonical(nibabel.load(tmp_path / "out" / f"{scan}.nii.gz"))
        theirs = nibabel.as_closest_canonical(nibabel.load(path))
        np.testing.assert_array_equal(ours.get_fdata(), theirs.get_fdata())
        np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


# PNG


def test_png_of_images_is_exact(store, tmp_path):
    png(store, tmp_path, where="dims == 2")
    for scan in ("scan6", "scan7"):
        pixels = np.asarray(Image.open(tmp_path / f"{scan}.png"))
        pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        np.testing.assert_array_equal(pixels, store[row_of(store, scan)])
    for line in table(tmp_path):
        assert (line["slice"], line["window"], line["clipped"], line["rms_loss"]) == ("", "auto", "0", "0")


def test_png_holds_pixels_only(store, tmp_path):
    png(store, tmp_path, where="dims == 2")
    for path in tmp_path.glob("*.png"):
        raw, at, kinds = path.read_bytes(), 8, set()
        while at < len(raw):
            kinds.add(raw[at + 4 : at + 8])
            at += 12 + int.from_bytes(raw[at : at + 4], "big")
        assert kinds == {b"IHDR", b"IDAT", b"IEND"}


@pytest.mark.parametrize(
    ("slices", "expected"), [("middle", [4]), ("3", [1, 4, 7]), ("all", list(range(9))), ("99", list(range(9)))]
)
def test_png_of_slices_through_a_window(store, tmp_path, slices, expected):
    """PS3.3 C.11.2.1.2.1 with level -600 and width 1500, pixel by pixel."""
    png(store, tmp_path, window="lung", slices=slices, where='scan == "scan0"')
    array = store[row_of(store, "scan0")][0].astype(float)
    y = ((array + 600.5) / 1499 + 0.5) * 255
    y = np.where(array <= -600.5 - 1499 / 2, 0, np.where(array > -600.5 + 1499 / 2, 255, y))
    lines = table(tmp_path)
    assert [int(line["slice"]) for line in lines] == expected
    for k, line in zip(expected, lines, strict=True):
        assert line["file"] == f"scan0_{k:04d}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / line["file"])), np.rint(y[k]))
        assert (line["window"], float(line["level"]), float(line["width"])) == ("lung", -600, 1500)
        outside = (array[k] < -1350) | (array[k] > 149)
        assert float(line["clipped"]) == pytest.approx(outside.mean(), rel=1e-5)
        back = np.rint(y[k]) / 255 * 1499 - 1350
        assert float(line["rms_loss"]) == pytest.approx(np.sqrt(np.mean((array[k] - back)[~outside] ** 2)), rel=1e-5)
    assert len(list(tmp_path.glob("*.png"))) == len(expected)


def test_png_auto_is_the_manifest_window(store, tmp_path):
    png(store, tmp_path, slices="middle", where='scan == "scan2"')
    row = row_of(store, "scan2")
    low, high = store.column("low")[row], store.column("high")[row]
    expected = np.rint(np.clip((store[row][0, 4].astype(float) - low) / (high - low), 0, 1) * 255)
    got = np.asarray(Image.open(tmp_path / "scan2_0004.png"))
    assert abs(got - expected).max() <= 1e-6
    assert len(np.unique(got)) > 50


def test_window_loss_against_its_definition():
    image = np.array([[[-2000, -1350, 149, 150, 0, -601]]], np.int16)
    small = np.array([[[0, 0, 255, 255, 230, 127]]], np.uint8)
    clipped, loss = window_loss(image, small, -600, 1500)
    assert clipped == pytest.approx(2 / 6)
    errors = [0, 0, 0 - (230 / 255 * 1499 - 1350), -601 - (127 / 255 * 1499 - 1350)]
    assert loss == pytest.approx(np.sqrt(np.mean(np.square(errors))))
    assert window_loss(np.full((1, 2, 2), 3000, np.int16), np.full((1, 2, 2), 255, np.uint8), 40, 400) == (1, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": "lung"}, "Hounsfield"),
        ({"window": "lungs", "where": 'modality == "CT"'}, "Did you mean 'lung'"),
        ({"slices": "0", "where": 'modality == "CT"'}, "slices=0"),
        ({"slices": "some", "where": 'modality == "CT"'}, "slices=some"),
        ({"where": 'scan == "scan5"'}, "neither grey nor RGB"),
    ],
)
def test_png_refuses(store, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        png(store, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


# shards


def test_shards_hold_the_same_store(store, tmp_path):
    everything = Store.open(store.path, quarantined=True)
    made = lay_out(store, tmp_path / "new", 20_000)
    assert len(made) == len(everything) == 9
    assert made.fingerprint == everything.fingerprint
    made.verify()
    for row in range(len(made)):
        np.testing.assert_array_equal(made[row], everything[row])
    row = row_of(made, "scan0")
    np.testing.assert_array_equal(made.crop(row, (1, 2, 3), (2, 3, 4)), everything[row][:, 1:3, 2:5, 3:7])
    assert {p.name for p in made.path.iterdir()} >= {"store.json", "manifest.parquet", "shards", "rejects.jsonl"}
    assert {p.name for p in made.path.iterdir()} <= {
        "store.json",
        "manifest.parquet",
        "shards",
        "rejects.jsonl",
        "released.json",
    }
    old, new = (t.table.drop_columns(["file", "offset", "length"]) for t in (everything, made))
    assert old.equals(new)


def test_shards_are_plain_tar_files(store, tmp_path):
    made = lay_out(store, tmp_path / "new", 20_000)
    shards = sorted((made.path / "shards").iterdir())
    assert len(shards) > 2
    assert [p.name for p in shards] == [f"{i:05d}.tar" for i in range(len(shards))]
    members = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar:
                members[f"shards/{path.name}", member.offset_data] = member.size, tar.extractfile(member).read()
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    for file, offset, length in zip(*(made.table[c].to_pylist() for c in ("file", "offset", "length")), strict=True):
        size, data = members[file, offset]
        assert size == length
        assert data == (made.path / file).read_bytes()[offset : offset + length]
    again = lay_out(store, tmp_path / "again", 20_000)
    for path in shards:
        assert path.read_bytes() == (again.path / "shards" / path.name).read_bytes()


def test_a_shard_can_be_sharded_again(store, tmp_path):
    made = Store.open(shard(lay_out(store, tmp_path / "a", 20_000), tmp_path / "b")["out"], quarantined=True)
    assert len(list((made.path / "shards").iterdir())) == 1
    made.verify()


def test_released_scans_and_rejects_come_along(store, tmp_path):
    (store.path / "released.json").write_text(json.dumps({"scan8": "burned-in risk"}))
    try:
        made = Store.open(shard(store, tmp_path / "new")["out"])
        for name in ("released.json", "rejects.jsonl"):
            assert (made.path / name).read_bytes() == (store.path / name).read_bytes()
    finally:
        (store.path / "released.json").unlink()


def test_damage_is_not_passed_on(tmp_path):
    with StoreWriter(tmp_path / "store", Pseudonyms(bytes(32))) as writer:
        for scan in scans():
            writer.add(scan, scan.scan)
        made = writer.finish()
    path = made.path / made.column("file")[row_of(made, "scan0")]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(UserError, match="is damaged"):
        shard(made, tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["store"]


def test_shard_overwrites_nothing(store, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        shard(store, tmp_path / "new")
    with pytest.raises(UserError, match="size=0"):
        shard(store, tmp_path / "other", size=0)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["notes.txt"]
