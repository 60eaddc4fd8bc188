"""Collapses planted in methods with teachers are named in the first looks, and a healthy run is not."""

import argparse

import numpy as np
import pytest
import quality_collapse

import medssl
import tiny
from medssl.store.store import Store

PLANTS = {plant.what: plant for plant in quality_collapse.PLANTS}
GIVEN = argparse.Namespace(steps=200, batch=48, size=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    drawn = tiny.resampled(n=160).array[:, 0]
    arrays = {f"{k}_images": drawn[s] for k, s in (("train", slice(0, 120)), ("val", slice(120, 160)))}
    arrays |= {f"{k}_labels": np.arange(len(v))[:, None] % 2 for k, v in list(arrays.items())}
    arrays = {k.replace("_images_labels", "_labels"): v for k, v in arrays.items()}
    np.savez(folder / "discs.npz", **arrays)
    return Store.open(medssl.ingest(folder / "discs.npz", folder / "store", key=tiny.secret(folder / "key"), workers=1))


@pytest.mark.parametrize(
    "what",
    [
        "DINOv2 whose teacher is its student",
        "data2vec whose teacher is its student",
        "I-JEPA at momentum 1",
    ],
)
def test_a_planted_collapse_is_named(store, tmp_path, what):
    plant = PLANTS[what]
    watched = quality_collapse.go(store, tmp_path / "run", plant, 0, GIVEN, until=20)
    assert [causes for _, causes, _ in watched.looks if causes][:1] == [[plant.cause]]


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_a_method_at_its_defaults_is_not_reported(store, tmp_path, name):
    options = {"prototypes": 32} if name == "swav" else {}
    plant = quality_collapse.Plant("", "", name, method_options=options)
    watched = quality_collapse.go(store, tmp_path / "run", plant, 0, GIVEN, until=20)
    assert [causes for _, causes, _ in watched.looks] == [[], []]
