"""Losses over large matrices of similarities, in tiles: equal to the plain losses, on one rank and on two."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medssl.losses import infonce, tiles

N, D, T = 24, 7, 0.2
LOSSES = {
    "nt_xent": lambda a, b: infonce.nt_xent(a, b, T),
    "decoupled": lambda a, b: infonce.decoupled(a, b, T),
    "query_key": lambda a, b: infonce.query_key(a, b, T, rows(5, a.dtype)[2]),
}


def rows(seed: int, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(N, D, generator=g, dtype=dtype) for _ in range(3)]


def use_tiles():
    """Tiles from the first similarity on, of four rows and a rest."""
    infonce.LARGE, tiles.TILE = 1, 5 * 2 * N


def value_and_gradients(name, a, b):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = LOSSES[name](a, b)
    loss.backward()
    return loss.detach(), a.grad, b.grad


@pytest.fixture
def tiled(monkeypatch):
    monkeypatch.setattr(infonce, "LARGE", infonce.LARGE)
    monkeypatch.setattr(tiles, "TILE", tiles.TILE)
    return use_tiles


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_give_the_plain_loss_and_gradient(tiled, name, dtype, within):
    a, b, _ = rows(0, dtype)
    plain = value_and_gradients(name, a, b)
    tiled()
    for found, expected in zip(value_and_gradients(name, a, b), plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=within, atol=within)


def test_the_gradient_of_a_row_is_the_one_of_finite_differences():
    x, y, _ = rows(1)
    left_out = torch.arange(N)[:, None]
    inputs = x[:5].requires_grad_(), y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: tiles.row_logsumexp(x, y, left_out[:5], T), inputs)


def test_a_large_batch_keeps_no_matrix():
    """Nothing that the loss keeps for its gradient has more elements than the batch."""
    kept = []
    big = [torch.randn(2048, 4, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        infonce.nt_xent(*big, T)
    assert 2 * 2048 * 4 <= max(kept) < 2 * 2048 * 8


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    use_tiles()
    half = slice(rank * N // 2, (rank + 1) * N // 2)
    a, b, _ = rows(0)
    torch.save({name: value_and_gradients(name, a[half], b[half]) for name in LOSSES}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_equal_one(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{r}.pt") for r in range(2)]
    for name in LOSSES:
        loss, *gradients = value_and_gradients(name, *rows(0)[:2])
        torch.testing.assert_close(sum(r[name][0] for r in ranks) / 2, loss, rtol=1e-12, atol=1e-12)
        for i, whole in enumerate(gradients, start=1):  # gradients are averaged over ranks
            torch.testing.assert_close(torch.cat([r[name][i] for r in ranks]) / 2, whole, rtol=1e-12, atol=1e-12)
