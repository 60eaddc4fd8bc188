"""The processes of a run: how Fabric starts them, adds up their gradients and divides the weights among them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from medssl.errors import UserError
from medssl.methods.base import Method
from medssl.train.precision import NetworkPrecision


class DataParallel(DDPStrategy):
    """DDP that looks in every step for parameters without a gradient, for which it must not wait, as long as `searches`."""

    searches = True

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap the module."""
        self._ddp_kwargs["find_unused_parameters"] = self.searches
        return super().setup_module(module)


STRATEGIES = ("ddp", "fsdp")


def make_fabric(accelerator: str, devices: int, precision: str, strategy: str = "ddp") -> Fabric:
    """Return a Fabric for `precision`: "32-true" or "bf16-mixed".

    accelerator: auto, cpu or cuda. devices: processes. strategy: one of STRATEGIES, for two or more devices: ddp keeps the
    whole state on each; fsdp (FSDP2, `shard`) gives each a part of the weights, gradients and optimiser state.
    """
    over: Any = "auto" if devices == 1 else DataParallel()
    if strategy == "fsdp":
        over = ModelParallelStrategy(shard, devices, 1, save_distributed_checkpoint=False)
    if precision != "bf16-mixed":
        return Fabric(accelerator=accelerator, devices=devices, precision="32-true", strategy=over)
    kind = accelerator
    if kind == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = "cpu" if found is None else found.type
    return Fabric(accelerator=accelerator, devices=devices, plugins=[NetworkPrecision(kind)], strategy=over)


def shard(method: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Divide the parameters of a method over the processes: each block of a transformer for itself, then the others together.

    A part is put together when it is needed, so a transformer is never whole in memory, and other networks are in each pass.
    """
    for p in method.parameters():
        p.data = p.data.contiguous()  # FSDP takes no other memory layout
    for name, module in method.named_modules():
        if name.rpartition(".")[2] == "blocks":
            for block in module.children():
                fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(method, mesh=mesh["data_parallel"])
    return method


def check_shards(method: Method) -> None:
    """Raise UserError for a method that cannot be trained with strategy=fsdp."""
    name = type(method).__name__
    if not any(p.requires_grad for p in method.parameters()):
        raise UserError(f"{name} trains nothing by gradient, so there is nothing for strategy=fsdp; use strategy=ddp")
    if not method.shards or method.parts > 1:  # in torch an optimiser that has not moved all of them cannot be loaded
        raise UserError(f"{name} cannot be trained in pieces, as strategy=fsdp does; use strategy=ddp")


@contextmanager
def unsharded(method: nn.Module) -> Iterator[None]:
    """Have the parameters of a method whole in the `with`, for a look at it between two steps. Call on all ranks."""
    if isinstance(method, FSDPModule):
        method.unshard()
    try:
        yield
    finally:
        if isinstance(method, FSDPModule):
            method.reshard()


def put_together(method: nn.Module, into: nn.Module) -> None:
    """Load the weights and state of a method that FSDP has divided into `into`, on rank 0. Call on all ranks."""
    if state := get_model_state_dict(method, options=StateDictOptions(full_state_dict=True, cpu_offload=True)):
        into.load_state_dict(state)


def stop_searching(fabric: Fabric, method: Method, module: Any) -> Any:
    """Return `method` wrapped anew, without the search, if every parameter has a gradient from here on; else `module`.

    Call after the first backward pass, on all ranks. A method of this package that uses every parameter in one step does so in
    all later ones. A method from elsewhere need not, so the search stays.

    It also stays on three or more CPUs: without it torch sorts its buckets of gradients anew after the first step of a
    process, and the place of a number in a bucket decides in which order gloo adds those of the ranks up. A run that goes on
    from a checkpoint would then end with other bits. A sum of two is the same in either order.
    """
    strategy, known = fabric.strategy, type(method).__module__.startswith("medssl.")
    if not isinstance(strategy, DataParallel) or not known or (fabric.device.type == "cpu" and fabric.world_size > 2):
        return module
    idle = float(any(p.requires_grad and p.grad is None for p in method.parameters()))
    if float(torch.as_tensor(fabric.all_reduce(torch.tensor(idle, device=fabric.device), reduce_op="sum"))):
        return module
    strategy.searches = False
    return fabric.setup_module(method)
