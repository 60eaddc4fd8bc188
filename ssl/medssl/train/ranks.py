"""The processes of a run: how Fabric starts them and adds up their gradients."""

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from medssl.methods.base import Method
from medssl.train.precision import NetworkPrecision


class DataParallel(DDPStrategy):
    """DDP that looks in every step for parameters without a gradient, for which it must not wait, as long as `searches`."""

    searches = True

    def setup_module(self, module: nn.Module) -> DistributedDataParallel:
        """Wrap the module."""
        self._ddp_kwargs["find_unused_parameters"] = self.searches
        return super().setup_module(module)


def make_fabric(accelerator: str, devices: int, precision: str) -> Fabric:
    """Return a Fabric for `precision`: "32-true" or "bf16-mixed". accelerator: auto, cpu or cuda. devices: processes."""
    strategy = DataParallel() if devices > 1 else "auto"
    if precision != "bf16-mixed":
        return Fabric(accelerator=accelerator, devices=devices, precision="32-true", strategy=strategy)
    kind = accelerator
    if kind == "auto":
        found = torch.accelerator.current_accelerator(check_available=True)
        kind = "cpu" if found is None else found.type
    return Fabric(accelerator=accelerator, devices=devices, plugins=[NetworkPrecision(kind)], strategy=strategy)


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
