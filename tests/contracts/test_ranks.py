"""Two gloo ranks equal one process on the whole batch: loss, gradients, state. A single process cannot detect such errors."""

import os
import socket
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from timm.layers import BatchNormAct2d

import tiny
from medssl.losses.distributed import gather_rows
from medssl.methods.base import Clock
from medssl.methods.parts.norm import convert_batch_norm

B = 16
CLOCK = Clock(0, 10)
VARIANTS = {  # what the defaults alone cannot show
    "npairs of labels": ("npairs", {"positives": "label"}),
    "moco with a queue": ("moco", {"queue": 40}),
    "dino with small views": (
        "dino",
        {"centring": "sinkhorn", "small": {"count": 2, "size": 0.5, "scale": [0.1, 0.4]}},
    ),
    "swav with a queue": ("swav", {"queue": 40}),
    "dinov2 with centres": ("dinov2", {"centring": "mean", "gram": 1.0, "gram_start": 0.0}),
    "moco v2": ("moco", {"queue": 40, "predictor": False, "momentum": 0.9, "momentum_end": 0.9}),
    "guided with mlp": ("guided", {"adversary": "mlp"}),
}
NAMES = [*tiny.METHODS, *VARIANTS]


def whole_batch(method) -> dict:
    return tiny.batch_for(method, n=B)


def prepared(name):
    """Build a method in float64, so that differences are errors and not rounding."""
    name, options = VARIANTS.get(name, (name, {}))
    return tiny.method(name, **options).double()


def go(method, batch) -> torch.Tensor:
    """Return the loss of a step, or without gradients of a second one, when k-means is past its whitening."""
    for clock in [CLOCK] if tiny.trains(method) else [CLOCK, Clock(5, 10)]:
        loss = method({**batch, "views": [v.double() for v in batch["views"]]}, clock)["loss"]
        if loss.requires_grad:
            loss.backward()
        method.after_step(clock)
    return loss.detach()


def worker(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = {}
    for name in NAMES:
        method = convert_batch_norm(prepared(name))
        batch = whole_batch(method)
        half = slice(rank * B // 2, (rank + 1) * B // 2)
        mine = {"views": [v[half] for v in batch["views"]], "key": tiny.key(B // 2, start=half.start)}
        if method.target:
            mine["target"] = batch["target"][half]
        loss = go(method, mine)
        dist.all_reduce(loss)
        grads = {}
        for n, p in method.named_parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                grads[n] = p.grad / 2  # DDP averages over ranks
        results[name] = {"loss": loss / 2, "grads": grads, "buffers": dict(method.named_buffers())}
    act = convert_batch_norm(BatchNormAct2d(4, act_layer=torch.nn.SiLU).double())
    results["norm"] = act(pictures()[rank * 4 : rank * 4 + 4]).detach()
    mine = pictures()[rank * 4 : rank * 4 + 4, :, 0].flatten(1).requires_grad_()
    (transposed(gather_rows(mine)) / 2).backward()  # DDP averages over ranks, so each of both has the whole loss
    results["gathered"] = mine.grad
    results["refused"] = {name: refusal(name, rank) for name in NAMES if tiny.trains(prepared(name))}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def refusal(name: str, rank: int) -> str:
    """Return the error of a step in which only rank 1 has a scan that is not finite."""
    method = convert_batch_norm(prepared(name).float())
    batch = tiny.batch_for(method, n=4)
    if rank == 1:
        batch["views"][0][0] = float("nan")
    try:
        method(batch, CLOCK)
    except FloatingPointError as e:
        return str(e)
    return ""


def transposed(rows: torch.Tensor) -> torch.Tensor:
    """Return a loss whose gradient has another memory order than its input."""
    weights = torch.arange(rows.numel(), dtype=rows.dtype).view(rows.T.shape)
    return (rows.T.contiguous() * weights).sum()


def pictures() -> torch.Tensor:
    return torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_timms_norm_with_activation_keeps_its_activation(ranks):
    whole = BatchNormAct2d(4, act_layer=torch.nn.SiLU).double()(pictures())
    torch.testing.assert_close(torch.cat([r["norm"] for r in ranks]), whole)


def test_gradients_of_gathered_rows_come_back_in_their_own_order(ranks):
    rows = pictures()[:, :, 0].flatten(1).requires_grad_()
    transposed(rows).backward()
    torch.testing.assert_close(torch.cat([r["gathered"] for r in ranks]), rows.grad)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_equal_one(ranks, name):
    method = prepared(name)
    loss = go(method, whole_batch(method))
    grads = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    for result in (r[name] for r in ranks):
        torch.testing.assert_close(result["loss"], loss, rtol=1e-6, atol=1e-9)
        assert result["grads"].keys() == grads.keys()
        for n, g in grads.items():
            torch.testing.assert_close(result["grads"][n], g, rtol=1e-6, atol=1e-8, msg=lambda m, n=n: f"{n}: {m}")
        for n, b in method.named_buffers():
            if b.is_floating_point():
                torch.testing.assert_close(
                    result["buffers"][n], b, rtol=1e-6, atol=1e-7, msg=lambda m, n=n: f"{n}: {m}"
                )


@pytest.mark.parametrize("name", [n for n in NAMES if tiny.trains(prepared(n))])
def test_a_damaged_scan_on_one_rank_stops_both_with_the_cause(ranks, name):
    """Otherwise the other rank waits for gradients until it times out, and that is the error the user sees."""
    assert "not finite" in ranks[0]["refused"][name]
    assert ranks[0]["refused"][name] == ranks[1]["refused"][name]
