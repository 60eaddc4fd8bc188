"""Random numbers of a step that belong to no scan: chains of a Boltzmann machine, directions of a projection."""

import torch

from medssl.methods.base import Clock
from medssl.rng import Key


def step_key(key: Key, clock: Clock, n: int, device: torch.device) -> Key:
    """Return the key of n chains or directions at a step, the same on every rank."""
    return Key(key.seed, torch.full((n,), clock.step, device=device), torch.arange(n, device=device))
