"""Detection of collapse from measurements on held-out scans, with the cause in words.

Causes are listed before their consequences, so the first one is the one to act on.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medssl.evals.label_free.geometry import common, spread
from medssl.evals.label_free.rank import rankme

PATIENCE = (
    40  # consecutive logged losses at chance; healthy runs start slowly, and one stayed within 1.7 % for 40 steps
)
SOONER = 20  # losses that suffice if views of one scan are not closer than views of two either
RECENT = 10  # logged gradients used
FEWEST_DIRECTIONS = 4  # feature dimensions below which the rank is not checked


class Collapse(NamedTuple):
    """One sign of collapse.

    cause: a short name. words: what is wrong and what to try, without a full stop.
    """

    cause: str
    words: str


# Limits, each with the closest value in 20 healthy runs of six methods (benchmarks/quality_collapse.py, the synthetic cohort,
# 20 pixels, 400 steps, measured every 20), none of which was reported as collapsed.
LIMITS = {
    "scan_contrast": 0.01,  # 0.067
    "view_contrast": 1e-3,  # 0.88
    "growth": 100.0,  # 18.6
    "teacher_gap": 1e-6,  # 0.025
    "grad_norm": 1e-4,  # 0.084
    "dead_relu": 0.9,  # 0.19
    "dead": 0.9,  # 0.19
    "spread": 0.01,  # 0.10
    "projected_spread": 0.1,  # 0.23
    "rankme": 3.0,  # 9.0
    "common": 0.9,  # 0.97, which is over the limit, so it counts only with a loss at chance
    "chance": 0.01,  # relative distance to chance of 40 consecutive losses, or 20 if `common` is over its limit
}


def evidence(views: ArrayLike, projected: ArrayLike | None = None) -> dict[str, float]:
    """Return measurements of collapse from features of views of held-out scans.

    Args:
        views: (N, V, D) features of V >= 2 views of each scan.
        projected: (N, P) output of the projector for views[:, 0], if there is one.

    Returns:
        A dict. finite: share of finite numbers; the other keys exist only if it is 1.
        length, dead: of views[:, 0], the median Euclidean length, and the share of the D outputs equal for all scans.
        spread, rankme, rankme_of: of views[:, 0], see `geometry` and `rank`.
        common: see `geometry`.
        projected_spread: spread of `projected`.
    """
    views = np.asarray(views, np.float64)
    given = views if projected is None else np.concatenate([views.ravel(), np.ravel(projected)])
    out = {"finite": float(np.isfinite(given).mean())}
    if out["finite"] < 1:
        return out
    x = views[:, 0]
    rank = rankme(x)
    out |= {
        "length": float(np.median(np.linalg.norm(x, axis=1))),
        "dead": float((np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max(0)).mean()),
        "spread": spread(x),
        "rankme": rank["centred"],
        "rankme_of": rank["of"],
        "common": common(views),
    }
    return out | ({} if projected is None else {"projected_spread": spread(projected)})


def diagnose(seen: Mapping[str, float], losses: Sequence[float] = (), layer: str = "") -> list[Collapse]:
    """Return the signs of collapse, causes before their consequences; empty if there are none.

    Args:
        seen: `evidence`, and any of
            scan_contrast: mean over pixels of the standard deviation over scans, in units of the intensity window
            view_contrast: mean squared difference of the pixels of two views, relative to two scans
            teacher_gap: norm of teacher minus student weights, relative to the student's norm
            teacher_moved: 0 if the teacher has not changed since the start of training
            grad_norm: the largest of the last logged gradient norms
            growth: `length` relative to that of the untrained encoder
            spread_untrained: spread of the untrained encoder
            dead_relu: the largest share, over ReLU layers, of channels that are 0 for all scans; `layer` is that layer's name
            chance: the loss of constant features
        losses: all logged so far.
    """
    return list(_causes(seen, losses, layer))


def _causes(seen: Mapping[str, float], losses: Sequence[float], layer: str) -> Iterator[Collapse]:
    def below(key: str) -> bool:
        return key in seen and seen[key] < LIMITS[key]

    def above(key: str) -> bool:
        return key in seen and seen[key] > LIMITS[key]

    if below("scan_contrast"):
        yield Collapse(
            "window",
            f"all scans look the same: at a typical pixel they differ by {seen['scan_contrast']:.4f} of the intensity window, "
            "so features have collapsed or soon will. The window is wrong, or the views saturate: check medssl inspect "
            "sheet=sheet.png, and the augmentation recipe",
        )
    if below("view_contrast"):
        yield Collapse(
            "same views",
            "the two views of a scan are the same image, so the loss is minimal without learning anything; choose another "
            "recipe with augment=, or a method with one view (mae)",
        )
    if seen.get("finite", 1) < 1:
        yield Collapse(
            "not finite",
            f"{1 - seen['finite']:.1%} of the features are not finite numbers; lower lr or clip, use precision=32-true, or "
            "look for scans with extreme values",
        )
    if above("growth"):
        yield Collapse(
            "explosion",
            f"features are {seen['growth']:,.0f} times as long as those of the untrained encoder; lower lr, lengthen "
            "warmup, or raise weight_decay",
        )
    if below("teacher_gap"):
        yield Collapse(
            "teacher copies", "the teacher equals the student, so it is no slowly moving target; raise its momentum"
        )
    if seen.get("teacher_moved", 1) == 0:
        yield Collapse(
            "teacher stuck",
            "the teacher has not moved since the start, so the student learns to predict the untrained network; lower the "
            "teacher's momentum",
        )
    if above("dead_relu") or above("dead"):
        what = (
            f"{seen['dead_relu']:.0%} of the channels after {layer} are 0 for every scan"
            if above("dead_relu")
            else f"{seen['dead']:.0%} of the encoder's outputs are the same for every scan"
        )
        yield Collapse("dead units", f"{what}: they are dead; lower lr, or normalise before the activation")
    # as flat as at initialisation, such as a stack of sigmoids: untrained, not collapsed
    untrained = below("spread") and seen["spread"] > seen.get("spread_untrained", 1.0) / 2
    if below("spread") and not untrained:
        yield Collapse(
            "constant",
            f"features are almost the same for every scan (spread {seen['spread']:.4f}, where 1 is even): they have "
            "collapsed; lower lr, check the intensity window, and check that views of two scans look different",
        )
    elif not untrained:
        if below("rankme") and seen["rankme_of"] >= FEWEST_DIRECTIONS:
            yield Collapse(
                "few directions",
                f"features have collapsed onto about {seen['rankme']:.1f} of {seen['rankme_of']:.0f} directions; lower lr, "
                "raise batch, or use a method that reconstructs and cannot collapse (mae)",
            )
        if below("projected_spread"):
            yield Collapse(
                "constant",
                f"projected features are almost the same for every scan (spread {seen['projected_spread']:.4f}, where 1 is "
                "even): they have collapsed; lower lr, or use a method with negatives (simclr)",
            )
    if below("grad_norm"):
        yield Collapse(
            "no gradient",
            f"the gradient has vanished (length {seen['grad_norm']:.1e}), so nothing is learned; check what flattens the "
            "loss (a temperature, a margin), frozen parts, and lr",
        )
    chance = seen.get("chance", 0)
    # untrained encoders are above the limit as well, and learn
    if above("common") and at_chance(losses, chance, SOONER):
        yield Collapse(
            "unrelated views",
            f"nothing is learned, and two views of one scan are hardly closer than views of two scans "
            f"({seen['common']:.2f} of their squared distance): they may have nothing in common; weaken the recipe "
            "(larger crop.scale, less noise)",
        )
    if at_chance(losses, chance, PATIENCE):
        n = round(math.exp(min(chance, 30)))
        value = f"ln {n} = {chance:.3f}" if n > 1 and abs(math.log(n) - chance) < 1e-4 else f"{chance:.3f}"
        yield Collapse(
            "chance",
            f"loss has stayed at {value} (chance) for the last {PATIENCE} logged steps: collapsed or not learning; try another "
            "learning rate or a longer warm-up, and check the views: they may have nothing in common",
        )


def at_chance(losses: Sequence[float], chance: float, patience: int) -> bool:
    """Return whether each of the last `patience` losses is within 1 % of `chance` > 0."""
    recent = np.asarray(losses[-patience:], np.float64)
    return bool(len(recent) == patience and chance > 0 and (np.abs(recent - chance) <= LIMITS["chance"] * chance).all())
