"""Match the paths of scans to the names that a label table or a second folder tree has for them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

from medssl.errors import UserError
from medssl.readers.formats import FORMATS, IMAGE
from medssl.readers.other_formats import OTHER_FORMATS

TABLES = (".json", ".csv", ".xml")
SUFFIXES = sorted({*TABLES, *(s for f in (*FORMATS, *OTHER_FORMATS) for s in f.suffixes)}, key=len, reverse=True)
ANY = "|".join(map(re.escape, SUFFIXES))
SUFFIX = re.compile(rf"({ANY})?\.gz$|({ANY})$", re.IGNORECASE)
NEVER_SCANS = re.compile(r"\.(json|csv|tsv|xml|txt|xlsx?)$")  # in normalised names
PART = re.compile(r"#([a-z]+)/(\d+)$")  # one scan of a file with several

# Words that distinguish the two halves of a data set, not two patients or hospitals.
HALVES = re.compile(r"(\d+\s*[.)_-]\s*)?(원천|라벨링|라벨)(데이터)?|\.zip$")  # with or without a number before them
TRAINING = re.compile(r"(?<![a-z])([tv])[sl](?![a-z])")  # TS, TL, VS, VL: training or validation, source or label
KINDS = set("dicom dcm png jpg jpeg json image images label labels annotation annotations".split())  # noqa: SIM905


def match(paths: Sequence[str], files: Sequence[str], names: Iterable[str] = ()) -> dict[str, int]:
    """Return path -> position of its entry in `files`.

    That is the same path; else the entry with which it has the longest tail in common that no other path and no other entry
    has (at least the file name); else the entry with the same stem, if both stems are unique. Where both name folders, the
    last folder must be the same. All scans of one file share its entry, unless a scan has its own.

    Args:
        paths: those of the scans.
        files: normalised names.
        names: other files of the source, which are not scans or cannot be read. They make names ambiguous.
    """
    whole = [PART.sub("", path) for path in paths]
    others = {name for name in map(normalised, names) if not NEVER_SCANS.search(name)}
    others -= set(map(normalised, paths)) | set(map(normalised, whole))
    found = _same_folder(_match(list(dict.fromkeys(paths)), files, others), files)
    if parts := {p: w for p, w in zip(paths, whole, strict=True) if p not in found and w != p}:
        by_file = _same_folder(_match(list(dict.fromkeys(whole)), files, others), files)
        found |= {path: by_file[name] for path, name in parts.items() if name in by_file}
    return found


def _same_folder(found: dict[str, int], files: Sequence[str]) -> dict[str, int]:
    """Drop pairs from folders with different names: they are two cases, or two hospitals."""
    folders = ((path, i, _folder(normalised(path)), _folder(files[i])) for path, i in found.items())
    return {path: i for path, i, a, b in folders if a == b or not a or not b}


def _folder(path: str) -> str:
    """Return the name of the folder that directly holds a file, "" if the path has none."""
    return path.rpartition("/")[0].rpartition("/")[2].removesuffix(".zip")


def _match(paths: list[str], files: Sequence[str], others: Iterable[str] = ()) -> dict[str, int]:
    """Try tails from short to long. A tail that is unique on both sides decides: every longer common tail contains it.

    `others`, normalised, only make names ambiguous; for stems except those beside a scan with the same stem, its copies.
    """
    keys = [normalised(path) for path in paths]
    stems = {SUFFIX.sub("", key) for key in keys}
    every = [*keys, *others]
    same = {name: i for i, name in enumerate(files)}
    out = {path: same[key] for path, key in zip(paths, keys, strict=True) if key in same}
    undecided = [n for n, path in enumerate(paths) if path not in out]
    depth = 0
    while undecided:
        depth += 1
        ours, theirs = (_unique(_tail(name, depth) for name in names) for names in (every, files))
        tails = {n: tail for n in undecided if (tail := _tail(keys[n], depth)) in theirs}
        decided = {n for n, tail in tails.items() if ours[tail] >= 0 and theirs[tail] >= 0}
        out |= {paths[n]: theirs[tails[n]] for n in decided}
        undecided = [n for n in tails if n not in decided]  # the rest share no tail with any entry
    every[len(keys) :] = [name for name in every[len(keys) :] if SUFFIX.sub("", name) not in stems]
    ours, theirs = (_unique(stem(name) for name in names) for names in (every, files))
    for word, n in ours.items():
        if 0 <= n < len(keys) and paths[n] not in out and theirs.get(word, -1) >= 0:
            out[paths[n]] = theirs[word]
    return out


def _tail(path: str, depth: int) -> str:
    """Return the last `depth` parts of a path, "" if it has fewer."""
    parts = path.split("/")
    return "/".join(parts[-depth:]) if len(parts) >= depth else ""


def _unique(words: Iterable[str]) -> dict[str, int]:
    """Return word -> its position, or -1 if it is repeated; without ""."""
    positions: dict[str, int] = {}
    for i, word in enumerate(words):
        positions[word] = -1 if word in positions else i
    positions.pop("", None)
    return positions


def normalised(path: str) -> str:
    """Return a path that compares equal across macOS, Windows and Linux.

    NFC, case-folded, with "/" between folders and before the members of an archive.
    """
    path = unicodedata.normalize("NFC", path.strip()).casefold().replace("\\", "/").replace("!/", "/")
    return PART.sub(r"#\1:\2", path.removeprefix("./"))  # the "/" of a part does not separate folders


def stem(path: str) -> str:
    """Return a file's name without the suffix of its format. The digits of a UID are not a suffix."""
    return SUFFIX.sub("", path.rsplit("/", 1)[-1])


def path_pattern(path: str) -> str:
    """Return a path with all its words replaced, for messages: names may identify a patient."""
    folders, name = path.count("/"), path.rsplit("/", 1)[-1]
    return "folder/" * folders + "name" + name[len(stem(name)) :]


def without_suffix(name: str) -> str:
    """Return a path without its part and its suffix, in NFC: the text that patterns are searched in."""
    return SUFFIX.sub("", unicodedata.normalize("NFC", PART.sub("", name)))


def compile_pattern(key: str, pattern: str) -> re.Pattern[str]:
    """Compile the user's regular expression for paths in NFC. Raises UserError, which names `key`, if it is invalid."""
    try:
        return re.compile(unicodedata.normalize("NFC", pattern))
    except re.error as e:
        raise UserError(f"{key}={pattern} is not a regular expression: {e}") from e


def is_image(name: str) -> bool:
    """Return whether a path names a PNG, JPEG or TIFF file."""
    return PART.sub("", name).casefold().endswith(IMAGE.suffixes)


def pair(scans: Sequence[str], others: Sequence[str]) -> dict[str, list[int]]:
    """Return scan -> positions of the `others` that belong to it by their paths, ignoring halves and suffixes."""
    ours = {scan: _canonical(scan) for scan in scans}
    files: dict[str, set[str]] = {}
    for scan, key in ours.items():
        files.setdefault(key, set()).add(without_suffix(scan))
    theirs: dict[str, list[int]] = {}
    folders: dict[str, list[int]] = {}  # several files side by side may belong to the slices of one volume
    for i, name in enumerate(others):
        key = _canonical(name)
        theirs.setdefault(key, []).append(i)
        folders.setdefault(key.rpartition("/")[0], []).append(i)
    keys = [key for key, names in files.items() if len(names) == 1]
    parents = [{part for key in side for part in key.split("/")[:-1]} for side in (keys, theirs)]
    found: dict[str, list[int]] = {}
    for entries in (theirs, folders):
        names = [entry for entry in entries if entry]
        for key, n in _match([key for key in keys if key not in found], names).items():
            if not _contradict(key, names[n], *parents):
                found[key] = entries[names[n]]
    return {scan: found[key] for scan, key in ours.items() if key in found}


def _canonical(name: str) -> str:
    """Return the path that a file would have in either half of a data set."""
    parts = normalised(without_suffix(name)).split("/")
    folders = (TRAINING.sub(r"\1", HALVES.sub("", part)).strip(" _-.[]()") for part in parts[:-1])
    return "/".join([part for part in folders if part and part not in KINDS] + parts[-1:])


def _contradict(ours: str, theirs: str, our_folders: set[str], their_folders: set[str]) -> bool:
    """Return whether two paths diverge at folders and one of these occurs in both trees: two hospitals, not two halves."""
    for a, b in zip(ours.split("/")[-2::-1], theirs.split("/")[-2::-1], strict=False):
        if a != b:
            return a in their_folders or b in our_folders
    return False
