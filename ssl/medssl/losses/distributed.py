"""What losses need when a batch is spread over processes, and when autocast surrounds them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_fn  # not reachable as an attribute of torch.distributed
from torch import Tensor


def world_size() -> int:
    """The number of processes that share a batch."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's place among them."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(x: Tensor) -> Tensor:
    """Rows of every rank, in rank order; gradients flow back to the rank that made them."""
    if world_size() == 1:
        return x
    rows = torch.cat(dist_fn.all_gather(x.contiguous()))
    if rows.requires_grad:
        rows.register_hook(lambda grad: grad.contiguous())  # gloo sends memory as it lies
    return rows


def rank_weight(n: Tensor) -> Tensor:
    """How much the mean over this rank's `n` (scalar) counts when ranks are averaged, so that each element counts the same.

    1 in one process; 0 where no rank has any.
    """
    if world_size() == 1:
        return torch.ones_like(n, dtype=torch.float32)
    total = n.clone()
    dist.all_reduce(total)
    return n * world_size() / total.clamp(min=1)


_MAPPED = ContextVar("mapped", default=False)


@contextmanager
def under_vmap() -> Iterator[None]:
    """Inside, losses run under torch.vmap, where no value can be looked at: who maps looks at what comes out."""
    before = _MAPPED.set(True)
    try:
        yield
    finally:
        _MAPPED.reset(before)


def is_under_vmap() -> bool:
    """Whether this is inside `mapped`."""
    return _MAPPED.get()


def full_precision(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run a loss in float32 or better whatever the autocast around it: similarities and logs do not survive bfloat16.

    Non-finite inputs are refused before they reach a weight; inside `mapped` that is left to the caller.
    """

    @wraps(loss)
    def wrapped(first: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        tensors = [a for a in (first, *args) if isinstance(a, Tensor) and a.is_floating_point()]
        if not is_under_vmap() and not all(bool(torch.isfinite(t).all()) for t in tensors):
            raise FloatingPointError(f"{loss.__name__} was given values that are not finite")
        with torch.autocast(first.device.type, enabled=False):
            return loss(*(_at_least_float32(a) for a in (first, *args)), **kwargs)

    return wrapped


def _at_least_float32(a: Any) -> Any:
    return a.float() if isinstance(a, Tensor) and a.dtype in {torch.bfloat16, torch.float16} else a
