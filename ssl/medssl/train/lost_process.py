"""The end of a run of several processes when one of them is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from lightning_fabric import Fabric

from medssl.errors import UserError

BROKEN = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")
"""Words in the errors of a collective operation whose other side is gone."""


@contextmanager
def lost_process(fabric: Fabric) -> Iterator[None]:
    """Turn the error of a process that waits for one that is gone into a UserError; with one process do nothing."""
    try:
        yield
    except RuntimeError as e:
        words = str(e).lower()
        if fabric.world_size == 1 or not (isinstance(e, dist.DistError) or any(word in words for word in BROKEN)):
            raise
        raise UserError(
            f"process {fabric.global_rank} of {fabric.world_size} ends because another one of this run is gone: it was killed, "
            "or said why above; the same command goes on from the last checkpoint"
        ) from e
