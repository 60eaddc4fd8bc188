"""Helpers for losses when a batch is spread over processes, under autocast and under vmap."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn  # not reachable as an attribute of torch.distributed
from torch import Tensor
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Return the number of processes that share a batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order; gradients flow back to the rank that made them."""
    if world_size() == 1:
        return x
    rows = torch.cat(dist_fn.all_gather(x.contiguous()))
    if rows.requires_grad:
        rows.register_hook(lambda grad: grad.contiguous())  # gloo sends memory in its physical order
    return rows


def whole(x: Tensor) -> Tensor:
    """Return a tensor that FSDP keeps in pieces in one piece, on every rank; any other unchanged."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def least_over_ranks(n: Tensor) -> int:
    """Return the least of the scalars `n` of all ranks."""
    if world_size() > 1:
        n = n.clone()
        dist.all_reduce(n, dist.ReduceOp.MIN)
    return int(n)


def rank_weight(n: Tensor) -> Tensor:
    """Return the weight of this rank's mean over `n` elements (scalar) that gives all elements the same weight.

    Gradients are averaged over ranks. The weight is 1 in a single process, and 0 if no rank has any element.
    """
    if world_size() == 1:
        return torch.ones_like(n, dtype=torch.float32)
    total = n.clone()
    dist.all_reduce(total)
    return n * world_size() / total.clamp(min=1)


_UNDER_VMAP = ContextVar("under_vmap", default=False)


@contextmanager
def under_vmap() -> Iterator[None]:
    """Let losses run under torch.vmap, where values cannot be inspected; the caller then checks the results."""
    token = _UNDER_VMAP.set(True)
    try:
        yield
    finally:
        _UNDER_VMAP.reset(token)


def is_under_vmap() -> bool:
    """Return whether the call is inside `under_vmap`."""
    return _UNDER_VMAP.get()


Note = Callable[[str, Tensor], None]
_NOTE: ContextVar[Note | None] = ContextVar("note", default=None)


@contextmanager
def noting_values(note: Note) -> Iterator[None]:
    """Let losses call `note` with their name and whether they were given finite values (a bool scalar) instead of raising.

    The value stays on its device, and nothing waits for it.
    """
    token = _NOTE.set(note)
    try:
        yield
    finally:
        _NOTE.reset(token)


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a loss in float32 or better under any autocast: similarities and logs lose too much in bfloat16.

    Raises FloatingPointError for non-finite inputs, before they reach a weight, and on all ranks if one of them has any: the
    others would wait for it. Inside `under_vmap` the caller checks, and inside `noting_values` it is told.
    """

    @wraps(loss)
    def wrapped(first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [a for a in (first, *args) if isinstance(a, Tensor) and a.is_floating_point()]
        if not is_under_vmap():
            _check(loss.__name__, torch.stack([torch.isfinite(t).all() for t in tensors]).all())
        with torch.autocast(first.device.type, enabled=False):
            return loss(*(_at_least_float32(a) for a in (first, *args)), **kwargs)

    return wrapped


def _check(name: str, finite: Tensor) -> None:
    """Pass on whether the values of the loss `name` are finite, or raise FloatingPointError if they are not on every rank."""
    if (note := _NOTE.get()) is not None:
        note(name, finite)
        return
    if world_size() > 1:
        finite = finite.to(torch.int32)
        dist.all_reduce(finite, dist.ReduceOp.MIN)
    if not bool(finite):
        raise FloatingPointError(f"{name} was given values that are not finite")


def _at_least_float32(a: Any) -> Any:
    return a.float() if isinstance(a, Tensor) and a.dtype in {torch.bfloat16, torch.float16} else a
