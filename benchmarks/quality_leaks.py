"""What the guard over a score finds of copies that were put into a test set, what it blames wrongly, and how long it takes.

    python benchmarks/quality_leaks.py --source ../shared/data/cxr_guangzhou ../shared/data/cxr_nih \
        --npz ../shared/data/medmnist/pneumoniamnist_rebuilt.npz [--run RUN]

--source: folders with manifest.csv (file, patient_id) and images/. Three quarters of the patients pretrain, the others test.
`--images` pretraining scans are put into the test a second time under another patient's name, once for each way to spoil them,
at several sizes. Found: share of those copies that the guard counts, when all pixels can be read, when those of the pretraining
scans cannot, and with embeddings of the scored encoder as well (a run's, or a ResNet-18 as it is born). Wrong: test scans that
are blamed although no copy, or for another scan than theirs, in every fold of the patients, and that per million pairs.
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from quality_duplicates import SPOIL, gray, unit

from medssl import catalog, load_encoder
from medssl.leakage.image_sets import ImageComparer, ScanSet
from medssl.leakage.leak_check import check_leaks
from medssl.leakage.near_duplicates import Duplicates, find_duplicates
from medssl.readers.phash import phash
from medssl.store.schema import content_hash

EDGES = (224, 112, 64, 28)
FOLDS = 4


def scans(name: str, images: list[np.ndarray], patients: list[str], readable: bool = True) -> ScanSet:
    columns = [
        patients,
        [f"{name} {i}" for i in range(len(images))],
        [content_hash(x) for x in images],
        map(phash, images),
    ]
    patient, scan, content, bits = (np.array(list(c), str) for c in columns)
    edge = np.array([max(x.shape) if readable else 0 for x in images], np.int64)
    return ScanSet(name, "key", patient, scan, content, bits, np.ones(len(images), bool), edge, images.__getitem__)


def taken(part: ScanSet, images: list[np.ndarray], at: np.ndarray, name: str, readable: bool = True) -> ScanSet:
    """Of a set the scans at `at`."""
    columns = (c[at] for c in (part.patient, part.scan, part.hash, part.phash, part.named))
    edge = part.edge[at] * readable
    return ScanSet(name, "key", *columns, edge, lambda i: images[at[i]])


def embedding(run: Path | None, edge: int) -> Callable[[list[np.ndarray]], np.ndarray]:
    torch.manual_seed(0)
    if run:
        encoder, config = load_encoder(run)
        size, mean, std = list(config.size), config.mean, config.std
    else:
        size, mean, std = (min(edge, 64),) * 2, 0.5, 0.25
        encoder = catalog.build(catalog.spec("encoder", "timm", model="resnet18"), channels=1, size=size)

    @torch.inference_mode()
    def embed(images: list[np.ndarray]) -> np.ndarray:
        small = [
            torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], size, mode="bilinear", antialias=True)
            for x in images
        ]
        return torch.cat([encoder.eval()((batch - mean) / std) for batch in torch.cat(small).split(64)]).numpy()

    return embed


def shrunk(images: list[np.ndarray], edge: int) -> list[np.ndarray]:
    """To at most `edge` pixels, by area, in 8 bits."""
    out = []
    for x in images:
        if max(x.shape) > edge:
            step = torch.nn.functional.interpolate(torch.from_numpy(x)[None, None], (edge, edge), mode="area")
            x = (np.round(step[0, 0].numpy() * 255) / 255).astype(np.float32)
        out.append(x)
    return out


def measure(name: str, images: list[np.ndarray], patients: list[str], n: int, run: Path | None) -> None:
    edge = max(images[0].shape)
    rng = np.random.default_rng(0)
    people = rng.permutation(sorted(set(patients)))
    fold = {p: i % FOLDS for i, p in enumerate(people)}
    at = np.array([fold[p] for p in patients])
    whole = scans("whole", images, patients)
    embed = embedding(run, edge)
    z = embed(images)

    seen = np.flatnonzero(at != 0)
    some = rng.choice(seen, min(n, len(seen)), replace=False)
    spoilt = [change(images[i], rng).astype(np.float32) for change in SPOIL.values() for i in some]
    test = scans("test", spoilt, [f"other {i}" for i in range(len(spoilt))])
    z_test = embed(spoilt)
    source = np.tile(some, len(SPOIL))
    ways: dict[str, Duplicates] = {}
    pixels = ImageComparer([whole, test])  # remembers what it has compared
    for way, readable, features in (
        ("pixels", True, None),
        ("hash alone", False, None),
        ("and embedding", True, (z[seen], z_test)),
    ):
        pretrained = taken(whole, images, seen, "pretraining", readable)
        ways[way] = find_duplicates(pretrained, test, pixels if readable else ImageComparer([test]), features)
    print(
        f"\n{name}, {edge} pixels: {len(some)} of {len(seen)} scans of pretraining in the test, each spoilt in {len(SPOIL)} ways"
    )
    print(f"{'found, %':48s}" + "".join(f"{w:>16s}" for w in ways))
    for k, spoil in enumerate(SPOIL):
        rows = range(k * len(some), (k + 1) * len(some))
        shares = [100 * np.mean([_right(c, j, seen, source, whole) for j in rows]) for c in ways.values()]
        print(f"{spoil:48s}" + "".join(f"{s:16.1f}" for s in shares), flush=True)

    wrong, sure, pairs = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0), 0
    for k in range(FOLDS):
        a, b = np.flatnonzero(at != k), np.flatnonzero(at == k)
        pairs += len(a) * len(b)
        for way, readable, features in (
            ("pixels", True, None),
            ("hash alone", False, None),
            ("and embedding", True, (z[a], z[b])),
        ):
            pretrained, test = taken(whole, images, a, "pretraining", readable), taken(whole, images, b, "test")
            found = find_duplicates(pretrained, test, pixels if readable else ImageComparer([]), features)
            wrong[way] += len(found.near) + len(found.maybe)
            sure[way] += len(found.near)
    print(f"{f'wrong, of {pairs:,} pairs of two patients':48s}" + "".join(f"{w:16d}" for w in wrong.values()))
    print(f"{'of these said to be sure':48s}" + "".join(f"{w:16d}" for w in sure.values()))
    print(f"{'wrong per million pairs':48s}" + "".join(f"{1e6 * w / pairs:16.2f}" for w in wrong.values()), flush=True)


def _right(found: Duplicates, j: int, seen: np.ndarray, source: np.ndarray, whole: ScanSet) -> bool:
    """Whether copy j is counted as one of its source, or of an exact copy of that."""
    at = found.exact.get(j, found.near.get(j, found.maybe.get(j)))
    return at is not None and whole.hash[seen[at]] == whole.hash[source[j]]


def facts(path: Path) -> None:
    """Exact copies in an archive's own splits."""
    with np.load(path, allow_pickle=False) as f:
        sets = []
        for split, name in (("train", "training"), ("val", "validation"), ("test", "test")):
            images = [unit(x, 0, 255) for x in f[f"{split}_images"]]
            sets.append(scans(name, images, [f"{split}{i}" for i in range(len(images))]))
    began = time.process_time()
    report = check_leaks(taken(sets[0], [], np.arange(len(sets[0])), "pretraining", False), *sets)
    print(f"\n{path.stem}, in {time.process_time() - began:.1f} s of one core")
    for pair in report.pairs:
        print(f"{pair.a} - {pair.b}: {pair.exact} exact, {pair.near} near, {pair.maybe} perhaps")


def speed(n: int, edge: int) -> None:
    """n scans of pretraining that cannot be read, 0.7 n that train, 0.1 n and 0.2 n: noise, so that nothing is a copy."""
    rng = np.random.default_rng(0)
    noise = rng.random((64, edge, edge), np.float32)

    def some(name: str, m: int, readable: bool) -> ScanSet:
        bits = np.array([x.tobytes().hex() for x in rng.integers(0, 256, (m, 32), np.uint8)])
        names = np.array([f"{name}{i}" for i in range(m)])
        size = np.full(m, edge * readable)
        return ScanSet(
            name, "key", names, names, names, bits, np.ones(m, bool), size, lambda i: np.roll(noise[i % 64], i, 0)
        )

    sets = [some("pretraining", n, False)]
    sets += [some(name, int(m * n), True) for name, m in (("training", 0.7), ("validation", 0.1), ("test", 0.2))]
    for features in (None, {s.name: rng.normal(size=(len(s), 512)).astype(np.float32) for s in sets[1:]}):
        began = time.process_time()
        check_leaks(*sets, features)
        took = time.process_time() - began
        print(
            f"{n:,} scans of {edge} pixels, {'hash' if features is None else 'and embedding'}: {took:.1f} s of one core",
            flush=True,
        )


def main() -> None:
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--source", type=Path, nargs="*", default=[])
    args.add_argument("--npz", type=Path)
    args.add_argument("--run", type=Path, help="whose encoder embeds")
    args.add_argument("--images", type=int, default=200, help="scans that are put into the test")
    args.add_argument("--scans", type=int, nargs="*", default=[10_000, 100_000], help="of the measurement of time")
    given = args.parse_args()
    images, patients = [], []
    for folder in given.source:
        with (folder / "manifest.csv").open() as f:
            for row in csv.DictReader(f):
                images.append(unit(gray(folder / "images" / row["file"]), 0, 255))
                patients.append(f"{folder.name} {row['patient_id']}")
    for edge in EDGES if images else ():
        measure("X-rays", shrunk(images, edge), patients, given.images, given.run)
    if given.npz:
        facts(given.npz)
        with np.load(given.npz, allow_pickle=False) as f:
            images = [unit(x, 0, 255) for s in ("train", "val", "test") for x in f[f"{s}_images"]]
        measure(given.npz.stem, images, [str(i) for i in range(len(images))], given.images, given.run)
    print()
    for n in given.scans:
        for edge in (224, 28):
            speed(n, edge)


if __name__ == "__main__":
    main()
