"""Does layer-wise pretraining help a deep network of sigmoids? Bengio et al., 2007, experiment 2, on MNIST.

    python benchmarks/quality_greedy_mnist.py --mnist FOLDER [--train 10000 --widths 500 500 500 --seeds 3]

FOLDER holds the four idx.gz files. Every arm pretrains the layers of a network from the same initial weights, seed by seed, on
the same images. The whole network and a new output layer then train on the labels by stochastic gradient descent with momentum,
at one constant rate for all arms, until the validation error has not fallen for `--patience` epochs; the best epoch is tested.
The last arm is a present-day network without pretraining: rectifiers, He's initial weights, Adam. All seeds of an arm train at
once. Prints the test error in per cent with its interval over images and seeds, the paired difference from no pretraining, and
the order beside the paper's, which uses 50,000 images and chooses hyperparameters per arm.
"""

import argparse
import time
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mnist import part
from torch import Tensor, nn

from medssl import catalog
from medssl.encoders.mlp import MLP
from medssl.evals.metrics.metrics import MEAN
from medssl.evals.stats.bootstrap import paired, score_seeds
from medssl.evals.stats.significance import holm
from medssl.evals.stats.text_table import text_table
from medssl.losses.target_losses import classification
from medssl.store.resampled import ResampledScans
from medssl.tasks.supervised import Supervised
from medssl.train.optim import Optim
from medssl.train.options import TrainingData
from medssl.train.seeds import train_seeds

SIZE = (28, 28)


@dataclass(frozen=True)
class Arm:
    """How the layers start: a method of configs/method and its options, or none; test error % in the paper, if it has one.

    lr: of pretraining. 3e-3 was the best of three on validation images for denoising autoencoders (10,000 images, two other
    seeds) and is taken for autoencoders and the control; for machines 1e-3 and 3e-3 were alike there.
    """

    method: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    lr: float = 3e-3
    modern: bool = False
    paper: str = ""


ARMS = {
    "none": Arm(paper="2.4"),
    "supervised greedy": Arm("greedy_supervised", paper="2.0"),
    "autoencoders": Arm("greedy_ae", {"corruption": 0.0}, paper="1.4"),
    "denoising autoencoders": Arm("greedy_ae", {"corruption": 0.25}),
    "Boltzmann machines": Arm("dbn", {"visible": "bernoulli"}, lr=1e-3, paper="1.2"),
    "none, modern": Arm(modern=True),
}


@dataclass(frozen=True)
class Digits:
    """Training and validation images, their labels, the rows of each, and the test images."""

    resampled: ResampledScans
    y: np.ndarray
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    y_test: np.ndarray

    def standardised(self, images: np.ndarray) -> Tensor:
        """Standardise images (N, 1, 28, 28) uint8 for a method."""
        return (torch.from_numpy(images).float() / 255 - self.resampled.mean) / self.resampled.std


def digits(folder: Path, train: int, val: int) -> Digits:
    """Split the 60,000 images, which are in random order: the first `train` and the last `val`."""
    x, y = part(folder, "train")
    x = x[:, None]
    if train + val > len(x):
        raise SystemExit(f"--train {train} and --val {val} are more than the {len(x)} images there are")
    rows = np.r_[:train, len(x) - val : len(x)]
    known, ends = x[:train] / 255, np.zeros(len(rows), np.float32)
    resampled = ResampledScans(x[rows], ends, ends + 255, float(known.mean()), float(known.std()), SIZE)
    x_test, y_test = part(folder, "t10k")
    return Digits(resampled, y[rows], np.arange(train), np.arange(train, train + val), x_test[:, None], y_test)


def encoders(widths: list[int], seeds: list[int], modern: bool) -> list[MLP]:
    """Build one network per seed. Sigmoids start uniform in 1 / sqrt(inputs), as in the paper and by torch's default."""
    made = []
    for seed in seeds:
        torch.manual_seed(seed)
        made.append(MLP(1, SIZE, tuple(widths), "relu" if modern else "sigmoid"))
        for m in made[-1].modules():
            if modern and isinstance(m, nn.Linear):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
                nn.init.zeros_(m.bias)
    return made


def pretrain(nets: list[MLP], arm: Arm, data: Digits, seeds: list[int], epochs: int, batch: int) -> None:
    """Pretrain every layer for `epochs`, in place."""
    spec = {k: v for k, v in catalog.load("method", arm.method).items() if k != "_run_"} | arm.options
    kind = {"target_loss": classification(10)} if catalog.takes(spec, "target_loss") == "yes" else {}
    methods = [catalog.build(spec | kind, encoder=net) for net in nets]
    train_seeds(
        methods, TrainingData(data.resampled, data.train, plain(), data.y if methods[0].target else None),
        steps=methods[0].parts * epochs * (len(data.train) // batch), batch=batch, seeds=seeds,
        optim=Optim("adamw", arm.lr, warmup=0.0, lr_end=1.0, weight_decay=0.0),
    )  # fmt: skip


def finetune(
    nets: list[MLP], data: Digits, seeds: list[int], optim: Optim, epochs: int, batch: int, patience: int
) -> tuple[list[Supervised], list[int]]:
    """Fine-tune the networks with a linear layer on the labels, and return each at its best validation epoch."""
    heads = []
    for net, seed in zip(nets, seeds, strict=True):
        torch.manual_seed(seed)
        heads.append(Supervised(net, classification(10)))
    x, y = data.standardised(data.resampled.array[data.val]), data.y[data.val]
    least, at, best = [2.0] * len(nets), [0] * len(nets), [deepcopy(m.state_dict()) for m in heads]
    per_epoch = len(data.train) // batch

    def watch(step: int, losses: Tensor) -> bool:
        epoch = step // per_epoch
        for s, head in enumerate(heads):
            error = float(wrong(head, x, y).mean())
            if error < least[s]:
                least[s], at[s], best[s] = error, epoch, deepcopy(head.state_dict())
        return all(epoch - a >= patience for a in at)

    train_seeds(
        heads, TrainingData(data.resampled, data.train, plain(), data.y), steps=epochs * per_epoch, batch=batch, seeds=seeds,
        optim=optim, watch=watch, watch_every=per_epoch,
    )  # fmt: skip
    for head, state in zip(heads, best, strict=True):
        head.load_state_dict(state)
    return heads, at


def plain() -> Any:
    return catalog.build(catalog.load("augment", "plain"), size=SIZE)


@torch.no_grad()
def wrong(head: Supervised, x: Tensor, y: np.ndarray) -> np.ndarray:
    """Return (N,) 1.0 where the most probable class is wrong."""
    return (head.head(head.encoder(x)).argmax(1).numpy() != y).astype(np.float64)


def options(args: argparse.ArgumentParser, train: int, seeds: int) -> argparse.ArgumentParser:
    """Return the options of both pretraining benchmarks."""
    args.add_argument("--mnist", type=Path, required=True)
    args.add_argument("--train", type=int, default=train)
    args.add_argument("--val", type=int, default=2000)
    args.add_argument("--seeds", type=int, default=seeds)
    args.add_argument("--batch", type=int, default=50)
    args.add_argument("--pretrain-epochs", type=int, default=10, help="per layer")
    args.add_argument("--lr", type=float, default=0.1, help="of fine-tuning by gradient descent")
    args.add_argument("--epochs", type=int, default=30, help="of fine-tuning, at most")
    args.add_argument("--patience", type=int, default=5)
    args.add_argument("--threads", type=int, default=2)
    return args


def run(arm: Arm, data: Digits, widths: list[int], seeds: list[int], given: argparse.Namespace) -> tuple[Any, Any]:
    """Return the fine-tuned networks and the best epoch of each."""
    nets = encoders(widths, seeds, arm.modern)
    if arm.method:
        pretrain(nets, arm, data, seeds, given.pretrain_epochs, given.batch)
    name, lr = ("adamw", 1e-3) if arm.modern else ("sgd", given.lr)
    optim = Optim(name, lr, warmup=0.0, lr_end=1.0, weight_decay=0.0, momentum=0.9)
    return finetune(nets, data, seeds, optim, given.epochs, given.batch, given.patience)


def main() -> None:
    args = options(argparse.ArgumentParser(description=__doc__), 10000, 3)
    args.add_argument("--widths", type=int, nargs="+", default=[500, 500, 500])
    args.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    given = args.parse_args()
    torch.set_num_threads(given.threads)
    data, seeds = digits(given.mnist, given.train, given.val), list(range(given.seeds))
    x, who = data.standardised(data.test), np.arange(len(data.test))
    errors, lines, began = {}, [], time.perf_counter()
    for name in given.arms:
        start = time.perf_counter()
        heads, epochs = run(ARMS[name], data, given.widths, seeds, given)
        errors[name] = [100 * wrong(head, x, data.y_test) for head in heads]
        each = ", ".join(f"{e.mean():.2f}" for e in errors[name])
        print(f"{name}: {each} % at epochs {epochs}, {time.perf_counter() - start:.0f} s", flush=True)
        lines.append({"pretraining": name, "test error %": score_seeds(MEAN, data.y_test, errors[name], who)})
    if "none" in errors:
        compared = [n for n in errors if n != "none"]
        found = [paired(MEAN, data.y_test, errors[n], errors["none"], who) for n in compared]
        p = dict(zip(compared, holm([f.p for f in found]), strict=True))
        for line in lines:
            if (n := line["pretraining"]) != "none":
                line |= {"minus none": found[compared.index(n)].score, "p (Holm)": f"p = {p[n]:.4f}"}
    print(
        f"\nMNIST, {given.train} images, widths {given.widths}, {given.seeds} seeds, {time.perf_counter() - began:.0f} s"
    )
    print(text_table(lines, ["pretraining", "test error %", "minus none", "p (Holm)"]))
    order = sorted(errors, key=lambda n: float(np.mean(errors[n])))
    printed = sorted((n for n in errors if ARMS[n].paper), key=lambda n: float(ARMS[n].paper))
    ours = [n for n in order if n in printed]
    print(f"\norder here:         {' < '.join(order)}")
    print(f"of the paper's:     {' < '.join(ours)}")
    print(f"order in the paper: {' < '.join(f'{n} ({ARMS[n].paper} %)' for n in printed)}")
    print("The order is the paper's." if ours == printed else "The order is not the paper's.")


if __name__ == "__main__":
    main()
