"""What `partial_fit` remembers of earlier images: trunk features, labels and held-out scores.

Owns which images are kept when there are more than places, what each of them stands for, and the
way into and out of a feature cache. It trains nothing, calibrates nothing and reads no image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectcam.network import TrunkFeatures
from defectcam.training import FeatureCache, FitResult

__all__ = [
    "Keeper",
    "Records",
    "ReplayMemory",
    "choose_rows",
    "draw_keys",
    "features_of",
    "importance",
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
    logits : Tensor of shape (n, n_classes)
    cams : Tensor of shape (n, 1 + n_levels, height, width)
        Signed maps, shifted so that those of good images have median 0.
    novelty : Tensor of shape (n, height, width) or None
    is_held_out : ndarray of shape (n,), bool
        Whether logits, maps and novelty are from a network that had not seen the image.
    """

    labels: NDArray[Any]
    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    keys: NDArray[np.float64]
    logits: Tensor
    cams: Tensor
    novelty: Tensor | None
    is_held_out: NDArray[np.bool_]

    def take(self, rows: NDArray[np.intp]) -> Records:
        """Return some rows, copied."""
        return Records(*[cast(Any, None if x is None else x[rows]) for x in self])

    def joined(self, others: Records) -> Records:
        """Return these rows and then the others."""
        return Records(*map(_joined, self, others))


def _joined(first: Any, second: Any) -> Any:
    if first is None or second is None:
        return None
    join = torch.cat if isinstance(first, Tensor) else np.concatenate
    return join([first, second])


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
    """

    records: Records
    features: TrunkFeatures
    views: tuple[tuple[int, ...], ...]
    seen: Counter[Any]

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
    """Keeps the features of some images of a first fit, which forgets them while it trains.

    Parameters
    ----------
    cache : FeatureCache
        Filled; its patches not yet forgotten.
    labels : ndarray of shape (n_images,)
    is_defect : ndarray of shape (n_images,)
    size : int
        Most images to keep.
    seed : int
        Decides which.
    """

    def __init__(
        self,
        cache: FeatureCache,
        labels: NDArray[Any],
        is_defect: NDArray[np.bool_],
        size: int,
        seed: int,
    ) -> None:
        self._labels = labels
        self._keys = draw_keys(len(labels), seed)
        self._rows = choose_rows(labels, is_defect, self._keys, size)
        self._features = features_of(cache, self._rows)
        self._views = tuple(cache.views)

    def memory(
        self,
        targets: NDArray[np.int64],
        weights: NDArray[np.float64],
        result: FitResult,
        novelty: Tensor | None,
        is_held_out: bool,
    ) -> ReplayMemory:
        """Make the memory, after the fit, from what it left of all its images."""
        n = len(self._labels)
        records = Records(
            self._labels,
            targets,
            weights,
            self._keys,
            result.logits,
            result.cams,
            novelty,
            np.full(n, is_held_out),
        )
        kept = records.take(self._rows)
        return ReplayMemory(kept, self._features, self._views, Counter(self._labels.tolist()))


def draw_keys(n: int, seed: int) -> NDArray[np.float64]:
    """Draw the numbers that decide which images are kept."""
    return np.random.RandomState(seed).uniform(size=n)


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
