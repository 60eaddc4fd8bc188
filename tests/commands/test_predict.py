"""New files and arrays give the features that they have in a store, and the predictions of the probe that was scored."""

import csv
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image

import medssl
from medssl.errors import UserError
from medssl.files import write_csv
from medssl.runs.predictions import predictions_of
from medssl.scoring.kept_probe import KeptProbe, find_probe

N = 48


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images in files of two sizes, a store of them, and a run scored on two targets."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    table = []
    (folder / "scans").mkdir()
    for i in range(N):
        image = rng.integers(0, 120, (20, 16 + i % 3)).astype(np.uint8)
        image[5:15, 3:9] += 100 * (i % 2)
        Image.fromarray(image).save(folder / f"scans/{i:02d}.png")
        table.append({"file": f"{i:02d}.png", "label": ["no", "yes"][i % 2], "dose": f"{10 + i / 10:g} mg"})
    write_csv(folder / "labels.csv", table)
    store = medssl.ingest(
        folder / "scans",
        folder / "store",
        labels=folder / "labels.csv",
        targets=["label", "dose"],
        key=folder / "key",
        workers=1,
    )
    options = {"widths": [4, 8]}
    run = medssl.pretrain(
        store,
        folder / "run",
        method="vicreg",
        encoder="cnn",
        encoder_options=options,
        size=16,
        steps=4,
        batch=8,
        monitor_every=0,
    )
    medssl.probe(run, store, "label", baselines=[])
    return folder, store, run


def frame(run, store):
    """Features in the store, by scan."""
    return medssl.embed(run, store).frame()


def test_a_file_and_an_array_give_the_features_they_have_in_a_store(made):
    folder, store, run = made
    kept = frame(run, store)
    rows = [0, 5, 17]
    paths = [folder / f"new{i}.png" for i in rows]
    arrays = []
    for path, row in zip(paths, rows, strict=True):
        Image.fromarray(store[row][0]).save(path)
        arrays.append(store[row][0])
    features = [c for c in kept if c.startswith("f") and c[1:].isdigit()]
    wanted = kept[features].to_numpy()[rows]
    encoder = medssl.Encoder(run)
    found = encoder.transform(paths)
    assert found.index.tolist() == [str(p) for p in paths]
    np.testing.assert_allclose(found.to_numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(encoder.transform(arrays).to_numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(encoder.transform([a[None] for a in arrays]).to_numpy(), wanted, atol=1e-6)
    np.testing.assert_allclose(encoder.transform(str(paths[1])).to_numpy(), wanted[1:2], atol=1e-6)


def test_what_cannot_be_embedded_is_one_line(made, tmp_path):
    folder, _, run = made
    encoder = medssl.Encoder(run)
    (tmp_path / "words.txt").write_text("not a scan")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(tmp_path / "colour.png")
    nan = np.full((8, 8), np.nan, np.float32)
    for given, wanted in (
        ([tmp_path / "words.txt"], "words.txt cannot be embedded: the format is none of"),
        ([tmp_path / "colour.png"], "it has 3 channels in 2D, and the encoder takes 1 channels in 2D"),
        ([tmp_path / "none.png"], "there is no file at"),
        ([tmp_path], "is a folder; give files, or ingest it"),
        ([], "there are no scans"),
        ([np.zeros((2, 3, 4, 5))], r"array 0 has shape \(2, 3, 4, 5\); the encoder takes 2D"),
        ([np.array([["a"]])], "array 0 has type"),
        ([nan], "scan 0 cannot be used: it has values that are not finite"),
    ):
        with pytest.raises(UserError, match=wanted) as e:
            pytest.fail(f"{given}: {encoder.transform(given)}")
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="spacing has 3 numbers"):
        encoder.transform([np.ones((8, 8))], spacing=(1, 1, 1))
    with pytest.raises(UserError, match="is not a run folder"):
        medssl.Encoder(folder)


def test_the_kept_probe_predicts_what_was_scored(made, tmp_path):
    folder, store, run = made
    scored = predictions_of(run)[0]
    own = scored.rows[0].p[0]
    kept = find_probe(run, None, medssl.load_encoder(run)[1].weights)
    assert (kept.target, kept.names) == ("label", ("no", "yes"))
    by_scan = frame(run, store)
    x = by_scan.loc[scored.scan.tolist(), [f"f{i}" for i in range(8)]].to_numpy(np.float32)
    np.testing.assert_allclose(kept.predict(x), own, atol=1e-9)
    out = tmp_path / "p.csv"
    (tmp_path / "in").mkdir()
    rows = {scan: i for i, scan in enumerate(store.column("scan"))}
    for i, scan in enumerate(scored.scan):
        Image.fromarray(store[rows[scan]][0]).save(tmp_path / f"in/{i:02d}.png")
    (tmp_path / "in/zz.txt").write_text("not a scan")
    said = medssl.predict(run, tmp_path / "in", out)
    assert str(said) == f"{len(own)} scans predicted, 1 with a problem: {out}"
    with out.open() as f:
        table = list(csv.DictReader(f))
    np.testing.assert_allclose([[float(r["p:no"]), float(r["p:yes"])] for r in table[:-1]], own, atol=1e-5)
    assert [r["prediction"] for r in table[:-1]] == [["no", "yes"][k] for k in own.argmax(1)]
    assert table[-1]["file"].endswith("zz.txt")
    assert table[-1]["problem"].startswith("the format is none of")
    assert not list(folder.glob("**/medssl-*"))


@pytest.mark.parametrize(
    ("task", "names", "weights", "wanted"),
    [
        (
            "classification",
            ("a", "b", "c"),
            [[1.0], [2.0], [3.0]],
            lambda s: np.exp(s) / np.exp(s).sum(1, keepdims=True),
        ),
        ("multilabel", ("a", "b"), [[1.0], [-2.0]], lambda s: 1 / (1 + np.exp(-s))),
        ("regression", (), [[2.0]], lambda s: s[:, 0]),
    ],
)
def test_other_tasks_have_their_own_link(task, names, weights, wanted, tmp_path):
    present = tuple(range(len(names))) if task == "classification" else ()
    bias = np.linspace(0, 1, len(weights))
    probe = KeptProbe("t", task, names, "", present, "w", np.array(weights), bias)
    probe = KeptProbe.read(probe.write(tmp_path))
    x = np.array([[0.5], [-1.0]], np.float32)
    np.testing.assert_allclose(probe.predict(x), wanted(x @ np.array(weights).T + bias), atol=1e-12)


def test_predict_refuses_in_one_line(made, tmp_path):
    folder, store, run = made
    bare = shutil.copytree(run, tmp_path / "bare")
    image = folder / "scans/00.png"

    def refused(wanted: str, *args, **options):
        with pytest.raises(UserError, match=wanted) as e:
            medssl.predict(*args, **options)
        assert "\n" not in str(e.value)

    refused(r"must be a \.csv file", run, image, tmp_path / "out")
    refused("keeps no linear probe of 'lable'. Did you mean 'label'", run, image, tmp_path / "p.csv", target="lable")
    refused("keeps no network that segments; train one: medssl segment", run, image, tmp_path / "p", target="mask")
    refused("none of the 1 scans can be used", run, folder / "labels.csv", tmp_path / "p.csv")
    (tmp_path / "empty").mkdir()
    refused("has no files", run, tmp_path / "empty", tmp_path / "p.csv")
    (kept,) = (bare / "probes").iterdir()
    kept.write_bytes(b"torn")
    refused("is damaged; delete it and run medssl probe again", bare, image, tmp_path / "p.csv")
    shutil.rmtree(bare / "probes")
    refused("keeps no linear probe; fit one: medssl probe", bare, image, tmp_path / "p.csv")
    medssl.probe(bare, store, "dose", task="regression", baselines=[])
    medssl.probe(bare, store, "label", baselines=[])
    refused("keeps probes of .*; say which: target=", bare, image, tmp_path / "p.csv")
    said = medssl.predict(bare, image, tmp_path / "p.csv", target="dose")
    assert said["predicted"] == 1
    with (tmp_path / "p.csv").open() as f:
        assert next(csv.DictReader(f))["prediction"].endswith(" mg")
    old = find_probe(bare, "dose", medssl.load_encoder(bare)[1].weights)
    replace(old, encoder="other").write(bare)
    refused("was fitted on other weights", bare, image, tmp_path / "p.csv", target="dose")


def test_masks_are_on_the_grid_of_each_scan_with_the_values_of_training(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / "scans" / name).mkdir(parents=True)
    affine = np.diag([2.0, 1.0, 1.5, 1.0])
    for i in range(14):
        volume = rng.normal(100, 5, (12, 14, 10)).astype(np.float32)
        mask = np.zeros(volume.shape, np.uint8)
        corner = rng.integers(0, 5, 3)
        box = tuple(slice(c, c + 5) for c in corner)
        volume[box] += 200
        mask[box] = 7
        for name, values in (("images", volume), ("masks", mask)):
            nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / f"scans/{name}/p{i:02d}.nii.gz")
    store = medssl.ingest(tmp_path / "scans", tmp_path / "store", masks="masks", key=tmp_path / "key", workers=1)
    options = {"widths": [4, 8]}
    run = medssl.pretrain(
        store,
        tmp_path / "run",
        method="vicreg",
        encoder="cnn",
        encoder_options=options,
        size=12,
        steps=2,
        batch=4,
        monitor_every=0,
    )
    medssl.segment(
        run, store, label_budgets=["all"], allow_overlap=True, steps=60, batch=4, baselines=[], width=4, lr=2e-2
    )
    files = [str(tmp_path / f"scans/images/p{i:02d}.nii.gz") for i in (3, 1)]
    said = medssl.predict(run, files, tmp_path / "out", target="mask")
    assert said["predicted"] == 2
    with (tmp_path / "out/index.csv").open() as f:
        table = list(csv.DictReader(f))
    assert [r["mask"] for r in table] == ["0000_p03_mask.nii.gz", "0001_p01_mask.nii.gz"]
    for row, name in zip(table, ("p03", "p01"), strict=True):
        found = nibabel.load(tmp_path / "out" / row["mask"])
        np.testing.assert_allclose(found.affine, affine)
        mask, truth = (
            np.asarray(found.dataobj),
            np.asarray(nibabel.load(tmp_path / f"scans/masks/{name}.nii.gz").dataobj),
        )
        assert mask.shape == truth.shape
        assert set(np.unique(mask)) == {0, 7}
        assert int(row["voxels:7"]) == (mask == 7).sum()
        dice = 2 * ((mask == 7) & (truth == 7)).sum() / ((mask == 7).sum() + (truth == 7).sum())
        assert dice > 0.5, f"{name}: {dice}"
