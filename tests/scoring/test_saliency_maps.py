"""Saliency maps on a device that is not here: fake tensors have a device and a shape, and no values."""

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from medssl.runs.config import Choice
from medssl.scoring.saliency_maps import SIMILARITY, SaliencyMaker


class Answers(TorchDispatchMode):
    """Answers questions about values, which fake tensors cannot."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        return func(*args, **kwargs or {})


def on_cuda(mode: FakeTensorMode, module: torch.nn.Module) -> torch.nn.Module:
    for part in module.modules():
        for kept in (part._parameters, part._buffers):
            for name, tensor in kept.items():
                if tensor is not None:
                    fake = mode.from_tensor(tensor.detach()).to("cuda")
                    kept[name] = torch.nn.Parameter(fake) if kept is part._parameters else fake
    return module


def test_views_of_scans_are_compared_on_the_device_of_the_encoder():
    scans, encoder = tiny.resampled(), tiny.method("simclr").encoder
    maker = SaliencyMaker(SIMILARITY, scans, (scans, np.arange(8)), tiny.config(augment=Choice("crop", {})), 0, "cuda")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, Answers():
        x, reference = torch.zeros(4, 1, 16, 16, device="cuda"), torch.zeros(encoder.dim, device="cuda")
        weights = maker._similarity(on_cuda(mode, encoder), np.arange(4), x, reference)
    assert weights.shape == (4, encoder.dim)
    assert weights.device.type == "cuda"
