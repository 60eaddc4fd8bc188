"""Pairing of masks with images, and that masks are never training scans."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medssl.commands.data.ingest import ingest
from medssl.commands.data.release import release
from medssl.errors import UserError
from medssl.ingestion.mask_pairing import grid_difference, pair_by_name
from medssl.readers.pseudonyms import open_key
from medssl.store.store import Store
from tiny import secret

FEW = 10
PLACE = np.diag([1.0, 1.5, 2.0, 1.0])
PLACE[:3, 3] = 5, -7, 11


def nifti(path, array, affine=PLACE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def png(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def volume(seed, shape=(8, 9, 10)):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


def regions(seed, shape=(8, 9, 10), most=3):
    """A mask with two or more labels in blocks."""
    out = np.zeros(shape, np.uint8)
    at = np.random.default_rng(seed).integers(0, 4, (most - 1, len(shape)))
    for label, corner in enumerate(at, 1):
        out[tuple(slice(a, a + 4) for a in corner)] = label
    return out


def make(source, tmp_path, name="s", **options):
    return ingest(source, tmp_path / name, key=secret(tmp_path / "key"), **{"workers": 1} | options)


def rejects(store):
    return {r["file"]: (r["code"], r["reason"]) for r in map(json.loads, (store.path / "rejects.jsonl").open())}


def row_of(store, tmp_path, name):
    """Return the row of the scan that was read from a file."""
    scan = open_key(tmp_path / "key").of("scan", f"file|{name}")
    return store.column("scan").tolist().index(scan)


def pseudonym(tmp_path, name):
    return open_key(tmp_path / "key").of("path", name)


@pytest.fixture(scope="module")
def hippocampus(shared, tmp_path_factory):
    """Real volumes and masks, in their original folders."""
    folder = tmp_path_factory.mktemp("hippocampus")
    for part in ("images", "labels"):
        (folder / "source" / part).mkdir(parents=True)
        for path in sorted((shared / "hippocampus" / part).iterdir())[:FEW]:
            shutil.copy(path, folder / "source" / part)
    return folder, make(folder / "source", folder, intensity="mr")


def test_real_pairs_are_found_and_come_back_voxel_for_voxel(hippocampus):
    folder, everything = hippocampus
    store = Store.open(everything.path)
    assert len(store) == FEW
    assert everything.column("held").tolist().count("mask") == FEW
    for path in (folder / "source" / "images").iterdir():
        row = row_of(store, folder, f"images/{path.name}")
        truth = np.asarray(nibabel.load(folder / "source" / "labels" / path.name).dataobj).transpose(2, 1, 0)
        mask = store.mask(row)
        assert mask.dtype == np.uint8
        assert mask.shape == store[row].shape
        assert np.array_equal(mask[0], truth)
    assert rejects(store) == {}


def test_a_mask_has_the_ids_and_split_of_its_image_and_ties_no_patients(hippocampus):
    _, store = hippocampus
    at = {scan: i for i, scan in enumerate(store.column("scan"))}
    for row in np.flatnonzero(store.column("mask") != ""):
        mask = at[store.column("mask")[row]]
        for name in ("patient", "group", "split", "site", "study", "series", "patient_known"):
            assert store.column(name)[row] == store.column(name)[mask], name
        assert store.column("mask")[mask] == ""
        assert store.column("held")[row] == ""
    # binary masks of different people look alike: as scans they would tie their patients into one group
    assert len(set(store.column("group"))) == len(set(store.column("patient"))) == FEW


def test_workers_and_a_second_ingest_change_nothing(hippocampus, tmp_path):
    folder, store = hippocampus
    again = ingest(folder / "source", tmp_path / "s", key=folder / "key", workers=3, intensity="mr")
    assert again.fingerprint == store.fingerprint
    shutil.copytree(folder / "source", tmp_path / "source")
    late = sorted((tmp_path / "source" / "labels").iterdir())[:2]
    for path in late:
        shutil.move(path, tmp_path / path.name)
    part = ingest(tmp_path / "source", tmp_path / "t", key=folder / "key", workers=1, intensity="mr")
    assert part.fingerprint != store.fingerprint
    assert (part.column("mask") != "").sum() == FEW - 2
    for path in late:
        shutil.move(tmp_path / path.name, path)
    whole = ingest(tmp_path / "source", tmp_path / "t", key=folder / "key", workers=1, intensity="mr")
    assert whole.fingerprint == store.fingerprint


def test_masks_are_never_released(hippocampus, tmp_path):
    _, store = hippocampus
    shutil.copytree(store.path, tmp_path / "s")
    with pytest.raises(UserError, match="except masks: nothing to release"):
        release(tmp_path / "s", "dims == 3")
    assert len(Store.open(tmp_path / "s")) == FEW


def test_a_selection_still_has_its_masks(hippocampus):
    _, store = hippocampus
    some = Store.open(store.path, where="mask != '' and split == 'train'")
    assert set(some.column("split")) == {"train"}
    assert all(some.mask(row) is not None for row in some.rows())
    with pytest.raises(IndexError):
        some.mask(len(some))


def test_masks_in_a_given_folder_that_are_no_labels_are_refused(tmp_path):
    """Colours, and two levels blurred by JPEG, in a folder whose name does not mean labels."""
    source, outlines = tmp_path / "source", tmp_path / "source" / "outlines"
    (source / "images").mkdir(parents=True), outlines.mkdir()
    y, x = np.indices((64, 64))
    disc = (np.hypot(y - 30, x - 28) < 17).astype(np.uint8) * 255
    for name in "abc":
        Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (64, 64), np.uint8)).save(
            source / f"images/{name}.png"
        )
    Image.fromarray(disc).save(outlines / "a.png")
    Image.fromarray(disc).save(outlines / "b.jpg", quality=80)
    Image.fromarray(np.stack([disc, 0 * disc, 0 * disc], -1)).save(outlines / "c.png")
    store = make(source, tmp_path, masks=outlines)
    found = rejects(store)
    assert {pseudonym(tmp_path, f"outlines/{n}"): why for n, why in (
        ("b.jpg", ("MASK_VALUES", "its values lie around 0 and 255, as lossy compression or smoothing leaves them")),
        ("c.png", ("MASK_VALUES", "its values are not whole numbers from 0 to 255 in one channel")),
    )} == found  # fmt: skip
    images = Store.open(store.path)
    assert np.array_equal(images.mask(row_of(images, tmp_path, "images/a.png"))[0], disc)


def test_whatever_fits_no_image_is_listed_with_its_reason(tmp_path):
    source, turned, beyond = tmp_path / "source", PLACE.copy(), regions(7).astype(np.int16)
    turned[0, 3] += 1
    beyond[beyond == 1] = 1000
    for k in range(7):
        nifti(source / f"images/p{k}.nii.gz", volume(k))
    nifti(source / "labels/p0.nii.gz", regions(0))
    nifti(source / "labels/p1.nii.gz", regions(1)[:-1])  # another shape
    nifti(source / "labels/p2.nii.gz", regions(2), turned)  # moved by 1 mm
    nifti(source / "labels/p3.nii.gz", beyond)
    nifti(source / "labels/p4_seg.nii.gz", regions(4))
    nifti(source / "masks/p4.nii.gz", regions(5))  # two masks of one image
    nifti(source / "labels/nobody.nii.gz", regions(6))
    nifti(source / "labels/p6.nii.gz", regions(8), None)
    store = make(source, tmp_path)
    found = rejects(store)
    assert {pseudonym(tmp_path, f"labels/{n}"): code for n, code in (
        ("p1.nii.gz", "MASK_GRID"), ("p2.nii.gz", "MASK_GRID"), ("p3.nii.gz", "MASK_VALUES"),
        ("p4_seg.nii.gz", "MASK_SEVERAL"), ("nobody.nii.gz", "MASK_ALONE"), ("p6.nii.gz", "MASK_GRID"),
    )} | {pseudonym(tmp_path, "masks/p4.nii.gz"): "MASK_SEVERAL"} == {f: code for f, (code, _) in found.items()}  # fmt: skip
    assert found[pseudonym(tmp_path, "labels/p1.nii.gz")][1] == "it has 10 x 9 x 7 voxels and its image 10 x 9 x 8"
    assert store.info["counts"]["rejected"] == {"MASK_ALONE": 1, "MASK_GRID": 3, "MASK_SEVERAL": 2, "MASK_VALUES": 1}
    assert store.column("held").tolist().count("label map") == 7  # kept in quarantine
    images = Store.open(store.path)
    assert [images.mask(row_of(images, tmp_path, f"images/p{k}.nii.gz")) is not None for k in range(7)] == [True] + [
        False
    ] * 6


def test_a_tenth_of_a_voxel_is_rounding_and_more_is_another_grid():
    row = {"shape": [1, 50, 60, 70], "spacing": [2, 1.5, 1], "affine": PLACE.ravel().tolist()}
    for axis, spacing in enumerate((1.0, 1.5, 2.0)):
        for miss, same in ((0.09, True), (0.11, False)):
            moved = PLACE.copy()
            moved[axis, 3] += miss
            assert (grid_difference(row | {"affine": moved.ravel()}, row) == "") == same, (axis, spacing)
    turned = PLACE.copy()
    turned[:3, :3] = PLACE[:3, :3] @ np.array([[1, 0.002, 0], [-0.002, 1, 0], [0, 0, 1]])  # 0.14 voxels at the far end
    assert "voxels from its image" in grid_difference(row | {"affine": turned.ravel()}, row)
    assert grid_difference(row | {"affine": None, "spacing": [2, 1.5, 1.1]}, row | {"affine": None}) != ""
    assert grid_difference(row | {"affine": None, "spacing": None}, row | {"affine": None}) == ""


def test_2d_images_with_empty_masks_and_a_label_table(tmp_path):
    """An empty mask is a mask, and the rows of a label table refer to the images."""
    source, rng = tmp_path / "source", np.random.default_rng(0)
    for k in range(4):
        png(source / f"images/p{k}.png", rng.integers(0, 255, (20, 24), np.uint8))
        png(source / f"masks/p{k}.png", regions(k, (20, 24), most=2) * 255 * (k > 0))
    png(source / "blank.png", np.zeros((20, 24), np.uint8))
    table = tmp_path / "t.csv"
    table.write_text("file,label,patient\n" + "".join(f"p{k}.png,{'ab'[k % 2]},x{k // 2}\n" for k in range(4)))
    store = Store.open(make(source, tmp_path, labels=table).path)
    assert len(store) == 4
    for k in range(4):
        row = row_of(store, tmp_path, f"images/p{k}.png")
        assert store.mask(row).shape == (1, 20, 24)
        assert set(np.unique(store.mask(row))) == ({0, 255} if k else {0})
        assert store.column("label:label")[row] == "ab"[k % 2]
    held = Store.open(store.path, quarantined=True)
    assert len(set(held.column("patient"))) == 2
    assert {code for code, _ in rejects(store).values()} == {"CONSTANT"}  # only the blank image


def test_a_folder_given_by_name(tmp_path):
    """Neither the names of the masks nor that of their folder mark them as masks."""
    source, rng = tmp_path / "source", np.random.default_rng(0)
    for k in range(3):
        png(source / f"left/p{k}.png", rng.integers(0, 255, (20, 24), np.uint8))
        png(source / f"right/p{k}.png", regions(k, (20, 24)))
    png(source / "right/p7.png", regions(7, (20, 24)))
    store = Store.open(make(source, tmp_path, masks=source / "right").path)
    assert len(store) == 3
    for k in range(3):
        assert np.array_equal(store.mask(row_of(store, tmp_path, f"left/p{k}.png"))[0], regions(k, (20, 24)))
    assert rejects(store) == {pseudonym(tmp_path, "right/p7.png"): ("MASK_ALONE", "no image has its name")}
    for wrong in (tmp_path, source, source / "none"):
        with pytest.raises(UserError, match="not a folder below"):
            make(source, tmp_path, "wrong", masks=wrong)
    (source / "empty").mkdir()
    with pytest.raises(UserError, match="no file in masks="):
        make(source, tmp_path, masks="empty")


def test_sequences_of_one_case_share_a_mask_and_a_split(tmp_path):
    source = tmp_path / "source"
    for k in range(12):
        for j, sequence in enumerate(("t1", "flair")):
            nifti(source / f"case{k}" / f"case{k}_{sequence}.nii.gz", volume(2 * k + j))
        nifti(source / f"case{k}" / f"case{k}_seg.nii.gz", regions(k))
    store = Store.open(make(source, tmp_path).path)
    assert len(store) == 24
    splits = set()
    for k in range(12):
        rows = [row_of(store, tmp_path, f"case{k}/case{k}_{s}.nii.gz") for s in ("t1", "flair")]
        assert all(np.array_equal(store.mask(r)[0], regions(k).transpose(2, 1, 0)) for r in rows)
        split = set(store.column("split")[rows])
        assert len(split) == 1
        splits |= split
    assert len(splits) > 1


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("images/a.nii.gz", "labels/a.nii.gz"),
        ("imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz"),
        ("a.jpg", "a_segmentation.png"),
        ("volume-3.nii", "segmentation-3.nii"),
        ("case_1/imaging.nii.gz", "case_1/segmentation.nii.gz"),
        ("train/images/1.png", "train/masks/1.png"),
        ("x/y/1.png", "masks/1.png"),
        ("ct/case/series_2", "labels/case.nii.gz"),
        ("ward/case", "ward/case/liver_mask.nii.gz"),
        ("p_flair.nii", "p_seg.nii"),
        ("a.nii#volume/0", "a_label.nii"),
        ("환자/1.png", "환자/마스크/1.png"),
    ],
)
def test_names_that_match(image, mask):
    """Unrelated files beside them change nothing."""
    for names in ([image, mask], [image, mask, "other/9.png", "other/9_mask.png"]):
        masks = list(range(1, len(names), 2))
        found = pair_by_name(names, list(range(0, len(names), 2)), masks)
        assert found == ({m: [m - 1] for m in masks}, set())


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (["a/1.png", "b/masks/1.png"], [1]),  # two hospitals
        (["a/1.png", "b/1.png", "masks/1.png"], [2]),  # ambiguous
        (["image.nii", "label.nii"], [1]),  # uninformative names
        (["p1.png", "p10.png", "p1_0_mask.png"], [2]),
        (["case/series_2", "case/tumour_seg.nii"], [1]),  # named after neither the series nor its folder
    ],
)
def test_names_that_are_ambiguous(names, masks):
    assert pair_by_name(names, sorted(set(range(len(names))) - set(masks)), masks)[0] == {}


words = st.lists(st.sampled_from(["a", "b", "c1", "ward", "images", "t1"]), min_size=1, max_size=3)


@settings(max_examples=200, deadline=None)
@given(images=st.lists(words.map("/".join), max_size=5, unique=True), masks=st.lists(words.map("/".join), max_size=5))
def test_no_image_matches_under_another_name(images, masks):
    """Each rule needs a common word, and all images it matches are of one case."""
    names = [*images, *(f"{m}_mask" for m in masks)]
    at = list(range(len(images)))
    found, doubtful = pair_by_name(names, at, list(range(len(images), len(names))))
    assert not found.keys() & doubtful
    for mask, some in found.items():
        assert some
        for image in some:
            assert set(names[image].split("/")) & set(names[mask].removesuffix("_mask").split("/"))


def test_a_dicom_series_has_the_mask_that_was_drawn_on_its_nifti(shared, tmp_path):
    """Real slices, and a mask on the grid of another converter: in any orientation, and in the folder of the case."""
    generic = shared / "dicom/dicom2nifti/generic"
    source = tmp_path / "source"
    for case, series, at in (("case_a", "anatomical", ""), ("case_b", "compressed_rle", "case_b/")):
        shutil.copytree(generic / series / "001", source / case)
        truth = nibabel.load(generic / series / "001_ground_truth.nii.gz")
        bright = np.asarray(truth.dataobj) > np.quantile(np.asarray(truth.dataobj), 0.8)
        nifti(source / f"{at}{case}_seg.nii.gz", bright.astype(np.uint8), truth.affine)
    store = Store.open(make(source, tmp_path).path)
    assert len(store) == 2
    assert rejects(store) == {}
    for row in range(2):
        volume = store[row][0]
        assert np.array_equal(store.mask(row)[0], volume > np.quantile(volume, 0.8))
