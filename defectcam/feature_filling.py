"""From images to the cache of features: read, prepared, and through the trunk once.

Owns the way there, and that nothing is computed which a store has kept. It trains nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from defectcam.duplicates import thumbnail
from defectcam.feature_cache import FeatureCache
from defectcam.feature_store import FeatureStore, StoredImage
from defectcam.geometry import Geometry
from defectcam.images import map_reduced_images, read_hashed, read_reduced
from defectcam.network import DefectCAMNetwork
from defectcam.preprocess import Preprocess

__all__ = ["fill_cache", "preprocessed_batches"]

Thumbnail = NDArray[np.uint8]


def preprocessed_batches(
    items: Iterable[Any],
    preprocess: Preprocess,
    batch_size: int,
    *,
    n_workers: int | None = None,
    with_thumbnails: bool = False,
    contents: list[str] | None = None,
) -> Iterator[tuple[torch.Tensor, list[Geometry], list[Thumbnail]]]:
    """Read and prepare images, some at a time, in threads that are ahead of the caller.

    Parameters
    ----------
    items : iterable of path or ndarray
    preprocess : Preprocess
    batch_size : int
    n_workers : int or None, optional
        Threads that read; None: as many as there are processors.
    with_thumbnails : bool, default=False
        Whether to make what near-duplicates are told by.
    contents : list of str, optional
        Gets, before a batch is yielded, hashes of what its images were decoded from.

    Yields
    ------
    pixels : Tensor of shape (n, 3, height, width), float32
        Normalised, at the network's input size.
    geometries : list of Geometry
    thumbnails : list of ndarray of shape (height, width), uint8
        Empty unless asked for.
    """

    def prepare(
        image: NDArray[np.uint8], size: tuple[int, int], content: str = ""
    ) -> tuple[torch.Tensor, Geometry, Thumbnail | None, str]:
        small = thumbnail(image) if with_thumbnails else None
        return preprocess.prepare(image, size), preprocess.geometry(size), small, content

    read = read_reduced if contents is None else read_hashed
    size = preprocess.image_size
    prepared = map_reduced_images(prepare, items, size, n_workers=n_workers, read=read)
    while batch := list(itertools.islice(prepared, batch_size)):
        pixels, geometries, small, hashes = zip(*batch, strict=True)
        thumbnails = list(small) if with_thumbnails else []
        if contents is not None:
            contents.extend(hashes)
        yield torch.stack(pixels).permute(0, 3, 1, 2), list(geometries), thumbnails


def fill_cache(
    cache: FeatureCache,
    network: DefectCAMNetwork,
    preprocess: Preprocess,
    items: Sequence[Any],
    *,
    n_workers: int | None = None,
    store: FeatureStore | None = None,
    hashes: list[str] | None = None,
    report: Callable[[int], object] = lambda n_images: None,
) -> list[Thumbnail]:
    """Fill a cache with all images' features, by the trunk with what the store does not have.

    Parameters
    ----------
    cache : FeatureCache
        Its first rows are filled; what follows them stays as it is.
    network : DefectCAMNetwork
    preprocess : Preprocess
    items : sequence of path or ndarray
    n_workers : int or None, optional
        As in `preprocessed_batches`.
    store : FeatureStore, optional
        Gets what it does not have.
    hashes : list of str, optional
        Of the images' content; only asked for with a store. Where a file has changed since it was
        hashed, the hash of what was read takes the place: features belong to what they are of.
    report : callable, optional
        Called with a number of images whenever so many more are in the cache.

    Returns
    -------
    list of ndarray of shape (height, width), uint8
        Thumbnails of all images, by which near-duplicates are told.

    Raises
    ------
    ImageReadError
        If an image cannot be read; the store keeps those before it.
    """
    thumbnails: dict[int, Thumbnail] = {}
    if store is not None and hashes is not None:
        for row, image in enumerate(hashes):
            if (kept := store.read(image)) is not None:
                cache.put(row, kept.features)
                thumbnails[row] = kept.thumbnail
                report(1)
    missing = [row for row in range(len(items)) if row not in thumbnails]
    fresh: list[Thumbnail] = []
    contents: list[str] = []

    def pixels() -> Iterator[torch.Tensor]:
        for batch, _, small in preprocessed_batches(
            (items[row] for row in missing),
            preprocess,
            cache.batch_size,
            n_workers=n_workers,
            with_thumbnails=True,
            contents=None if store is None else contents,
        ):
            fresh.extend(small)
            yield batch
            report(len(batch))

    def keep(rows: Sequence[int]) -> None:
        thumbnails.update(zip(rows, fresh[-len(rows) :], strict=True))
        if store is None or hashes is None:
            return
        for row, content in zip(rows, contents[-len(rows) :], strict=True):
            hashes[row] = content
            store.write(content, StoredImage(cache.image(row), thumbnails[row]))

    cache.fill(network, pixels(), missing, keep)
    return [thumbnails[row] for row in range(len(items))]
