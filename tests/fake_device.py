"""A GPU that is not there: tensors on "cuda" have shapes, types and a device, but no values (torch's fake tensors).

Tensors on the CPU stay real, so that what the CPU decides (which scans are blurred, say) is decided as in a real run. Every
wait for the device and every blocking copy is recorded, and an operation on tensors of two devices is an error, as on a GPU.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

# The first backward of a process counts its devices, and after counting a GPU it starts threads, with which no test could
# fork. Making a fake tensor registers a GPU, so count before.
torch.ones(1, requires_grad=True).sum().backward()
CUDA = torch.device("cuda", 0)
ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default: 0, ATEN.copy_.default: 1}  # the place of the source among the arguments
INDEXED = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}


Answers = dict[tuple[str, str], list[Any]]
TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


class Recorded(TorchDispatchMode):
    """Records, in a run on the CPU, what a run on a device would wait for: numbers, shapes of selections."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: Answers = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        if func in INDEXED:
            if masks := [i for i in args[1] if i is not None and i.dtype == torch.bool]:
                self.answers.setdefault((str(func), _place()), []).append([int(m.sum()) for m in masks])
        elif TAGS & set(func.tags):
            self.answers.setdefault((str(func), _place()), []).append(out)
        return out


@dataclass
class Device(TorchDispatchMode):
    """Runs operations on "cuda" under fake tensors and all others as they are.

    answers: what the same code computed on the CPU. waits: where the CPU waited for a value from the device, for item(),
    nonzero(), x[mask], cpu() and the like, and so went on with an answer. number: what is read without one. copies: where
    it waited for a copy to the device.
    """

    mode: FakeTensorMode
    answers: Answers
    number: float
    waits: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        on_cpu = not any(isinstance(t, FakeTensor) for t in tensors)
        if on_cpu and torch.device(kwargs.get("device") or "cpu").type == "cpu":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in COPIES and (found := self._copied(func, args, kwargs)) is not None:
            return found
        if func in INDEXED:
            args = self._indexed(func, args)
        fake = {id(t): self.mode.from_tensor(t) for t in tensors if not isinstance(t, FakeTensor)}
        args, kwargs = tree_map_only(Tensor, lambda t: fake.get(id(t), t), (args, kwargs))
        try:
            return func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            return moved(self._answer(func))

    def _answer(self, func: Any) -> Any:
        at = _place()
        self.waits.append(f"{func} at {at}")
        known = self.answers.get((str(func), at)) or [self.number] * (func is ATEN._local_scalar_dense.default)
        assert known, f"on the CPU there is no such value: {func} at {at}"
        return (
            known.pop(0) if len(known) > 1 else known[0]
        )  # a search for a minimum may take more steps than on the CPU

    def _copied(self, func: Any, args: Any, kwargs: Any) -> Tensor | None:
        """Record a copy between CPU and device; return what arrives on the CPU."""
        source, first = args[COPIES[func]], args[0]
        to = torch.device(kwargs.get("device") or first.device) if COPIES[func] == 0 else first.device
        waits_not = kwargs.get("non_blocking") or (COPIES[func] == 1 and len(args) > 2 and args[2])
        if isinstance(source, FakeTensor) and to.type == "cpu":
            self.waits.append(f"a copy to the CPU at {_place()}")
            with unset_fake_temporarily():
                return torch.full(source.shape, self.number, dtype=kwargs.get("dtype") or source.dtype)
        if not isinstance(source, FakeTensor) and to.type != "cpu" and not waits_not:
            self.copies.append(f"{tuple(source.shape)} at {_place()}")
        return None

    def _indexed(self, func: Any, args: Any) -> Any:
        """Replace masks by as many places as they had on the CPU, and record the copy of an index on the CPU."""
        masks = [i for i in args[1] if isinstance(i, FakeTensor) and i.dtype == torch.bool]
        if func is ATEN.index.Tensor:
            counts = self._answer(func) if masks else []
        elif masks and args[2].numel() == 1:
            return args  # x[mask] = number is a masked fill
        else:
            counts = [len(args[2]) for _ in masks]
            self.waits += [f"{func} at {_place()}"] * len(masks)
        indices: list[Tensor | None] = []
        for i in args[1]:
            if any(i is m for m in masks):
                indices += [i.new_zeros(counts[0], dtype=torch.int64) for _ in range(i.ndim)]
                counts = counts[1:]
            elif i is None or isinstance(i, FakeTensor):
                indices.append(i)
            else:
                self.copies.append(f"an index {tuple(i.shape)} at {_place()}")
                indices.append(moved(i))
        return args[0], indices, *args[2:]


def _is_composite(func: Any) -> bool:
    """Return whether an operation is made of others; inference mode hands over `cpu()` and `item()` undivided."""
    return bool(torch.is_inference_mode_enabled() and func.namespace == "aten" and func._can_decompose())


def _place() -> str:
    """Return the line outside torch that is being run; "backward" if there is none in the package."""
    place, frame = "", sys._getframe()
    while frame is not None:
        name = frame.f_code.co_filename
        if "/torch/" not in name and name != __file__:
            place = place or "/".join(f"{name}:{frame.f_lineno}".split("/")[-3:])
            if "/medssl/" in name:
                return place
        frame = frame.f_back
    return "backward"


@contextmanager
def fake_device(bf16: bool = False, answers: Answers | None = None, number: float = 1.0) -> Iterator[Device]:
    """Make "cuda" usable on a machine without one; with bf16, under autocast as `precision=bf16-mixed` has it.

    answers: of a `Recorded` run of the same code, for code that waits; number: what it reads without such a run.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=False)
    device = Device(mode, answers or {}, number)
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    with ExitStack() as stack:
        stack.enter_context(mode)
        stack.enter_context(device)
        stack.enter_context(patch.object(nn.Module, "to", _to({})))
        stack.enter_context(patch.object(torch.autograd, "grad", _grad))
        torch.set_autocast_enabled("cuda", bf16)  # torch.autocast refuses where there is no GPU
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield device
        finally:
            for made in [v for k, m in [*sys.modules.items()] if k.startswith("medssl") for v in vars(m).values()]:
                if hasattr(made, "cache_clear"):  # a cached tensor would outlive its device
                    made.cache_clear()
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])


def moved(x: Any) -> Any:
    """Return tensors, of any nesting, on the device. To call inside `fake_device`; counts nothing."""
    return tree_map_only(Tensor, _empty, x)


def _empty(t: Tensor) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=CUDA)


def move(module: nn.Module) -> nn.Module:
    """Move the parameters and buffers of a module to the device, as `module.to` does. To call inside `fake_device`."""
    made: dict[Tensor, Tensor] = {}
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                made.setdefault(p, nn.Parameter(_empty(p), requires_grad=p.requires_grad))
                part._parameters[name] = made[p]
        for name, b in part._buffers.items():
            if b is not None:
                part._buffers[name] = made.setdefault(b, _empty(b))
    return module


def _to(made: dict[Tensor, Tensor]) -> Callable[..., nn.Module]:
    """Return `nn.Module.to` for the device and back; made: parameters and buffers on the device -> those they were made of."""
    to_others = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if len(args) != 1 or kwargs or not isinstance(args[0], str | torch.device):
            return to_others(module, *args, **kwargs)
        if torch.device(args[0]).type == "cuda":
            before = [*module.parameters(), *module.buffers()]
            after = [*move(module).parameters(), *module.buffers()]
            made.update({new: old for new, old in zip(after, before, strict=True) if not isinstance(old, FakeTensor)})
            return module
        for part in module.modules():
            for kept in (part._parameters, part._buffers):
                kept.update({name: made.get(t, t) for name, t in kept.items() if t is not None})
        return module

    return to


def _grad(loss: Tensor, inputs: Tensor) -> tuple[Tensor]:
    """Return the gradient of `loss` with respect to one leaf, as `torch.autograd.grad` does; see `backward`."""
    found: list[Tensor] = []

    def keep(leaf: Tensor, grad: Tensor | None) -> None:
        if leaf is inputs and grad is not None:
            found.append(grad)

    _propagate(loss, keep)
    assert found, "the loss does not depend on it"
    return (sum(found[1:], start=found[0]),)


def backward(loss: Tensor) -> None:
    """Set the gradients of `loss`, as `loss.backward()` does: torch's own engine asks the driver for a device.

    Raises AssertionError for a gradient whose shape or device is not that of its tensor.
    """
    _propagate(loss, _accumulate)


def _propagate(loss: Tensor, at_leaf: Callable[[Tensor, Tensor | None], None]) -> None:
    """Call `at_leaf` with every leaf that `loss` depends on and its gradient; see `backward`."""
    assert loss.grad_fn is not None, "the loss has no gradient"
    waiting: dict[Any, int] = {}
    seen, todo = {loss.grad_fn}, [loss.grad_fn]
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                waiting[node] = waiting.get(node, 0) + 1
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
    given: dict[Any, list[Tensor | None]] = {loss.grad_fn: [torch.ones_like(loss)]}
    ready = [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            grads = given.pop(node, None)
            if hasattr(node, "variable"):
                if grads is not None:
                    at_leaf(node.variable, grads[0])
                continue
            outs = _apply(node, grads)
            for (after, at), grad in zip(node.next_functions, outs, strict=True):
                if after is None:
                    continue
                if grad is not None:
                    slots = given.setdefault(after, [None] * len(after._input_metadata))
                    meta = after._input_metadata[at]
                    assert grad.device == meta.device, (
                        f"{node.name()} gives a gradient on {grad.device} for {meta.device}"
                    )
                    grad = grad.to(meta.dtype)
                    if grad.shape != meta.shape:
                        grad = grad.sum_to_size(meta.shape)
                    slots[at] = grad if slots[at] is None else slots[at] + grad
                waiting[after] -= 1
                if waiting[after] == 0:
                    ready.append(after)


def _apply(node: Any, grads: list[Tensor | None] | None) -> tuple[Tensor | None, ...]:
    if grads is None:
        return (None,) * len(node.next_functions)
    out = node.apply(*grads) if hasattr(node, "apply") else node(*grads)
    outs = out if isinstance(out, tuple) else (out,)
    if len(outs) > len(node.next_functions):  # a Function of one's own answers for arguments that are no tensors, too
        given = iter([o for o in outs if o is not None])
        outs = tuple(None if after is None else next(given) for after, _ in node.next_functions)
    return outs


def _accumulate(leaf: Tensor, grad: Tensor | None) -> None:
    if grad is None:
        return
    assert grad.shape == leaf.shape, f"a gradient of shape {tuple(grad.shape)} for {tuple(leaf.shape)}"
    grad = grad.to(leaf.dtype)
    leaf.grad = grad if leaf.grad is None else leaf.grad + grad
