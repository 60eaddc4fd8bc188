"""Copies of scans whose pixels are gone, by the hashes that were kept of them."""

import faiss
import numpy as np

from medssl.leakage.equalised_grid import content
from medssl.leakage.image_sets import ImageComparer, Rows, ScanSet
from medssl.leakage.small_images import has_texture
from medssl.readers.phash import FLAT, oriented_hashes, packed

SURE_BITS = 32  # closer hashes are of one scan: no X-rays or organs of two patients were this close, only drawn digits
CROPS = (0.02, 0.05, 0.1)  # shares cut off each side of an image, in case the scan that is gone was cropped


def copies_by_hash(
    a: ScanSet, b: ScanSet, rows_a: Rows, rows_b: Rows, images: ImageComparer
) -> dict[int, tuple[int, bool]]:
    """Return row of b -> row of a with a hash at most SURE_BITS away, and whether that is certain, for scans of a without pixels.

    The images of b are tried mirrored, turned by right angles, inverted, without a uniform border and cropped. A hash is certain
    unless the image is a shape on a background.

    Args:
        a, b: the sets.
        rows_a, rows_b: the rows that are compared.
        images: reads the images of b.
    """
    gone = rows_a[[not images.is_readable(h) for h in a.hash[rows_a].tolist()]]
    found: dict[int, tuple[int, bool]] = {}
    if not len(gone):
        return found
    index = faiss.IndexBinaryFlat(256)
    index.add(packed(a.phash[gone].tolist()))
    for j in rows_b.tolist():
        image = images.read(str(b.hash[j]))
        if image is None:
            continue
        bits, at = index.search(np.concatenate([oriented_hashes(x) for x in _parts(image)]), 1)
        best = int(bits.argmin())
        if bits.flat[best] <= SURE_BITS:
            found[j] = int(gone[at.flat[best]]), has_texture(image)
    return found


def _parts(image: np.ndarray) -> list[np.ndarray]:
    """Return an image (H, W), the part inside its border, and its middle, as far as they have any structure."""
    parts = [image, image[content(image)]]
    for share in CROPS:
        down, right = (round(share * n) for n in image.shape)
        parts.append(image[down : image.shape[0] - down, right : image.shape[1] - right])
    return [x for x in parts if min(x.shape) and x.std() >= FLAT]
