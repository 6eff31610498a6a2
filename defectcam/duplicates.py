"""Finds near-duplicates: the same picture again, encoded, resized or brightened anew.

Owns what is remembered of an image for that (a small grey thumbnail) and the two questions asked of
it: do the perceptual hashes agree, and do the pixels? It never decides what a duplicate means.

Photographs of one product look so much alike that a hash alone would call many parts the same:
the hash of 255 bits only finds candidates, and of a candidate the largest difference anywhere on
the thumbnail must be small too, so that a defect keeps two pictures apart.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from defectcam.images import is_path, read_reduced_images
from defectcam.sources import as_sources

__all__ = ["duplicate_groups", "duplicate_pairs", "find_near_duplicates", "thumbnail"]

_SIDE = 64  # of a thumbnail
_FREQUENCIES = 16  # of the thumbnail's cosine transform in each direction; the hash has 255 bits
_MAX_BITS = 16  # that may differ in the hash
_MAX_DIFFERENCE = 12.0  # grey levels anywhere on the thumbnail, of images of the same contrast
_FLAT = 2.0  # grey levels of standard deviation below which an image is one grey
_READ_AT = (4 * _SIDE, 4 * _SIDE)
_BLOCK = 1024


def find_near_duplicates(
    X: Any, X_other: Any = None, *, n_jobs: int | None = None
) -> NDArray[np.int64]:
    """Find images that are the same picture, within a collection or across two.

    A picture is found again after it was encoded anew (JPEG at quality 85, say), resized by a few
    pixels or made a little brighter or darker; and repeated photographs of one part that was not
    moved count as one picture. A defect wider than about a fiftieth of the image keeps
    pictures apart. Cropped, shifted, turned and mirrored copies are not found.

    Parameters
    ----------
    X : folder, sequence of paths, array of shape (n, H, W[, C]), or sequence of arrays
        A folder stands for all images below it, in the order of `defectcam.images.find_images`.
    X_other : as `X`, optional
        A second collection, test images for example, that has to share no picture with the first.
    n_jobs : int or None, default=None
        Threads that read images; None: one per processor, at most 8.

    Returns
    -------
    ndarray of shape (n_pairs, 2)
        Indices of the two images of each pair, sorted: both in `X`, the smaller first; or, with
        `X_other`, one in `X` and one in `X_other`.

    Raises
    ------
    ImageReadError
        If an image cannot be read; it is named.

    References
    ----------
    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010 (the hash by
    cosine transform).

    Examples
    --------
    >>> import numpy as np
    >>> from defectcam import find_near_duplicates
    >>> rng = np.random.default_rng(0)
    >>> parts = rng.integers(0, 200, size=(4, 80, 80), dtype=np.uint8)
    >>> parts[3] = parts[1] + 5
    >>> find_near_duplicates(parts)
    array([[1, 3]])
    """
    thumbnails = _thumbnails_of(X, n_jobs)
    others = None if X_other is None else _thumbnails_of(X_other, n_jobs)
    return duplicate_pairs(thumbnails, others)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Reduce an image to what is remembered of it.

    Parameters
    ----------
    image : ndarray of shape (H, W, 3), uint8
        RGB.

    Returns
    -------
    ndarray of shape (64, 64), uint8
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)  # first, so that a third is left to be resized
    small = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(small, dtype=np.uint8)


def duplicate_pairs(
    thumbnails: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]] | None = None
) -> NDArray[np.int64]:
    """Find the pairs of equal pictures, as `find_near_duplicates` returns them."""
    first = np.asarray(thumbnails, dtype=np.float32)
    second = first if others is None else np.asarray(others, dtype=np.float32)
    found = []
    for pairs in _candidates(_signs(first), _signs(second)):
        if others is None:
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
        found.append(pairs[_are_equal(first[pairs[:, 0]], second[pairs[:, 1]])])
    return np.concatenate(found)


def duplicate_groups(pairs: NDArray[np.int64], n_images: int) -> NDArray[np.int64]:
    """Give the images that pairs join, directly or through others, one group number.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
    n_images : int

    Returns
    -------
    ndarray of shape (n_images,)
        The group of each image. An image without a duplicate is a group of its own.
    """
    ends = pairs.astype(np.int32).T  # of others, SciPy before 1.12 made wrong groups, in silence
    graph = coo_array((np.ones(len(pairs)), (ends[0], ends[1])), (n_images, n_images))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _thumbnails_of(X: Any, n_jobs: int | None) -> list[NDArray[np.uint8]]:
    sources = as_sources(X)
    if sources.single:
        name = os.fspath(X) if is_path(X) else "an image in memory"
        raise ValueError(f"Expected a folder or a sequence of images, got one image: {name}.")
    images = read_reduced_images(sources.items, _READ_AT, n_workers=n_jobs)
    return [thumbnail(image) for image, _ in images]


def _signs(thumbnails: NDArray[np.float32]) -> NDArray[np.float32]:
    """Perceptual hash of each image, bits as -1 and 1 so that a product counts what agrees."""
    low = np.empty((len(thumbnails), _FREQUENCIES, _FREQUENCIES), dtype=np.float32)
    for i, image in enumerate(thumbnails):
        low[i] = cv2.dct(image)[:_FREQUENCIES, :_FREQUENCIES]
    coefficients = low.reshape(len(low), -1)[:, 1:]  # without the mean: brightness does not count
    above = coefficients > np.median(coefficients, axis=1, keepdims=True)
    return np.where(above, np.float32(1), np.float32(-1))


def _candidates(
    first: NDArray[np.float32], second: NDArray[np.float32]
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs whose hashes agree, a block of images at a time."""
    least = first.shape[1] - 2 * _MAX_BITS
    for start in range(0, len(first), _BLOCK):
        rows, columns = np.nonzero(first[start : start + _BLOCK] @ second.T >= least)
        for part in range(0, max(1, len(rows)), _BLOCK):
            chosen = slice(part, part + _BLOCK)
            yield np.column_stack([rows[chosen] + start, columns[chosen]]).astype(np.int64)


def _are_equal(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Whether images differ nowhere by much, once brightness and contrast are made the same."""
    centred = [t - t.mean((1, 2), keepdims=True) for t in (first, second)]
    contrasts = [t.std((1, 2), keepdims=True) for t in (first, second)]
    common = np.sqrt(contrasts[0] * contrasts[1])
    is_flat = np.minimum(*contrasts) < _FLAT
    matched = [
        np.where(is_flat, t, c * common / np.maximum(s, _FLAT))
        for t, c, s in zip((first, second), centred, contrasts, strict=True)
    ]
    difference = np.abs(matched[0] - matched[1]).max((1, 2))
    limit = np.where(is_flat, _MAX_DIFFERENCE, np.minimum(_MAX_DIFFERENCE, common))[:, 0, 0]
    return difference <= limit
