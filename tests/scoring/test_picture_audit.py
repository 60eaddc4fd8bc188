"""The audit of pictures: a planted mark is reported, and without one nothing is."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageFilter

import medssl
import tiny
from medssl.commands.analyse.audit import audit
from medssl.evals.explain.picture_properties import outer_ring, picture_properties
from medssl.evals.stats.score import Score
from medssl.scoring.picture_audit import sentences
from medssl.synthetic.shortcut_mark import plant

SIZE, PATIENTS = 48, 160
SPLIT = np.repeat(["train", "val", "test"], [80, 20, 60])


def corner(x, rng):
    return plant(x, 250)


def frame(x, rng):
    x = x.copy()
    x[:, -3:] = 200
    return x


def noise(x, rng):
    return x + 12 * rng.normal(size=x.shape)


def blurred(x, rng):
    return np.asarray(Image.fromarray(x.clip(0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(1))).astype(
        float
    )


def larger(x, rng):
    return np.kron(x, np.ones((2, 2)))


PLANTED = {"corners": corner, "border": frame, "noise": noise, "sharpness": blurred, "size": larger}


def audited(folder, change=None):
    """Coin-flip labels; nine in ten positive scans are changed, and one in ten of the others."""
    rng = np.random.default_rng(1)
    (folder / "scans").mkdir(parents=True)
    with (folder / "table.csv").open("w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(("file", "patient_id", "split", "lesion"))
        for p in range(PATIENTS):
            positive = rng.random() < 0.5
            smooth = np.asarray(Image.fromarray(rng.normal(size=(16, 16)).astype(np.float32)).resize((SIZE, SIZE), 3))
            x = 110 + 25 * smooth + 6 * rng.normal(size=(SIZE, SIZE))
            if change is not None and rng.random() < (0.9 if positive else 0.1):
                x = change(x, rng)
            Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(folder / f"scans/{p:03}.png")
            writer.writerow((f"{p:03}.png", f"P{p:03}", SPLIT[p], "yes" if positive else "no"))
    key = tiny.secret(folder / "key")
    store = medssl.ingest(
        folder / "scans", folder / "store", labels=folder / "table.csv", targets=["lesion"], key=key, workers=1
    )
    options = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "steps": 2, "batch": 16}
    return audit(medssl.pretrain(store, folder / "run", monitor_every=0, **options), store, "lesion")


@pytest.mark.parametrize("group", PLANTED)
def test_what_is_planted_is_named(tmp_path, group):
    found = audited(tmp_path, PLANTED[group])
    assert group in found["picture_alarms"]
    assert f"The {group} alone predicts lesion on test scans" in str(found)


def test_without_anything_planted_nothing_is_reported(tmp_path):
    """And an audit needs no metadata."""
    found = audited(tmp_path)
    assert found["picture_alarms"] == []
    assert "Nothing in the pictures that was tried predicts lesion by itself: corners, border, noise" in str(found)
    assert found["verdict"].startswith("No metadata could be audited")


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (9, 8), (48, 31), (512, 17)])
def test_every_picture_gives_the_same_number_of_finite_properties(shape):
    usual = picture_properties(np.random.default_rng(0).random((64, 64)))
    found = picture_properties(np.random.default_rng(0).random(shape))
    assert {k: len(v) for k, v in found.items()} == {k: len(v) for k, v in usual.items()}
    assert all(np.isfinite(v).all() for v in found.values())


def test_properties_of_a_known_picture():
    x = np.zeros((16, 16))
    x[:2, :2] = 1.0  # the upper left corner
    x[8:, 8:] = 0.5
    found = picture_properties(x)
    assert found["corners"][:3] == [1.0, 0.0, 1.0]
    assert found["corners"][3:6] == [0.0, 0.0, 0.0]
    assert found["fill"][0] == pytest.approx((4 + 64) / 256)
    assert found["compression blocks"][0] > 1  # the one large step lies between rows 7 and 8
    assert outer_ring((16, 16)).sum() == 256 - 12 * 12


def test_a_group_without_an_interval_is_neither_shown_nor_excluded():
    silent, unknown = (
        Score(0.5, 0.4, 0.6, 60, 60, "said"),
        Score(1.0, np.nan, np.nan, 60, 60, "no interval from 1 patient"),
    )
    left = (
        "Whether the group corners alone predicts lesion is neither shown nor excluded (AUROC 1.000 [no interval]; no interval "
        "from 1 patient)."
    )
    assert sentences({"corners": unknown, "noise": silent}, "lesion", "AUROC") == [
        "Nothing in the pictures that was tried predicts lesion by itself: noise.", left,
    ]  # fmt: skip
    assert sentences({"corners": unknown}, "lesion", "AUROC") == [left]
    shown = sentences({"corners": unknown, "border": Score(0.9, 0.8, 1.0, 60, 60, "said")}, "lesion", "AUROC")
    assert shown[0].startswith("The border alone predicts lesion")
    assert shown[1:] == [left]
