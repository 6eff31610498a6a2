"""Named configurations of the classifier: plain parameters, no code."""

from __future__ import annotations

from typing import Any

__all__ = ["RECIPES", "VGG16_CAM"]

#: Parameters of the published recipe: "Explainable Defect Detection using CNNs", MIT.
VGG16_CAM: dict[str, Any] = {
    "backbone": "vgg16",
    "image_size": 224,
    "resize": "stretch",
    "normalisation": "unit",
    "trainable_stages": 1,
    "evidence_stages": 1,
    "normalise_evidence": False,
    "pooling": "average",
    "head_init": "linear",
    "target": "anomaly",
    "class_weight": 3.0,
    "optimizer": "adam",
    "learning_rate": 1e-4,
    "head_learning_rate": None,
    "weight_decay": 0.0,
    "schedule": "constant",
    "max_epochs": 10,
    "batch_size": 10,
    "label_smoothing": 0.0,
    "deep_supervision": False,
    "train_batch_norm": True,
    "stop_at_train_accuracy": 0.98,
    "augmentation": "none",
    "cv": None,
    "heatmap": "min_max_cam",
    "threshold": 0.5,
    "box_threshold": 0.8,
    "box_peak_fraction": 0.0,
    "tighten_boxes": False,
    "self_training": False,
    "min_area": 1,
    "max_boxes": 1,
    "merge_distance": float("inf"),
    "precision": "float32",
}

#: By the names that `DefectCAMClassifier.from_recipe` knows.
RECIPES: dict[str, dict[str, Any]] = {"vgg16_cam": VGG16_CAM}
