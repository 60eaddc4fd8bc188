"""The scans of a store as a torch Dataset of dicts, as MONAI's dictionary transforms take them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medssl.store.store import Store


class ScanDataset(Dataset[dict[str, Any]]):
    """`dataset[i]` is {"image", "scan", "patient", "split", "window", "labels"} of scan i of a split, perhaps transformed.

    image: (C, H, W) or (C, D, H, W) float32 in physical values, channel first; window: (2,) float32, the values that map to 0
    and 1; labels: {name: text, "" if unknown}; the others are pseudonyms and words. "mask" (1, *spatial) uint8 is there
    if every scan has one, and "affine" (4, 4) float64, of (d, h, w) indices in mm, if every scan's position is known, so that
    batches can be collated. Scans of one store may differ in size: resize or crop them in `transform`.
    """

    def __init__(
        self, store: Store, split: str | None = None, transform: Callable[[dict[str, Any]], Any] | None = None
    ):
        self.store, self.rows, self.transform = store, store.rows(split), transform
        self.masked = len(self.rows) > 0 and all(store.column("mask")[self.rows])
        self.placed = len(self.rows) > 0 and all(a is not None for a in store.column("affine")[self.rows])
        self.columns = {name: store.column(name) for name in ("scan", "patient", "split", "low", "high")}
        self.labels = {name: store.column(f"label:{name}") for name in store.labels}
        self.affines = store.column("affine")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        row = int(self.rows[i])
        found: dict[str, Any] = {"image": torch.from_numpy(self.store[row].astype(np.float32))}
        found |= {name: str(self.columns[name][row]) for name in ("scan", "patient", "split")}
        found["window"] = torch.tensor([self.columns["low"][row], self.columns["high"][row]], dtype=torch.float32)
        found["labels"] = {name: "" if v[row] is None else str(v[row]) for name, v in self.labels.items()}
        if self.masked:
            found["mask"] = torch.from_numpy(self.store.mask(row))
        if self.placed:
            found["affine"] = torch.tensor(self.affines[row], dtype=torch.float64).reshape(4, 4)
        return found if self.transform is None else self.transform(found)
