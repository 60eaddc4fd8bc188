"""Processor time of a forward and backward pass by memory order of the convolutions and by precision, in 2D and 3D.

    python benchmarks/speed_memory_format.py --threads 1

Prints CPU milliseconds of the second fastest of five passes of 512 images, or 64 volumes, of 28 pixels along each axis.
"""

import argparse
import time

import torch
from torch import nn

from medssl.encoders.cnn import CNN
from medssl.encoders.small_resnet import SmallResNet
from medssl.train.precision import channels_last

EDGE, PASSES = 28, 5


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--threads", type=int, default=1)
    torch.set_num_threads(args.parse_args().threads)
    for dims, batch in ((2, 512), (3, 64)):
        size = (EDGE,) * dims
        x = torch.randn(batch, 1, *size)
        encoders = {
            "cnn": CNN(1, size),
            "cnn 16 to 128": CNN(1, size, (16, 32, 64, 128)),
            "small_resnet": SmallResNet(1, size),
        }
        for name, encoder in encoders.items():
            found = [milliseconds(encoder, x, bf16) for bf16 in (False, True)]
            channels_last(encoder)
            found += [milliseconds(encoder, x, bf16) for bf16 in (False, True)]
            order = ("contiguous", "contiguous bfloat16", "channels last", "channels last bfloat16")
            print(
                f"{name}, {dims}D: " + ", ".join(f"{o} {ms:.0f}" for o, ms in zip(order, found, strict=True)),
                flush=True,
            )


def milliseconds(encoder: nn.Module, x: torch.Tensor, bf16: bool) -> float:
    """Return CPU milliseconds of one forward and backward pass."""
    spent = []
    for _ in range(PASSES):
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = encoder(x).float().square().mean()
        loss.backward()
        spent.append(1e3 * (time.process_time() - start))
    return sorted(spent)[1]


if __name__ == "__main__":
    main()
