"""Layer-wise learning rates: blocks of encoders are in order, rates match timm, and the loop uses them."""

import numpy as np
import pytest
import timm
import torch
from lightning_fabric import Fabric
from timm.optim import param_groups_layer_decay
from torch import nn

import tiny
from medssl import catalog
from medssl.encoders.cnn import CNN
from medssl.encoders.timm2d import TimmEncoder
from medssl.encoders.vit import ViT
from medssl.errors import UserError
from medssl.losses.target_losses import classification
from medssl.tasks.supervised import Supervised
from medssl.train.log import Log
from medssl.train.loop import train
from medssl.train.optim import Optim
from medssl.train.options import TrainingData, TrainOptions

ENCODERS = [(name, 2) for name in catalog.choices("encoder") if name != "resnet18_3d"]
ENCODERS += [("cnn", 3), ("vit", 3), ("resnet18", 3), ("poolformer_s12", 2)]  # timm has no groups for the last


@pytest.mark.parametrize(("name", "dims"), ENCODERS)
def test_blocks_hold_every_parameter_once_in_order_of_computation(name, dims):
    """The order is observed: when each module with its own weights runs first."""
    torch.manual_seed(0)
    size = (32, 32) if dims == 2 else (16, 16, 16)
    if name in catalog.choices("encoder"):
        encoder = catalog.build(catalog.load("encoder", name), channels=1, size=size)
    else:
        encoder = TimmEncoder(1, size, name)
    groups = encoder.by_depth()
    assert sorted(id(p) for group in groups for p in group) == sorted(map(id, encoder.parameters()))
    assert all(groups)
    place = {id(p): i for i, group in enumerate(groups) for p in group}
    ran = []
    for module in encoder.modules():
        own = [place[id(p)] for p in module.parameters(recurse=False)]
        if own:
            module.register_forward_pre_hook(lambda module, args, own=own: ran.append(own[0]))
    encoder.eval()(torch.zeros(1, 1, *size))
    assert ran == sorted(ran)
    assert len(set(ran)) == len(groups)
    if name not in ("patch_bank", "patch_pyramid", "layer"):
        assert len(groups) > 1


def scales(optimizer, module):
    """Return {name: (fraction of the rate, weight decay)}."""
    of = {id(p): (g["lr_scale"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    return {n: of[id(p)] for n, p in module.named_parameters()}


@pytest.mark.parametrize("model", ["resnet18", "test_vit", "test_convnext"])
def test_rates_match_timm(model):
    theirs = timm.create_model(model, num_classes=2, in_chans=1)
    theirs.reset_classifier(2)
    names = {id(p): n for n, p in theirs.named_parameters()}
    groups = param_groups_layer_decay(theirs, weight_decay=0.1, layer_decay=0.7)
    want = {names[id(p)]: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    method = Supervised(TimmEncoder(1, (160, 160), model), classification(2))
    got = scales(Optim(layer_decay=0.7, weight_decay=0.1).build(method), method)
    head = {n: v for n, v in got.items() if n.startswith("head.")}
    mine = {n.removeprefix("encoder.net."): v for n, v in got.items() if n not in head}
    assert head == {"head.weight": (1.0, 0.1), "head.bias": (1.0, 0.0)}
    assert set(want) - set(mine) <= {f"{of}.{what}" for of in ("fc", "head", "head.fc") for what in ("weight", "bias")}
    for name, (scale, decay) in mine.items():
        assert scale == pytest.approx(
            0.7 if name.startswith("head.norm") else want[name][0]
        )  # with the last block here
        if "token" not in name and "embed" not in name:  # timm exempts some by name
            assert decay == want[name][1]


def test_rates_of_our_own_encoders_match_the_closed_form():
    method = Supervised(ViT(1, (16, 16), patch=4, dim=24, depth=3, heads=2), classification(2))
    got = {n: s for n, (s, _) in scales(Optim(layer_decay=0.5).build(method), method).items()}
    assert {s for n, s in got.items() if n.startswith("encoder.embed")} == {0.5**4}
    for i in range(3):
        assert {s for n, s in got.items() if n.startswith(f"encoder.blocks.{i}")} == {0.5 ** (3 - i)}
    assert {s for n, s in got.items() if n.startswith("encoder.norm")} == {0.5}
    assert {s for n, s in got.items() if n.startswith("head")} == {1.0}


def one_step(folder, layer_decay, blocks=None, steps=1):
    """Train a small network; return it and the change of each weight."""
    torch.manual_seed(0)
    method = Supervised(CNN(1, (16, 16), widths=(4, 8, 8)), classification(2), blocks)
    before = {n: p.detach().clone() for n, p in method.named_parameters()}
    resampled = tiny.resampled(16)
    optim = Optim("sgd", lr=1.0, momentum=0.0, weight_decay=0.0, warmup=0.0, clip=1e9, layer_decay=layer_decay)
    train(
        Fabric(accelerator="cpu"), method,
        TrainingData(resampled, np.arange(16), catalog.build(catalog.spec("augment", "plain"), size=(16, 16)), np.arange(16) % 2),
        TrainOptions(steps, 16, 0, optim), folder / "c", Log(folder, "jsonl", {}), quiet=True,
    )  # fmt: skip
    return method, {n: p.detach() - before[n] for n, p in method.named_parameters()}


def test_the_loop_moves_every_weight_at_its_own_rate(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    (_, whole), (_, decayed) = one_step(tmp_path / "a", 1.0), one_step(tmp_path / "b", 0.25)
    for name, step in whole.items():
        share = 0.25 ** (3 - int(name.split(".")[2])) if name.startswith("encoder") else 1.0
        assert step.abs().sum() > 0
        torch.testing.assert_close(decayed[name], share * step, rtol=1e-3, atol=3e-7)  # weights near 1 are rounded


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_frozen_blocks_keep_weights_and_statistics(tmp_path, blocks):
    method, moved = one_step(tmp_path, 0.5, blocks, steps=3)
    for name, step in moved.items():
        frozen = name.startswith("encoder") and int(name.split(".")[2]) < 3 - blocks
        assert (step == 0).all() == frozen, name
    for i, stage in enumerate(method.encoder.layers):
        for norm in (m for m in stage if isinstance(m, nn.BatchNorm2d)):
            assert norm.num_batches_tracked == (0 if i < 3 - blocks else 3)
            assert (norm.running_mean == 0).all() == (i < 3 - blocks)
    below = 3 - blocks
    x = torch.randn(4, 1, 16, 16)
    method.train()
    for stage in method.encoder.layers[:below]:
        assert torch.equal(stage(x), stage.eval()(x))
        x = stage(x)


def test_impossible_settings_are_refused():
    for bad in (0.0, 1.5, -1.0):
        with pytest.raises(UserError, match="layer_decay"):
            Optim(layer_decay=bad)
    for bad in (-1, 5):
        with pytest.raises(UserError, match="CNN has 4; give 0 to 4"):
            Supervised(CNN(1, (16, 16)), classification(2), bad)
