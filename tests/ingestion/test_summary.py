"""The summary of an ingest says which scans have no intensity window or are single slices, and what to do about it."""

import nibabel
import numpy as np
import pytest

from medssl import ingest
from medssl.ingestion.summary import single_slices, without_window
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.store import Store

SHAPES = {"volume": (1, 6, 7, 8), "grey": (1, 9, 8), "colour": (3, 9, 8)}


def lines(tmp_path, scans, intensity="auto"):
    """Return the lines about a store of (modality, kind) scans."""
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "s", Pseudonyms(bytes(32)), intensity) as writer:
        for i, (modality, kind) in enumerate(scans):
            array = rng.integers(0, 4000, SHAPES[kind]).astype(np.int16)
            held = "label map" if modality == "labels" else ""
            modality = "" if held else modality
            writer.add(Scan(array, f"s{i}", f"p{i}", modality=modality, quarantined=held), f"{i}")
        store = writer.finish()
    return without_window(Store.open(store.path, quarantined=True))


@pytest.mark.parametrize(
    ("scans", "count", "advice"),
    [
        (
            [("", "volume")] * 2,
            "2 scans of unknown modality",
            "ingest again with overwrite=true and intensity=ct, mr or pet",
        ),
        ([("", "grey")], "1 scans of unknown modality", "again with overwrite=true and intensity=xray or us (grey"),
        ([("NM", "volume")], "1 scans of modality NM", "overwrite=true and intensity=ct, mr or pet"),
        (
            [("", "grey"), ("", "colour")],
            "2 scans of unknown modality",
            "each kind into a store of its own, with intensity=fundus, natural or us (colour images), intensity=xray",
        ),
        (
            [("CT", "volume"), ("", "volume")],
            "1 scans of unknown",
            "each kind into a store of its own, with intensity=ct",
        ),
        ([("", "volume"), ("labels", "volume")], "1 scans of unknown", "ingest again with overwrite=true"),
    ],
)
def test_scans_without_a_window_are_named_with_a_remedy(tmp_path, scans, count, advice):
    [line] = lines(tmp_path, scans)
    assert line.startswith(count)
    assert "percentile 0.5 to 99.5" in line
    assert advice in line


@pytest.mark.parametrize(
    ("scans", "intensity"), [([("CT", "volume"), ("MR", "volume")], "auto"), ([("", "volume")], "mr")]
)
def test_nothing_is_said_when_every_window_is_known(tmp_path, scans, intensity):
    assert lines(tmp_path, scans, intensity) == []


def test_the_remedy_works(tmp_path):
    source, key = tmp_path / "in", tmp_path / "key"
    source.mkdir()
    image = np.random.default_rng(0).normal(1000, 100, (9, 10, 11)).astype(np.float32)
    image[:3] = 0
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), source / "a.nii")
    first = ingest(source, tmp_path / "s", key=key, workers=1)
    assert "overwrite=true and intensity=ct, mr or pet (volumes)" in first.summary
    assert first.column("low").tolist() == [0]
    second = ingest(source, tmp_path / "s", key=key, workers=1, intensity="mr", overwrite=True)
    assert "of unknown modality are shown" not in second.summary
    assert second.column("low")[0] == pytest.approx(np.percentile(image[3:], 0.5), rel=0.01)


@pytest.mark.parametrize(
    ("modality", "kind", "count", "metadata", "held", "told"),
    [
        ("MR", "grey", 4, {"sop_class": "1"}, "", True),
        ("CT", "grey", 9, {"sop_class": "1"}, "", True),
        ("MR", "grey", 3, {"sop_class": "1"}, "", False),  # a localizer
        ("CT", "grey", 9, {"sop_class": "1"}, "localizer", False),
        ("CT", "volume", 9, {"sop_class": "1"}, "", False),
        ("DX", "grey", 9, {"sop_class": "1"}, "", False),
        ("CT", "grey", 9, {}, "", False),  # PNG files with a JSON file that says so
    ],
)
def test_single_slices_are_counted(tmp_path, modality, kind, count, metadata, held, told):
    with StoreWriter(tmp_path / "s", Pseudonyms(bytes(32)), "auto") as writer:
        for i in range(count):
            array = np.random.default_rng(i).integers(0, 4000, SHAPES[kind]).astype(np.int16)
            writer.add(Scan(array, f"s{i}", f"p{i}", modality=modality, metadata=metadata, quarantined=held), f"{i}")
        store = Store.open(writer.finish().path, quarantined=True)
    assert single_slices(store).startswith(f"{count} images of CT, MR or PET are single slices") == told
    assert told or single_slices(store) == ""


@pytest.mark.parametrize(
    ("studies", "told"),
    [
        ([f"study{i}" for i in range(9)], True),
        (["study"] * 9, False),
        (["study0", *(f"study{i}" for i in range(8))], False),  # two slices of one study: studies are real
        ([""] * 9, False),
    ],
)
def test_a_study_for_each_slice_of_a_patient_is_named(tmp_path, studies, told):
    with StoreWriter(tmp_path / "s", Pseudonyms(bytes(32)), "auto") as writer:
        for i, study in enumerate(studies):
            array = np.random.default_rng(i).integers(0, 4000, SHAPES["grey"]).astype(np.int16)
            writer.add(Scan(array, f"s{i}", "p", modality="CT", metadata={"sop_class": "1"}, study=study), f"{i}")
        store = Store.open(writer.finish().path, quarantined=True)
    words = "9 of them have a Study Instance UID of their own beside others of the same patient"
    assert (words in single_slices(store)) == told
    assert single_slices(store).startswith("9 images of CT, MR or PET are single slices")
