"""Fine-tuning on budgets of labels, through the public function, on real chest X-rays and on drawn scans of every task."""

import json
import multiprocessing as mp
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

import discs
import medssl
import tiny
from medssl.commands.score.finetune import finetune
from medssl.encoders.timm2d import TimmEncoder, weights_available
from medssl.errors import UserError
from medssl.evals.embed import embed
from medssl.evals.stats.intervals import NO_SPREAD
from medssl.runs.predictions import predictions_of
from medssl.store.resampled import ResampledScans, resample_scans

QUICK = {"steps": 12, "batch": 32, "augment": "plain", "draws": 2}
SIZES = {"train": 160, "val": 16, "test": 80}


def pretrain(store, out, steps=20, encoder="cnn", **options):
    return medssl.pretrain(
        store, out, encoder=encoder, encoder_options=options, size=28, steps=steps, batch=64, monitor_every=0
    )


@pytest.fixture(scope="module")
def made(shared, tmp_path_factory):
    """Real chest X-rays, fewer of them: a store, and a short run."""
    folder = tmp_path_factory.mktemp("pneumonia")
    with np.load(shared / "medmnist" / "pneumoniamnist_rebuilt.npz", allow_pickle=False) as whole:
        few = {}
        for split, n in SIZES.items():
            at = np.linspace(0, len(whole[f"{split}_labels"]) - 1, n).astype(int)  # they are in order of their class
            few |= {f"{split}_{what}": whole[f"{split}_{what}"][at] for what in ("images", "labels")}
    (folder / "source").mkdir()
    np.savez(folder / "source" / "pneumonia.npz", **few)
    store = medssl.ingest(folder / "source", folder / "store", key=tiny.secret(folder / "key"))
    return store, pretrain(store, folder / "run", widths=[8, 16, 16])


@pytest.fixture(scope="module")
def tuned(made):
    store, run = made
    before = {p: p.read_bytes() for p in run.iterdir() if p.is_file()}
    result = finetune(run, store, "label", label_budgets=["20 %", "all"], **QUICK)
    changed = [p.name for p, bytes_ in before.items() if p.read_bytes() != bytes_]
    assert changed == []  # the run itself stays as it was
    return result


def test_every_row_stands_at_every_budget_with_intervals_and_its_difference(tuned, made):
    rows = {(r["features"], r["probe"], r["label_budget"]): r for r in tuned["rows"]}
    lines = [
        ("simclr cnn", "fine-tuned"),
        ("random init", "end to end"),
        ("random init", "end to end, 3x steps"),
        ("simclr cnn, frozen", "linear"),
        ("random init, frozen", "linear"),
    ]
    assert set(rows) == {(*line, budget) for line in lines for budget in ("20 %", "all")}
    assert any("ImageNet" in flag for flag in tuned["flags"])  # a cnn has no such weights, and the table says so
    for (features, *_), row in rows.items():
        assert row["draws"] == 2
        for s in [*row["scores"].values(), *([row["difference"]] if row["difference"] else [])]:
            assert s["low"] <= s["high"]
            assert s["n"] == SIZES["test"]
            assert "over 2 draws of labels and 80 patients" in s["how"]
        assert (row["difference"] is None) == (features == "simclr cnn")
    (kept,) = (p for p in predictions_of(made[1]) if p.about["command"] == "finetune")
    p = {(e.source, e.label_budget): e.p for e in kept.rows if "3x" not in e.probe}
    for baseline in ("random init", "simclr cnn, frozen", "random init, frozen"):
        for budget in ("20 %", "all"):
            source = baseline.replace("simclr cnn", "run")
            each = zip(p[source, budget], p["run", budget], strict=True)
            want = np.mean([roc_auc_score(kept.y, a[:, 1]) - roc_auc_score(kept.y, b[:, 1]) for a, b in each])
            row = next(r for k, r in rows.items() if k[0] == baseline and k[2] == budget and "3x" not in k[1])
            assert row["difference"]["value"] == pytest.approx(want)
    assert json.loads((made[1] / "scores.json").read_text())["tables"][-1] == json.loads(json.dumps(tuned))


def test_all_fits_have_the_same_budget_and_their_own_seeds(tuned, made):
    """Fits have the same steps, or three times as many, none the same scans in the same order from the same weights."""
    fits = sorted((made[1] / "finetune").glob("*/*/"))
    assert len(fits) == 2 * 2 * 3
    logged = {f.name: [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in fits}
    assert {(rows[-1]["step"], "3x" in name) for name, rows in logged.items()} == {(12, False), (36, True)}
    rates = {tuple((r["step"], r["lr"]) for r in rows) for rows in logged.values()}
    assert len(rates) == 3  # of the head from the probe, from scratch, and for longer
    assert len({rows[-1]["loss"] for rows in logged.values()}) == len(fits)
    assert not [f for f in fits if (f / "checkpoints").exists()]


def test_labels_are_learnt(tuned):
    best = next(r for r in tuned["rows"] if r["probe"] == "fine-tuned" and r["label_budget"] == "all")
    assert best["scores"]["AUROC"]["value"] > 0.75


def test_the_largest_budget_is_exported_with_its_head(tuned, made):
    """Encoder and head, put together by hand from the files, give the predictions of the first draw."""
    store, run = made
    folder = run / tuned["encoder"]
    assert [p.parent for p in (run / "finetune").rglob("encoder.json")] == [folder]
    encoder, config = medssl.load_encoder(folder)
    head = load_file(folder / "head.safetensors")
    assert config.head == {"target": "label", "task": "classification", "classes": tuned["classes"]}
    grid = resample_scans(store, 28)
    resampled = ResampledScans(grid.array, grid.low, grid.high, config.mean, config.std, grid.size)
    x = torch.from_numpy(embed(encoder, resampled, store.rows("test"), quiet=True)).double()
    p = (x @ head["weight"].double().T + head["bias"].double()).softmax(1)
    (kept,) = (p for p in predictions_of(run) if p.about["command"] == "finetune")
    want = next(e.p[0] for e in kept.rows if e.key == ("run", "fine-tuned", "all"))
    # the network adds the same products up in float32
    rounding = np.finfo(np.float32).eps * float((x.abs() @ head["weight"].double().abs().T).max())
    assert rounding < 1e-5
    np.testing.assert_allclose(p.numpy(), want, atol=rounding)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "encoder.safetensors")


@pytest.mark.parametrize("blocks", [0, 1])
def test_frozen_blocks_are_exported_unchanged(made, tmp_path, blocks):
    store, run = made
    run = shutil.copytree(run, tmp_path / "run")
    result = finetune(run, store, "label", label_budgets=[60], blocks=blocks, baselines=[], **QUICK)
    before, after = weights(run), weights(run / result["encoder"])
    for name, value in before.items():
        statistic = "running" in name or "tracked" in name
        trained = int(name.split(".")[1]) >= 3 - blocks and not statistic
        assert torch.equal(value, after[name]) != trained, name


def test_lower_blocks_move_less(made, tmp_path):
    """AdamW moves every weight by about the rate, so three blocks are 1, 100 and 10 000 steps apart."""
    store, run = made
    run = shutil.copytree(run, tmp_path / "run")
    result = finetune(
        run, store, "label", label_budgets=["50 %", 60], layer_decay=0.01, baselines=[], **QUICK | {"draws": 1}
    )
    before, after = weights(run), weights(run / result["encoder"])
    moved = [(after[f"layers.{i}.0.weight"] - before[f"layers.{i}.0.weight"]).abs().mean() for i in range(3)]
    assert moved[0] < moved[1] / 20 < moved[2] / 400
    assert moved[2] > 0


SMALL = {"steps": 24, "batch": 16, "draws": 1, "baselines": ["scratch", "scratch 3x"], "save_every": 2}


def in_a_child(run, store):
    torch.set_num_threads(1)
    finetune(run, store, "label", label_budgets=[60], **QUICK | SMALL)


def bits(run):
    return {p.parent.name: p.read_bytes() for p in (run / "finetune").rglob("test.npy")}


@pytest.fixture(scope="module")
def whole(made, tmp_path_factory):
    """A run that was fine-tuned without a stop."""
    store, run = made
    copy = shutil.copytree(run, tmp_path_factory.mktemp("whole") / "run", ignore=shutil.ignore_patterns("finetune"))
    in_a_child(copy, store)
    return copy


@pytest.mark.parametrize(("row", "done", "steps"), [("run", 0, 24), ("end-to-end", 1, 24), ("3x", 2, 72)])
def test_killed_and_run_again_it_ends_with_the_same_bits(made, whole, tmp_path, row, done, steps):
    """SIGKILL in the middle of each row's fit: those before it are not done again, and it goes on where it was."""
    store, run = made
    killed = shutil.copytree(run, tmp_path / "killed", ignore=shutil.ignore_patterns("finetune"))
    child = mp.get_context("fork").Process(target=in_a_child, args=(killed, store))
    child.start()
    while child.is_alive() and not [p for p in (killed / "finetune").rglob("last.ckpt") if row in p.parts[-3]]:
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    finished = {p: p.stat().st_mtime_ns for p in (killed / "finetune").rglob("test.npy")}
    assert len(finished) == done
    (half,) = (killed / "finetune").rglob("last.ckpt")
    assert 0 < torch.load(half, weights_only=True)["step"] < steps
    in_a_child(killed, store)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert len(bits(whole)) == 3
    assert bits(killed) == bits(whole)
    same = [(c / "scores.json").read_text() for c in (whole, killed)]
    assert same[0] == same[1]
    logs = [{p.parent.name: p.read_text() for p in (c / "finetune").rglob("metrics.jsonl")} for c in (whole, killed)]
    assert logs[0] == logs[1]


def test_a_wider_question_does_not_do_again_what_is_done(tuned, made, tmp_path):
    store, run = made
    copy = shutil.copytree(run, tmp_path / "run")
    times = {p.parent.name: p.stat().st_mtime_ns for p in (copy / "finetune").rglob("test.npy")}
    more = finetune(copy, store, "label", label_budgets=["20 %", 90], baselines=["scratch"], **QUICK)
    now = {p.parent.name: p.stat().st_mtime_ns for p in (copy / "finetune").rglob("test.npy")}
    assert {k: now[k] for k in times} == times
    assert len(now) == len(times) + 4
    assert "90-scans" in more["encoder"]


def test_imagenet_is_a_row_where_its_weights_are(made, tmp_path, monkeypatch):
    """A cache as the hub's client leaves it, with weights of timm's smallest ResNet in it."""
    store, _ = made
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    run = pretrain(store, tmp_path / "run", steps=2, encoder="test_resnet")
    asked = {"label_budgets": [60], "baselines": ["ImageNet"], "steps": 2, "batch": 32, "draws": 1, "augment": "plain"}
    assert not weights_available("test_resnet")
    without = finetune(run, store, "label", **asked)
    assert [r["features"] for r in without["rows"]] == ["simclr test_resnet"]
    assert "no row for ImageNet: its weights of test_resnet are not on this machine" in without["flags"]
    repo = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repo / "snapshots" / ("0" * 40)).mkdir(parents=True), (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    import timm

    theirs = timm.create_model("test_resnet", pretrained=False)
    with torch.no_grad():
        theirs.conv1[0].weight.fill_(0.25)
    save_file(theirs.state_dict(), repo / "snapshots" / ("0" * 40) / "model.safetensors")
    assert weights_available("test_resnet")
    assert (
        TimmEncoder(1, (28, 28), "test_resnet", pretrained=True).net.conv1[0].weight == 0.75
    ).all()  # three channels
    with_it = finetune(run, store, "label", **asked)
    assert [(r["features"], r["probe"]) for r in with_it["rows"]][1:] == [("ImageNet", "fine-tuned")]
    assert with_it["rows"][1]["difference"] is not None


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    store = discs.ingest(folder)
    return store, discs.pretrain(store, folder / "run")


@pytest.mark.parametrize(
    ("task", "target", "metric"),
    [
        ("multilabel", ["bright", "large"], "macro AUROC"),
        ("ordinal", "level", "quadratic kappa"),
        ("regression", "width", "MAE"),
        ("survival", ["days", "died"], "concordance"),
    ],
)
def test_every_kind_of_task_is_learnt(drawn, task, target, metric):
    store, run = drawn
    result = finetune(
        run, store, target, task=task, label_budgets=["all"], draws=1, steps=60, batch=30, lr=1e-2, augment="plain", baselines=[]
    )  # fmt: skip
    score = result["rows"][0]["scores"][metric]
    if score["low"] is None:
        assert NO_SPREAD in score["how"]
    else:
        assert score["low"] <= score["value"] <= score["high"]
    if task == "regression":
        assert score["value"] < 1.8  # levels are 4.5 apart
        head = medssl.load_encoder(run / result["encoder"])[1].head
        train = store.column("label:width")[store.rows("train")].astype(float)
        assert (head["mean"], head["std"]) == (pytest.approx(train.mean()), pytest.approx(train.std()))
    else:
        assert score["value"] > 0.8


def test_what_cannot_be_is_one_line(made, drawn, tmp_path):
    store, run = made
    for wrong, says in [
        ({"label_budgets": [10_000]}, "lower it"),
        ({"label_budgets": [1]}, "cannot contain all of"),
        ({"batch": 1}, "batch at least 2"),
        ({"baselines": ["scatch"]}, "scratch"),
        ({"blocks": 9}, "give 0 to 3"),
        ({"layer_decay": 2.0}, "layer_decay"),
        ({"augment": "xry"}, "xray"),
        ({"head": "prob"}, "Did you mean 'probe'"),
        ({"lr": 0.0}, "^lr must be positive"),
        ({"scratch_lr": 0.0}, "scratch_lr must be positive"),
    ]:
        with pytest.raises(UserError, match=says) as e:
            finetune(run, store, "label", **QUICK | wrong)
        assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="has no label 'lable'"):
        finetune(run, store, "lable", **QUICK)
    bank = medssl.pretrain(store, tmp_path / "bank", method="kmeans_bank", size=28, steps=4, batch=64)
    with pytest.raises(UserError, match="has no trainable weights"):
        finetune(bank, store, "label", **QUICK)
    colour = tmp_path / "colour"
    colour.mkdir()
    for i in range(30):
        picture = np.random.default_rng(i).integers(0, 255, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(picture).save(colour / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(f"{i}.png,{i % 2}" for i in range(30)))
    other = medssl.ingest(colour, tmp_path / "other", labels=tmp_path / "labels.csv", key=tiny.secret(tmp_path / "key"))
    with pytest.raises(UserError, match="takes 1-channel scans in 2D"):
        finetune(run, other, "label", **QUICK)
