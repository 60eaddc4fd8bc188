"""Train many seeds of one method at once, for comparisons over seeds whose runs are short.

Weights are stacked (S, …) and torch.vmap maps the method's own forward over them: S small matrix products become one large
one, and everything around them is paid for once. On one device, in float32, without checkpoints.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.augmentations.loader import RawScans, StepSampler, make_views
from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.losses.distributed import under_vmap
from medssl.methods.base import Batch, Clock, Method
from medssl.rng import Key
from medssl.train.optim import Optim
from medssl.train.options import TrainingData
from medssl.train.stop import TrainingStopped

Tensors = dict[str, Tensor]


def train_seeds(
    methods: list[Method],
    data: TrainingData,
    *,
    steps: int,
    batch: int,
    seeds: list[int],
    optim: Optim,
    watch: Callable[[int, Tensor], bool] | None = None,
    watch_every: int = 0,
    device: str | torch.device = "cpu",
) -> list[Method]:
    """Train methods[s] with seeds[s] as `train.loop.train` would, with the same scans, views, masks, rates and clipping.

    methods: of one class and one architecture on an MLP, with different initial weights; trained in place and returned.
    batch: scans per update and seed. watch(steps done, losses (S,)): called every `watch_every` steps with the methods up
    to date; True ends the training.

    Raises UserError for methods that cannot be stacked and for unknown targets, and TrainingStopped before an update with
    a loss or gradient that is not finite, naming the seeds.
    """
    _check(methods, seeds, optim, data)
    for method in methods:
        method.to(device)
    first = methods[0].train()
    params, buffers = _stack(methods, device)
    optimizer = _optimizer(optim, first, params)

    def losses_of(params: Tensors, buffers: Tensors, batch: Batch) -> Tensors:
        return functional_call(first, (params, buffers), (batch, clock))

    def after_of(params: Tensors, buffers: Tensors) -> Tensors:
        return functional_call(after, {f"method.{k}": v for k, v in (params | buffers).items()}, (clock,))

    after, stacked = _AfterStep(first), {k: None if _is_flag(v) else 0 for k, v in buffers.items()}
    losses_of_each, after_each = torch.vmap(losses_of, (0, stacked, 0)), torch.vmap(after_of, (0, stacked))
    for step, given in enumerate(_batches(data, batch, steps, seeds, first, device)):
        clock = Clock(step, steps)
        try:
            with under_vmap():
                losses = losses_of_each(params, buffers, given)["loss"]
        except RuntimeError as e:
            why = str(e).split("\n")[0]
            raise UserError(f"{type(first).__name__} cannot train seeds at once, train them one by one: {why}") from e
        losses.sum().backward()
        norms = _grad_norms(params)
        finite = (losses.detach() + norms).isfinite().tolist()
        if bad := [seed for seed, fine in zip(seeds, finite, strict=True) if not fine]:
            why = f"step {step}: seeds {bad} are not finite; nothing was updated. Lower lr or clip"
            raise TrainingStopped(why, step)
        _scale_grads(params, optim.clip / (norms + 1e-6))  # torch's clipping adds 1e-6 too
        for group in optimizer.param_groups:
            group["lr"] = optim.lr_at(clock.frac) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        if type(first).after_step is not Method.after_step:
            with under_vmap():
                after_each(params, buffers)
        done = step + 1
        if watch is not None and watch_every and done % watch_every == 0:
            _unstack(methods, params, buffers)
            if watch(done, losses.detach()):
                return methods
            first.train()
    _unstack(methods, params, buffers)
    return methods


class _AfterStep(nn.Module):
    """`after_step` as a forward, which functional_call needs."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, clock: Clock) -> Tensors:
        self.method.after_step(clock)
        return {}


def _check(methods: list[Method], seeds: list[int], optim: Optim, data: TrainingData) -> None:
    """Raise UserError for methods, seeds, an optimiser or targets that cannot train at once."""
    if not methods or len(methods) != len(seeds) or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={seeds} must be different, one for each of {len(methods)} methods")
    first, targets = methods[0], data.targets
    name, loss = type(first).__name__, first.target_loss
    kinds = [(type(m), {k: (v.shape, v.dtype) for k, v in m.state_dict().items()}) for m in methods]
    flags = [{k: bool(v) for k, v in m.named_buffers() if _is_flag(v)} for m in methods]
    if any(kind != kinds[0] for kind in kinds):
        raise UserError("seeds train at once only when their methods are of one class and one size")
    if any(flag != flags[0] for flag in flags):
        raise UserError(f"seeds of {name} train at once only when all have begun or none has")
    if not isinstance(first.encoder, MLP):
        raise UserError(f"seeds of {name} train at once with encoder=mlp only, not {type(first.encoder).__name__}")
    if any(isinstance(m, _BatchNorm) for m in first.modules()):
        raise UserError(f"{name} has batch statistics and cannot train its seeds at once; train them one by one")
    if not any(p.requires_grad for p in first.parameters()):
        raise UserError(f"{name} has nothing to train by gradient")
    if optim.name == "lars":
        raise UserError("optimizer=lars scales by the norm of a whole tensor; seeds at once need adamw or sgd")
    if first.target and targets is None:
        raise UserError(f"{name} learns from a {first.target}; give targets")
    if loss is not None and targets is not None and not bool(loss.known(torch.as_tensor(targets[data.rows])).all()):
        raise UserError("seeds train at once on known labels only; leave scans without one out of rows")


def _stack(methods: list[Method], device: str | torch.device) -> tuple[Tensors, Tensors]:
    """Return parameters and buffers (S, …) by name; flags are not stacked.

    Matrices are stored transposed, as their gradients come out of the product.
    """
    params, buffers = stack_module_state([*methods])
    for k, p in methods[0].named_parameters():
        stacked = params[k].detach().to(device)
        params[k] = (stacked.mT.contiguous().mT if stacked.ndim > 2 else stacked).requires_grad_(p.requires_grad)
    flags = {k: v.clone() for k, v in methods[0].named_buffers() if _is_flag(v)}
    return params, {k: v.to(device) for k, v in (buffers | flags).items()}


def _is_flag(buffer: Tensor) -> bool:
    """Return whether a buffer is a flag that methods branch on: one for all seeds, which train in step."""
    return buffer.dtype == torch.bool and buffer.ndim == 0


@torch.no_grad()
def _unstack(methods: list[Method], params: Tensors, buffers: Tensors) -> None:
    """Copy the trained tensors back into the methods."""
    for s, method in enumerate(methods):
        for k, v in (*method.named_parameters(), *method.named_buffers()):
            trained = (params if k in params else buffers)[k]
            v.copy_(trained if _is_flag(trained) else trained[s])


def _optimizer(optim: Optim, first: nn.Module, params: Tensors) -> torch.optim.Optimizer:
    """Return the optimiser of one method, on the weights of all: groups go by the shapes and depth of one."""
    optimizer = optim.build(first)
    assert optimizer is not None
    names = {p: k for k, p in first.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [params[names[p]] for p in group["params"]]
        group["fused"] = True  # stacked weights exceed the cache, so passes over them count
    return optimizer


def _batches(
    data: TrainingData, batch: int, steps: int, seeds: list[int], method: Method, device: str | torch.device
) -> Iterator[Batch]:
    """Yield batches (S, B, …) with the scans that each seed would get alone; the seed of the key is (S,)."""
    scans, stats = RawScans(data.resampled, data.targets, data.partners), (data.resampled.mean, data.resampled.std)
    seed, split = torch.tensor(seeds, device=device), (len(seeds), -1)
    for parts in zip(*(StepSampler(data.rows, batch, 0, steps, s) for s in seeds), strict=True):
        raw = {k: v.to(device) for k, v in scans.__getitems__([pair for part in parts for pair in part]).items()}
        each = method.views, seed.repeat_interleave(batch), *stats, method.small_views
        made, key = make_views(raw, data.recipe, *each)
        key = Key(seed, key.epoch.unflatten(0, split), key.scan.unflatten(0, split))
        given: Batch = {"views": [v.unflatten(0, split) for v in made], "key": key}
        if "target" in raw:
            given["target"] = raw["target"].unflatten(0, split)
        yield given


def _grad_norms(params: Tensors) -> Tensor:
    """Return (S,) the gradient norm of each seed."""
    grads = [p.grad for p in params.values() if p.grad is not None]
    return torch.stack([torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))) for g in grads]).square().sum(0).sqrt()


def _scale_grads(params: Tensors, scale: Tensor) -> None:
    """Multiply each seed's gradient by its `scale` (S,) if that is below 1."""
    if bool((scale < 1).any()):
        for p in params.values():
            if p.grad is not None:
                p.grad.mul_(scale.clamp(max=1).view(-1, *[1] * (p.ndim - 1)))
