"""bf16-mixed, through the real Fabric: networks compute in bfloat16, and nothing that comes from scans or labels is rounded."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import tiny
from medssl.losses.regression import squared_error
from medssl.losses.target_losses import regression
from medssl.methods.base import Clock, Method
from medssl.methods.parts.patches import crop_resize
from medssl.methods.reconstruction.models_genesis import curved
from medssl.tasks.supervised import Supervised
from medssl.train.ranks import make_fabric

BF16 = "bf16-mixed"


def step(method, batch, precision):
    """Return the loss of one forward pass as the training loop makes it."""
    fabric = make_fabric("cpu", 1, precision)
    module, _ = fabric.setup(method, torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1))
    return module(batch, Clock(0, 10))["loss"].detach()


class Recorder(Method):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.layer, self.given = nn.Linear(1, 1), {}

    def forward(self, batch, clock):
        self.given = batch
        return {"loss": squared_error(self.layer(batch["views"][0][:, :1]), batch["target"][:, None])}


@pytest.mark.parametrize("value", [2001.0, 1003.0, 0.1234567])
def test_targets_and_views_keep_their_value(value):
    assert float(torch.tensor(value).bfloat16()) != value
    method = Recorder()
    step(method, {"views": [torch.full((3, 2), value)], "target": torch.full((3,), value)}, BF16)
    for tensor in (method.given["target"], *method.given["views"]):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, torch.full_like(tensor, value))


def test_a_regression_of_years_has_the_loss_of_its_years():
    """With weights of zero the prediction is the mean, in any precision, and the loss is the variance of the targets."""
    years = torch.tensor([1999.0, 2001.0, 2003.0, 2006.0])
    losses = {}
    for precision in ("32-true", BF16):
        method = Supervised(tiny.method("simclr").encoder, regression(2000.0, 3.0))
        zero(method)
        losses[precision] = step(method, {**tiny.batch(1, n=4), "target": years}, precision)
    assert losses[BF16].item() == pytest.approx(losses["32-true"].item(), rel=1e-6)


def zero(method):
    with torch.no_grad():
        for p in method.parameters():
            p.zero_()


class FirstLayer(TorchFunctionMode):
    """Keeps the input of the first linear layer or convolution."""

    seen = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.seen is None and func in (F.linear, torch.conv2d, torch.conv3d):
            self.seen = args[0].detach().clone()
        return func(*args, **kwargs or {})


def first_input(method, batch, precision):
    with FirstLayer() as mode:
        step(method, batch, precision)
    return mode.seen


TRAINED = [m for m in tiny.METHODS if tiny.trains(tiny.method(m))]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", TRAINED)
def test_the_network_is_shown_the_same_scans_in_both_precisions(name, dims):
    """Deformed, shuffled, cropped or cut into patches: all of it happens before any rounding."""
    plain, mixed = (tiny.method(name, dims) for _ in range(2))
    expected, found = (first_input(m, tiny.batch_for(m), p) for m, p in ((plain, "32-true"), (mixed, BF16)))
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


RECONSTRUCT = ["denoising", "inpainting", "context_restoration", "models_genesis", "mae", "vae", "greedy_ae"]


@pytest.mark.parametrize("name", RECONSTRUCT)
def test_what_is_reconstructed_is_not_rounded(name):
    """A network of zeros outputs zeros in any precision, so that the loss is a function of its target alone.

    Low contrast on a high level is where bfloat16, with 8 bits, loses the picture.
    """
    losses = {}
    for precision in ("32-true", BF16):
        method = tiny.method(name)
        zero(method)
        batch = tiny.batch_for(method)
        batch["views"] = [3 + 0.02 * v for v in batch["views"]]
        losses[precision] = step(method, batch, precision)
    assert losses[BF16].item() == pytest.approx(losses["32-true"].item(), rel=1e-6)


def test_crops_and_curves_of_scans_are_exact_under_autocast():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 1, 16, 16, generator=g)
    start, extent = torch.rand(4, 2, generator=g) * 4, torch.full((4, 2), 9.5)
    expected = crop_resize(x, start, extent, (8, 8)), curved(x, tiny.key(4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = crop_resize(x, start, extent, (8, 8)), curved(x, tiny.key(4))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
