import numpy as np
import pytest
import torch
from torch import nn

from medssl.evals.embed import embed
from medssl.store.resampled import ResampledScans


class Net(nn.Module):
    """Convolution, batch norm and dropout: three things that behave differently while training."""

    def __init__(self, channels, dims):
        super().__init__()
        conv, norm = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
        torch.manual_seed(0)
        self.dim, self.channels = 5, channels
        self.body = nn.Sequential(conv(channels, 5, 3), norm(5), nn.Dropout(0.5))
        self.seen = []

    def forward(self, x):
        self.seen.append(x)
        return self.body(x).flatten(2).mean(2)


def resampled(dtype, size, channels=1, N=7):
    r = np.random.default_rng(0)
    array = r.integers(0, 200, (N, channels, *size)).astype(dtype)
    low, high = np.linspace(0, 20, N, dtype=np.float32), np.linspace(100, 180, N, dtype=np.float32)
    return ResampledScans(array, low, high, mean=0.3, std=0.2, size=size)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("size", [(8, 6), (6, 5, 4)])
def test_scans_are_windowed_and_standardised_in_the_requested_order(dtype, size):
    c, rows = resampled(dtype, size, channels=2), np.array([4, 0, 6, 4])
    net = Net(2, len(size))
    features = embed(net, c, rows, batch=3, quiet=True)
    assert (features.shape, features.dtype) == ((4, 5), np.float32)
    x = np.concatenate([s.numpy() for s in net.seen])
    shape = (-1, *[1] * (len(size) + 1))
    low, high = c.low[rows].reshape(shape), c.high[rows].reshape(shape)
    expected = (np.clip((c.array[rows].astype(np.float64) - low) / (high - low), 0, 1) - 0.3) / 0.2
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_allclose(features[0], features[3], atol=1e-6)


def test_features_do_not_depend_on_the_batch():
    c, rows = resampled(np.uint8, (9, 9)), np.arange(7)
    whole, single = (embed(Net(1, 2), c, rows, batch=b, quiet=True) for b in (7, 1))
    np.testing.assert_allclose(whole, single, atol=1e-6)


def test_the_encoder_and_global_randomness_are_left_as_they_were():
    net = Net(1, 2).train()
    net.body[1].eval()  # a frozen norm inside a training net
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = torch.get_rng_state()
    a = embed(net, resampled(np.uint8, (9, 9)), np.arange(7), quiet=True)
    b = embed(net, resampled(np.uint8, (9, 9)), np.arange(7), quiet=True)
    np.testing.assert_array_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in net.body] == [True, False, True]
    assert net.training
    for k, v in net.state_dict().items():
        assert torch.equal(v, before[k]), k
    net(torch.zeros(2, 1, 9, 9)).sum().backward()  # weights still train


def test_modes_come_back_after_a_failure():
    net = Net(3, 2).train()
    with pytest.raises(RuntimeError):
        embed(net, resampled(np.uint8, (9, 9)), np.arange(7), quiet=True)
    assert all(m.training for m in net.modules())


def test_an_encoder_that_gives_maps_is_refused():
    with pytest.raises(ValueError, match=r"returned \(7, 1, 9, 9\) for 7 scans"):
        embed(nn.Identity(), resampled(np.uint8, (9, 9)), np.arange(7), quiet=True)
