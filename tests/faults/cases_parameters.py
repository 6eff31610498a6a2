"""Parameters out of range or of another type, refused at `fit` in scikit-learn's wording."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils._param_validation import InvalidParameterError

from defectcam.backbones import WeightsNotFoundError
from faults.catalogue import Group

group = Group("cases_parameters")

NAN, INF = float("nan"), float("inf")


def refused(name: str, value: Any, says: str, error: type[Exception] = ValueError) -> None:
    group.refused(f"`{name}={value!r}`", error, says, lambda b: b.fit(**{name: value}))


WRONG: dict[str, list[Any]] = {
    "backbone": [None, b"vgg16"],
    "weights": [5, True],
    "image_size": [
        8,
        32.0,
        True,
        NAN,
        (32,),
        (32, 32, 32),
        (8, 8),
        (32, -1),
        ("a", "b"),
        [32.5, 32],
    ],
    "resize": [None, "crop"],
    "normalisation": ["none"],
    "trainable_stages": [-1, "2", True],
    "evidence_stages": [0, 2.5, True],
    "normalise_evidence": ["yes", 1, None],
    "novelty_strides": [4, "4"],
    "codebook_size": [0, 1.5],
    "pooling": ["median"],
    "pooling_fraction": [0, 1.1, NAN, None],
    "head_init": ["zero"],
    "target": ["regression"],
    "good_label": [NAN, 1.5, ["good"], b"good"],
    "class_weight": [
        "heavy",
        0,
        -1.0,
        NAN,
        INF,
        1e39,
        {"good": -1, "scratch": 1},
        {"good": NAN, "scratch": 1},
        {"good": "a", "scratch": 1},
        {"good": 0, "scratch": 0},
    ],
    "optimizer": ["lbfgs"],
    "learning_rate": [0, -1, NAN, INF, "fast", True],
    "head_learning_rate": [0, NAN],
    "weight_decay": [-1, NAN],
    "schedule": ["step"],
    "max_epochs": [0, 1.5, "all", True],
    "batch_size": [0, True],
    "label_smoothing": [1, NAN],
    "deep_supervision": ["each"],
    "train_batch_norm": [None],
    "early_stopping": [None],
    "n_iter_no_change": [0],
    "stop_at_train_accuracy": [0, 2, NAN],
    "augmentation": ["mixup"],
    "cv": [1, True],
    "heatmap": ["gradcam"],
    "threshold": [NAN, 2, None, True],
    "self_training": [1],
    "box_threshold": [NAN, INF, "high"],
    "box_peak_fraction": [1, NAN],
    "tighten_boxes": [None],
    "min_area": [0, 1.5],
    "max_boxes": [0],
    "merge_distance": [-1, NAN],
    "warm_start": [None],
    "replay_size": [-1],
    "cache_size": [-1, 1.5],
    "memory": [5],
    "device": [None, 0],
    "precision": ["float16"],
    "n_jobs": [1.5],
    "random_state": ["seed", -1, 2**40, NAN],
    "verbose": ["loud", -1],
    "callbacks": [5],
}
for name, values in WRONG.items():
    for value in values:
        says = f"The '{name}' parameter of DefectCAMClassifier must be"
        refused(name, value, says, InvalidParameterError)

refused("backbone", "vgg1", "Did you mean 'vgg19', 'vgg16'")
refused("backbone", "", "is neither a torchvision nor a timm model")
refused("weights", "no.pth", "is no file", WeightsNotFoundError)
refused("trainable_stages", 9, "expected a number from 0 to 5")
refused("evidence_stages", 9, "expected a number from 1 to 5")
refused("novelty_strides", (3,), "have strides (2, 4, 8)")
refused("novelty_strides", (NAN,), "have strides (2, 4, 8)")
refused("class_weight", {"nope": 1}, "are not in class_weight")
refused("threshold", "best", "expected 'balanced', 'recall>=R'")
refused("threshold", "recall>=2", "expected 'balanced', 'recall>=R'")
refused("threshold", "cost=1:0", "expected 'balanced', 'recall>=R'")
refused("device", "gpu", "device='gpu' cannot be used on this machine")
refused("device", "cuda:99", "device='cuda:99' cannot be used on this machine")
refused("device", "", "device='' cannot be used on this machine")
refused("n_jobs", 0, "n_jobs == 0")
refused("callbacks", [5], "callbacks holds 5, which cannot be called", TypeError)
refused("good_label", "fine", "good_label='fine' is not among the labels")
refused("batch_size", 1, "batch_size=1 leaves batch normalisation a single value")

for name, value in {
    "codebook_size": 10**9,
    "cache_size": 2**80,
    "merge_distance": INF,
    "class_weight": {"good": 0, "scratch": 1},
    "max_epochs": np.int64(1),
}.items():
    is_numpy = isinstance(value, np.generic)  # of which older releases show the number alone
    group.works(
        f"`{name}=np.{type(value).__name__}({value})`" if is_numpy else f"`{name}={value!r}`",
        8,
        lambda b, name=name, value=value: len(b.fit(**{name: value}).predict(b.images)),
    )
