"""Each collapse is named by its cause, kept with the batch that was trained on, and acted upon; health is left in peace."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import medssl
import tiny
from medssl import catalog
from medssl.augmentations.loader import RawScans, make_views
from medssl.augmentations.recipes import SmallViews
from medssl.errors import UserError
from medssl.evals.embed import embed_views, evaluating
from medssl.evals.label_free.collapse import LIMITS, diagnose, evidence
from medssl.methods.contrastive.simclr import SimCLR
from medssl.pretraining.collapse_monitor import CollapseMonitor, dead_relus
from medssl.pretraining.replay_batch import replay_batch
from medssl.rng import Key
from medssl.runs.alarms import alarms_of, write_alarm
from medssl.store.resampled import resample_scans
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions
from medssl.train.stop import TrainingStopped

HEALTHY = {
    "finite": 1.0, "length": 2.0, "dead": 0.0, "spread": 0.3, "rankme": 12.0, "rankme_of": 32.0, "common": 0.5,
    "projected_spread": 0.6, "scan_contrast": 0.1, "view_contrast": 0.5, "teacher_gap": 0.04, "teacher_moved": 1.0,
    "growth": 1.1, "dead_relu": 0.1, "grad_norm": 0.5, "chance": math.log(63),
}  # fmt: skip
SETTINGS = {"encoder": "cnn", "encoder_options": {"widths": [8, 16]}, "size": 16, "batch": 32, "log_every": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Bright discs in noise, of two sizes: enough for a small network to learn something in a few steps."""
    folder = tmp_path_factory.mktemp("alarm")
    drawn = tiny.resampled(n=200).array[:, 0]
    label = (np.arange(200) % 2)[:, None]
    parts = {"train": slice(0, 120), "val": slice(120, 160), "test": slice(160, 200)}
    arrays = {f"{k}_images": drawn[s] for k, s in parts.items()} | {f"{k}_labels": label[s] for k, s in parts.items()}
    np.savez(folder / "discs.npz", **arrays)
    return medssl.ingest(folder / "discs.npz", folder / "store", key=tiny.secret(folder / "key"))


@pytest.mark.parametrize(
    ("found", "cause", "words"),
    [
        ({"scan_contrast": 0.001}, "window", "all scans look the same"),
        ({"view_contrast": 0.0}, "same views", "are the same image"),
        ({"finite": 0.5}, "not finite", "50.0% of the features are not finite"),
        ({"growth": 1e5}, "explosion", "100,000 times as long"),
        ({"teacher_gap": 0.0}, "teacher copies", "equals the student"),
        ({"teacher_moved": 0.0}, "teacher stuck", "has not moved since the start"),
        ({"dead_relu": 1.0}, "dead units", "100% of the channels after layers.2 are 0"),
        ({"dead": 0.95}, "dead units", "95% of the encoder's outputs"),
        ({"spread": 1e-4}, "constant", "almost the same for every scan"),
        ({"projected_spread": 1e-4}, "constant", "projected features"),
        ({"rankme": 1.2}, "few directions", "about 1.2 of 32 directions"),
        ({"grad_norm": 1e-8}, "no gradient", "the gradient has vanished"),
    ],
    ids=str,
)
def test_a_cause_is_named_and_nothing_else_is(found, cause, words):
    assert diagnose(HEALTHY) == []
    (alarm,) = diagnose(HEALTHY | found, layer="layers.2")
    assert alarm.cause == cause
    assert words in alarm.words


def test_causes_come_before_what_they_cause():
    """A wrong window makes features constant, which stops the gradient, which keeps the loss at chance."""
    seen = HEALTHY | {"scan_contrast": 0.0, "spread": 0.0, "rankme": 0.0, "grad_norm": 0.0}
    found = [alarm.cause for alarm in diagnose(seen, [math.log(63)] * 40)]
    assert found == ["window", "constant", "no gradient", "chance"]


def test_an_encoder_that_was_made_flat_has_not_collapsed():
    """A stack of sigmoids starts so; the same spread in an encoder that began even, or half of it, is a collapse."""
    flat = HEALTHY | {"spread": 0.006, "rankme": 1.5}
    assert diagnose(flat | {"spread_untrained": 0.007}) == []
    for start in (0.013, 0.5):
        assert [a.cause for a in diagnose(flat | {"spread_untrained": start})] == ["constant"]


def test_views_are_unrelated_only_where_nothing_is_learnt():
    """Untrained encoders see no relation between two views either; training is what finds it."""
    unrelated = HEALTHY | {"common": 1.05}
    assert diagnose(unrelated, [3.0] * 40) == []
    chance = math.log(63)
    assert [a.cause for a in diagnose(unrelated, [chance] * 40)] == ["unrelated views", "chance"]
    assert [a.cause for a in diagnose(unrelated, [5.0, *[chance] * 20])] == ["unrelated views"]
    assert diagnose(unrelated, [chance] * 19) == []
    assert diagnose(HEALTHY, [chance] * 39) == []


def test_a_loss_flat_at_chance_is_named_with_its_value():
    chance = math.log(256)
    flat = [8.0] * 5 + [chance + 0.05 * (-1) ** i for i in range(40)]

    def said(losses, chance):
        return [a.words for a in diagnose(HEALTHY | {"chance": chance}, losses)]

    (words,) = said(flat, chance)
    assert words.startswith("loss has stayed at ln 256 = 5.545 (chance) for the last 40 logged steps")
    assert said(flat[:39], chance) == []  # too early to say
    assert said([*flat[:-1], 5.0], chance) == []  # it moves
    assert "0.300 (chance)" in said([0.3] * 40, 0.3)[0]
    assert said([0.0] * 40, 0.0) == []
    assert said([float("nan")] * 40, chance) == []


def test_evidence_of_features_made_by_hand():
    r = np.random.default_rng(0)
    x = r.normal(size=(50, 10)) * np.r_[np.ones(7), np.zeros(3)] + 2
    views = np.stack([x, x + 0.1 * r.normal(size=x.shape)], 1)
    got = evidence(views, projected=np.ones((50, 4)))
    assert got["finite"] == 1
    assert got["dead"] == pytest.approx(0.3)  # three outputs that are 2 for every scan
    assert got["length"] == pytest.approx(np.median(np.linalg.norm(x, axis=1)))
    assert got["rankme"] == pytest.approx(7, abs=0.3)
    assert got["projected_spread"] == 0
    views[0, 0, 0] = np.nan
    assert evidence(views) == {"finite": 1 - 1 / 1000}


def test_dead_relus_are_counted_by_name():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU())
    with torch.no_grad():
        for conv in (net[0], net[2]):  # nothing is left to chance: what is not switched off is on
            conv.weight.fill_(0.1)
            conv.bias.fill_(1.0)
        net[2].bias[:6] = -1e4
    with dead_relus(net) as dead:
        net(torch.rand(3, 1, 9, 9))
        net(torch.rand(3, 1, 9, 9))
    assert dead["3"] == 0.75
    assert dead["1"] == 0
    before = dict(dead)
    net(torch.rand(3, 1, 9, 9))  # nothing is left on the module
    assert dead == before


def test_looking_as_training_does_uses_the_batch_and_leaves_no_trace():
    resampled, rows = tiny.resampled(), np.arange(20)
    encoder = tiny.method("simclr").encoder.train()
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
    before = copy.deepcopy(encoder.state_dict())
    z = embed_views(encoder, resampled, rows, recipe, 2, 5, quiet=True, as_training=True)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert all(m.training for m in encoder.modules())
    from medssl.evals.embed import views_of

    twin = copy.deepcopy(encoder)
    for view, x in enumerate(views_of(resampled, rows, recipe, 2, 5)):
        torch.testing.assert_close(torch.from_numpy(z[:, view]), twin(x).detach())
    late = embed_views(encoder, resampled, rows, recipe, 2, 5, quiet=True)
    assert np.abs(late - z).max() > 0.1 * np.abs(z).max()  # the running statistics are still those of no data
    with evaluating(encoder):
        assert not any(m.training for m in encoder.modules())


@pytest.mark.parametrize("method", ["simclr", "mae"])
def test_health_is_left_in_peace(store, tmp_path, method):
    small = {} if method == "simclr" else {"encoder": "vit", "encoder_options": tiny.SMALL["vit"]}
    run = medssl.pretrain(store, tmp_path / "run", method=method, steps=60, monitor_every=20, **(SETTINGS | small))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert not any("warning" in row for row in rows)
    assert not (run / "alarm.json").exists()
    assert sum("rankme" in row for row in rows) == 3


def test_looking_changes_nothing_that_is_learnt(store, tmp_path):
    runs = [
        medssl.pretrain(store, tmp_path / str(n), steps=8, monitor_every=n, on_collapse=do, **SETTINGS)
        for n, do in ((0, "warn"), (2, "rollback"))
    ]
    weights = [(run / "encoder.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_a_teacher_that_never_moves_is_named_and_its_batch_can_be_made_again(store, tmp_path, capsys):
    run = medssl.pretrain(
        store, tmp_path / "run", method="byol", method_options={"momentum": 1.0}, steps=6, monitor_every=3, accumulate=2,
        augment="neutral", **SETTINGS,
    )  # fmt: skip
    (alarm,) = alarms_of(run)  # the same cause again is no second alarm
    assert (alarm["cause"], alarm["step"]) == ("teacher stuck", 3)
    assert "step 3: the teacher has not moved" in capsys.readouterr().err
    scan = store.column("scan")
    for one in alarm["batch"]["passes"]:
        assert one["scan"] == scan[one["row"]].tolist()

    seen = []

    class Recorder(SimCLR):
        def forward(self, batch, clock):
            seen.append((clock.step, [v.clone() for v in batch["views"]], batch["key"]))
            return super().forward(batch, clock)

    resampled = resample_scans(store, 16)
    recorder = Recorder(tiny.method("simclr").encoder, 8, 8, 0.1)
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
    train(
        Fabric(accelerator="cpu"), recorder, TrainingData(resampled, store.rows("train"), recipe),
        TrainOptions(6, 32, 0, Optim(), accumulate=2), tmp_path / "c", Log(tmp_path, "jsonl", {}),
    )  # fmt: skip
    of_step = [(views, key) for step, views, key in seen if step == alarm["batch"]["step"] == 2]
    again = replay_batch(run, store)
    assert len(again) == len(of_step) == 2
    for (views, key), (wanted, wanted_key) in zip(again, of_step, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(views, wanted, strict=True))
        assert isinstance(key, Key)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(key, wanted_key, strict=True))
    with pytest.raises(UserError, match="has no alarm 1"):
        replay_batch(run, store, 1)
    with pytest.raises(UserError, match="not the store of that run"):
        replay_batch(run, medssl.Store.open(store.path, "split != 'test'"))


def test_small_views_are_made_again_too_and_an_augmentation_without_crops_is_refused(store, tmp_path):
    small = {"count": 2, "size": 0.5, "scale": [0.1, 0.3]}
    options = {"method": "dino", "method_options": {"prototypes": 8, "hidden": 16, "small": small}}
    with pytest.raises(UserError, match="small views are crops, and this augmentation has none"):
        medssl.pretrain(store, tmp_path / "run", steps=6, augment="plain", **options, **SETTINGS)
    assert not (tmp_path / "run").exists()
    with pytest.raises(TrainingStopped, match="is not finite"):
        medssl.pretrain(
            store,
            tmp_path / "run",
            steps=6,
            lr=1e30,
            warmup=0.0,
            monitor_every=100,
            augment="neutral",
            **options,
            **SETTINGS,
        )
    (alarm,) = alarms_of(tmp_path / "run")
    ((views, key),) = replay_batch(tmp_path / "run", store)
    assert [tuple(v.shape) for v in views] == [(32, 1, 16, 16)] * 2 + [(32, 1, 8, 8)] * 2
    resampled = resample_scans(store, 16)
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
    raw = RawScans(resampled).__getitems__(list(zip(key.scan.tolist(), key.epoch.tolist(), strict=True)))
    wanted, _ = make_views(raw, recipe, 2, 0, resampled.mean, resampled.std, SmallViews(2, (8, 8), (0.1, 0.3)))
    assert all(torch.equal(a, b) for a, b in zip(views, wanted, strict=True))
    assert alarm["batch"]["small_views"] == {"count": 2, "size": [8, 8], "scale": [0.1, 0.3]}


def test_stop_ends_the_run_with_the_same_message_when_run_again(store, tmp_path):
    options = {"augment": "plain", "steps": 20, "monitor_every": 5, "save_every": 2} | SETTINGS
    for _ in range(2):
        with pytest.raises(TrainingStopped, match="step 5: the two views of a scan are the same image"):
            medssl.pretrain(store, tmp_path / "run", on_collapse="stop", **options)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert "same image" in rows[-1]["warning"]
    assert not (tmp_path / "run/encoder.json").exists()
    run = medssl.pretrain(store, tmp_path / "run", on_collapse="warn", **options)  # and goes on where it was
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 20


def test_rollback_exports_the_last_evaluation_without_a_collapse(store, tmp_path, capsys):
    """A temperature of 100 leaves a gradient and a loss at chance, which is said after 40 logged steps."""
    run = medssl.pretrain(
        store, tmp_path / "run", method_options={"temperature": 100.0}, steps=60, monitor_every=15, on_collapse="rollback",
        **SETTINGS,
    )  # fmt: skip
    assert [a["cause"] for a in alarms_of(run)] == ["chance"]
    assert "Exported the encoder of step 30" in capsys.readouterr().err
    encoder, config = medssl.load_encoder(run)
    kept = torch.load(run / "checkpoints/healthy.ckpt", weights_only=True)
    assert config.step == kept["step"] == 30
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, kept["method"][f"encoder.{name}"]), name
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 45
    assert "do" not in rows[-1]


def test_rollback_without_a_healthy_evaluation_explains_itself(store, tmp_path):
    with pytest.raises(TrainingStopped, match="No evaluation before it was healthy"):
        medssl.pretrain(
            store, tmp_path / "run", augment="plain", steps=4, monitor_every=2, on_collapse="rollback", **SETTINGS
        )


def test_a_loss_that_is_not_finite_inside_a_step_is_recorded_too(store, tmp_path):
    with pytest.raises(TrainingStopped, match="is not finite; nothing was updated"):
        medssl.pretrain(store, tmp_path / "run", steps=6, lr=1e30, warmup=0.0, monitor_every=100, **SETTINGS)
    (alarm,) = alarms_of(tmp_path / "run")
    assert alarm["cause"] == "not finite"
    assert alarm["batch"]["step"] == alarm["step"] - 1
    assert len(replay_batch(tmp_path / "run", store)[0][0]) == 2


def test_what_a_killed_run_said_of_later_steps_goes(tmp_path):
    for step, cause in ((10, "constant"), (20, "no gradient"), (15, "chance"), (30, "constant")):
        write_alarm(tmp_path, {"step": step, "cause": cause})
    assert [(a["step"], a["cause"]) for a in alarms_of(tmp_path)] == [(10, "constant"), (15, "chance")]
    (tmp_path / "alarm.json").write_text("[")
    with pytest.raises(UserError, match=r"alarm\.json is damaged"):
        alarms_of(tmp_path)


def test_the_same_state_is_looked_at_in_the_same_way(store, tmp_path):
    """Resuming builds a new monitor: it must report the same for the same weights and rows."""
    resampled = resample_scans(store, 16)
    recipe = catalog.build(catalog.spec("augment", "neutral"), size=resampled.size)
    config = tiny.config(batch=32, monitor_every=5)
    untrained, row = tiny.method("byol"), [{"step": 5, "loss": 1.0, "grad_norm": 0.5, "lr": 0.1}]
    trained = copy.deepcopy(untrained)
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    looks = [
        CollapseMonitor(store, resampled, recipe, untrained, config, "cpu", tmp_path)(trained, row) for _ in range(2)
    ]
    assert json.dumps(looks[0]) == json.dumps(looks[1])
    assert {"rankme", "alignment", "two_nn", "sigreg", "knn_auroc", "seen"} <= set(looks[0])
    assert set(looks[0]["seen"]) >= set(LIMITS) - {"chance"}


def test_an_unknown_action_is_refused(store, tmp_path):
    with pytest.raises(UserError, match=r"on_collapse is 'halt'"):
        medssl.pretrain(store, tmp_path / "run", on_collapse="halt", **SETTINGS)
