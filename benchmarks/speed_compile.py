"""Does `torch.compile`, or a lower precision of matrix products, make a step of pretraining faster on this machine?

    python benchmarks/speed_compile.py --threads 1

Each variant makes a step (forward, backward, update) of SimCLR in turn with the others, on the same views, from the same weights.
The ratio is the median over rounds, with quartiles. The difference is the largest one between the losses of a variant and of the
plain steps in all rounds, relative to the plain loss. Compiling takes the seconds of the first step.
"""

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from medssl import catalog
from medssl.methods.base import Clock
from medssl.rng import Key
from medssl.train.precision import channels_last

ENCODERS = (("small_resnet", 28), ("small_resnet", 64), ("resnet18", 64))
CLOCK = Clock(0, 100)


class Contestant:
    """A method with its optimiser; `compiled` compiles the encoder, and `matmul` is the precision of matrix products."""

    def __init__(self, method: nn.Module, compiled: bool = False, matmul: str = "highest"):
        self.method, self.matmul = method, matmul
        self.optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
        if compiled:
            method.encoder.compile()
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def step(self, batch: dict[str, object]) -> None:
        """Make and time a step."""
        torch.set_float32_matmul_precision(self.matmul)
        start = time.perf_counter()
        loss: Tensor = self.method(batch, CLOCK)["loss"]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(float(loss))
        self.seconds.append(time.perf_counter() - start)


def contestants(name: str, size: int) -> dict[str, Contestant]:
    torch.manual_seed(0)
    encoder = catalog.build(catalog.spec("encoder", name), channels=1, size=(size, size))
    spec = catalog.load("method", "simclr")
    spec.pop("_run_", None)
    method = catalog.build(spec, encoder=encoder).train()
    channels_last(method)
    make: Callable[[], nn.Module] = lambda: copy.deepcopy(method)  # noqa: E731
    return {
        "plain": Contestant(make()),
        "matmul high": Contestant(make(), matmul="high"),
        "matmul medium": Contestant(make(), matmul="medium"),
        "compiled": Contestant(make(), compiled=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoder", help="one of them; all without")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| encoder | variant | first step, s | ms a step | times as fast as plain | largest difference of the loss |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, size in ENCODERS:
        if given.encoder not in (None, name):
            continue
        entries = contestants(name, size)
        random = torch.Generator().manual_seed(0)
        key = Key(0, torch.zeros(given.batch, dtype=torch.int64), torch.arange(given.batch))
        for _ in range(given.rounds + 1):
            views = [torch.randn(given.batch, 1, size, size, generator=random) for _ in range(2)]
            for entry in entries.values():
                entry.step({"views": views, "key": key})
        plain = entries["plain"]
        for words, entry in entries.items():
            ratio = np.quantile(np.array(plain.seconds[1:]) / np.array(entry.seconds[1:]), [0.5, 0.25, 0.75])
            apart = max(abs(a - b) / abs(a) for a, b in zip(plain.losses, entry.losses, strict=True))
            times = f"{entry.seconds[0]:.1f} | {1e3 * np.median(entry.seconds[1:]):.0f}"
            faster = f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"
            print(f"| {name}, {size} pixels | {words} | {times} | {faster} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    main()
