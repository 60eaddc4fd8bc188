"""What the scores say, in sentences that claim no more than their intervals do."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

Table = Mapping[str, Any]
Row = Mapping[str, Any]

BASELINES = ("random", "means")  # random init and the k-means patch bank: what a run has to beat to mean anything


def has_interval(score: Mapping[str, Any] | None) -> TypeGuard[Mapping[str, Any]]:
    """Whether a score has a value and two ends, all finite."""
    return score is not None and all(_finite(score.get(k)) for k in ("value", "low", "high"))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def number(score: Mapping[str, Any] | None, signed: bool = False) -> tuple[str, str]:
    """("0.912", "[0.887, 0.935]"), signed if a difference; words where a number or its ends are missing."""
    if score is None:
        return "–", ""
    if not _finite(score.get("value")):
        return "undefined", ""
    sign = "+" if signed else ""
    ends = f"[{score['low']:{sign}.3f}, {score['high']:{sign}.3f}]" if has_interval(score) else "[no interval]"
    return f"{score['value']:{sign}.3f}", ends


def metrics(table: Table) -> list[str]:
    """Names of the scores in a table, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in table["rows"] for name in row["scores"]))


def main_metric(table: Table) -> str | None:
    """The score that differences are of: the table's first."""
    return next(iter(metrics(table)), None)


def _sign(table: Table) -> int:
    """1 where a higher main score is better, -1 where a lower one is."""
    return int(table.get("sign", 1))


def is_ours(row: Row) -> bool:
    """Whether a row is the run itself: the only ones without a difference to the run."""
    return row.get("minus_run") is None


def sentences(table: Table) -> list[str]:
    """What one table says: the run's best score, how it stands to the baselines, and the best row if it is another."""
    name = main_metric(table)
    if name is None:
        return [f"The table for {table['target']} has no scores."]
    scored = [row for row in table["rows"] if has_interval(row["scores"].get(name))]
    ours = [row for row in scored if is_ours(row)]
    if not ours:
        return [f"For {table['target']!r}, this run has no {name} with an interval, so nothing can be said."]
    sign = _sign(table)
    row = max(ours, key=lambda r: sign * r["scores"][name]["value"])
    score = row["scores"][name]
    value, ends = number(score)
    who = f"{score['n']:,} scans of {score['patients']:,} patients"
    test = table.get("test", "the test set")
    out = [f'For "{table["target"]}" on {test}, {row["features"]} ({row["reader"]}) has {name} {value} {ends}: {who}.']
    out += _against(row, table)
    best = max(scored, key=lambda r: sign * r["scores"][name]["value"])
    if not is_ours(best):
        value, ends = number(best["scores"][name])
        out.append(f"The best {name} is not this run's: {best['features']} ({best['reader']}) has {value} {ends}.")
    return out


def _against(ours: Row, table: Table) -> list[str]:
    """A sentence per baseline of the same reader. The stored difference, baseline minus run, is turned round."""
    same = [row for row in table["rows"] if all(row.get(k) == ours.get(k) for k in ("reader", "labels"))]
    peers = [row for row in same if has_interval(row.get("minus_run"))]
    named = [row for row in peers if any(word in row["features"].lower() for word in BASELINES)]
    if not named:
        return ["Neither random weights nor a k-means patch bank stand beside it, so what training added is unknown."]
    out = []
    for row in named:
        d = row["minus_run"]
        gain, low, high = (v if _sign(table) < 0 else -v for v in (d["value"], d["high"], d["low"]))
        low, high = min(low, high), max(low, high)
        if low > 0:
            out.append(f"It is better than {row['features']} by {gain:.3f} [{low:.3f}, {high:.3f}].")
        elif high < 0:
            out.append(f"It is worse than {row['features']} by {-gain:.3f} [{-high:.3f}, {-low:.3f}].")
        else:
            out.append(
                f"It cannot be told apart from {row['features']} (difference {gain:+.3f} [{low:+.3f}, {high:+.3f}])."
            )
    return out


def limits(tables: Sequence[Table], *, sites: int, unknown_patients: int, trust: float | None) -> list[str]:
    """What the page cannot show, starting with what follows from this run's own data."""
    out = []
    if sites <= 1:
        out.append(
            "Scans come from one site, or sites are not recorded: how the encoder does at another hospital is unknown."
        )
    if unknown_patients:
        out.append(
            f"For {unknown_patients:,} scans no patient was found in the files. Each study or file stands as a patient "
            "of its own, so intervals may be too narrow and a person may sit on both sides of a split."
        )
    if any(table.get("flags") for table in tables):
        out.append("Some tables carry a flag: read their numbers with it or not at all.")
    out += [
        "One run with one seed. The intervals cover which patients were drawn, not the luck of initial weights and "
        "order; differences between seeds can be larger.",
        "Frozen features under a simple classifier. A low score does not exclude a good result after fine-tuning.",
        "Duplicates are found by equal pixels. The same picture saved twice with another compression passes unseen.",
        "Labels are taken as they are. Their errors, and what the labellers could see, are not measured here.",
        "A high score does not say why: an encoder may read the scanner, a marker or the positioning instead of the "
        "disease. Compare the t-SNE by label with the one by site and scanner.",
        "t-SNE shows which points are near. Sizes of groups, gaps between them and their arrangement carry no meaning"
        + (f"; its trustworthiness is {trust:.3f}, where 1 means no false neighbour." if trust is not None else "."),
        "Nothing here speaks of use on patients. This is a research measurement.",
    ]
    return out
