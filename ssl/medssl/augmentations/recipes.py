"""Augmentation recipes: ordered ops, as listed in configs/augment.

A view's size, (H, W) or (D, H, W), decides between 2D and 3D. The recipes respect laterality: only photographs are
mirrored, since mirroring a chest changes the diagnosis. Crops keep at least 40 % of the area (or volume), because a crop
that misses a small lesion turns two views of one patient into views of different diseases. The numbers and their sources
are in configs/augment.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, get_type_hints

import torch
from torch import Tensor

from medssl import rng
from medssl.augmentations.geometry import Crop, Separable, Weights
from medssl.augmentations.op import Op
from medssl.errors import UserError
from medssl.resample import apply_axes

SLOT = 4  # random numbers per slot: a block of Philox
CHUNK = (
    1 << 20
)  # elements processed at once on a CPU; larger chunks spend more on fresh memory (RGB at 224: twice the time)

_NUMBERS: dict[Any, tuple[str, int]] = {float: ("a number", 1), tuple[float, float]: ("[low, high]", 2)}


@dataclass(frozen=True)
class SmallViews:
    """Small views of each scan, beside the views of the whole size: none by default.

    count: per scan. size: in pixels, one number per axis. scale: smallest and largest share of the area or volume that a
    crop shows, in place of the recipe's.
    """

    count: int = 0
    size: tuple[int, ...] = ()
    scale: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Recipe:
    """Ops in order, each with the slot that its random numbers start at.

    View `view` of a scan is a function of (seed, epoch, scan, view) alone. An op with slot s and n draws takes the numbers
    4 s … 4 s + n - 1 of the view's stream, so adding, removing or changing an op leaves the parameters of the others
    unchanged. Methods that draw random numbers of their own use `rng` slots from 1; recipes use 0.

    Raises UserError when the numbers of two ops overlap.
    """

    size: tuple[int, ...]
    ops: tuple[tuple[int, Op], ...]  # (slot, op)

    def __post_init__(self) -> None:
        used: dict[int, str] = {}
        for first, op in self.ops:
            for slot in range(first, first + math.ceil(op.draws / SLOT)):
                if slot in used:
                    raise UserError(
                        f"augmentation recipe: {used[slot]} and {type(op).__name__} both draw from slot {slot}; "
                        "give every op its own slots"
                    )
                used[slot] = type(op).__name__

    def __call__(self, x: Tensor, key: rng.Key, view: int) -> Tensor:
        """x (B, C, *S) float32 in [0, 1] -> (B, C, *size) float32 in [0, 1], contiguous.

        The key may stay on the CPU while x is on a GPU; this is faster, since no op then waits for the device.
        """
        if x.ndim - 2 != len(self.size):
            raise UserError(f"views of size {self.size} need {len(self.size)} spatial axes, scans have {x.ndim - 2}")
        rows = max(1, CHUNK // (x.shape[1] * max(math.prod(x.shape[2:]), math.prod(self.size))))
        if x.is_cpu and rows < len(x):
            pieces = zip(x.split(rows), key.split(rows), strict=True)
            return torch.cat([self._apply(self.ops, x, part, view) for x, part in pieces])
        return self._apply(self.ops, x, key, view)

    def small(self, views: SmallViews) -> "Recipe":
        """Return the recipe of small views: the same ops, with the size and the crops of `views`.

        Raises UserError for a recipe without a crop, whose small views would show the whole scan at a lower resolution.
        """
        if not any(isinstance(op, Crop) for _, op in self.ops):
            raise UserError(
                "small views are crops, and this augmentation has none; use another augment, such as neutral"
            )
        return Recipe(views.size, tuple((slot, _of_small(op, views)) for slot, op in self.ops))

    def transform_mask(self, mask: Tensor, key: rng.Key, view: int, classes: int | None = None) -> Tensor:
        """Transform mask (B, *S) int64 classes to (B, *size) like view `view` of its image, class 0 beyond the edges.

        Applies the ops that move pixels, with the image's random numbers, to one map per class; at each pixel the largest
        map wins, the lower class in a tie. classes: one more than the highest in the mask, if known; it saves waiting for a
        GPU.
        """
        number = int(mask.max()) + 1 if classes is None else classes
        each = torch.arange(number, device=mask.device).view(1, -1, *[1] * (mask.ndim - 1))
        moving = tuple((slot, op) for slot, op in self.ops if op.moves)
        return self._apply(moving, (mask[:, None] == each).float(), key, view).argmax(1)

    def _apply(self, ops: tuple[tuple[int, Op], ...], x: Tensor, key: rng.Key, view: int) -> Tensor:
        """Apply `ops` in order to x. On a GPU, consecutive separable ops become one matrix per axis."""
        u = rng.uniform(key, view, 0, max(SLOT * slot + op.draws for slot, op in self.ops))
        weights: Weights | None = None
        for slot, op in ops:
            params = op.params(u[:, SLOT * slot : SLOT * slot + op.draws])
            if isinstance(op, Separable) and not x.is_cpu:
                weights = op.fold(weights, params, x)
                continue
            x, weights = _resampled(x, weights), None
            x = op.apply(x, params)
        return _resampled(x, weights).contiguous()


def recipe(size: Sequence[int], strength: float = 1.0, **ops: Mapping[str, Any]) -> Recipe:
    """Build a recipe for views of `size` from a file of configs/augment.

    ops: name -> {op: "module.Class" in medssl.augmentations, slot: int, and the options of that class}. An op with a field
    `size` gets the size of the views. strength: how far ops change a scan, as a multiple of their options, 0 not at all:
    angles, widths, shares cut away, changes of contrast and noise are multiplied, exponents raised. Whether an op is applied (p)
    and mirroring, solarising, greying stay.

    Raises UserError for a strength below 0, an unknown op and for an option that is not the number or the pair it should be.
    """
    view = tuple(size)
    for name, options in ops.items():
        if not isinstance(options, Mapping):
            raise UserError(f"augmentation recipe: {name} takes options, as in augment.{name}.p=0.5, got {options!r}")
    if not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise UserError(f"augment.strength must be a number of 0 or more, got {strength!r}")
    made = ((options["slot"], _op(name, view, options)) for name, options in ops.items())
    return Recipe(view, tuple((slot, op if strength == 1 else op.scaled(strength)) for slot, op in made))


def _op(name: str, size: tuple[int, ...], options: Mapping[str, Any]) -> Op:
    module, _, made = options["op"].partition(".")
    try:
        op = getattr(import_module(f"medssl.augmentations.{module}"), made)
    except (ImportError, AttributeError) as e:
        raise UserError(f"augmentation recipe: {name}.op={module}.{made} is not an op of medssl.augmentations") from e
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if k not in ("op", "slot")}
    hints = get_type_hints(op)
    for key, value in given.items():
        numbers = value if isinstance(value, tuple) else (value,)
        expected = _NUMBERS.get(hints.get(key))
        if expected and (len(numbers) != expected[1] or not all(isinstance(n, int | float) for n in numbers)):
            raise UserError(f"augmentation recipe: {name}.{key} must be {expected[0]}, got {options[key]!r}")
    return op(**given, **({"size": size} if "size" in hints else {}))


def _of_small(op: Any, views: SmallViews) -> Op:
    """Return an op as it is applied to small views."""
    if isinstance(op, Crop):
        return replace(op, size=views.size, scale=views.scale)
    return replace(op, size=views.size) if hasattr(op, "size") else op


def _resampled(x: Tensor, weights: Weights | None) -> Tensor:
    return x if weights is None else apply_axes(x, weights).contiguous()
