"""What `partial_fit` remembers of earlier images: features, labels, and how they were judged.

Owns which images are kept when there are more than places, what each of them stands for, and the
way into and out of a feature cache. It trains nothing, calibrates nothing and reads no image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from defectcam.cross_fitting import Fold, HeldOut
from defectcam.feature_cache import FeatureCache
from defectcam.network import TrunkFeatures

__all__ = [
    "Keeper",
    "Records",
    "ReplayMemory",
    "choose_rows",
    "features_of",
    "importance",
    "judged_in_folds",
    "new_records",
]


class Records(NamedTuple):
    """What is known of some images besides their features; a row each.

    Attributes
    ----------
    labels : ndarray of shape (n,)
        As they were given, so that defect types are told apart where they are one class.
    targets : ndarray of shape (n,), int64
        Class indices.
    weights : ndarray of shape (n,), float64
        Sample weights.
    keys : ndarray of shape (n,), float64
        Drawn once per image, uniformly: the images with the lowest keys are kept.
    experience : ndarray of shape (n,), int64
        Images that the network which judged each one had learned from; 0: it was not held out.
    thumbnails : ndarray of shape (n, height, width), uint8
        For finding copies.
    """

    labels: NDArray[Any]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    keys: NDArray[np.float64]
    experience: NDArray[np.int64]
    thumbnails: NDArray[np.uint8]

    def take(self, rows: NDArray[np.intp]) -> Records:
        """Return some rows, copied."""
        columns: Iterable[Any] = (column[rows] for column in self)
        return Records(*columns)

    def joined(self, others: Records) -> Records:
        """Return these rows and then the others."""
        pairs: Iterable[Any] = zip(self, others, strict=True)
        return Records(*[np.concatenate(pair) for pair in pairs])


def new_records(
    labels: NDArray[Any],
    targets: NDArray[np.int64],
    weights: NDArray[np.float64],
    thumbnails: Sequence[NDArray[np.uint8]],
    seed: int,
) -> Records:
    """Make records of images that have come for the first time."""
    n = len(labels)
    keys = np.random.RandomState(seed).uniform(size=n)
    return Records(labels, targets, weights, keys, np.zeros(n, np.int64), np.stack(thumbnails))


def judged_in_folds(records: Records, folds: Sequence[Fold]) -> Records:
    """Note in the records how many images the network that judged each one had learned from."""
    experience = np.zeros(len(records.labels), np.int64)
    for train_rows, held_out_rows in folds:
        experience[held_out_rows] = len(train_rows)
    return records._replace(experience=experience)


@dataclass(frozen=True)
class ReplayMemory:
    """A bounded sample of all images seen, a stratum per label.

    Attributes
    ----------
    records : Records
    features : TrunkFeatures
        As a feature cache has them, 16 bits: of shape (n, n_views, channels_i, height_i, width_i)
        and, for patches, (n, channels, height, width).
    views : tuple
        Of the features.
    seen : Counter
        Images seen per label, kept or not.
    held_out : HeldOut or None
        What was said of the images when they were new; None: none was held out, or nothing is
        learned yet.
    is_learned : bool
        Whether the network was trained on these images.
    """

    records: Records
    features: TrunkFeatures
    views: tuple[tuple[int, ...], ...]
    seen: Counter[Any]
    held_out: HeldOut | None
    is_learned: bool

    def __len__(self) -> int:
        return len(self.records.labels)

    def put_into(self, cache: FeatureCache, first_row: int) -> None:
        """Copy the features into the rows of a cache from ``first_row`` on."""
        for i in range(len(self)):
            patches = None if self.features.patches is None else self.features.patches[i]
            features = TrunkFeatures([level[i] for level in self.features.deep], patches)
            cache.put(first_row + i, features)


def features_of(cache: FeatureCache, rows: NDArray[np.intp]) -> TrunkFeatures:
    """Copy the features of some rows of a cache, patches too."""
    chosen = torch.as_tensor(rows)
    patches = None if cache.patches is None else cache.patches[chosen]
    return TrunkFeatures([level[chosen] for level in cache.deep], patches)


class Keeper:
    """Keeps the features of some images of a training, which forgets them on its way.

    Parameters
    ----------
    cache : FeatureCache
        Filled; its patches not yet forgotten.
    records : Records
        Of all images in the cache.
    is_defect : ndarray of shape (n_images,)
    size : int
        Most images to keep.
    """

    def __init__(
        self, cache: FeatureCache, records: Records, is_defect: NDArray[np.bool_], size: int
    ) -> None:
        self._rows = choose_rows(records.labels, is_defect, records.keys, size)
        self._records = records.take(self._rows)
        self._features = features_of(cache, self._rows)
        self._views = tuple(cache.views)

    def memory(
        self, seen: Counter[Any], held_out: HeldOut | None, is_learned: bool = True
    ) -> ReplayMemory:
        """Make the memory, with what was said of all images of the training, if it was."""
        chosen = None if held_out is None else held_out.take(self._rows)
        return ReplayMemory(self._records, self._features, self._views, seen, chosen, is_learned)


def importance(labels: NDArray[Any], seen: Counter[Any]) -> NDArray[np.float64]:
    """How many of the images seen each one stands for, those of its label in equal parts."""
    kept = Counter(labels.tolist())
    return np.array([seen[label] / kept[label] for label in labels.tolist()])


def choose_rows(
    labels: NDArray[Any], is_defect: NDArray[np.bool_], keys: NDArray[np.float64], size: int
) -> NDArray[np.intp]:
    """Choose the images to keep.

    Half the places are for good images, the other half for the defect types in equal parts; places
    that one stratum has no use for go to the others. Within a stratum the lowest keys stay, which
    makes it a uniform sample of all images of that label that have come so far.

    Parameters
    ----------
    labels : ndarray of shape (n,)
    is_defect : ndarray of shape (n,)
    keys : ndarray of shape (n,)
    size : int
        Most images to keep.

    Returns
    -------
    ndarray
        Rows, ascending.

    References
    ----------
    Chrysakis and Moens, "Online continual learning from imbalanced data", ICML 2020: reservoir
    sampling (Vitter, 1985) that keeps classes in balance.
    """
    names, strata = np.unique(labels, return_inverse=True)
    counts = np.bincount(strata, minlength=len(names))
    defective = np.bincount(strata, is_defect, minlength=len(names)) > 0
    n_defective = max(1, int(defective.sum()))
    shares = np.where(defective, 1 / n_defective, 1.0)
    places = _share_out(size, counts.tolist(), shares.tolist())
    chosen = [
        rows[np.argsort(keys[rows], kind="stable")[:n]]
        for rows, n in ((np.flatnonzero(strata == s), places[s]) for s in range(len(names)))
    ]
    return np.sort(np.concatenate(chosen))


def _share_out(size: int, counts: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Give each stratum its share of the places, no more than it can use."""
    places = [0] * len(counts)
    open_strata = list(range(len(counts)))
    left = size
    while open_strata:
        total = sum(shares[s] for s in open_strata)
        wanted = {s: int(left * shares[s] / total) for s in open_strata}
        full = [s for s in open_strata if counts[s] <= wanted[s]]
        for s in full or open_strata:
            places[s] = min(counts[s], wanted[s])
        if not full:
            break
        left -= sum(places[s] for s in full)
        open_strata = [s for s in open_strata if s not in full]
    for s in sorted(range(len(counts)), key=lambda s: -shares[s]):  # what rounding down has left
        places[s] += min(counts[s] - places[s], size - sum(places))
    return places
