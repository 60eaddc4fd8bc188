"""Keyed random numbers: pure functions of a key, independent of what was drawn before.

`uniform(key, view, slot)` is counter-based: Philox4x32-10 of Salmon et al., 2011 (https://doi.org/10.1145/2063384.2063405)
with counter (epoch, scan, view and slot, block) and key (seed). It is integer arithmetic, so the bits are the same after a
resume, with any number of workers or ranks, and on CPU and GPU.
"""

import math
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

MASK = 0xFFFFFFFF
SLOTS = 1 << 16  # slots per view: view and slot share one counter word


class Key(NamedTuple):
    """The key of a batch's random numbers: the run's seed and, for each scan, its epoch and its row in the store."""

    seed: int | Tensor  # one for all scans, or (B,) int64 if runs of several seeds share a batch
    epoch: Tensor  # (B,) int64
    scan: Tensor  # (B,) int64

    def to(self, device: torch.device | str) -> "Key":
        """Return the key with its tensors on `device`, without waiting for it."""
        seed = self.seed.to(device, non_blocking=True) if isinstance(self.seed, Tensor) else self.seed
        return Key(seed, self.epoch.to(device, non_blocking=True), self.scan.to(device, non_blocking=True))

    def split(self, rows: int) -> list["Key"]:
        """Split into keys of `rows` scans each."""
        parts = zip(self.epoch.split(rows), self.scan.split(rows), strict=True)
        if isinstance(self.seed, Tensor):
            return [Key(seed, *part) for seed, part in zip(self.seed.split(rows), parts, strict=True)]
        return [Key(self.seed, *part) for part in parts]


def philox(counter: Tensor, key: Tensor | tuple[int, int]) -> Tensor:
    """Philox4x32-10 of counter (..., 4) and key (..., 2), 32-bit words in int64. Returns (..., 4) such words.

    A key of two integers, the same for all counters, needs no copy to the counter's device.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1) if isinstance(key, Tensor) else key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # int64 wraps, so all 64 bits of the product are right
        c0, c1, c2, c3 = (p1 >> 32 & MASK) ^ c1 ^ k0, p1 & MASK, (p0 >> 32 & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = k0 + 0x9E3779B9 & MASK, k1 + 0xBB67AE85 & MASK
    return torch.stack([c0, c1, c2, c3], -1)


def words(key: Key, view: int, slot: int, n: int) -> Tensor:
    """Return (B, n) independent 32-bit words, in int64."""
    if not 0 <= slot < SLOTS:
        raise ValueError(f"slot must lie in [0, {SLOTS}), got {slot}")
    scan, epoch = key.scan.long(), key.epoch.to(key.scan.device).long()
    blocks = torch.arange(-(-n // 4), device=scan.device)
    counter = torch.stack(
        torch.broadcast_tensors(
            epoch[:, None] & MASK,
            scan[:, None] & MASK,
            torch.full((), view * SLOTS + slot, device=scan.device),
            blocks[None],
        ),
        -1,
    )
    if isinstance(key.seed, Tensor):
        seeds = torch.stack([key.seed & MASK, key.seed >> 32 & MASK], -1)[:, None].to(scan.device)
        return philox(counter, seeds).flatten(1)[:, :n]
    return philox(counter, (key.seed & MASK, key.seed >> 32 & MASK)).flatten(1)[:, :n]


class _Draw(Function):
    """A draw of one run. Under torch.vmap over runs, one draw for the rows of all, since a row depends only on its own key."""

    @staticmethod
    def forward(draw: Callable[..., Tensor], seed: Tensor, epoch: Tensor, scan: Tensor, *args: Any) -> Tensor:
        return draw(Key(int(seed), epoch, scan), *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(info: Any, in_dims: Any, draw: Callable[..., Tensor], *given: Any) -> tuple[Tensor, int]:
        seed, epoch, scan = (
            x.expand(info.batch_size, *x.shape) if at is None else x.movedim(at, 0)
            for x, at in zip(given[:3], in_dims[1:4], strict=True)
        )
        key = Key(seed.repeat_interleave(epoch.shape[1]), epoch.flatten(), scan.flatten())
        return draw(key, *given[3:]).unflatten(0, epoch.shape), 0


def _mappable(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Make a draw work under torch.vmap over the seed, epoch and scan of its key."""

    @wraps(draw)
    def wrapped(key: Key, view: int, slot: int, *args: Any) -> Tensor:
        if isinstance(key.seed, Tensor) and key.seed.ndim == 0:
            return _Draw.apply(draw, *key, view, slot, *args)
        return draw(key, view, slot, *args)

    return wrapped


@_mappable
def uniform(key: Key, view: int, slot: int, n: int = 1) -> Tensor:
    """Return (B, n) float32 in [0, 1), 24 bits each."""
    return (words(key, view, slot, n) >> 8).float() * 2.0**-24


def _scramble_(x: Tensor) -> Tensor:
    """Hash int32 in place by a bijection with good avalanche (constants 'lowbias32' of C. Wellons's hash-prospector)."""
    spare = torch.empty_like(x)
    for shift, mask, factor in ((16, 0xFFFF, 0x7FEB352D), (15, 0x1FFFF, -0x7B935975), (16, 0xFFFF, 1)):
        torch.bitwise_right_shift(x, shift, out=spare)
        x.bitwise_xor_(spare.bitwise_and_(mask)).mul_(factor)
    return x


def _bits_field(key: Key, view: int, slot: int, n: int) -> Tensor:
    """Return (B, n) int32: one cheap hash per element, keyed by two Philox words per scan."""
    seeds = words(key, view, slot, 2).to(torch.int32)  # the low 32 bits
    at = torch.arange(n, dtype=torch.int32, device=seeds.device) * -0x61C88647  # golden-ratio steps
    return _scramble_(_scramble_(at + seeds[:, :1]).bitwise_xor_(seeds[:, 1:]))


@cache
def _normal_quantiles(device: torch.device) -> Tensor:
    """Return the 2^16 midpoint quantiles of the normal distribution, scaled to variance 1."""
    q = torch.special.ndtri((torch.arange(1 << 16, dtype=torch.float64) + 0.5) / (1 << 16))
    return (q / q.square().mean().sqrt()).float().to(device, non_blocking=True)


@_mappable
def uniform_field(key: Key, view: int, slot: int, shape: tuple[int, ...]) -> Tensor:
    """Return (B, *shape) float32 in [0, 1), for masks and noise: far cheaper per element than `uniform`."""
    return ((_bits_field(key, view, slot, math.prod(shape)) >> 8) + 2**23).float().mul_(2.0**-24).view(-1, *shape)


@_mappable
def normal_field(key: Key, view: int, slot: int, shape: tuple[int, ...]) -> Tensor:
    """Return (B, *shape) float32 standard normals: one of 2^16 quantiles (up to 4.3) for each half of a hash."""
    n = math.prod(shape)
    halves = _bits_field(key, view, slot, -(-n // 2)).view(torch.int16).int().add_(1 << 15)
    field = _normal_quantiles(halves.device).index_select(0, halves.flatten())
    return field.view(len(halves), -1)[:, :n].reshape(-1, *shape)


def seed_from(*keys: int) -> int:
    """Return a 63-bit seed that depends on all `keys` and their order (chained Philox)."""
    h = torch.zeros(4, dtype=torch.int64)
    for k in keys:
        h = philox(h ^ torch.tensor([k & MASK, k >> 32 & MASK, 0, len(keys)]), torch.tensor([0x6D656473, 0x736C]))
    return int(h[0] | (h[1] & 0x7FFFFFFF) << 32)


def generator(*keys: int) -> torch.Generator:
    """Return a CPU generator keyed by `keys`, for permutations and initial weights."""
    return torch.Generator().manual_seed(seed_from(*keys))
