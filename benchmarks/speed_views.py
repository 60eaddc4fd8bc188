"""Views per second of our recipes and of lightly's and torchvision's SimCLR transforms, in one run.

    python benchmarks/speed_views.py --threads 1 --size 64 224

Each library gets its own input: lightly grey images as RGB PIL images, torchvision's v2 one RGB uint8 tensor per image,
ours the raw uint8 rows of a batch of resampled scans. All make standardised float32 views. `xray` does rotation, crop,
blur, exposure and noise on grey images; `natural` has the same ops as the other libraries' transforms, on RGB. Rounds
alternate, so that other load on the machine affects all equally; the best round of each counts.
"""

import argparse
import platform
import time
from collections.abc import Callable

import numpy as np
import torch
from lightly.transforms import SimCLRTransform
from PIL import Image
from torchvision.transforms import v2

from medssl import catalog
from medssl.augmentations.loader import make_views


def _raw(image: torch.Tensor) -> dict[str, torch.Tensor]:
    n = len(image)
    return {
        "image": image,
        "low": torch.zeros(n),
        "high": torch.full((n,), 255.0),
        "scan": torch.arange(n),
        "epoch": torch.zeros(n, dtype=torch.int64),
    }


def contestants(size: int, batch: int, few: int) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return name -> (number of views, function that makes them); two views per image."""
    grey = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (batch, 1, size, size), dtype=np.uint8))
    rgb = grey.expand(-1, 3, -1, -1).contiguous()
    xray, natural = (catalog.build(catalog.spec("augment", name), size=(size, size)) for name in ("xray", "natural"))
    pil = [Image.fromarray(g.numpy()).convert("RGB") for g in grey[:few, 0]]
    lightly = SimCLRTransform(input_size=size)
    kernel = size // 10 // 2 * 2 + 1
    torchvision = v2.Compose(
        [
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(kernel, (0.1, 2.0))], 0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * 3, [0.25] * 3),
        ]
    )
    return {
        "medssl xray, grey": (2 * batch, lambda: make_views(_raw(grey), xray, 2, 0, 0.5, 0.25)),
        "medssl natural, RGB": (2 * batch, lambda: make_views(_raw(rgb), natural, 2, 0, 0.5, 0.25)),
        "lightly SimCLRTransform": (2 * few, lambda: [lightly(image) for image in pil]),
        "torchvision v2": (2 * few, lambda: [torchvision(image) for image in rgb[:few] for _ in range(2)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs="+", default=[64, 224])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument(
        "--few", type=int, default=32, help="images per round for the other libraries, which take one at a time"
    )
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {args.threads} threads")
    for size in args.size:
        entries = contestants(size, args.batch, args.few)
        wall, cpu = dict.fromkeys(entries, float("inf")), dict.fromkeys(entries, float("inf"))
        for _ in range(args.rounds + 1):
            for name, (views, make) in entries.items():
                start, busy = time.perf_counter(), time.process_time()
                make()
                wall[name] = min(wall[name], (time.perf_counter() - start) / views)
                cpu[name] = min(cpu[name], (time.process_time() - busy) / views)
        for name in entries:
            ratio = wall["lightly SimCLRTransform"] / wall[name]
            print(
                f"{size:4d}  {name:24s} {1 / wall[name]:9.0f} views/s  {1e3 * wall[name]:7.3f} ms/view"
                f"  {1e3 * cpu[name]:7.3f} ms CPU  {ratio:6.2f} x lightly"
            )


if __name__ == "__main__":
    main()
