"""Everything that trains or evaluates also runs on a GPU: checked without one, on tensors that only have a device and a shape.

An operation on tensors of two devices, a tensor left on the CPU and a loss that autocast leaves in bfloat16 fail here; a wait
for the device fails unless it is listed with its reason.
"""

import copy

import numpy as np
import pytest
import torch

import tiny
from fake_device import CUDA, Recorded, backward, fake_device, move, moved
from medssl import catalog
from medssl.augmentations.geometry import Crop
from medssl.augmentations.loader import RawScans, batch_target, make_views
from medssl.augmentations.recipes import SmallViews
from medssl.losses import target_losses
from medssl.losses.distributed import noting_values
from medssl.methods.base import Clock
from medssl.rng import Key
from medssl.tasks.segment import Segment
from medssl.tasks.supervised import Supervised
from medssl.train.finite import NEVER
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

LABELS = "the loss is over the scans with a known label, whose number only the device knows"
PAIRS = "pytorch-metric-learning lists the pairs that count"
HIDDEN = "the hidden patches are gathered, and their number differs between batches"
STARTED = "whether the first batch has set the range of the units"
WAITS = {
    **dict.fromkeys(["arcface", "cosface", "proxy_anchor"], LABELS),
    **dict.fromkeys(["greedy_supervised", "guided", "multitask", "pseudo_labels", "supervised"], LABELS),
    **dict.fromkeys(["contrastive", "lifted", "multi_similarity", "npairs", "supcon"], PAIRS),
    **dict.fromkeys(["data2vec", "dinov2", "ibot", "spark"], HIDDEN),
    **dict.fromkeys(["dbm", "dbn", "deep_autoencoder", "rbm"], STARTED),
    **dict.fromkeys(["amdim", "dim"], "the scores of other scans are picked by a mask"),
    "dino": "the centre stays where it is if no scan of the step had scores",
    "deepcluster": "the sizes of the clusters decide which scans are drawn",
    "ijepa": "all scans show as many patches as the one with the fewest",
    "kmeans_bank": "the round of k-means is a buffer",
    "rotation": "the scans of each rotation are gathered",
}
CLOCK = Clock(0, 10)


@pytest.mark.parametrize(("dims", "bf16"), [(2, False), (3, True)])
@pytest.mark.parametrize("name", tiny.METHODS)
def test_a_step_of_a_method_stays_on_its_device(name, dims, bf16):
    method = tiny.method(name, dims).train()
    trains, batch = tiny.trains(method), tiny.batch_for(method, n=6)
    twin = copy.deepcopy(method)
    with noting_values(lambda loss, finite: None):
        with Recorded() as real:
            loss = twin(batch, CLOCK)["loss"]
            if trains:
                backward(loss)
            twin.after_step(CLOCK)
        with fake_device(bf16, real.answers) as device:
            out = move(method)(moved(batch), CLOCK)
            if trains:
                backward(out["loss"])
            method.after_step(CLOCK)
            assert {v.device.type for v in out.values()} == {"cuda"}
            assert out["loss"].dtype == loss.dtype == torch.float32
            assert not trains or {p.grad.device.type for p in method.parameters() if p.grad is not None} == {"cuda"}
    assert bool(device.waits) == (name in WAITS), f"{name} waits for the device: {device.waits}"
    assert [c for c in device.copies if "pytorch_metric_learning" not in c] == []


@pytest.mark.parametrize(("dims", "channels"), [(2, 3), (3, 1)])
@pytest.mark.parametrize("name", catalog.choices("augment"))
def test_views_are_made_on_their_device_without_a_wait(name, dims, channels):
    """What the CPU decides, it decides from a key that stays with it."""
    recipe = catalog.build(catalog.spec("augment", name), size=(12,) * dims)
    raw = RawScans(tiny.resampled(8, dims, channels)).__getitems__([(row, 0) for row in range(8)])
    small = (
        SmallViews(1, (8,) * dims, (0.1, 0.4)) if any(isinstance(op, Crop) for _, op in recipe.ops) else SmallViews()
    )
    with fake_device(bf16=True) as device:
        views, _ = make_views(raw | moved({k: raw[k] for k in ("image", "low", "high")}), recipe, 2, 7, 0.3, 0.2, small)
        assert [(v.device.type, v.dtype, v.shape[2]) for v in views[:2]] == [("cuda", torch.float32, 12)] * 2
    assert (device.waits, device.copies) == ([], [])


@pytest.mark.parametrize("name", catalog.choices("encoder"))
def test_an_encoder_stays_on_its_device(name):
    dims = 3 if name.endswith("3d") else 2
    encoder = catalog.build(catalog.spec("encoder", name, **tiny.SMALL.get(name, {})), channels=1, size=(32,) * dims)
    x = torch.zeros(2, 1, *(32,) * dims)
    with fake_device(bf16=True) as device:
        features = move(encoder.train())(moved(x))
        if features.requires_grad:
            backward(features.float().square().mean())
        assert (features.device.type, features.shape) == ("cuda", (2, encoder.dim))
    assert (device.waits, device.copies) == ([], [])


KINDS = {
    "classification": (target_losses.classification(2), torch.arange(4) % 2),
    "multilabel": (target_losses.multilabel(3), torch.ones(4, 3)),
    "ordinal": (target_losses.ordinal(3), torch.arange(4) % 3),
    "regression": (target_losses.regression(1.0, 2.0), torch.ones(4)),
    "survival": (target_losses.survival(), torch.ones(4, 2)),
    "segment": (None, torch.ones(4, 16, 16, dtype=torch.int64)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_stays_on_its_device(kind):
    """Fine-tuning waits for the number of known labels, and segmentation for nothing."""
    loss, target = KINDS[kind]
    encoder = tiny.method("simclr").encoder
    task = (Segment(encoder, 2, width=4) if loss is None else Supervised(encoder, loss)).train()
    batch, twin = {**tiny.batch(1, n=4), "target": target}, copy.deepcopy(task)
    with noting_values(lambda loss, finite: None):
        with Recorded() as real:
            backward(twin(batch, CLOCK)["loss"])
        with fake_device(True, real.answers) as device:
            out = move(task)(moved(batch), CLOCK)["loss"]
            backward(out)
            assert (out.device.type, out.dtype) == ("cuda", torch.float32)
    assert bool(device.waits) == (loss is not None)
    assert device.copies == []


def test_masks_move_with_their_scan_without_a_wait():
    recipe = catalog.build(catalog.spec("augment", "xray"), size=(16, 16))
    raw = RawScans(tiny.resampled(4), np.ones((4, 16, 16), np.int64)).__getitems__([(row, 0) for row in range(4)])
    with fake_device() as device:
        target = batch_target(raw, recipe, Key(0, raw["epoch"], raw["scan"]), CUDA)
        assert (target.device.type, target.shape) == ("cuda", (4, 16, 16))
    assert (device.waits, device.copies) == ([], [])


class CudaFabric:
    """What the loop asks of Fabric, for one process on the device."""

    device, world_size, global_rank, is_global_zero, strategy = CUDA, 1, 0, True, None

    def setup_module(self, method):
        return move(method)

    def setup_optimizers(self, optimizer):
        return optimizer

    def backward(self, loss):
        backward(loss)

    def all_reduce(self, x, reduce_op="mean"):
        return x

    def save(self, path, state):
        path.write_bytes(b"")

    def barrier(self):
        """One process waits for nobody."""


@pytest.mark.parametrize(("name", "augment"), [("simclr", "xray"), ("mae", "ct")])
def test_the_loop_waits_for_the_device_at_log_intervals_alone(tmp_path, name, augment):
    """However many steps lie between them; and never for a copy to it."""
    waits = {}
    for steps in (1, 3):
        resampled, method = tiny.resampled(), tiny.method(name)
        recipe = catalog.build(catalog.spec("augment", augment), size=resampled.size)
        options = TrainOptions(steps, 8, 0, Optim(), log_every=steps, save_every=steps)
        (tmp_path / str(steps)).mkdir()
        with fake_device(number=float(NEVER)) as device:
            data, log = TrainingData(resampled, np.arange(48), recipe), Log(tmp_path / str(steps), "jsonl", {})
            train(CudaFabric(), method, data, options, tmp_path / str(steps) / "c", log, quiet=True)
        assert device.copies == []
        waits[steps] = device.waits
    assert waits[1] == waits[3]
    assert len(waits[3]) == 2, "one for the row of the log, one before the checkpoint"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", tiny.METHODS)
def test_a_gpu_gives_the_loss_of_the_cpu(name):
    method = tiny.method(name).train()
    batch, twin = tiny.batch_for(method), copy.deepcopy(method)
    expected = twin(batch, CLOCK)["loss"].item()
    given = {k: [v.cuda() for v in x] if k == "views" else x.to("cuda") for k, x in batch.items()}
    assert method.cuda()(given, CLOCK)["loss"].item() == pytest.approx(expected, rel=1e-2, abs=1e-3)
