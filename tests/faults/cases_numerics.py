"""Numbers that leave their range in training and in what is kept of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from defectcam.feature_cache import FeatureCache
from defectcam.network import DefectCAMNetwork
from defectcam.training import TailTraining, TrainingDivergedError
from faults.catalogue import Bench, Group

group = Group("cases_numerics")


def is_finite(classifier: Any, images: np.ndarray) -> bool:
    maps = [found.heatmap for found in classifier.localize(images)]
    return bool(np.isfinite(classifier.predict_proba(images)).all() and np.isfinite(maps).all())


group.refused(
    "a learning rate that breaks the first epoch",
    TrainingDivergedError,
    "Lower learning_rate (now 1e+30)",
    lambda b: b.fit(learning_rate=1e30),
)


def broken_in_epoch(number: int) -> Callable[[Bench], Any]:
    """Let the loss of one epoch be NaN; return whether the weights are those before it."""

    def act(bench: Bench) -> Any:
        plain = bench.fit(max_epochs=number - 1, schedule="constant")
        loss, epochs = TailTraining._loss, []
        epoch = TailTraining._epoch

        def counted(self: Any, *args: Any) -> Any:
            epochs.append(None)
            return epoch(self, *args)

        def breaking(self: Any, *args: Any) -> Any:
            return loss(self, *args) * (float("nan") if len(epochs) == number else 1.0)

        bench.patch.setattr(TailTraining, "_epoch", counted)
        bench.patch.setattr(TailTraining, "_loss", breaking)
        broken = bench.fit(max_epochs=5, schedule="constant")
        state = plain.network_.state_dict()
        same = all(torch.equal(w, state[n]) for n, w in broken.network_.state_dict().items())
        return same, len(broken.history_["loss"]), is_finite(broken, bench.images)

    return act


group.warned(
    "a training that diverges later: the weights of the last good epoch are kept",
    "The weights of epoch 2 of 5 are kept",
    (True, 2, True),
    broken_in_epoch(3),
)


def all_alike(bench: Bench) -> Any:
    images = np.full_like(bench.images, 7)
    return is_finite(bench.fit(images, bench.labels, cv=2), images)


group.works("images of one grey value", True, all_alike)
group.works(
    "black images in training, white ones later",
    True,
    lambda b: is_finite(b.fit(np.zeros_like(b.images), b.labels), np.full_like(b.images, 255)),
)


def silent(bench: Bench) -> Any:
    """Train a network whose features are all zero."""
    features = DefectCAMNetwork.trunk_features

    def nothing(self: Any, pixels: torch.Tensor) -> Any:
        deep, patches = features(self, pixels)
        return type(features(self, pixels[:1]))([t * 0 for t in deep], patches * 0)

    bench.patch.setattr(DefectCAMNetwork, "trunk_features", nothing)
    return is_finite(bench.fit(), bench.images)


group.works("features that are all zero", True, silent)


def scaled_features(factor: float) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        features = DefectCAMNetwork.trunk_features

        def large(self: Any, pixels: torch.Tensor) -> Any:
            found = features(self, pixels)
            return found._replace(deep=[t * factor for t in found.deep])

        bench.patch.setattr(DefectCAMNetwork, "trunk_features", large)
        return is_finite(bench.fit(), bench.images)

    return act


group.refused(
    "features beyond 16 bits",
    ValueError,
    'pass precision="float32"',
    scaled_features(1e6),
)
group.refused(
    "features that are not finite",
    ValueError,
    "The backbone's features of an image are NaN or infinite",
    scaled_features(float("inf")),
)
group.works("features that are subnormal", True, scaled_features(1e-39))


def kept(value: float, dtype: torch.dtype) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        with FeatureCache(1, ((),), 2**20, dtype) as cache:
            cache._keep(torch.tensor([0]), [torch.full((1, 1, 2, 2, 2), value)], None)
            return float(cache.deep[0].max())

    return act


group.works("the largest value that 16 bits hold", 65504.0, kept(65504.0, torch.float16))
group.works("a larger one, kept in 32 bits", 1e6, kept(1e6, torch.float32))
group.works(
    "more centres than patches", 8, lambda b: len(b.fit(codebook_size=10**6).predict(b.images))
)
group.works(
    "equal images in each class",
    True,
    lambda b: is_finite(b.fit(b.images[[0] * 4 + [4] * 4], b.labels, cv=2), b.images),
)
group.works(
    "a class with weight zero",
    True,
    lambda b: is_finite(b.fit(class_weight={"good": 1, "scratch": 0}), b.images),
)
