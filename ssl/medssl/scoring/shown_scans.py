"""The test scans that a report shows: the surest hits and misses and the doubtful ones, or some with masks and some without."""

from dataclasses import dataclass

import numpy as np

from medssl.scoring.eval_splits import EvalSplits
from medssl.store.query import evenly_spaced

SHOWN = 8  # scans shown without predictions
EACH = 3  # hits, misses and doubtful scans
HIT, MISS, DOUBTFUL, OTHER = "hit", "miss", "doubtful", "other"


@dataclass(frozen=True)
class ShownScan:
    """A test scan: its position, its kind, and its label, the class it was called and that probability; None without a probe."""

    at: int
    kind: str
    label: str | None = None
    called: str | None = None
    p: float | None = None


def choose_by_answer(splits: EvalSplits, p: np.ndarray) -> list[ShownScan]:
    """Return hits and misses, each the surest first and from every class in turn, and the scans nearest to a tie.

    p: (N, K) probabilities for the test scans of a target with classes. No patient is shown twice within a kind, where there
    are others.
    """
    y, names, patient = splits.test.y, splits.target.names, splits.test.patient
    called = p.argmax(1)
    sure = p.max(1)
    top = np.sort(p, axis=1)
    margin = top[:, -1] - top[:, -2]
    order = np.argsort(-sure, kind="stable")
    groups = {
        HIT: _in_turn([[i for i in order if called[i] == k == y[i]] for k in reversed(range(p.shape[1]))]),
        MISS: _in_turn([[i for i in order if y[i] == k != called[i]] for k in reversed(range(p.shape[1]))]),
        DOUBTFUL: np.argsort(margin, kind="stable").tolist(),
    }
    out: list[ShownScan] = []
    for kind, found in groups.items():
        left = [i for i in found if i not in {s.at for s in out}]
        first = list({patient[i]: i for i in reversed(left)}.values())  # the foremost scan of each patient
        firsts = set(first)
        ranked = [i for i in left if i in firsts] + [i for i in left if i not in firsts]
        out += [
            ShownScan(int(i), kind, str(names[int(y[i])]), str(names[called[i]]), float(sure[i])) for i in ranked[:EACH]
        ]
    return out


def choose_shown(masked: np.ndarray, n: int) -> np.ndarray:
    """Return the positions of at most SHOWN of n scans: mostly ones with a mask, about a quarter without."""
    others = np.setdiff1d(np.arange(n), masked)
    most = min(len(others), max(SHOWN // 4, SHOWN - len(masked)))
    return np.concatenate([masked[evenly_spaced(len(masked), SHOWN - most)], others[evenly_spaced(len(others), most)]])


def _in_turn(lists: list[list[int]]) -> list[int]:
    """Return the first of each list, then the second of each, and so on."""
    longest = max(map(len, lists), default=0)
    return [each[k] for k in range(longest) for each in lists if k < len(each)]
