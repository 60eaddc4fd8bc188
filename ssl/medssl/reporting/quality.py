"""The section of a report on what can be said of an encoder without labels."""

import json
from pathlib import Path

from medssl.errors import UserError
from medssl.evals.label_free.quality import MEASURES
from medssl.reporting import words
from medssl.reporting.tags import Html, absent, element, paragraph, table

BETTER = {1: "higher", -1: "lower", 0: ""}


def quality_section(run: Path) -> Html:
    """What `medssl quality` has left in the folder of a run: each measure with its interval, and on half of the patients.

    Raises UserError when the file is damaged.
    """
    path = run / "quality.json"
    if not path.exists():
        return absent("quality.json is missing.", f"medssl quality run={run.resolve().name} store=STORE")
    try:
        found = json.loads(path.read_text("utf-8"))
        of = found["panel"]
        rows = [
            [name, *(_cell(found[part][name]) for part in ("measures", "half")), BETTER[m.better], m.about]
            for name, m in MEASURES.items()
        ]
        how = next(iter(found["measures"].values()))["how"]
        said = (
            f"{of['scans']} {of['split']} scans of {of['patients']} patients, {of['views']} views of each. Compare at one "
            "number of scans only: where the halves differ, that number decides the value."
        )
        flags = [paragraph(flag, klass="flag") for flag in found["flags"]]
    except (ValueError, KeyError, TypeError) as e:
        raise UserError(f"{path} is damaged ({type(e).__name__}); remove it and run medssl quality again") from e
    shown = table(["measure", "value", "on half the patients", "better", ""], rows)
    return Html("\n".join([paragraph(said), *flags, shown, paragraph(f"In brackets: {how}.", klass="note")]))


def _cell(score: dict[str, object]) -> Html:
    value, ends = words.number(score)
    return Html(f"{value} " + element("span", ends, klass="ci")) if ends else Html(value)
