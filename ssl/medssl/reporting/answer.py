"""The answer of a report in three sentences: what was asked, what was found, and what it may not be used for."""

from collections.abc import Sequence

from medssl.reporting.conclusions import (
    Table,
    metrics,
    number,
    overlap,
    probe,
    scored_rows,
    shown,
    strongest_rival,
    verdict,
)
from medssl.reporting.messages import Messages
from medssl.runs.predictions import RUN

PROBE = "probe"  # the command whose table answers first


def answer(tables: Sequence[Table], sites: int, t: Messages) -> list[str]:
    """Return three sentences about the first target: the question, the run's best score against the strongest baseline, and
    what it may not be used for. With other targets, a fourth names them. Empty without tables.

    tables: those of scores.json. sites: the number of sites that the store names.
    """
    if not tables:
        return []
    table = next((table for table in tables if table["command"] == PROBE), tables[0])
    one_site = sites <= 1
    out = [_asked(table, t), _found(table, t)]
    limits = {"patients": table["patients_test"]} | ({} if one_site else {"sites": sites})
    out.append(t("not_for_one_site" if one_site else "not_for_sites", **limits))
    others = [name for name in dict.fromkeys(other["target"] for other in tables) if name != table["target"]]
    return [*out, t("more_targets", targets=", ".join(others))] if others else out


def _asked(table: Table, t: Messages) -> str:
    _, ours = scored_rows(table)
    row = ours[0] if ours else next((row for row in table["rows"] if row["source"] == RUN), table["rows"][0])
    values = {
        "model": shown(row, table, t), "probe": probe(row, t), "target": table["target"], "test": t.phrase(table["test"]),
        "n": table["n_test"], "patients": table["patients_test"],
    }  # fmt: skip
    if not table["classes"]:
        return t("asked_number", **values)
    return t("asked", classes=", ".join(map(str, table["classes"])), **values)


def _found(table: Table, t: Messages) -> str:
    _, ours = scored_rows(table)
    name = next(iter(metrics(table)), "")
    if not ours:
        return t("found_nothing", metric=t.phrase(name), target=table["target"])
    score = ours[0]["scores"][name]
    value, interval = number(score)
    said = {"metric": t.phrase(name), "value": value, "interval": interval}
    strongest = strongest_rival(ours[0], table)
    if strongest is None:
        sentence = t("found_alone", **said)
    else:
        row = strongest[0]
        name_of_it = (
            shown(row, table, t) if row["probe"] == ours[0]["probe"] else f"{shown(row, table, t)}, {probe(row, t)}"
        )
        said |= {"baseline": name_of_it, "base": number(row["scores"].get(name))[0]}
        sentence = verdict("found_{}", "found_same", strongest, t, **said)
    if table["overlap"]:
        sentence += " " + t("may_be_too_good", sets=overlap(table, t))
    return sentence
