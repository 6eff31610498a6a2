"""Figures of what a method found in the test images, all from public metric functions.

What is found in one image has `is_defect`, `heatmap`, `boxes`, `box_scores`, and either a
`probability` of a defect or, where that is None, a `score` that only orders the images.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from defectcam.images import read_image
from defectcam.metrics import (
    box_precision_recall_f1,
    defect_recall_score,
    expected_calibration_error,
    mask_boxes,
    overkill_rate,
    pixel_average_precision_score,
    pixel_roc_auc_score,
    pointing_game_score,
    pro_auc_score,
)

N_BINS = 2**20  # of the pixel scores: each is rounded by less than 0.05 %
SUSPECT_SHARE = 0.1  # of the training images, looked through for wrong labels
SUSPECTS = "flips in first 10 % of suspects"


def image_figures(is_defect: np.ndarray, found: list) -> dict[str, float]:
    called = np.array([f.is_defect for f in found])
    figures = {
        "balanced accuracy": balanced_accuracy_score(is_defect, called),
        "defect recall": defect_recall_score(is_defect, called),
        "overkill": overkill_rate(is_defect, called),
        "image AUROC": roc_auc_score(is_defect, scores(found)),
        "good with box": float(
            np.mean([len(f.boxes) > 0 for f, bad in zip(found, is_defect, strict=True) if not bad])
        ),
    }
    if has_probabilities(found):
        figures |= calibration_figures(is_defect, scores(found))
    return figures


def has_probabilities(found: list) -> bool:
    return all(f.probability is not None for f in found)


def scores(found: list) -> np.ndarray:
    return np.array([f.probability if f.probability is not None else f.score for f in found])


def calibration_figures(is_defect: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    return {
        "ECE": expected_calibration_error(is_defect, probability),
        "Brier": float(brier_score_loss(is_defect, probability)),
    }


def predictions(is_defect: np.ndarray, found: list) -> dict[str, list]:
    """Truth and probability of each test image, for figures over several runs."""
    kept: dict[str, list] = {"is_defect": is_defect.astype(int).tolist()}
    if has_probabilities(found):
        kept["probability"] = [round(float(p), 6) for p in scores(found)]
    return kept


def pixel_figures(listed: list[str | np.ndarray | None], found: list) -> dict[str, float]:
    masks = [read_image(mask)[..., 0] > 0 if isinstance(mask, str) else mask for mask in listed]
    boxes_true = [np.zeros((0, 4), int) if mask is None else mask_boxes(mask) for mask in masks]

    def maps():
        return (f.heatmap for f in found)

    boxes = box_precision_recall_f1(
        boxes_true, [f.boxes for f in found], [f.box_scores for f in found], iou_threshold=0.3
    )
    return {
        "pixel AUROC": pixel_roc_auc_score(masks, maps(), n_bins=N_BINS),
        "PxAP": pixel_average_precision_score(masks, maps(), n_bins=N_BINS),
        "AUPRO": pro_auc_score(masks, maps(), n_bins=N_BINS),
        "pointing": pointing_game_score(masks, maps()),
        "box F1": boxes["f1"],
        "box precision": boxes["precision"],
        "box recall": boxes["recall"],
    }


def suspect_figures(flipped: np.ndarray, n_train: int, detector: Any) -> dict[str, float]:
    """Share of the flipped labels that stand first among the suspects, where a method names any."""
    if not len(flipped) or not hasattr(detector, "suspects_"):
        return {}
    looked_at = detector.suspects_[: round(SUSPECT_SHARE * n_train)]
    return {SUSPECTS: float(np.isin(flipped, looked_at).mean())}
