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
from defectcam.images import map_reduced_images
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

    Yields
    ------
    pixels : Tensor of shape (n, 3, height, width), float32
        Normalised, at the network's input size.
    geometries : list of Geometry
    thumbnails : list of ndarray of shape (height, width), uint8
        Empty unless asked for.
    """

    def prepare(
        image: NDArray[np.uint8], size: tuple[int, int]
    ) -> tuple[torch.Tensor, Geometry, Thumbnail | None]:
        small = thumbnail(image) if with_thumbnails else None
        return preprocess.prepare(image, size), preprocess.geometry(size), small

    prepared = map_reduced_images(prepare, items, preprocess.image_size, n_workers=n_workers)
    while batch := list(itertools.islice(prepared, batch_size)):
        pixels, geometries, small = zip(*batch, strict=True)
        thumbnails = list(small) if with_thumbnails else []
        yield torch.stack(pixels).permute(0, 3, 1, 2), list(geometries), thumbnails


def fill_cache(
    cache: FeatureCache,
    network: DefectCAMNetwork,
    preprocess: Preprocess,
    items: Sequence[Any],
    *,
    n_workers: int | None = None,
    store: FeatureStore | None = None,
    hashes: Sequence[str] = (),
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
    hashes : sequence of str, optional
        Of the images' content; only asked for with a store.
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
    if store is not None:
        for row, image in enumerate(hashes):
            if (kept := store.read(image)) is not None:
                cache.put(row, kept.features)
                thumbnails[row] = kept.thumbnail
                report(1)
    missing = [row for row in range(len(items)) if row not in thumbnails]
    fresh: list[Thumbnail] = []

    def pixels() -> Iterator[torch.Tensor]:
        for batch, _, small in preprocessed_batches(
            (items[row] for row in missing),
            preprocess,
            cache.batch_size,
            n_workers=n_workers,
            with_thumbnails=True,
        ):
            fresh.extend(small)
            yield batch
            report(len(batch))

    def keep(rows: Sequence[int]) -> None:
        for row, small in zip(rows, fresh[-len(rows) :], strict=True):
            thumbnails[row] = small
            if store is not None:
                store.write(hashes[row], StoredImage(cache.image(row), small))

    cache.fill(network, pixels(), missing, keep)
    return [thumbnails[row] for row in range(len(items))]
