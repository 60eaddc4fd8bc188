r"""The pattern that may group files by patient when only their names say who it is, like "^(\d+)_".

A number at the start of a name, or in the name of a folder, is proposed if it is the same in several files. Nothing is grouped
without the user: it may be a patient's number or that of anything else.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medssl.ingestion.path_match import PART, stem

TOKEN = re.compile(r"\d+|[^\W\d_]+|[\W_]+")
DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])")
DOTTED = re.compile(r"\d+(\.\d+){4}")  # a UID
# Words that may be quoted in a proposal. Any other word of a file's name may be a person's name.
COMMON = set("patient pat person subject subj sub case img image im scan ct mr xr cxr p s id pt".split())  # noqa: SIM905
COMMON |= {"환자", "대상자"}
# Words before a number that is not a patient's.
OTHERS = set(
    """
    study series session ses visit fold batch part split set slice frame view week day month year scanner site hospital
    center centre class grade level images volume vol t time run echo phase
    """.split()  # noqa: SIM905
)
FEW = 20  # scans of a patient on average; more are believed if there are many patients or their numbering starts anew
NAMES = 21  # distinct words without a number, above which they are taken for names and not for classes


class Proposal(NamedTuple):
    """A pattern for `patient=`, and what it would group: the scans it finds a patient for, patients, scans of the largest."""

    pattern: str
    scans: int
    patients: int
    largest: int


def propose(paths: Sequence[str]) -> Proposal | None:
    """Return the pattern that groups the paths into the most patients, None if no part of the names repeats.

    paths: of scans without a patient, relative to the source. Several scans of one file are left out.
    """
    files = sorted({path for path in paths if not PART.search(path)})
    found = [p for p in (next(_by_name(files), None), next(_by_folder(files), None)) if p is not None]
    return max(found, key=lambda p: p.patients, default=None)


def _by_name(files: Sequence[str]) -> Iterator[Proposal]:
    """Yield plausible proposals for the start of a file's name, the shortest start first."""
    names = {path: TOKEN.findall(stem(path)) for path in files if not DOTTED.match(stem(path))}
    forms = Counter(_form(tokens) for tokens in names.values())
    form, count = forms.most_common(1)[0] if forms else ((), 0)
    if 2 * count < len(files):
        return
    columns = list(zip(*(tokens for tokens in names.values() if _form(tokens) == form), strict=True))
    varying = [i for i, column in enumerate(columns) if len(set(column)) > 1]
    for i in (i for i in varying if form[i] in {"number", "word"}):
        if form[i] == "word":
            fits = len(set(zip(*columns[: i + 1], strict=True))) >= NAMES
        else:
            before = columns[i - 1 if i and form[i - 1] == "word" else max(i - 2, 0)][0].casefold()
            fits = before not in OTHERS and not all(map(DATE.fullmatch, columns[i]))
        if fits:
            pieces = [_piece(column, kind) for column, kind in zip(columns, form, strict=True)]
            first = varying[0]
            after = pieces[i + 1] if i + 1 < len(form) and form[i + 1] not in {"number", "word"} else ""
            pattern = _anchored("".join(pieces[:first]), "".join(pieces[first : i + 1]), after, files)
            if (found := _counted(pattern, files)) is not None:
                yield found


def _by_folder(files: Sequence[str]) -> Iterator[Proposal]:
    """Yield plausible proposals for the name of a folder, the highest folder first."""
    parts = [path.split("/") for path in files]
    for level in range(max(map(len, parts), default=1) - 1):
        folders = {p[level] for p in parts if len(p) > level + 1}
        numbered = [
            f for f in folders if re.search(r"\d", f) and not re.match(rf"({'|'.join(OTHERS)})[\W\d_]", f, re.I)
        ]
        if 2 * len(numbered) >= len(folders) or len(folders) >= NAMES:
            above = "[^/]+/" * level if level < 3 else f"(?:[^/]+/){{{level}}}"
            found = _counted(f"^{above}([^/]+)/", files)
            if found is not None:
                yield found


def _form(tokens: Sequence[str]) -> tuple[str, ...]:
    """Return the kinds of the parts of a name: "number", "word", or the separator itself."""
    return tuple("number" if t[0].isdecimal() else "word" if t[0].isalpha() else t for t in tokens)


def _piece(column: Sequence[str], kind: str) -> str:
    """Return a regular expression for one part of the names, which quotes nothing that may be a name."""
    if kind == "number":
        return r"\d+"
    if kind == "word":
        return column[0] if len(set(column)) == 1 and column[0].casefold() in COMMON else r"[^\W\d_]+"
    return re.sub(r"([][\\^$.|?*+(){}])", r"\\\1", kind)  # re.escape also escapes "-" and " ", which is hard to read


def _anchored(lead: str, patient: str, after: str, files: Sequence[str]) -> str:
    """Return the pattern for file names in these folders. If a name occurs in several folders, they are several patients."""
    if not any("/" in path for path in files):
        return f"^{lead}({patient}){after}"
    if len({path.rpartition("/")[2] for path in files}) < len(files):
        return f"^((?:.*/)?{lead}{patient}){after}[^/]*$"
    return f"{'/' if all('/' in path for path in files) else '(?:^|/)'}{lead}({patient}){after}[^/]*$"


def _counted(pattern: str, files: Sequence[str]) -> Proposal | None:
    """Return what a pattern would group, None if that is nothing, or implausible for patients."""
    matches = [m for m in map(re.compile(pattern).search, files) if m]
    patients = Counter(m[1] for m in matches)
    n, k = len(matches), len(patients)
    if k < 2 or k == n or 2 * n < len(files):
        return None
    rests = {m.string[: m.start(1)] + "|" + m.string[m.end(1) :] for m in matches}
    if n > FEW * k and (k < 3 or (k < FEW and 2 * len(rests) > n)):
        return None
    return Proposal(pattern, n, k, max(patients.values()))
