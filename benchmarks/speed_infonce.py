"""NT-Xent in tiles against the matrix: seconds and memory of value and gradient, in turn in one process.

    python benchmarks/speed_infonce.py [--rows 16384] [--dim 128] [--threads 2] [--rounds 5] [--out FILE.json]

rows: views in the batch, two of each scan. Memory is the peak of the process above what it held before the loss (Linux).
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from medssl.losses import infonce


def main() -> None:
    """Measure both in turn and print medians, quartiles and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("rows", 16384), ("dim", 128), ("threads", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    views = [torch.randn(given.rows // 2, given.dim, requires_grad=True) for _ in range(2)]
    ways: dict[str, int] = {"tiles": 0, "matrix": given.rows**2 + 1}
    results, seconds, memory = {}, {k: [] for k in ways}, {k: [] for k in ways}
    for way in [w for _ in range(given.rounds) for w in ways]:
        infonce.LARGE = ways[way]
        results[way], took, held = measured(lambda: infonce.nt_xent(*views, 0.1), views)
        seconds[way].append(took)
        memory[way].append(held)
    for way in ways:
        low, mid, high = statistics.quantiles(seconds[way], n=4)
        print(f"{way}: {mid:.2f} s (quartiles {low:.2f} to {high:.2f}), {max(memory[way]):.0f} MB")
    apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*results.values(), strict=True))
    ratio = statistics.median(seconds["matrix"]) / statistics.median(seconds["tiles"])
    print(f"tiles are {ratio:.2f} times as fast; largest difference {apart:.1e} of the largest value")
    if given.out:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
        settings = {k: v for k, v in vars(given).items() if k != "out"}
        found = {"seconds": seconds, "megabytes": memory, "ratio": ratio, "difference": apart}
        given.out.write_text(json.dumps(machine | settings | found, indent=1) + "\n")


def measured(loss: Callable[[], Tensor], inputs: list[Tensor]) -> tuple[list[Tensor], float, float]:
    """Return value and gradients, the seconds they took, and the peak of memory above what was held before, in MB."""
    for x in inputs:
        x.grad = None
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from now
    before, started = status("VmRSS"), time.perf_counter()
    value = loss()
    value.backward()
    took = time.perf_counter() - started
    return [value.detach(), *(x.grad for x in inputs)], took, status("VmHWM") - before


def status(key: str) -> float:
    """Return a size of /proc/self/status in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1000


if __name__ == "__main__":
    main()
