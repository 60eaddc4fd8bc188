"""Which scan is meant: paths against the names that a table or another tree of folders has for them."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

SUFFIX = re.compile(r"(\.nii)?\.gz$|\.(dcm|dicom|ima|nii|png|jpe?g|tiff?|bmp|npz|json|csv|xml)$", re.IGNORECASE)
BESIDE = re.compile(r"\.(json|csv|tsv|xml|txt|xlsx?)$")  # of a normalised name: what is beside scans, never one
PART = re.compile(r"#([a-z]+)/(\d+)$")  # of a file with several scans

# Words that tell the two halves of a set apart, and not two patients or hospitals.
HALVES = re.compile(r"(\d+\s*[.)_-]\s*)?(원천|라벨링|라벨)(데이터)?|\.zip$")  # with or without a number before
TRAINING = re.compile(r"(?<![a-z])([tv])[sl](?![a-z])")  # TS, TL, VS, VL: training or validation, source or label
KINDS = {
    "dicom",
    "dcm",
    "png",
    "jpg",
    "jpeg",
    "json",
    "image",
    "images",
    "label",
    "labels",
    "annotation",
    "annotations",
}
IMAGES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def match(paths: Sequence[str], files: Sequence[str], names: Iterable[str] = ()) -> dict[str, int]:
    """path -> the entry of `files` that means it: the same path, else the longest common tail that one path and one
    entry have (at the shortest the file name), else a stem that one path and one entry have. Where both name folders the
    last folder must be the same. The scans of one file share its entry, unless one of their own is there.

    Args:
        paths: of scans.
        files: normalised.
        names: further files of the source, which are no scans or cannot be read: a name that they have too is not
            one of a kind.
    """
    whole = [PART.sub("", path) for path in paths]
    others = {name for name in map(normal, names) if not BESIDE.search(name)}
    others -= set(map(normal, paths)) | set(map(normal, whole))
    found = _together(_match(list(dict.fromkeys(paths)), files, others), files)
    if parts := {p: w for p, w in zip(paths, whole, strict=True) if p not in found and w != p}:
        by_file = _together(_match(list(dict.fromkeys(whole)), files, others), files)
        found |= {path: by_file[name] for path, name in parts.items() if name in by_file}
    return found


def _together(found: dict[str, int], files: Sequence[str]) -> dict[str, int]:
    """Without pairs that lie in folders of different names: these are two cases, or two hospitals."""
    ends = ((path, i, _folder(normal(path)), _folder(files[i])) for path, i in found.items())
    return {path: i for path, i, a, b in ends if a == b or not a or not b}


def _folder(path: str) -> str:
    """The name of the folder that a file lies in, "" when the path has none."""
    return path.rpartition("/")[0].rpartition("/")[2].removesuffix(".zip")


def _match(paths: list[str], files: Sequence[str], others: Iterable[str] = ()) -> dict[str, int]:
    """Tails from short to long: one that occurs once on both sides decides like the longest common one, for that holds it.

    `others`, normalised, only make names occur again; as stems not those beside a scan of the same stem, as its copies are.
    """
    keys = [normal(path) for path in paths]
    near = {SUFFIX.sub("", key) for key in keys}
    every = [*keys, *others]
    same = {name: i for i, name in enumerate(files)}
    out = {path: same[key] for path, key in zip(paths, keys, strict=True) if key in same}
    unsure = [n for n, path in enumerate(paths) if path not in out]
    depth = 0
    while unsure:
        depth += 1
        ours, theirs = (_places(_tail(name, depth) for name in names) for names in (every, files))
        tails = {n: tail for n in unsure if (tail := _tail(keys[n], depth)) in theirs}
        sure = {n for n, tail in tails.items() if ours[tail] >= 0 and theirs[tail] >= 0}
        out |= {paths[n]: theirs[tails[n]] for n in sure}
        unsure = [n for n in tails if n not in sure]  # the others share no tail with any entry
    every[len(keys) :] = [name for name in every[len(keys) :] if SUFFIX.sub("", name) not in near]
    ours, theirs = (_places(stem(name) for name in names) for names in (every, files))
    for word, n in ours.items():
        if 0 <= n < len(keys) and paths[n] not in out and theirs.get(word, -1) >= 0:
            out[paths[n]] = theirs[word]
    return out


def _tail(path: str, depth: int) -> str:
    """The last `depth` parts of a path, "" when it has fewer."""
    parts = path.rsplit("/", depth)
    return path if len(parts) == depth else path[len(parts[0]) + 1 :] if len(parts) > depth else ""


def _places(words: Iterable[str]) -> dict[str, int]:
    """Word -> its place, or -1 when it occurs again; without ""."""
    places: dict[str, int] = {}
    for i, word in enumerate(words):
        places[word] = -1 if word in places else i
    places.pop("", None)
    return places


def normal(path: str) -> str:
    """NFC, case-folded, "/" between folders and before what is in an archive: how names on macOS, Windows and Linux
    compare.
    """
    path = unicodedata.normalize("NFC", path.strip()).casefold().replace("\\", "/").replace("!/", "/")
    return PART.sub(r"#\1:\2", path.removeprefix("./"))  # the "/" there separates no folders


def stem(path: str) -> str:
    """The name of a file without the suffix of its format. Of a UID nothing is cut."""
    return SUFFIX.sub("", path.rsplit("/", 1)[-1])


def shape(path: str) -> str:
    """How a path is made, without a word of it: names may identify."""
    folders, name = path.count("/"), path.rsplit("/", 1)[-1]
    return "folder/" * folders + "name" + name[len(stem(name)) :]


def bare(name: str) -> str:
    """A path without the part of a file and without its suffix, NFC: what a pattern is searched in."""
    return SUFFIX.sub("", unicodedata.normalize("NFC", PART.sub("", name)))


def is_image(name: str) -> bool:
    """Whether a path names an image that is no DICOM."""
    return PART.sub("", name).casefold().endswith(IMAGES)


def pair(scans: Sequence[str], others: Sequence[str]) -> dict[str, list[int]]:
    """scan -> the `others` that belong to it by their paths, halves and suffixes left out."""
    ours = {scan: _canonical(scan) for scan in scans}
    files: dict[str, set[str]] = {}
    for scan, key in ours.items():
        files.setdefault(key, set()).add(bare(scan))
    theirs: dict[str, list[int]] = {}
    folders: dict[str, list[int]] = {}  # of several files beside each other, as slices of a volume have them
    for i, name in enumerate(others):
        key = _canonical(name)
        theirs.setdefault(key, []).append(i)
        folders.setdefault(key.rpartition("/")[0], []).append(i)
    keys = [key for key, names in files.items() if len(names) == 1]
    parents = [{part for key in side for part in key.split("/")[:-1]} for side in (keys, theirs)]
    found: dict[str, list[int]] = {}
    for entries in (theirs, folders):
        entries = {entry: i for entry, i in entries.items() if entry}
        left = [key for key in keys if key not in found]
        names = list(entries)
        for key, n in _match(left, names).items():
            if not _contradict(key, names[n], *parents):
                found[key] = entries[names[n]]
    return {scan: found[key] for scan, key in ours.items() if key in found}


def _canonical(name: str) -> str:
    """A path as it would be in either half of a set."""
    parts = normal(bare(name)).split("/")
    folders = (TRAINING.sub(r"\1", HALVES.sub("", part)).strip(" _-.[]()") for part in parts[:-1])
    return "/".join([part for part in folders if part and part not in KINDS] + parts[-1:])


def _contradict(ours: str, theirs: str, our_folders: set[str], their_folders: set[str]) -> bool:
    """Whether two paths part at folders one of which both trees know: then these are two hospitals, not two halves."""
    for a, b in zip(ours.split("/")[-2::-1], theirs.split("/")[-2::-1], strict=False):
        if a != b:
            return a in their_folders or b in our_folders
    return False
