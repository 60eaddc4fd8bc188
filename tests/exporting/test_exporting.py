"""Encoders for other software: the same features or weights there, and a card that names no patient."""

import json
import sys

import numpy as np
import pytest
import timm
import torch

import medssl
from medssl.commands.train.export import export
from medssl.encoders.config import InputConfig
from medssl.encoders.export import load_encoder
from medssl.encoders.resenc import ResEnc
from medssl.errors import UserError
from medssl.evals.embed import embed, standardised
from medssl.exporting.onnx_graph import FromStoredValues
from medssl.ingestion.writer import StoreWriter
from medssl.readers.pseudonyms import Pseudonyms
from medssl.readers.scan import Scan
from medssl.store.resampled import resample_scans, resampled_for_encoder
from medssl.store.store import Store


def write_store(path, scans):
    with StoreWriter(path, Pseudonyms(bytes(32))) as writer:
        for scan in scans:
            writer.add(scan, scan.scan)
        writer.finish()
    return Store.open(writer.staged.out)


def images():
    """8-bit images of several shapes, one smaller than the encoder's grid, with and without a pixel size."""
    rng = np.random.default_rng(0)
    for i in range(40):
        shape = [(30, 27), (16, 16), (12, 9), (41, 80)][i % 4]
        spacing = [None, (0.2, 0.3), None, (0.3, 0.2)][i % 4]
        pixels = rng.integers(0, 256, (1, *shape)).astype(np.uint8)
        yield Scan(pixels, scan=f"scan{i}", patient=f"patient{i}", modality="DX", spacing=spacing)


def volumes():
    """MR volumes with voxels of unequal sides; each has its own window."""
    rng = np.random.default_rng(1)
    for i in range(24):
        array = rng.integers(0, 300 + 40 * i, (1, 9 + i % 2, 11, 20)).astype(np.int16)
        yield Scan(array, scan=f"scan{i}", patient=f"patient{i}", modality="MR", spacing=(3.0, 0.5 + i % 2, 0.75))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished run of two steps in 2D, and one in 3D with nnU-Net's encoder, with their stores."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    options = {"steps": 2, "batch": 4, "monitor_every": 0, "accelerator": "cpu"}
    for name, scans, chosen in (
        ("images", images(), {"encoder": "resnet18", "size": 32}),
        (
            "volumes",
            volumes(),
            {"encoder": "resenc", "encoder_options": {"features": [4, 8], "blocks": [1, 2]}, "size": 8},
        ),
    ):
        store = write_store(folder / f"{name}-store", scans)
        made[name] = medssl.pretrain(store, folder / name, method="simclr", **chosen, **options), store
    return made


@pytest.mark.parametrize("kind", ["images", "volumes"])
def test_onnx_gives_the_features_of_the_encoder_from_stored_values(runs, kind, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    run, store = runs[kind]
    made = export(run, "onnx", tmp_path / "out")
    assert made["inputs"] == ["scan", "spacing"] + (["low", "high"] if kind == "volumes" else [])
    session = onnxruntime.InferenceSession(str(tmp_path / "out/encoder.onnx"))
    encoder, config = load_encoder(run)
    expected = embed(encoder, resampled_for_encoder(store, config.input), store.rows(), quiet=True)
    shape, spacing = store.column("shape"), store.column("spacing")
    for at in {(shape[i], spacing[i]): i for i in range(len(store))}.values():
        alike = [i for i in range(len(store)) if (shape[i], spacing[i]) == (shape[at], spacing[at])][:3]
        for rows in (alike, alike[:1]):
            feed = {"scan": np.stack([store[i] for i in rows]).astype(np.float32)}
            feed |= {k: store.column(k)[rows].astype(np.float32) for k in made["inputs"][2:]}
            if spacing[at] is not None:
                feed["spacing"] = np.array(spacing[at], np.float64)
            np.testing.assert_allclose(session.run(None, feed)[0], expected[rows], atol=1e-4)


@pytest.mark.parametrize(("spacing", "size"), [(None, (16, 16)), (0.25, (20, 24))])
def test_the_graph_prepares_scans_as_the_loader_does(tmp_path, spacing, size):
    """Without an encoder: the very pixels, at a fixed spacing too."""
    store = write_store(tmp_path / "store", [s for s in images() if s.spacing is not None])
    resampled = resample_scans(store, size, spacing)
    wanted = InputConfig(1, size, spacing, False, resampled.mean, resampled.std)
    graph = FromStoredValues(torch.nn.Identity(), wanted, (0.0, 255.0), (0, 255))
    for row in range(0, len(store), 3):
        voxel = torch.tensor(store.column("spacing")[row], dtype=torch.float64)
        got = graph(torch.from_numpy(store[row][None].astype(np.float32)), voxel)
        torch.testing.assert_close(got, standardised(resampled, np.array([row])), atol=1e-5, rtol=0)


def test_timm_loads_the_folder_by_the_line_that_is_printed(runs, tmp_path):
    run, _ = runs["images"]
    made = export(run, "timm", tmp_path / "out")
    model = eval(made["line"], {"timm": timm}).eval()
    encoder, config = load_encoder(run)
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model(x), encoder(x))
    assert timm.data.resolve_model_data_config(model)["mean"] == [config.mean]
    assert timm.data.resolve_model_data_config(model)["std"] == [config.std]


def test_nnunet_gets_the_encoder_and_plans_that_build_its_network(runs, tmp_path):
    """As nnU-Net does: the network is built from the plans alone, and every weight but the last layers is loaded."""
    pytest.importorskip("dynamic_network_architectures")
    import pydoc

    run, _ = runs["volumes"]
    made = export(run, "nnunet", tmp_path / "out")
    plans = json.loads((tmp_path / "out/medsslResEncPlans.json").read_text())
    plan = plans["configurations"]["3d_fullres"]
    assert plan["patch_size"] == [8, 8, 8]
    assert not made["exact"]
    assert plan["normalization_schemes"] == ["ZScoreNormalization"]
    arguments = dict(plan["architecture"]["arch_kwargs"])
    for key in plan["architecture"]["_kw_requires_import"]:
        arguments[key] = arguments[key] and pydoc.locate(arguments[key])
    build = pydoc.locate(plan["architecture"]["network_class_name"])
    network = build(input_channels=1, num_classes=5, deep_supervision=True, **arguments)
    weights = torch.load(tmp_path / "out/checkpoint.pth", weights_only=True)["network_weights"]
    own = network.state_dict()
    for key in own:
        assert ".seg_layers." in key or own[key].shape == weights[key].shape
    network.load_state_dict(own | {k: v for k, v in weights.items() if ".seg_layers." not in k})
    encoder, _ = load_encoder(run)
    x = torch.randn(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network.encoder(x)[-1], encoder.maps(x))


def test_nnunet_standardises_as_pretraining_did_where_all_scans_have_one_window(tmp_path):
    pytest.importorskip("dynamic_network_architectures")
    store = write_store(tmp_path / "store", images())
    options = {"encoder": "resenc", "encoder_options": {"features": [4, 8], "blocks": [1, 1]}, "size": 16}
    run = medssl.pretrain(store, tmp_path / "run", steps=1, batch=4, monitor_every=0, **options)
    assert export(run, "nnunet", tmp_path / "out")["exact"]
    plans = json.loads((tmp_path / "out/medsslResEncPlans.json").read_text())
    assert plans["configurations"]["2d"]["normalization_schemes"] == ["CTNormalization"]
    of = plans["foreground_intensity_properties_per_channel"]["0"]
    x = np.linspace(-20, 300, 50)
    theirs = (np.clip(x, of["percentile_00_5"], of["percentile_99_5"]) - of["mean"]) / of["std"]
    ours = (np.clip(x / 255, 0, 1) - store.mean) / store.std
    np.testing.assert_allclose(theirs, ours, atol=1e-6)


def test_the_card_says_what_the_run_learned_from_and_names_no_patient(runs, tmp_path):
    run, store = runs["images"]
    export(run, "timm", tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    n = len(store.rows("train"))
    assert f"- {n:,} scans of {n:,} patients\n" in card
    assert f"`{store.fingerprint}`" in card
    assert "The run has no scores" in card
    assert "other hospitals" in card
    names = {
        *store.column("patient"),
        *store.column("scan"),
        store.info["key_id"],
        str(tmp_path),
        str(run),
        str(store.path),
    }
    assert not [name for name in names if name in card]


def test_the_card_shows_the_scores_with_intervals_and_warnings(runs, tmp_path):
    run, _ = runs["images"]
    score = {"value": 0.9, "low": 0.8, "high": 0.95, "n": 7, "patients": 5, "how": "by hand"}
    table = {
        "command": "probe", "target": "lesion", "task": "classification", "n_train": 30, "patients_train": 20, "n_test": 7,
        "patients_test": 5, "test": "all patients of elsewhere", "asked": {}, "flags": ["few patients"],
        "overlap": ["pretraining"],
        "rows": [{"source": "run", "features": "simclr", "probe": "linear", "label_budget": "all", "scores": {"AUROC": score}}],
    }  # fmt: skip
    (run / "scores.json").write_text(json.dumps({"tables": [table]}))
    export(run, "timm", tmp_path / "out")
    (run / "scores.json").unlink()
    card = (tmp_path / "out/README.md").read_text()
    assert "| simclr (!) | linear | all | 0.900 [0.800, 0.950] |" in card
    assert "- warning: few patients" in card
    assert "7 test scans of 5 patients (all patients of elsewhere)" in card
    assert "other hospitals" not in card


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(runs, tmp_path, monkeypatch):
    (images_run, _), (volumes_run, _) = runs["images"], runs["volumes"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for run, form, out, says in (
        (images_run, "onx", "a", "onnx"),
        (volumes_run, "timm", "a", "encoder=resnet18"),
        (images_run, "nnunet", "a", "encoder=resenc"),
        (images_run, "timm", "full", "not empty"),
    ):
        with pytest.raises(UserError, match=says):
            export(run, form, tmp_path / out)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"medssl\[onnx\]"):
        export(images_run, "onnx", tmp_path / "a")
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.building_blocks.residual_encoders", None)
    with pytest.raises(UserError, match=r"medssl\[nnunet\]"):
        ResEnc(1, (16, 16))
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_graph_with_other_features_is_not_written(runs, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    run, _ = runs["images"]
    monkeypatch.setattr("medssl.exporting.onnx_graph.TOLERANCE", 0.0)
    with pytest.raises(UserError, match="gives other features than the encoder"):
        export(run, "onnx", tmp_path / "a")
    assert not list(tmp_path.iterdir())
