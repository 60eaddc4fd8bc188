"""Which label map is the mask of which image: found by their names, proved by their grids."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.ingestion.path_match import KINDS, PART, bare, normal
from medssl.readers.values import LABEL_WORDS
from medssl.store.schema import MASK, Row

LABEL_MAP = "label map"  # why a label map that belongs to no image is held
# What a mask shares with its image
FROM_IMAGE = ("patient", "patient_known", "study", "series", "group", "site", "split")
# Words of names that say which of a pair a file is …
ROLES = (LABEL_WORDS | KINDS) | frozenset(
    "im img imgs imaging imagestr imagests orig original raw scan scans vol volume volumes".split()  # noqa: SIM905
)
# … and which of several images of one case
SERIES = frozenset("adc ct cta dwi flair mr mri pd pet t1 t1c t1ce t1gd t1n t1w t2 t2f t2w".split())  # noqa: SIM905
CHANNEL = re.compile(r"_\d{4}$")  # of nnU-Net's images
TOLERANCE = 0.1  # of a voxel, by which the corners of one grid may miss those of another

Key = tuple[str, ...]  # a path: folders, then the name


@dataclass
class Pairs:
    """What became of the label maps.

    Attributes:
        of: image -> its mask, as rows.
        left: label map that is nobody's mask -> (code, reason).
    """

    of: dict[int, int] = field(default_factory=dict)
    left: dict[int, tuple[str, str]] = field(default_factory=dict)

    def one_case(self) -> Iterator[tuple[int, int]]:
        """Images that share a mask, in pairs: they show one patient."""
        first: dict[int, int] = {}
        for image, mask in self.of.items():
            if first.setdefault(mask, image) != image:
                yield first[mask], image

    def give(self, images: dict[int, Row], masks: Mapping[int, Row]) -> None:
        """Names in `images`, rows that are settled, the mask of each, and adds the masks with what they share with it."""
        for image, mask in self.of.items():
            if image in images:
                images[image]["mask"] = masks[mask]["scan"]
                shared = {name: images[image][name] for name in FROM_IMAGE}
                images.setdefault(mask, masks[mask] | shared | {"held": MASK, "mask": ""})
        for mask in masks.keys() - images.keys():
            self.left[mask] = "MASK_ALONE", "its image is a copy that was left out"


def label_maps(names: Sequence[str], rows: Sequence[Row], folder: str) -> list[int]:
    """Which rows are label maps: all in `folder`, which are held from now on, or without a folder what looks like one.

    Raises:
        UserError: when nothing is in `folder`.
    """
    if not folder:
        return [n for n, row in enumerate(rows) if row["held"] == LABEL_MAP]
    found = [n for n, name in enumerate(names) if name.startswith(f"{folder}/")]
    if not found:
        raise UserError(
            "no file in masks=… can be read as a scan; name the folder, below source=…, that holds the masks"
        )
    for n in found:
        rows[n]["held"] = rows[n]["held"] or LABEL_MAP
    return found


def pair_masks(
    names: Sequence[str],
    labels: Iterable[int],
    look: Callable[[set[int]], Mapping[int, Mapping[str, Any]]],
    fits: Callable[[int], bool],
) -> Pairs:
    """Masks of images, where there is no doubt.

    By name (see `by_name`) a label map means one image, or several of one case. It is their mask where they have one grid:
    the same shape, and affines that agree within a tenth of a voxel or are both unknown. Several images share a mask only
    if their affines prove it, and an image that several label maps mean has none.

    Args:
        names: of each row's file or folder, relative to the source (of label maps in a given folder: to that).
        labels: the rows that are label maps; all others are images.
        look: rows -> their shape, spacing and affine. Asked for candidates only.
        fits: whether a row's values can be labels, whole numbers from 0 to 255 in one channel.
    """
    masks = sorted(set(labels))
    meant, doubtful = by_name(names, sorted(set(range(len(names))) - set(masks)), masks)
    rows = look({*meant, *(i for found in meant.values() for i in found)})
    rivals = Counter(i for found in meant.values() for i in found)
    out = Pairs()
    for mask in masks:
        images = meant.get(mask, [])
        apart = {i: differs(rows[mask], rows[i]) for i in images}
        same = [i for i in images if not apart[i]]
        if mask in doubtful:
            out.left[mask] = "MASK_SEVERAL", "images of several cases have its name"
        elif not images:
            out.left[mask] = "MASK_ALONE", "no image has its name"
        elif any(rivals[i] > 1 for i in images):
            out.left[mask] = "MASK_SEVERAL", "several label maps have the name of one image"
        elif not same:
            out.left[mask] = "MASK_GRID", apart[images[0]]
        elif len(same) > 1 and rows[mask]["affine"] is None:
            out.left[mask] = "MASK_SEVERAL", "several images have its name, and no affine tells whose it is"
        elif not fits(mask):
            out.left[mask] = "MASK_VALUES", "its values are not whole numbers from 0 to 255 in one channel"
        else:
            out.of |= dict.fromkeys(same, mask)
    return out


def by_name(names: Sequence[str], images: list[int], masks: list[int]) -> tuple[dict[int, list[int]], set[int]]:
    """(label map -> the images it means, label maps that mean images of several cases), by the first rule that holds:

    its path is an image's but for words such as images, labels or seg (case/ct.nii and case/ct_seg.nii), or the one is
    the end of the other (train/1.png and 1.png); the same without the image's sequence or channel (1_flair.nii,
    1_0000.nii); it is called as the folder of the images; it lies in a folder that is called as the image.
    """
    words, bases = ([_key(n, leave_out) for n in names] for leave_out in (ROLES, ROLES | SERIES))
    rules = (
        (words, words),
        ([(*k[:-1], CHANNEL.sub("", k[-1])) if k else k for k in bases], words),
        ([k[:-1] for k in words], words),
        (words, [k[:-1] for k in words]),
    )
    found: dict[int, list[int]] = {}
    doubtful: set[int] = set()
    for ours, theirs in rules:
        taken = {i for some in found.values() for i in some}
        cases: dict[Key, list[int]] = {}
        ends: dict[Key, set[Key]] = {}
        for i in images:
            if i not in taken and ours[i]:  # a name of nothing but such words says nothing
                cases.setdefault(ours[i], []).append(i)
                for k in range(len(ours[i])):
                    ends.setdefault(ours[i][k:], set()).add(ours[i])
        for mask in masks:
            if mask not in found and mask not in doubtful:
                keys = _meant(theirs[mask], cases, ends)
                if len(keys) == 1:
                    found[mask] = cases[keys[0]]
                elif keys:
                    doubtful.add(mask)
    return found, doubtful


def _meant(mask: Key, cases: Mapping[Key, list[int]], ends: Mapping[Key, set[Key]]) -> list[Key]:
    """The same path, else those that end with it, else the longest that it ends with."""
    if mask in cases:
        return [mask]
    if mask in ends:
        return list(ends[mask])
    return next(([mask[k:]] for k in range(1, len(mask)) if mask[k:] in cases), [])


def _key(name: str, leave_out: frozenset[str]) -> Key:
    """A path without some words, and without the folders that were only these; a part of a file is one more word."""
    part = PART.search(name)
    path = [
        "_".join(w for w in re.split(r"[\W_]+", folder) if w and w not in leave_out)
        for folder in normal(bare(name)).split("/")
    ]
    key = tuple(p for p in path if p)
    return (*key, f"{part[1]} {part[2]}") if part and leave_out == ROLES else key


def differs(mask: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """ "" when two rows have one grid, else in what they differ, in words that name nobody."""
    a, b = (list(row["shape"][1:]) for row in (mask, image))
    if a != b:
        return f"it has {' x '.join(map(str, a))} voxels and its image {' x '.join(map(str, b))}"
    if (mask["affine"] is None) != (image["affine"] is None):
        return "only one of it and its image says where it lies"
    if mask["affine"] is not None:
        ours, theirs = (np.reshape(row["affine"], (4, 4)) for row in (mask, image))
        corners = np.array([[*c, 1] for c in product(*((0, n - 1) for n in a))], np.float64)
        apart = np.linalg.norm(corners @ (ours - theirs)[:3].T, axis=1).max()
        voxel = np.linalg.norm(theirs[:3, :3], axis=0).min()
        return f"it lies {apart / voxel:.2g} voxels from its image" if apart > TOLERANCE * voxel else ""
    if mask["spacing"] and image["spacing"] and not np.allclose(mask["spacing"], image["spacing"], rtol=0.01, atol=0):
        return "its voxels have another size than its image's"
    return ""


def are_labels(array: np.ndarray) -> bool:
    """Whether an array is one channel of whole numbers from 0 to 255."""
    return array.shape[0] == 1 and bool(array.min() >= 0 and array.max() <= 255 and np.all(array == np.rint(array)))
