"""Everything that evaluates also runs on a GPU: checked without one, as in `test_device`.

An evaluator first runs on the CPU, which records what its decisions were, and then on the fake device: an operation on tensors
of two devices, or a result that is left there, fails. What takes a device is found in the package, not listed by hand.
"""

import inspect
import pkgutil
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

import explored
import tiny
from fake_device import CUDA, Recorded, fake_device, moved
from medssl import catalog
from medssl.encoders.config import InputConfig
from medssl.evals.embed import embed, embed_views
from medssl.evals.explain.saliency import gradcam, rollout
from medssl.evals.probes import attention_pooling, dense
from medssl.evals.probes.attention_pooling import attention_probes
from medssl.evals.probes.cox import cox_probes
from medssl.evals.probes.linear import linear_probes
from medssl.evals.probes.linear_fit import fit_linear
from medssl.evals.sliding_window import Grid
from medssl.losses import target_losses
from medssl.pretraining.collapse_monitor import CollapseMonitor
from medssl.pretraining.held_out_knn import HeldOutKnn
from medssl.runs.config import Choice
from medssl.scoring import features
from medssl.scoring.saliency_maps import METHODS, SaliencyMaker
from medssl.scoring.training import predictor
from medssl.tasks.supervised import Supervised

PACKAGES = ("evals", "scoring", "pretraining", "reporting", "exporting")
ONLY_HAND_ON = {
    "SplitOptions": "options of commands",
    "resolve_device": "asks whether there is a GPU",
    "TrainingSettings": "settings of the loop, which `test_device` steps",
    "patch_bank": "trains by the loop",
    "FeatureSources": "makes the features below",
    "Encoder": "from_encoder",
    **dict.fromkeys(["audit_confounder", "audit_fields", "audit_pictures", "leave_one_site_out"], "linear_probes"),
    **dict.fromkeys(["fit_head", "linear"], "linear_probes and cox_probes"),
    **dict.fromkeys(["attentive", "multiple_instance"], "attention_probes"),
}
"""What takes a device and computes nothing on it, and what it hands the device to."""
RUN_IN = {
    **dict.fromkeys(["linear_probes", "LinearPath", "Design.of"], "linear probe: multilabel"),
    "fit_linear": "linear probe: classification",
    **dict.fromkeys(["fit_cox", "cox_probes"], "Cox"),
    **dict.fromkeys(["attention_probes", "AttentionPath", "Fitted"], "attentive"),
    **dict.fromkeys(["embed", "evaluating", "standardised"], "features"),
    **dict.fromkeys(["embed_views", "views_of"], "features of views"),
    "from_encoder": "features of a store",
    "from_maps": "features of positions",
    "predictor": "predictions of a fine-tuned network",
    "HeldOutKnn.score": "kNN during pretraining",
    "CollapseMonitor": "monitor during pretraining",
    **dict.fromkeys(["sample", "Grid"], "segmentation by a linear model"),
    "SaliencyMaker": "saliency: similarity",
}
"""Everything else that takes a device, and a case below that runs it."""
PENALTIES = (0.1,)
N = 18
X = np.random.default_rng(0).normal(size=(N, 3))
PATIENT = np.array([f"p{i // 2:02d}" for i in range(N)])
TWO = np.arange(N) % 2
Y = {
    "classification": (TWO, 2),
    "classification of three": (np.arange(N) % 3, 3),
    "multilabel": (np.stack([TWO, np.arange(N) // 2 % 2], 1).astype(float), 2),
    "ordinal": (np.arange(N) % 3, 3),
    "regression": (X[:, 0] + np.arange(N), None),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return explored.write_store(tmp_path_factory.mktemp("device") / "store", n=48, patients=24)


@pytest.fixture
def encoder():
    return tiny.method("simclr").encoder.eval()


WANTED = InputConfig(1, (16, 16), None, False, 0.3, 0.2)


def linear(task):
    def run(device):
        y, classes = Y[task]
        task_name = task.partition(" ")[0]
        options = {"task": task_name, "classes": classes, "device": device}
        if task == "classification":
            return fit_linear(X, y, [np.arange(N), np.arange(12)], [0.1, 1.0], **options)
        return linear_probes((X, y), (X, y), [X], penalties=PENALTIES, **options)

    return run


def cox(device):
    y = np.stack([1 + np.arange(N) // 3, TWO], 1).astype(float)
    return cox_probes((X, y), None, [X], patient=PATIENT, penalties=PENALTIES, device=device)


def attention(pooling):
    def run(device):
        x = np.random.default_rng(0).normal(size=(N, 3, 8)).astype(np.float32)
        options = {"task": "classification", "width": 2, "patient": PATIENT, "penalties": PENALTIES, "device": device}
        return attention_probes(pooling, (x, TWO), (x[:6], TWO[:6]), [x], **options)

    return run


EVALUATORS = {f"linear probe: {task}": linear(task) for task in Y} | {
    "Cox": cox,
    "attentive": attention("attentive"),
    "multiple instance": attention("mil"),
}


def run_on_the_device(name, run):
    """Run on the CPU, where the functions that `RUN_IN` names have to be called, and then on the fake device."""
    called = set()

    def note(frame, event, arg):
        if event == "call" and "/medssl/" in frame.f_code.co_filename:
            called.add(frame.f_code.co_qualname)

    with Recorded() as real:
        sys.setprofile(note)  # here, since it slows the fake device down
        try:
            expected = run("cpu")
        finally:
            sys.setprofile(None)
    with fake_device(answers=real.answers):
        found = run("cuda")
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray):
        assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    for each in (each for each, case in RUN_IN.items() if case == name):
        assert any(c == each or c.startswith(f"{each}.") for c in called), f"{each} was not run"


def test_everything_that_takes_a_device_is_run_on_one():
    takes = set()
    for package in PACKAGES:
        for info in pkgutil.walk_packages(import_module(f"medssl.{package}").__path__, f"medssl.{package}."):
            module = import_module(info.name)
            own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == info.name and k[0] != "_"}
            methods = {
                f"{k}.{name}": getattr(c, name)
                for k, c in own.items() if inspect.isclass(c)
                for name in vars(c) if name[0] != "_" and callable(getattr(c, name))
            }  # fmt: skip
            takes |= {k for k, v in (own | methods).items() if callable(v) and "device" in _parameters(v)}
    assert takes == ONLY_HAND_ON.keys() | RUN_IN.keys()


def _parameters(of):
    try:
        return inspect.signature(of).parameters
    except ValueError:  # some built-in classes have no signature
        return {}


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_of_arrays_runs_on_the_device(name, monkeypatch):
    monkeypatch.setattr(attention_pooling, "ITERATIONS", 1)  # values that mean nothing lead a search nowhere
    run_on_the_device(name, EVALUATORS[name])


def of_encoder(encoder, store):
    """What takes an encoder, by name."""
    scans, rows = tiny.resampled(), np.arange(6)
    recipe = catalog.build(catalog.spec("augment", "xray"), size=(16, 16))
    masks = (scans.array[:, 0] > 120).astype(np.uint8)
    names = np.array([f"p{i}" for i in range(len(masks))])
    grid = {name: features.MapFeatures(encoder, name) for name in ("grid", "stages")}
    task = Supervised(encoder, target_losses.classification(2))
    knn = HeldOutKnn(np.arange(48) % 2, names, np.arange(12), np.arange(12, 24), 2)

    def segmented(net, device):
        several = replace(WANTED, spacing=0.5)  # windows of each scan, which are put together
        return Grid(store, several, device).segment(net, 0)

    def by_pixel(kind):
        def run(device):
            pixels = dense.sample(encoder, scans, masks, rows, names, 2, each=4, device=device)
            net = dense.linear(encoder, pixels) if kind == "linear" else dense.by_neighbours(encoder, pixels, 3)("p0")
            return segmented(net, device)

        return run

    def monitored(device):
        method, config = tiny.method("byol"), tiny.config(monitor_every=1)
        monitor = CollapseMonitor(
            store, features.resampled_for_encoder(store, WANTED), recipe, method, config, device, store.path
        )
        return monitor(method, [{"step": 1, "loss": 1.0, "grad_norm": 1.0}])

    def saliency(method):
        maker_of = tiny.config(augment=Choice("xray", {}))
        weight = np.ones((6, encoder.dim), np.float32)
        return lambda device: SaliencyMaker(method, scans, (scans, rows), maker_of, 0, device)(encoder, rows, weight)

    return {
        "features": lambda device: embed(encoder, scans, rows, device=device),
        "features of views": lambda device: embed_views(
            encoder, scans, rows, recipe, 2, 0, device=device, as_training=True
        ),
        "features of a store": lambda device: features.from_encoder(encoder, WANTED, device)(store, rows),
        "features of positions": lambda device: features.from_maps(encoder, WANTED, device)(store, rows),
        "features of maps": lambda device: embed(grid["grid"], scans, rows, device=device),
        "features of stages": lambda device: embed(grid["stages"], scans, rows, device=device),
        "predictions of a fine-tuned network": lambda device: predictor(task, WANTED, device)(store, rows),
        "kNN during pretraining": lambda device: knn.score(encoder, scans, device),
        "monitor during pretraining": monitored,
        "segmentation by a linear model": by_pixel("linear"),
        "segmentation by neighbours": by_pixel("neighbours"),
        **{f"saliency: {name}": saliency(name) for name in METHODS if name != "rollout"},
    }


OF_ENCODER = [*of_encoder(tiny.method("simclr").encoder, None)]


@pytest.mark.parametrize("name", OF_ENCODER)
def test_an_evaluator_of_an_encoder_runs_on_the_device(name, encoder, store):
    run_on_the_device(name, of_encoder(encoder, store)[name])
    if name.startswith("features"):
        assert {v.device.type for v in encoder.state_dict().values()} == {"cpu"}, "it was not brought back"


@pytest.mark.parametrize("encoder_name", ["cnn", "vit", "timm"])
def test_saliency_maps_stay_on_the_device(encoder_name):
    """Grad-CAM of every architecture; rollout where there is attention."""
    options = tiny.SMALL.get(encoder_name, {"model": "vit_tiny_patch16_224"})
    encoder = catalog.build(catalog.spec("encoder", encoder_name, **options), channels=1, size=(32, 32)).eval()
    x, made = torch.zeros(2, 1, 32, 32), [gradcam, rollout] if encoder_name != "cnn" else [gradcam]
    for make in made:
        given = (torch.ones(encoder.dim),) if make is gradcam else ()
        with Recorded() as real:
            make(encoder, x, *given)
        with fake_device(answers=real.answers) as device:
            maps = make(encoder.to(CUDA), moved(x), *moved(given))
            assert (maps.device.type, maps.shape) == ("cuda", (2, 32, 32))
            assert device.copies == []
            encoder.to("cpu")
