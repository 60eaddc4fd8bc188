"""A user's own network as an encoder: named by its import path, kept as weights, and never imported by opening a run."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import medssl
from conftest import ROOT
from explored import write_store
from medssl import catalog
from medssl.encoders.own import build_encoder, build_own
from medssl.errors import UserError

CODE = """
import torch
from torch import nn


class MyNet(nn.Module):
    def __init__(self, channels, size, width: int = 4):
        super().__init__()
        conv = nn.Conv2d if len(size) == 2 else nn.Conv3d
        self.net = conv(channels, width, 3, 2, 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x):
        return self.head(self.net(x).relu().flatten(2).mean(2))


class Noisy(MyNet):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class NoSize(MyNet):
    def __init__(self, channels):
        super().__init__(channels, (8, 8))


class Maps(MyNet):
    def forward(self, x):
        return self.net(x)


class WrongDim(MyNet):
    dim = 7


class WrongShape(MyNet):
    def forward(self, x):
        return self.head(x)


not_a_network = print
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a user's module."""
    (tmp_path / "my_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_net", None)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_is_trained_kept_and_used_once_its_module_is_imported(folder, dims):
    store = write_store(folder / "store", dims=dims)
    small = {"method_options": {"hidden": 16, "out": 8}, "size": 8, "steps": 2, "batch": 8, "monitor_every": 0}
    run = medssl.pretrain(
        store, folder / "run", method="vicreg", encoder="my_net.MyNet", encoder_options={"width": 3}, **small
    )
    encoder, config = medssl.load_encoder(run)
    assert (type(encoder).__name__, config.name, config.options, config.dim) == (
        "MyNet",
        "my_net.MyNet",
        {"width": 3},
        5,
    )
    assert set(load_file(run / "encoder.safetensors")) == {"net.weight", "net.bias", "head.weight", "head.bias"}
    x = medssl.embed(run, store).frame()
    assert len([c for c in x if c.startswith("f") and c[1:].isdigit()]) == 5
    rows = medssl.knn(run, store, "site", k=3, baselines=["random init"])["rows"]
    assert [row["features"] for row in rows] == ["vicreg my_net.MyNet", "random init"]
    words = [
        sys.executable,
        "-m",
        "medssl.cli",
        "embed",
        f"run={run}",
        f"store={store.path}",
        f"out={folder / 'again.parquet'}",
    ]
    if dims == 3:
        return
    kept = {k: v for k, v in os.environ.items() if k != "MEDSSL_IMPORT"} | {"PYTHONPATH": str(ROOT / "ssl")}
    refused = subprocess.run(words, cwd=folder, env=kept, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "code of your own that a run folder may not import" in refused.stderr
    assert "MEDSSL_IMPORT=my_net" in refused.stderr
    done = subprocess.run(
        words, cwd=folder, env=kept | {"MEDSSL_IMPORT": "my_net"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    again = medssl.reporting.notebook.EmbeddingsFile(folder / "again.parquet").frame()
    np.testing.assert_array_equal(again.to_numpy(), x.to_numpy())


def test_what_cannot_be_an_encoder_is_refused_in_one_line(folder):
    for name, wanted in (
        ("my_net.Nothing", "cannot be imported from"),
        ("my_net.not_a_network", r"is not a torch\.nn\.Module"),
        ("my_net.NoSize", "it lacks size"),
    ):
        with pytest.raises(UserError, match=wanted) as e:
            catalog.load("encoder", name)
        assert "\n" not in str(e.value)
    for name, wanted in (
        ("Maps", r"returns \(2, 4, 4, 4\) for 2 scans; an encoder returns \(scans, dim\)"),
        ("WrongDim", "says dim=7 and returns 5 numbers"),
        ("WrongShape", r"cannot take scans of 1 channels and size \(8, 8\)"),
    ):
        with pytest.raises(UserError, match=wanted):
            build_encoder(catalog.load("encoder", f"my_net.{name}"), 1, (8, 8))
    with pytest.raises(UserError, match=r"has no option .wide.\. Did you mean .width."):
        catalog.spec("encoder", "my_net.MyNet", wide=3)


@pytest.mark.parametrize("name", ["os.system", "torch.nn.Linear", "torch.nn.Nothing", "subprocess.Popen"])
def test_a_file_that_names_other_code_makes_nothing(name):
    with pytest.raises(UserError, match="unknown encoder"):
        build_own(name, 1, (8, 8), {})


def test_measuring_its_width_draws_no_random_number_and_leaves_its_mode(folder):
    spec = catalog.load("encoder", "my_net.Noisy")
    torch.manual_seed(0)
    first = build_encoder(spec, 1, (8, 8))
    after = torch.rand(1)
    torch.manual_seed(0)
    second = catalog.build(spec, channels=1, size=(8, 8))
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(first.net.weight, second.net.weight)
    assert first.training
    assert (first.dim, first.channels, first.size) == (5, 1, (8, 8))


def test_names_of_timm_models_are_not_taken_for_modules():
    assert not catalog.is_own("encoder", "resnet10t.c3_in1k")
    assert not catalog.is_own("encoder", "cnn")
    assert catalog.is_own("method", "any_module.Method")
