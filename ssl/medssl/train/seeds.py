"""The loop for many seeds at once: what differs between runs of one method becomes a dimension of one batched step.

Weights are stacked (S, …) and torch.vmap runs the method's own forward over them, so that S small matrix products become
one large one, and everything around them is paid for once. On one device, in float32, without checkpoints: it is for
comparisons over seeds, whose runs are short.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn.modules.batchnorm import _BatchNorm

from medssl.augmentations.loader import RawBatch, RawScans, StepSampler, make_views
from medssl.augmentations.recipes import Recipe
from medssl.encoders.mlp import MLP
from medssl.errors import UserError
from medssl.losses.distributed import under_vmap
from medssl.methods.base import Batch, Clock, Method
from medssl.rng import Key
from medssl.store.resampled import ResampledScans
from medssl.train.optim import Optim
from medssl.train.options import TrainingData
from medssl.train.stop import TrainingStopped


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
    """Train methods[s] with seeds[s], all at once, each as `train.loop.train` would: same scans, views, masks, rates, clipping.

    methods: of one class and one architecture on an MLP, with different initial weights; trained in place and returned.
    batch: scans per update and seed. data: with targets, those of all `rows` are known. watch(steps done, losses (S,)) is called
    every `watch_every` steps with the methods up to date; True ends the training.

    Raises UserError for what cannot be stacked, and Broken, before anything is updated, for a loss or gradient that is not
    finite, naming its seeds.
    """
    resampled, rows, recipe, targets = data.resampled, data.rows, data.recipe, data.targets
    _check(methods, seeds, optim, rows, targets)
    first = methods[0].to(device).train()
    params, buffers = _stack(methods, device)
    optimizer = _optimizer(optim, first, params)

    def losses_of(params: dict[str, Tensor], buffers: dict[str, Tensor], given: Batch) -> dict[str, Tensor]:
        return functional_call(first, (params, buffers), (given, clock))

    def after_of(params: dict[str, Tensor], buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        return functional_call(after, {f"method.{k}": v for k, v in (params | buffers).items()}, (clock,))

    after, stacked = _AfterStep(first), {k: None if _is_flag(v) else 0 for k, v in buffers.items()}
    of_each, after_each = torch.vmap(losses_of, (0, stacked, 0)), torch.vmap(after_of, (0, stacked))
    rests = type(first).after_step is Method.after_step
    for step, raw in enumerate(_batches(resampled, rows, batch, steps, seeds, targets)):
        clock = Clock(step, steps)
        given = _given(raw, recipe, first.views, seeds, resampled, device)
        try:
            with under_vmap():
                losses = of_each(params, buffers, given)["loss"]
        except RuntimeError as e:
            why = str(e).split("\n")[0]
            raise UserError(
                f"{type(first).__name__} cannot train its seeds at once, train them one by one: {why}"
            ) from e
        losses.sum().backward()
        norms = _norms(params)
        bad = [
            seed for seed, fine in zip(seeds, (losses.detach() + norms).isfinite().tolist(), strict=True) if not fine
        ]
        if bad:
            raise TrainingStopped(
                f"step {step}: seeds {bad} are not finite; nothing was updated. Lower lr or clip", step
            )
        _clip(params, optim.clip / (norms + 1e-6))  # the 1e-6 is torch's
        for group in optimizer.param_groups:
            group["lr"] = optim.lr_at(clock.frac) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
        if not rests:
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
    """`after_step` as a forward, which is what functional_call calls."""

    def __init__(self, method: Method):
        super().__init__()
        self.method = method

    def forward(self, clock: Clock) -> dict[str, Tensor]:
        self.method.after_step(clock)
        return {}


def _check(methods: list[Method], seeds: list[int], optim: Optim, rows: np.ndarray, targets: np.ndarray | None) -> None:
    """UserError for what is not the same for all seeds or does not train row by row."""
    if not methods or len(methods) != len(seeds) or len(set(seeds)) != len(seeds):
        raise UserError(f"seeds={seeds} must be different, one for each of {len(methods)} methods")
    shapes = [{k: (v.shape, v.dtype) for k, v in m.state_dict().items()} for m in methods]
    if any(type(m) is not type(methods[0]) or s != shapes[0] for m, s in zip(methods, shapes, strict=True)):
        raise UserError("seeds train at once only when their methods are of one class and one size")
    first = methods[0]
    name = type(first).__name__
    flags = [{k: bool(v) for k, v in m.named_buffers() if _is_flag(v)} for m in methods]
    if any(f != flags[0] for f in flags):
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
    target_loss = first.target_loss
    if (
        target_loss is not None
        and targets is not None
        and not bool(target_loss.known(torch.as_tensor(targets[rows])).all())
    ):
        raise UserError("seeds train at once on known labels only; leave scans without one out of rows")


def _stack(methods: list[Method], device: str | torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Parameters and buffers (S, …) by name, but flags. Matrices lie transposed, as their gradients come out of the product."""
    params, buffers = stack_module_state([*methods])
    fresh = {k: v.detach().to(device) for k, v in params.items()}
    fresh = {k: v.mT.contiguous().mT if v.ndim > 2 else v for k, v in fresh.items()}
    for k, p in methods[0].named_parameters():
        fresh[k].requires_grad_(p.requires_grad)
    flags = {k: v.clone() for k, v in methods[0].named_buffers() if _is_flag(v)}
    return fresh, {k: v.to(device) for k, v in (buffers | flags).items()}


def _is_flag(buffer: Tensor) -> bool:
    """What methods branch on, as on whether they have started: one for all runs, since these go in step."""
    return buffer.dtype == torch.bool and buffer.ndim == 0


@torch.no_grad()
def _unstack(methods: list[Method], params: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    """Copies what was trained back into the methods."""
    for s, method in enumerate(methods):
        for k, v in (*method.named_parameters(), *method.named_buffers()):
            trained = (params if k in params else buffers)[k]
            v.copy_(trained if _is_flag(trained) else trained[s])


def _optimizer(optim: Optim, first: nn.Module, params: dict[str, Tensor]) -> torch.optim.Optimizer:
    """The optimiser of one run on the weights of all: its groups are by the shapes and the depth of one run."""
    optimizer = optim.build(first)
    assert optimizer is not None
    names = {p: k for k, p in first.named_parameters()}
    for group in optimizer.param_groups:
        group["params"] = [params[names[p]] for p in group["params"]]
        group["fused"] = True  # stacked weights outgrow the cache, so passes over them count
    return optimizer


def _batches(
    resampled: ResampledScans, rows: np.ndarray, batch: int, steps: int, seeds: list[int], targets: np.ndarray | None
) -> Iterator[RawBatch]:
    """Raw batches (S * B, …), each seed's scans as it would meet them alone, seed after seed."""
    scans = RawScans(resampled, targets)
    for parts in zip(*(StepSampler(rows, batch, 0, steps, seed) for seed in seeds), strict=True):
        yield scans.__getitems__([pair for part in parts for pair in part])


def _given(
    raw: RawBatch, recipe: Recipe, views: int, seeds: list[int], resampled: ResampledScans, device: str | torch.device
) -> Batch:
    """What `Method.forward` is given, with a first dimension of seeds: views (S, B, …), the seed of the key (S,)."""
    raw = {k: v.to(device) for k, v in raw.items()}
    seed = torch.tensor(seeds, device=device)
    split = (len(seeds), -1)
    repeated = seed.repeat_interleave(len(raw["scan"]) // len(seeds))
    made, key = make_views(raw, recipe, views, repeated, resampled.mean, resampled.std)
    each = Key(seed, key.epoch.unflatten(0, split), key.scan.unflatten(0, split))
    given: Batch = {"views": [v.unflatten(0, split) for v in made], "key": each}
    if "target" in raw:
        given["target"] = raw["target"].unflatten(0, split)
    return given


def _norms(params: dict[str, Tensor]) -> Tensor:
    """(S,) the norm of each seed's gradient."""
    each = [
        torch.linalg.vector_norm(p.grad, dim=tuple(range(1, p.ndim))) for p in params.values() if p.grad is not None
    ]
    return torch.stack(each).square().sum(0).sqrt()


def _clip(params: dict[str, Tensor], scale: Tensor) -> None:
    """Multiplies each seed's gradient by its `scale` (S,), where that is below 1."""
    if bool((scale < 1).any()):
        for p in params.values():
            if p.grad is not None:
                p.grad.mul_(scale.clamp(max=1).view(-1, *[1] * (p.ndim - 1)))
