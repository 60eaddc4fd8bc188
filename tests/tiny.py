"""Small real objects for several tests: encoders, methods, batches and scans with drawn discs."""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from scipy import stats

from medssl import catalog
from medssl.encoders.adaptation import adapt
from medssl.encoders.config import InputConfig
from medssl.errors import UserError
from medssl.losses.target_losses import classification
from medssl.methods.parts.frozen_teacher import FrozenTeacher
from medssl.rng import Key
from medssl.runs.config import Choice, PretrainConfig
from medssl.store.resampled import ResampledScans

METHODS = sorted(catalog.choices("method"))
SMALL = {
    "cnn": {"widths": [8, 16]},
    "small_resnet": {"widths": [8, 16]},
    "mlp": {"widths": [32, 16]},
    "vit": {"patch": 4, "dim": 24, "depth": 2, "heads": 2},
    "patch_bank": {"patch": 3, "centroids": 16},
    "patch_pyramid": {"patches": [3, 5], "centroids": 8},
    "layer": {"widths": [16]},
    "hourglass": {"widths": [32, 16]},
}
PRETRAIN = [
    "method=simclr",
    "encoder=cnn",
    "encoder.widths=[4]",
    "size=8",
    "batch=8",
    "accelerator=cpu",
    "monitor_every=0",
]
"""Words of a small `medssl pretrain`."""
SHRINK = {
    "hidden": 32,
    "out": 16,
    "prototypes": 8,
    "width": 24,
    "depth": 1,
    "heads": 2,
    "rounds": 3,
    "chains": 8,
    "per_scan": 8,
    "clusters": 8,
}


def method(
    name: str,
    dims: int = 2,
    channels: int | None = None,
    size: int = 16,
    encoder: str | None = None,
    adapted: str = "all",
    **options,
):
    """Build the method of that yaml, at a size for tests, on its default encoder (a small cnn if it has none).

    A method that learns from labels gets two classes. channels: None: the fewest it accepts. adapted: the part of the
    encoder that is trained, as in `adapt`.
    """
    channels = channels or fewest_channels(name)
    spec = catalog.load("method", name)
    run = spec.pop("_run_", {})
    spec |= {k: v for k, v in SHRINK.items() if k in spec} | options
    encoder = encoder or run.get("encoder", "cnn")
    torch.manual_seed(0)
    model = catalog.build(catalog.spec("encoder", encoder, **SMALL[encoder]), channels=channels, size=(size,) * dims)
    adapt(model, adapted, rank=2)
    for loss in ("target_loss", "predict_loss", "unlearn_loss"):
        if catalog.takes(spec, loss) != "no":
            spec = {loss: classification(2)} | spec
    if catalog.takes(spec, "rows") != "no":
        spec = {"rows": torch.arange(64)} | spec
    if catalog.takes(spec, "teacher") == "yes":
        spec = {"teacher": teacher(channels, (size,) * dims)} | spec
    return catalog.build(spec, encoder=model)


def teacher(channels: int, size: tuple[int, ...]) -> FrozenTeacher:
    """Return a frozen cnn of another width, grid and standardisation, whose weights differ from every student's."""
    takes = InputConfig(channels, tuple(n + 4 for n in size), None, False, 0.3, 0.25)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = catalog.build(catalog.spec("encoder", "cnn", widths=[8, 12]), channels=channels, size=takes.size)
    return FrozenTeacher(encoder, takes, InputConfig(channels, size, None, False, 0.35, 0.2))


@cache
def fewest_channels(name: str) -> int:
    """Return 1, or 2 for a method that refuses scans with a single channel."""
    try:
        method(name, channels=1)
    except UserError as e:
        if "channel" in str(e):
            return 2
        raise
    return 1


def trains(made) -> bool:
    """Return whether a method has anything to train by gradient."""
    return any(p.requires_grad for p in made.parameters())


def targets(wanted: str, n: int, start: int = 0) -> torch.Tensor | None:
    """Return the targets of scans start … start + n: patients with two scans, classes or pairs of them, every fifth unknown."""
    at = torch.arange(start, start + n)
    if wanted == "label":
        return torch.where(at % 5 == 4, -1, at % 2)
    if wanted == "facts":
        return torch.stack([at % 2, at // 2 % 2], 1).float().masked_fill((at % 5 == 4)[:, None], torch.nan)
    return at // 2 if wanted else None


def secret(path, digit: str = "0"):
    """Write a key file with a known key, so that pseudonyms and splits are the same every time."""
    if not path.exists():
        path.write_text(digit * 64)
        path.chmod(0o600)
    return path


def key(n: int, start: int = 0, seed: int = 0) -> Key:
    return Key(seed, torch.zeros(n, dtype=torch.int64), torch.arange(start, start + n))


def batch(views: int, n: int = 8, dims: int = 2, channels: int = 1, size: int = 16, seed: int = 0) -> dict:
    """Return a batch of `views` of each of n scans. Views of one scan share most of their content, as real views do."""
    g = torch.Generator().manual_seed(seed)
    shape = (n, channels, *(size,) * dims)
    scan = torch.randn(shape, generator=g)
    return {"views": [scan + 0.3 * torch.randn(shape, generator=g) for _ in range(views)], "key": key(n)}


def batch_for(method, n: int = 8, seed: int = 0) -> dict:
    """Return a batch with the views, the small ones too, and the target of a method."""
    size, small = method.encoder.size, method.small_views
    given = batch(method.views, n, len(size), method.encoder.channels, size[0], seed)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    for view in batch(small.count, n, len(size), method.encoder.channels, size[0], seed)["views"]:
        given["views"].append(F.interpolate(view, small.size, mode=mode, align_corners=False))
    target = targets(method.target, n)
    return given if target is None else given | {"target": target}


def resampled(n: int = 48, dims: int = 2, channels: int = 1, size: int = 16, seed: int = 0) -> ResampledScans:
    """Bright discs of two sizes in noise."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * dims, indexing="ij"))
    centre = size / 2 + rng.normal(0, 1, (n, dims, *[1] * dims))
    radius = np.where(np.arange(n) % 2, 0.22, 0.36).reshape(n, *[1] * dims) * size
    disc = ((grid[None] - centre) ** 2).sum(1) < radius**2
    image = disc[:, None] * 120 + 60 + rng.normal(0, 12, (n, channels, *(size,) * dims))
    array = np.clip(image, 0, 255).astype(np.uint8)
    return ResampledScans(array, np.zeros(n, np.float32), np.full(n, 255, np.float32), 0.35, 0.2, (size,) * dims)


def ends(patients: int, level: float = 0.95) -> list[float]:
    """The quantiles of resamples that are the ends of an interval: Hesterberg, 2015, section 4.2, by scipy's distributions."""
    tail = stats.norm.cdf(stats.t.ppf((1 - level) / 2, patients - 1) * (patients / (patients - 1)) ** 0.5)
    return [tail, 1 - tail]


def wilson(share: float, n: float, level: float = 0.95) -> list[float]:
    """Wilson's interval by its definition: the shares q from which `share` is z standard errors sqrt(q (1 - q) / n) away."""
    z2 = stats.norm.ppf((1 + level) / 2) ** 2
    return sorted(np.roots([1 + z2 / n, -2 * share - z2 / n, share**2]).real)


def config(**changes) -> PretrainConfig:
    """The config of a small run."""
    settings = {
        "store": "store", "where": None, "target": None, "fingerprint": "", "method": Choice("simclr", {}),
        "encoder": Choice("cnn", {}), "augment": Choice("neutral", {}), "size": (16, 16), "spacing": None, "equalise": False,
        "steps": 10, "batch": 8, "accumulate": 1, "seed": 0, "optimizer": "adamw", "lr": 1e-3, "lr_end": 0.0, "warmup": 0.05,
        "weight_decay": 1e-4, "momentum": 0.9, "clip": 10.0, "precision": "32-true", "log_every": 10, "monitor_every": 1,
        "on_collapse": "warn", "accelerator": "cpu", "devices": 1, "strategy": "ddp", "workers": 0, "log": "jsonl",
        "save_every": 100, "init": None, "adapt": "all", "lora_rank": 8, "teacher": None,
    }  # fmt: skip
    return PretrainConfig(**settings | changes)
