"""Why is nothing being learnt? Reads what a look at held-out scans found, and names the cause of a collapse in words.

Pure: numbers in, sentences out. Causes come before what they cause, so the first alarm of a list is the one to act on.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medssl.evals.geometry import common, spread
from medssl.evals.rank import rankme

PATIENCE = 20  # logged losses at chance in a row
FEWEST_DIRECTIONS = 4  # features of fewer cannot be called few


class Alarm(NamedTuple):
    """`cause`: one word for programs, one of `CAUSES`. `words`: what is wrong and what to try, without a full stop."""

    cause: str
    words: str


class Limit(NamedTuple):
    """Where an alarm begins, and the nearest that a healthy run has come to it."""

    at: float
    healthy: float


# What healthy runs reach: benchmarks/quality_collapse.py, see its results.
LIMITS = {
    "scan_contrast": Limit(0.01, math.nan),
    "view_contrast": Limit(1e-3, math.nan),
    "teacher_gap": Limit(0.0, math.nan),
    "grad_norm": Limit(1e-6, math.nan),
    "growth": Limit(1e3, math.nan),
    "dead": Limit(0.9, math.nan),
    "dead_relu": Limit(0.9, math.nan),
    "spread": Limit(0.01, math.nan),
    "projected_spread": Limit(0.01, math.nan),
    "rankme": Limit(2.0, math.nan),
    "common": Limit(0.9, math.nan),
    "chance": Limit(0.02, math.nan),
}


def evidence(x: ArrayLike, views: ArrayLike | None = None, projected: ArrayLike | None = None) -> dict[str, float]:
    """What features of held-out scans say about collapse.

    x: (N, D) features of the scans. views: (N, V, D), of views of them, where the method has views to compare.
    projected: (N, P), what the loss sees of x, where there is a projector.

    finite: share of finite numbers in all three; the others are there only when that is 1. length: median Euclidean length
    of x. dead: share of the D outputs that are the same for every scan. spread, rankme, rankme_of, common: see geometry and
    rank. projected_spread: that of `projected`.
    """
    x = np.asarray(x, np.float64)
    others = [np.asarray(v, np.float64) for v in (views, projected) if v is not None]
    values = np.concatenate([v.ravel() for v in (x, *others)])
    out = {"finite": float(np.isfinite(values).mean())}
    if out["finite"] < 1:
        return out
    rank = rankme(x)
    out |= {
        "length": float(np.median(np.linalg.norm(x, axis=1))),
        "dead": float((np.ptp(x, axis=0) <= 1e-6 * np.abs(x).max(0)).mean()),
        "spread": spread(x),
        "rankme": rank["centred"],
        "rankme_of": rank["of"],
    }
    if views is not None:
        out["common"] = common(views)
    if projected is not None:
        out["projected_spread"] = spread(projected)
    return out


def diagnose(seen: Mapping[str, float], losses: Sequence[float] = (), layer: str = "") -> list[Alarm]:
    """The alarms of one look, causes before what they cause; empty when nothing is wrong.

    seen: `evidence`, and what else there is of
        scan_contrast: mean over pixels of the standard deviation over scans, in units of the window
        view_contrast: mean squared difference of two views' pixels over that of two scans'
        teacher_gap: length of teacher minus student weights over that of the student's; teacher_moved: 0 when the teacher is
            what it was at the look before, although the student is not
        grad_norm: the largest of the gradient's lengths since the look before
        growth: `length` over that of the untrained encoder
        dead_relu: the largest share, over layers of ReLUs, of channels that are 0 for every scan; `layer` is its name
        chance: the loss of constant features
    losses: all logged so far.
    """
    return [alarm for alarm in _all(seen, losses, layer) if alarm is not None]


def _all(seen: Mapping[str, float], losses: Sequence[float], layer: str) -> list[Alarm | None]:
    def below(key: str) -> bool:
        return key in seen and seen[key] < LIMITS[key].at

    def above(key: str) -> bool:
        return key in seen and seen[key] > LIMITS[key].at

    alarms = [
        Alarm("window", (
            f"all scans look alike: at a typical pixel they differ by {seen['scan_contrast']:.4f} of the intensity window; "
            "the window is wrong, or the views saturate: look at medssl inspect sheet=… and at views.hu or the like"
        )) if below("scan_contrast") else None,
        Alarm("same views", (
            "the two views of a scan are the same image, so the loss can be met without learning; choose another recipe "
            "with views=, or a method with one view (mae)"
        )) if below("view_contrast") else None,
        Alarm("not finite", (
            f"{1 - seen['finite']:.1%} of the features are not finite numbers; lower lr or clip, use precision=32-true, or "
            "look for scans with extreme values"
        )) if seen.get("finite", 1) < 1 else None,
        Alarm("explosion", (
            f"features are {seen['growth']:,.0f} times as long as those of the untrained encoder; lower lr, lengthen warmup, "
            "or raise weight_decay"
        )) if above("growth") else None,
        Alarm("teacher copies", (
            "the teacher equals the student, so there is nothing slow to follow; raise method.momentum"
        )) if "teacher_gap" in seen and seen["teacher_gap"] <= LIMITS["teacher_gap"].at else None,
        Alarm("teacher stuck", (
            "the teacher has not moved since the last look while the student has: the student learns to predict the "
            "untrained network; lower method.momentum"
        )) if seen.get("teacher_moved", 1) == 0 else None,
        Alarm("no gradient", (
            f"the gradient has vanished (length {seen['grad_norm']:.1e}); nothing is learnt: look at the loss's settings "
            "(a temperature or margin that flattens it), at frozen parts, and at lr"
        )) if below("grad_norm") else None,
        Alarm("dead units", (
            f"{seen['dead_relu']:.0%} of the channels after {layer} are 0 for every scan: dead ReLUs; lower lr, or "
            "normalise before the activation"
        )) if above("dead_relu") else Alarm("dead units", (
            f"{seen['dead']:.0%} of the encoder's outputs are the same for every scan: dead; lower lr, or normalise before "
            "the last activation"
        )) if above("dead") else None,
        Alarm("constant", (
            f"features are almost the same for every scan (spread {seen['spread']:.4f}, where 1 is even): they have "
            "collapsed; lower lr, check the intensity window, and see that views of two scans look different"
        )) if below("spread") else None,
        Alarm("constant", (
            f"what the loss sees is almost the same for every scan (spread {seen['projected_spread']:.4f} after the "
            "projector, where 1 is even): collapsed; lower lr, or a method with negatives (simclr)"
        )) if below("projected_spread") and not below("spread") else None,
        Alarm("few directions", (
            f"features have collapsed onto about {seen['rankme']:.1f} of {seen['rankme_of']:.0f} directions; lower lr, "
            "raise batch, or take a method that reconstructs and cannot collapse (mae)"
        )) if below("rankme") and not below("spread") and seen["rankme_of"] >= FEWEST_DIRECTIONS else None,
        Alarm("unrelated views", (
            f"two views of one scan are hardly nearer than views of two scans ({seen['common']:.2f} of their squared "
            "distance): the views have nothing in common; weaken the recipe (larger crop_scale, less noise)"
        )) if above("common") else None,
        at_chance(losses, seen.get("chance", 0)),
    ]  # fmt: skip
    return alarms


def at_chance(losses: Sequence[float], chance: float) -> Alarm | None:
    """When each of the last 20 losses lies within 2 % of `chance` > 0."""
    recent = np.asarray(losses[-PATIENCE:], np.float64)
    if len(recent) < PATIENCE or chance <= 0 or not (np.abs(recent - chance) <= LIMITS["chance"].at * chance).all():
        return None
    n = round(math.exp(min(chance, 30)))
    value = f"ln {n} = {chance:.3f}" if n > 1 and abs(math.log(n) - chance) < 1e-4 else f"{chance:.3f}"
    return Alarm("chance", (
        f"loss has stayed at {value} (chance) for the last {PATIENCE} logged steps: collapsed or not learning; try another "
        "learning rate or a longer warm-up, and look at the views: they may have nothing in common"
    ))  # fmt: skip
