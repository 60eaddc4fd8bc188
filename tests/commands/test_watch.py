"""`medssl watch`: drift is found and named, the scans compared are disjoint, and what cannot be compared is refused."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import medssl
from medssl.errors import UserError
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan

OURS, THEIRS = Pseudonyms(b"k" * 32), Pseudonyms(b"j" * 32)


def hospital(path, start, n, *, gamma=1.0, scanner="A", split="", dims=2, modality="DX", alias=OURS, intensity="auto"):
    """A store of n patients with two noisy pictures each, of which the second has other noise."""
    with StoreWriter(path, alias, intensity) as writer:
        for i in range(2 * n):
            r = np.random.default_rng(start * 2 + i)
            shape = (1, 20, 20) if dims == 2 else (1, 6, 20, 20)
            bright = np.linspace(0.2, 0.7, 20) + 0.1 * np.random.default_rng(start + i // 2).normal()
            unit = np.clip(bright + 0.08 * r.normal(size=shape), 0, 1) ** gamma
            ids = {
                k: alias.of(k, f"{start + i // 2} {i if k != 'patient' else ''}")
                for k in ("scan", "patient", "study", "series")
            }
            scan = Scan(
                array=np.round(255 * unit).astype(np.uint8), site="north", scanner=scanner, modality=modality,
                spacing=(1.0,) * dims, patient_known=True, metadata={"age": float(20 + (start + i // 2) % 50)},
                split=split or ("val" if i // 2 < n // 2 else "train"), **ids,
            )  # fmt: skip
            writer.add(scan, f"/ward/{start + i}.png")
        return writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("watch")
    home = hospital(folder / "home", 0, 60)
    settings = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "steps": 2, "batch": 16}
    run = medssl.pretrain(home.path, folder / "run", monitor_every=0, **settings)
    same = hospital(folder / "same", 1000, 40)
    drifted = hospital(folder / "drifted", 2000, 40, gamma=2.5, scanner="B")
    return run, home, same, drifted


def test_drift_is_found_measured_and_named(made, tmp_path):
    run, _, _, drifted = made
    found = medssl.watch(run, drifted.path, sheet=tmp_path / "sheet.png")
    assert found["p"] == 0.001
    assert found["told_apart"]["low"] > 0.8
    assert (found["scans"], found["patients"]) == ({"reference": 60, "new": 80}, {"reference": 30, "new": 40})
    changes = {c["fact"]: c for c in found["changes"]}
    assert (changes["scanner"]["reference"], changes["scanner"]["new"]) == ("A", "B")
    assert changes["scanner"]["association"]["low"] > 0
    assert changes["brightness"]["association"]["low"] > 0
    assert changes["age"]["association"]["low"] == 0
    assert len(set(found["unusual"])) == 10
    assert set(found["unusual"]) <= set(drifted.column("scan"))
    text = str(found)
    assert "The new scans differ from the reference (p = 0.001" in text
    shown = text.split("smaller or not shown")[0]
    assert "brightness" in shown
    assert "age" not in shown.split("facts that changed")[1]
    assert json.loads((run / "watch.json").read_text()) == json.loads(json.dumps(found))
    assert Image.open(tmp_path / "sheet.png").width > 200
    assert medssl.watch(run, drifted.path) == found


def test_without_drift_none_is_shown(made):
    run, _, same, _ = made
    found = medssl.watch(run, same.path)
    assert found["p"] > 0.05
    assert found["told_apart"]["low"] <= 0.5 <= found["told_apart"]["high"]
    assert "No drift is shown" in str(found)
    assert all(c["association"]["low"] == 0 for c in found["changes"])
    assert "no fact is shown to have changed" in str(found)


def test_other_scans_of_the_training_hospital_may_be_named_as_the_reference(made):
    run, home, same, drifted = made
    against = medssl.watch(run, same.path, reference=drifted.path)
    assert against["p"] == 0.001
    assert against["stores"] == {"reference": drifted.fingerprint, "new": same.fingerprint}
    few = medssl.watch(run, same.path, reference=home.path, reference_where="split == 'val'", scans=30)
    assert few["scans"] == {"reference": 30, "new": 30}
    assert few["patients"] == {"reference": 30, "new": 30}


def test_patients_of_the_training_and_of_the_reference_are_left_out(made, tmp_path):
    """Of 50 patients, 30 were trained on or are in the reference; under another key their pictures still tell."""
    run = made[0]
    overlapping = hospital(tmp_path / "both", 30, 50)
    found = medssl.watch(run, overlapping.path)
    assert found["patients"]["new"] == 20
    assert "60 of 100 scans left out: their patient or image is in the training or in the reference" in str(found)
    other_key = hospital(tmp_path / "key", 0, 75, alias=THEIRS)
    found = medssl.watch(run, other_key.path)
    assert found["patients"]["new"] == 15
    assert "the stores have different keys" in str(found)


def test_what_cannot_be_compared_is_refused_in_one_line(made, tmp_path):
    run, home, same, _ = made
    cases = [
        ({"store": home.path}, r'is what .* was trained on; give a store of new scans, or select: where="split'),
        ({"store": same.path, "reference": same.path}, "cannot be compared with itself"),
        ({"store": same.path, "scans": 5}, "scans must be at least 10, got 5"),
        (
            {"store": hospital(tmp_path / "few", 3000, 6).path},
            r"12 new scans .* are of 6 patients, and a test by patient needs 10",
        ),
        (
            {"store": hospital(tmp_path / "deep", 3000, 6, dims=3).path},
            "takes 1-channel scans in 2D, and .* has 1 in 3D",
        ),
        (
            {"store": hospital(tmp_path / "mr", 3000, 6, modality="MR").path},
            "trained on DX, and .* has MR: another kind of scan",
        ),
        ({"store": tmp_path / "nowhere"}, "does not exist; make one"),
        ({"store": same.path, "where": "scanner == 'C'"}, "selects no scan"),
    ]
    for given, words in cases:
        with pytest.raises(UserError, match=words) as e:
            medssl.watch(run, **given)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="it has no resolved"):
        medssl.watch(tmp_path / "no_run", same.path)


def test_a_run_without_its_store_needs_a_reference(made, tmp_path):
    run, home, same, drifted = made
    moved = shutil.copytree(run, tmp_path / "run")
    settings = moved / "resolved.yaml"
    settings.write_text(settings.read_text().replace(str(home.path), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"gone, which .* was trained on, cannot be read; give reference=STORE"):
        medssl.watch(moved, drifted.path)
    assert medssl.watch(moved, drifted.path, reference=same.path)["p"] == 0.001


def test_what_weakens_the_comparison_is_said(made, tmp_path):
    run, _, same, _ = made
    windowed = hospital(tmp_path / "windowed", 4000, 12, intensity="neutral")
    assert "the intensity window of the reference is xray and that of the new scans neutral" in str(
        medssl.watch(run, windowed.path)
    )
    found = medssl.watch(run, same.path, reference_where="split == 'train' or scan == 'x'")
    assert "fewer than 10 validation patients, so the reference are scans the encoder was trained on" in str(found)
