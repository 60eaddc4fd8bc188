"""A SimCLR step on a device: seconds, peak memory, share of the views, and whether two runs give the same bits.

    python benchmarks/gpu_step.py [--device cuda] [--encoder resnet50] [--size 224] [--batch 256] [--steps 20]

Prints one line of JSON. Two runs of the same seed are compared by their weights; the loss is that of the last step.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from medssl import catalog
from medssl.augmentations.loader import RawBatch, images_to, make_views
from medssl.losses.distributed import noting_values
from medssl.methods.base import Clock, Method
from medssl.rng import Key

Views = Callable[[int], tuple[list[Tensor], Key]]


def main() -> None:
    """Time the steps of two runs, and the views alone."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="resnet50")
    for name, default in (("size", 224), ("batch", 256), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    device, size = torch.device(given.device), (given.size, given.size)
    recipe = catalog.build(catalog.spec("augment", "xray"), size=size)
    g = torch.Generator().manual_seed(0)
    raw: RawBatch = {
        "image": torch.randint(0, 256, (given.batch, 1, *size), generator=g, dtype=torch.uint8),
        "low": torch.zeros(given.batch), "high": torch.full((given.batch,), 255.0),
        "scan": torch.arange(given.batch), "epoch": torch.zeros(given.batch, dtype=torch.int64),
    }  # fmt: skip
    if device.type == "cuda":
        raw = {k: v.pin_memory() for k, v in raw.items()}
        torch.cuda.reset_peak_memory_stats()

    def views(step: int) -> tuple[list[Tensor], Key]:
        made, key = make_views(images_to(raw, device), recipe, 2, step, 0.5, 0.25)
        return made, key

    runs = [run(given, device, views) for _ in range(2)]
    started = time.perf_counter()
    for step in range(given.steps):
        views(step)
    wait(device)
    alone = (time.perf_counter() - started) / given.steps
    same = all(torch.equal(a, b) for a, b in zip(*(r[0].parameters() for r in runs), strict=True))
    found = {
        "device": str(device),
        "encoder": given.encoder,
        "size": given.size,
        "batch": given.batch,
        "torch": torch.__version__,
    }
    found |= {"step_seconds": runs[1][1], "views_seconds": alone, "views_share": alone / runs[1][1], "loss": runs[1][2]}
    found |= {"same_bits_twice": same}
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "peak_megabytes": torch.cuda.max_memory_allocated() / 1e6}
    print(json.dumps(found))


def run(given: argparse.Namespace, device: torch.device, views: Views) -> tuple[Method, float, float]:
    """Train for the steps; return the method, seconds a step without the first two, and the last loss."""
    torch.manual_seed(0)
    encoder = catalog.build(catalog.spec("encoder", given.encoder), channels=1, size=(given.size, given.size))
    spec = catalog.spec("method", "simclr")
    spec.pop("_run_", None)
    method = catalog.build(spec, encoder=encoder).to(device).train()
    optimizer = torch.optim.AdamW(method.parameters(), 1e-3)
    for step in range(given.steps + 2):
        if step == 2:
            wait(device)
            started = time.perf_counter()
        made, key = views(step)
        with noting_values(lambda loss, finite: None), torch.autocast(device.type, torch.bfloat16):
            loss = method({"views": made, "key": key.to(device)}, Clock(step, given.steps + 2))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wait(device)
    return method, (time.perf_counter() - started) / given.steps, float(loss.detach())


def wait(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
