"""From scans to scores through the public functions, on a small synthetic cohort and on real scans."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import medssl
import tiny
from conftest import ROOT
from medssl.errors import UserError
from medssl.scoring.targets import Subset, resolve_target
from medssl.synthetic.cohort import identifiers, write_cohort

PATIENTS, SEED = 60, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A cohort of DICOM files, its store, and a short run."""
    folder = tmp_path_factory.mktemp("made")
    cohort = write_cohort(folder / "cohort", patients=PATIENTS, size=48, seed=SEED)
    medssl.ingest(cohort / "scans", folder / "store", labels=cohort / "labels.csv", key=tiny.secret(folder / "key"))
    run = medssl.pretrain(
        folder / "store",
        folder / "run",
        encoder="cnn",
        encoder_options={"widths": [8, 16, 32]},
        size=24,
        steps=30,
        batch=32,
    )
    return folder, run


@pytest.fixture(scope="module")
def scored(made):
    folder, run = made
    medssl.embed(run, folder / "store")
    results = [medssl.probe(run, folder / "store", "lesion"), medssl.knn(run, folder / "store", "lesion")]
    medssl.report(run)
    return results


def test_every_number_has_an_interval_and_baselines(scored, made):
    frozen = ("simclr cnn", "raw pixels", "PCA", "k-means patch bank", "random init")
    linear, near = ({(r["features"], r["probe"]) for r in table["rows"]} for table in scored)
    assert linear == {(f, "linear") for f in frozen} | {
        ("supervised", "end to end"),
        ("supervised", "end to end, 3x steps"),
    }
    assert near == {(f, "kNN") for f in frozen}
    for table, row in [(t, row) for t in scored for row in t["rows"]]:
        assert set(row["scores"]) == {"AUROC", "AUPRC", "accuracy", "balanced accuracy", "ECE"}
        for s in [*row["scores"].values(), *([row["difference"]] if row["difference"] else [])]:
            assert s["low"] <= s["high"]
            assert s["patients"] == table["patients_test"] < s["n"] == table["n_test"]
        assert (row["difference"] is None) == (row["features"] == "simclr cnn")
    assert json.loads((made[1] / "scores.json").read_text())["tables"] == json.loads(json.dumps(scored))


def test_a_run_and_its_store_can_be_moved(scored, made, tmp_path):
    folder, run = made
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    settings = tmp_path / "run" / "resolved.yaml"
    settings.write_text(settings.read_text().replace(str(folder / "store"), str(tmp_path / "gone")))
    with pytest.raises(UserError, match=r"run is no longer at .*/gone; say where it is: store=STORE$"):
        medssl.report(tmp_path / "run")
    assert medssl.report(tmp_path / "run", store=folder / "store").stat().st_size > 10_000


def test_a_run_in_which_nothing_can_be_kept_is_refused_before_the_work(made, tmp_path, capsys):
    folder, run = made
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "predictions", ignore_errors=True)
    (tmp_path / "run" / "predictions").touch()  # not a folder, as root may write to any
    capsys.readouterr()
    for command in (medssl.probe, medssl.knn):
        with pytest.raises(
            UserError, match=r"^cannot write .*/predictions: Not a directory; .* copy it to a folder of your own$"
        ):
            command(tmp_path / "run", folder / "store", "lesion")
    assert "baseline" not in capsys.readouterr().err
    with pytest.raises(UserError, match=r"^cannot write .*/predictions: Not a directory"):
        medssl.embed(run, folder / "store", out=tmp_path / "run" / "predictions" / "e.parquet")


def test_a_second_probe_gives_the_same_table_in_its_place(scored, made):
    folder, run = made
    again = medssl.probe(run, folder / "store", "lesion")
    assert json.dumps(again) == json.dumps(scored[0])
    assert len(json.loads((run / "scores.json").read_text())["tables"]) == 2
    shutil.rmtree(run / "cache")  # what was kept changes nothing
    shutil.rmtree(folder / "store" / "cache")
    assert json.dumps(medssl.knn(run, folder / "store", "lesion")) == json.dumps(scored[1])


def test_no_planted_identifier_is_in_any_file(scored, made):
    """Names, dates, ids and institutions of the headers, in the bytes of store, run and report."""
    folder, run = made
    secrets = [s.encode() for s in identifiers(PATIENTS, SEED) if len(s) > 3]
    assert len(secrets) > PATIENTS
    files = [p for top in (folder / "store", run) for p in top.rglob("*") if p.is_file()]
    assert run / "report.html" in files

    def content(path):
        """Tables are compressed, so they are written out; packs are compressed pixels."""
        return str(pq.read_table(path).to_pydict()).encode() if path.suffix == ".parquet" else path.read_bytes()

    texts = {p: content(p) for p in files}
    assert b"train" in texts[folder / "store" / "manifest.parquet"]
    leaks = {(p.name, s) for p, text in texts.items() for s in secrets if s in text}
    assert leaks == set()


def test_the_report_is_one_closed_file(scored, made):
    page = (made[1] / "report.html").read_text()
    assert "lesion" in page
    assert "http://" not in page
    assert len(page) < 4_000_000


def test_a_run_folder_holds_what_is_promised(scored, made):
    folder, run = made
    for name in ("config.yaml", "resolved.yaml", "env.json", "metrics.jsonl", "encoder.safetensors", "encoder.json"):
        assert (run / name).is_file(), name
    table = pq.read_table(run / "embeddings.parquet")
    store = medssl.Store.open(folder / "store")
    assert table["scan"].to_pylist() == store.column("scan").tolist()
    assert len(table["embedding"][0]) == 32
    seen = set(pq.read_table(run / "pretrained_on.parquet")["patient"].to_pylist())
    assert seen == set(store.column("patient")[store.rows("train")])


def test_the_monitor_looked_and_said_its_interval(made):
    rows = [json.loads(line) for line in (made[1] / "metrics.jsonl").read_text().splitlines()]
    looked = [r for r in rows if "rankme" in r]
    assert len(looked) == 10
    assert all(r["knn_auroc_low"] <= r["knn_auroc_high"] for r in looked if "knn_auroc_low" in r)


def test_a_test_that_shares_patients_is_refused(made):
    folder, run = made
    with pytest.raises(UserError, match="pretraining includes"):
        medssl.probe(run, folder / "store", "lesion", test_store=folder / "store", baselines=[])
    with pytest.raises(UserError, match="in training and in test"):
        medssl.probe(run, folder / "store", "lesion", test_store=folder / "store", baselines=[], allow_overlap=True)


def test_images_that_pretraining_has_seen_are_refused_or_marked(made, tmp_path):
    """The same files under another key: other pseudonyms, another split, the same pixels."""
    folder, run = made
    cohort = folder / "cohort"
    medssl.ingest(
        cohort / "scans", tmp_path / "again", labels=cohort / "labels.csv", key=tiny.secret(tmp_path / "other key", "1")
    )
    with pytest.raises(UserError, match=r"test images \(0 near-duplicates\): scores would be too high"):
        medssl.probe(run, tmp_path / "again", "lesion", baselines=[])
    result = medssl.probe(run, tmp_path / "again", "lesion", baselines=[], allow_overlap=True)
    assert any("pretraining includes" in flag for flag in result["flags"])


def test_another_hospital_is_tested_on_all_its_patients(made, tmp_path):
    folder, run = made
    other = write_cohort(tmp_path / "other", patients=20, size=48, seed=99)
    medssl.ingest(other / "scans", tmp_path / "there", labels=other / "labels.csv", key=tiny.secret(folder / "key"))
    result = medssl.probe(
        run, folder / "store", "lesion", positive=["YES"], test_store=tmp_path / "there", baselines=[]
    )
    assert result["patients_test"] == 20
    assert result["classes"] == ["not YES", "YES"]  # the second is the one that is scored


def test_the_positive_class_is_the_one_named(made):
    """AUPRC is for the second class, whatever the alphabetical order."""
    folder, run = made
    store = medssl.Store.open(folder / "store")
    rows, truth = store.rows("test"), store.column("label:lesion")[store.rows("test")]
    for value in ("yes", "no"):
        result = medssl.probe(run, store, "lesion", positive=value, baselines=[])
        assert result["classes"] == [f"not {value}", value]
        asked = Subset.of(resolve_target(store, store.rows("train"), "lesion", positive=value), store, rows)
        assert ((asked.y == 1) == (truth == value)).all()
    with pytest.raises(UserError, match="no training scan has lesion=maybe"):
        medssl.probe(run, store, "lesion", positive="maybe", baselines=[])


def test_baselines_do_not_depend_on_which_run_was_probed_first(made, tmp_path):
    """A run from another hospital standardises by that hospital: its baselines are its own, cached or not."""
    folder, run = made
    other = write_cohort(tmp_path / "other", patients=30, size=48, seed=5)
    medssl.ingest(other / "scans", tmp_path / "there", labels=other / "labels.csv", key=tiny.secret(folder / "key"))
    settings = {"encoder": "cnn", "encoder_options": {"widths": [8, 16, 32]}, "size": 24, "steps": 30, "batch": 32}
    foreign = medssl.pretrain(tmp_path / "there", tmp_path / "foreign", monitor_every=0, **settings)
    first = medssl.probe(foreign, folder / "store", "lesion", baselines=["random init", "supervised"])
    shutil.rmtree(folder / "store" / "cache")
    medssl.probe(run, folder / "store", "lesion", baselines=["random init", "supervised"])
    assert medssl.probe(foreign, folder / "store", "lesion", baselines=["random init", "supervised"]) == first


def test_a_run_folder_names_no_code(made):
    """Code for a run folder is found in the catalog by name: a foreign folder cannot choose the code that runs."""
    assert "_target_" not in (made[1] / "resolved.yaml").read_text()
    assert "medssl." not in (made[1] / "encoder.json").read_text()


def test_collapse_is_said_in_words(tmp_path, capsys):
    """Scans that all look the same, as under a wrong intensity window: nothing can be learnt, and this is reported."""
    (tmp_path / "scans").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (16, 16)).astype(np.uint8)
    for i in range(60):
        Image.fromarray(picture).save(tmp_path / "scans" / f"{i}.png")
    medssl.ingest(tmp_path / "scans", tmp_path / "store", key=tiny.secret(tmp_path / "key"))
    medssl.pretrain(
        tmp_path / "store", tmp_path / "run", encoder="mlp", encoder_options={"widths": [16]}, augment="plain", steps=50,
        batch=32, log_every=1,
    )  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "collapsed" in rows[4]["warning"]
    assert rows[-1]["loss"] == pytest.approx(np.log(63), abs=1e-3)
    assert "collapsed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["simclr", "mae"])
def test_volumes_by_changing_the_store_alone(shared, tmp_path, name):
    source = tmp_path / "volumes"
    source.mkdir()
    for path in sorted((shared / "hippocampus" / "images").glob("*.nii.gz"))[:40]:
        shutil.copy(path, source)
    store = medssl.ingest(source, tmp_path / "store", intensity="mr", key=tiny.secret(tmp_path / "key"))
    assert store.dims == 3
    encoder = {"simclr": "cnn", "mae": "vit"}[name]
    small = {"cnn": {"widths": [8, 16]}, "vit": {"dim": 24, "depth": 1, "heads": 2}}[encoder]
    run = medssl.pretrain(
        store.path,
        tmp_path / "run",
        method=name,
        encoder=encoder,
        encoder_options=small,
        size=16,
        steps=6,
        batch=8,
        log_every=1,
    )
    encoder, config = medssl.load_encoder(run)
    assert config.size == (16, 16, 16)
    assert encoder(torch.zeros(2, 1, 16, 16, 16)).shape == (2, encoder.dim)


def test_timm_loads_the_exported_encoder(made, tmp_path):
    folder, _ = made
    run = medssl.pretrain(
        medssl.Store.open(folder / "store"),
        tmp_path / "r",
        encoder="resnet18",
        size=32,
        steps=1,
        batch=4,
        monitor_every=0,
    )
    ours, _ = medssl.load_encoder(run)
    theirs = timm.create_model(
        "resnet18", in_chans=1, num_classes=0, checkpoint_path=str(run / "encoder.safetensors")
    ).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(ours(x), theirs(x))


def test_it_learns_on_real_scans(shared, tmp_path):
    """SimCLR beats its own encoder untrained by more than the paired interval, on 624 test scans it has never seen."""
    store = medssl.ingest(
        shared / "medmnist" / "pneumoniamnist_rebuilt.npz", tmp_path / "store", key=tiny.secret(tmp_path / "key")
    )
    torch.set_num_threads(2)
    run = medssl.pretrain(
        store.path,
        tmp_path / "run",
        encoder="cnn",
        encoder_options={"widths": [8, 16, 32, 64]},
        steps=200,
        batch=128,
        monitor_every=0,
    )
    result = medssl.probe(run, store.path, "label", baselines=["random init", "k-means patch bank"])
    rows = {(r["features"], r["probe"]): r for r in result["rows"]}
    assert rows["random init", "linear"]["difference"]["high"] < 0
    assert rows["k-means patch bank", "linear"]["scores"]["AUROC"]["value"] >= 0.965


def test_two_processes_train_by_the_documented_command(made, tmp_path):
    """devices=2 on the CPU: the loop, the sampler, the monitor and the hand-over, through the real launcher."""
    folder, _ = made
    words = ["encoder=mlp", "encoder.widths=[16]", "size=16", "steps=4", "batch=16", "monitor_every=2", "log_every=1"]
    for strategy in ("ddp", "fsdp"):
        args = [f"store={folder / 'store'}", f"out={tmp_path / strategy}", *words, "accelerator=cpu"]
        done = subprocess.run(
            [sys.executable, "-m", "medssl.cli", "pretrain", *args, "devices=2", f"strategy={strategy}"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    medssl.pretrain(
        folder / "store", tmp_path / "one", encoder="mlp", encoder_options={"widths": [16]}, size=16, steps=4, batch=16,
        accelerator="cpu", monitor_every=2, log_every=1,
    )  # fmt: skip
    alone, *others = (tmp_path / name for name in ("one", "ddp", "fsdp"))
    rows, encoder = rows_of(alone), load_file(alone / "encoder.safetensors")
    for run in others:
        for key in ("loss", "rankme"):
            mine, expected = ([row[key] for row in of if key in row] for of in (rows_of(run), rows))
            assert expected
            np.testing.assert_allclose(mine, expected, rtol=1e-3)
        for name, weights in load_file(run / "encoder.safetensors").items():
            torch.testing.assert_close(weights, encoder[name], rtol=1e-3, atol=1e-4)


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
