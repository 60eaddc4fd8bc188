"""Write ssl/medssl/methods/FAMILY_TREE.md: every method by family and year, when to choose it, and what it has shown here.

    python benchmarks/family_tree.py

The texts are the first two lines of configs/method/*.yaml, the numbers those of the tables of quality_methods.py in
benchmarks/results/quality_methods.md, of which the newest about a method counts.
"""

import re
from pathlib import Path

from medssl import catalog
from medssl.cli.help import FAMILIES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "ssl/medssl/methods/FAMILY_TREE.md"
RESULTS = ROOT / "benchmarks/results/quality_methods.md"
COLUMNS = {"AUROC": "X-rays", "accuracy": "digits"}
"""The metric of a table, and the data that it was measured on."""

HEAD = """# The family tree of methods

Made by `benchmarks/family_tree.py` from `configs/method/` and [measured results](../../../benchmarks/results/quality_methods.md).
Within a family, the oldest comes first. `medssl pretrain method=NAME --help` shows the options of a method, and its file names
the sections of the paper that they follow.

The last two columns are the gain over the same network untrained, with its 95 % interval, at one small equal budget for all:
AUROC on chest X-rays (PneumoniaMNIST, 100 steps of 128 scans, two seeds) and accuracy on digits (MNIST, 150 steps of 64, four
seeds; those of older tables two). They show whether a method learns, not how good it gets: long training, large scans and
transformers change the order. Bold: better after Holm's correction for all methods of the table. A dash: not measured at such a
budget. Intervals of X-rays from before 30 November 2026 are narrower than two seeds allow.
"""


def gains() -> dict[tuple[str, str], str]:
    """Return {(method, metric): its gain over the untrained network}, bold where the table says that it learns."""
    found: dict[tuple[str, str], str] = {}
    head: list[str] = []
    for line in RESULTS.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if cells[:2] == ["method", "encoder"]:
            head = cells
        elif not line.startswith("|"):
            head = []
        elif "minus untrained" in head and "learns" in head and not cells[0].startswith("---"):
            row = dict(zip(head, cells, strict=True))
            gain = f"**{row['minus untrained']}**" if row["learns"] == "yes" else row["minus untrained"]
            (metric,) = set(row) & set(COLUMNS)
            found.setdefault((row["method"].removesuffix(" (labels)"), metric), gain)
    return found


def year(about: str) -> int:
    """Return the year of the first paper that a description names; 0 if it names none."""
    years = re.findall(r"\b(?:19|20)\d\d\b", about)
    return int(years[0]) if years else 0


def page() -> str:
    """Return the text of the page."""
    measured, parts = gains(), [HEAD]
    entries = catalog.entries("method")
    for folder, family in FAMILIES.items():
        names = sorted((n for n, e in entries.items() if e.folder == folder), key=lambda n: (year(entries[n].about), n))
        if not names:
            continue
        data = [*COLUMNS.values()]
        lines = [
            f"## {family}",
            "",
            f"| year | method | idea | choose it for | {' | '.join(data)} |",
            "| --- " * (4 + len(data)) + "|",
        ]
        for name in names:
            entry = entries[name]
            cells = [str(year(entry.about) or ""), f"`{name}`", entry.about, entry.more.removeprefix("When: ")]
            cells += [measured.get((name, metric), "-") for metric in COLUMNS]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
