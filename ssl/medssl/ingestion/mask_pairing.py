"""Pair label maps with their images by name, and check that their grids agree."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from medssl.errors import UserError
from medssl.ingestion.path_match import KINDS, PART, normalised, without_suffix
from medssl.readers.label_maps import two_levels
from medssl.readers.values import LABEL_WORDS
from medssl.store.manifest_columns import MASK, Row

LABEL_MAP = "label map"  # the reason for the quarantine of a label map without an image
FROM_IMAGE = ("patient", "patient_known", "study", "series", "group", "site", "split")  # columns a mask takes over
# Words that distinguish an image from its mask …
ROLES = (LABEL_WORDS | KINDS) | frozenset(
    "im img imgs imaging imagestr imagests orig original raw scan scans vol volume volumes".split()  # noqa: SIM905
)
# … and several images of one case from each other
SERIES = frozenset("adc ct cta dwi flair mr mri pd pet t1 t1c t1ce t1gd t1n t1w t2 t2f t2w".split())  # noqa: SIM905
CHANNEL = re.compile(r"_\d{4}$")  # channel suffix of nnU-Net's images
TOLERANCE = 0.1  # voxels by which the corners of two grids may differ

Key = tuple[str, ...]  # a path: folders, then the name


@dataclass
class Pairs:
    """The masks found.

    Attributes:
        mask_of: image -> its mask, as positions.
        unpaired: label map without an image -> (reject code, reason).
    """

    mask_of: dict[int, int] = field(default_factory=dict)
    unpaired: dict[int, tuple[str, str]] = field(default_factory=dict)

    def same_case(self) -> Iterator[tuple[int, int]]:
        """Yield pairs of images that share a mask, and therefore show one patient."""
        first: dict[int, int] = {}
        for image, mask in self.mask_of.items():
            if first.setdefault(mask, image) != image:
                yield first[mask], image

    def assign(self, images: dict[int, Row], masks: Mapping[int, Row]) -> None:
        """Name each image's mask in its finished row, and add the rows of the masks, with FROM_IMAGE of their image."""
        for image, mask in self.mask_of.items():
            if image in images:
                images[image]["mask"] = masks[mask]["scan"]
                shared = {name: images[image][name] for name in FROM_IMAGE}
                images.setdefault(mask, masks[mask] | shared | {"held": MASK, "mask": ""})
        for mask in masks.keys() - images.keys():
            self.unpaired[mask] = "MASK_ALONE", "its image is a copy that was left out"


def label_maps(names: Sequence[str], rows: Sequence[Row], folder: str) -> list[int]:
    """Return the positions of the label maps: everything in `folder`, which is quarantined, or whatever looks like one.

    Raises:
        UserError: nothing is in `folder`.
    """
    if not folder:
        return [n for n, row in enumerate(rows) if row["held"] == LABEL_MAP]
    found = [n for n, name in enumerate(names) if name.startswith(f"{folder}/")]
    if not found:
        raise UserError("no file in masks=… can be read as a scan; name the folder below source=… that holds the masks")
    for n in found:
        rows[n]["held"] = rows[n]["held"] or LABEL_MAP
    return found


def pair_masks(
    names: Sequence[str],
    labels: Iterable[int],
    geometry: Callable[[set[int]], Mapping[int, Mapping[str, Any]]],
    fault: Callable[[int], str],
) -> Pairs:
    """Pair label maps with images wherever there is no doubt.

    By its name (see `pair_by_name`) a label map refers to one image, or to several of one case. It is the mask of those on
    its grid: the same shape, and affines that agree within a tenth of a voxel or are both unknown. Several images share a
    mask only if their affines agree, and an image with several label maps gets none of them.

    Args:
        names: each scan's file or folder, relative to the source (of label maps in a given folder: relative to that).
        labels: positions of the label maps; all others are images.
        geometry: positions -> shape, spacing and affine. Called for candidates only.
        fault: why a scan's values cannot be labels, "" if they can, see `label_fault`.
    """
    masks = sorted(set(labels))
    images_of, ambiguous = pair_by_name(names, sorted(set(range(len(names))) - set(masks)), masks)
    rows = geometry({*images_of, *(i for found in images_of.values() for i in found)})
    claims = Counter(i for found in images_of.values() for i in found)
    out = Pairs()
    for mask in masks:
        images = images_of.get(mask, [])
        differences = {i: grid_difference(rows[mask], rows[i]) for i in images}
        same = [i for i in images if not differences[i]]
        if mask in ambiguous:
            out.unpaired[mask] = "MASK_SEVERAL", "images of several cases have its name"
        elif not images:
            out.unpaired[mask] = "MASK_ALONE", "no image has its name"
        elif any(claims[i] > 1 for i in images):
            out.unpaired[mask] = "MASK_SEVERAL", "several label maps have the name of one image"
        elif not same:
            out.unpaired[mask] = "MASK_GRID", differences[images[0]]
        elif len(same) > 1 and rows[mask]["affine"] is None:
            out.unpaired[mask] = (
                "MASK_SEVERAL",
                "several images have its name, and no affine tells which one it belongs to",
            )
        elif why := fault(mask):
            out.unpaired[mask] = "MASK_VALUES", why
        else:
            out.mask_of |= dict.fromkeys(same, mask)
    return out


def pair_by_name(names: Sequence[str], images: list[int], masks: list[int]) -> tuple[dict[int, list[int]], set[int]]:
    """Return label map -> the images that its name refers to, and the label maps that refer to images of several cases.

    The first rule that holds decides:

    1. its path is an image's except for words such as images, labels or seg (case/ct.nii and case/ct_seg.nii), or one is
       the end of the other (train/1.png and 1.png);
    2. the same without the image's sequence or channel (1_flair.nii, 1_0000.nii);
    3. it has the name of the images' folder;
    4. its folder has the name of the image.
    """
    words, bases = ([_key(n, leave_out) for n in names] for leave_out in (ROLES, ROLES | SERIES))
    rules = (
        (words, words),
        ([(*k[:-1], CHANNEL.sub("", k[-1])) if k else k for k in bases], words),
        ([k[:-1] for k in words], words),
        (words, [k[:-1] for k in words]),
    )
    found: dict[int, list[int]] = {}
    ambiguous: set[int] = set()
    for image_keys, mask_keys in rules:
        taken = {i for some in found.values() for i in some}
        cases: dict[Key, list[int]] = {}
        ends: dict[Key, set[Key]] = {}
        for i in images:
            key = image_keys[i]
            if i not in taken and key:  # a name made of such words only identifies nothing
                cases.setdefault(key, []).append(i)
                for k in range(len(key)):
                    ends.setdefault(key[k:], set()).add(key)
        for mask in masks:
            if mask not in found and mask not in ambiguous:
                keys = _cases_of(mask_keys[mask], cases, ends)
                if len(keys) == 1:
                    found[mask] = cases[keys[0]]
                elif keys:
                    ambiguous.add(mask)
    return found, ambiguous


def _cases_of(mask: Key, cases: Mapping[Key, list[int]], ends: Mapping[Key, set[Key]]) -> list[Key]:
    """Return the same path, else the paths that end with it, else the longest path that it ends with."""
    if mask in cases:
        return [mask]
    if mask in ends:
        return list(ends[mask])
    return next(([mask[k:]] for k in range(1, len(mask)) if mask[k:] in cases), [])


def _key(name: str, leave_out: frozenset[str]) -> Key:
    """Return a path without some words, and without folders made of these only. The part of a file is one more word."""
    part = PART.search(name)
    path = [
        "_".join(w for w in re.split(r"[\W_]+", folder) if w and w not in leave_out)
        for folder in normalised(without_suffix(name)).split("/")
    ]
    key = tuple(p for p in path if p)
    return (*key, f"{part[1]} {part[2]}") if part and leave_out == ROLES else key


def grid_difference(mask: Mapping[str, Any], image: Mapping[str, Any]) -> str:
    """Return in words how the grids of two rows differ, without any identifier; "" if they agree."""
    a, b = (list(row["shape"][1:]) for row in (mask, image))
    if a != b:
        return f"it has {' x '.join(map(str, a))} voxels and its image {' x '.join(map(str, b))}"
    if (mask["affine"] is None) != (image["affine"] is None):
        return "only one of it and its image has an affine"
    if mask["affine"] is not None:
        ours, theirs = (np.reshape(row["affine"], (4, 4)) for row in (mask, image))
        corners = np.array([[*c, 1] for c in product(*((0, n - 1) for n in a))], np.float64)
        apart = np.linalg.norm(corners @ (ours - theirs)[:3].T, axis=1).max()
        voxel = np.linalg.norm(theirs[:3, :3], axis=0).min()
        return f"it lies {apart / voxel:.2g} voxels from its image" if apart > TOLERANCE * voxel else ""
    if mask["spacing"] and image["spacing"] and not np.allclose(mask["spacing"], image["spacing"], rtol=0.01, atol=0):
        return "its voxels differ in size from its image's"
    return ""


def label_fault(array: np.ndarray) -> str:
    """Return in words why the values of a scan (C, *S) cannot be labels, "" if they can."""
    if array.shape[0] != 1 or array.min() < 0 or array.max() > 255 or np.any(array != np.rint(array)):
        return "its values are not whole numbers from 0 to 255 in one channel"
    if array.ndim == 3 and array.dtype == np.uint8 and two_levels(array) is not None:
        return "its values lie around 0 and 255, as lossy compression or smoothing leaves them"
    return ""
