"""Accuracy and localisation on inspection images, baselines side by side, as a table and as JSON.

    python benchmarks/accuracy.py path/to/pill path/to/deeppcb --splits 0 1 2

A data set is a folder in the MVTec AD layout (train/good, test/<type>,
ground_truth/<type>/<stem>_mask.png) or the word `elpv` (the package elpv-dataset; defect =
probability >= 0.5, no masks). Where --same-stem names the set, images with the same file name stem
show the same part and stay on one side of a split.
Each finished run is kept in the JSON file, so an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from defectcam import DefectCAMClassifier
from defectcam.datasets import load_elpv, load_mvtec, train_test_split_by_type
from defectcam.images import read_image
from defectcam.metrics import (
    box_precision_recall_f1,
    defect_recall_score,
    mask_boxes,
    overkill_rate,
    pixel_average_precision_score,
    pixel_roc_auc_score,
    pointing_game_score,
    pro_auc_score,
)

GOOD, DEFECT = "good", "anomaly"
N_BINS = 2**20  # of the pixel scores: each is rounded by less than 0.05 %
COLUMNS = (
    "balanced accuracy",
    "defect recall",
    "overkill",
    "image AUROC",
    "pixel AUROC",
    "AUPRO",
    "pointing",
    "box F1",
    "good with box",
    "ECE",
    "fit seconds",
)

METHODS: dict[str, Callable[..., DefectCAMClassifier]] = {
    "ancestor": partial(
        DefectCAMClassifier.from_recipe, "vgg16_cam", backbone="efficientnet_lite0"
    ),
    "default": DefectCAMClassifier,
    "cam": partial(DefectCAMClassifier, heatmap="cam"),
}


class DataSet:
    """Images, types and masks under one name."""

    def __init__(self, name: str, images: Any, types: np.ndarray, masks: list[str | None] | None):
        self.name = name
        self.images = images
        self.types = types
        self.masks = masks

    @classmethod
    def read(cls, place: str) -> DataSet:
        if place == "elpv":
            cells = load_elpv()
            types = np.where(cells.is_defect, DEFECT, GOOD)
            return cls("elpv", np.asarray(cells.images), types, None)
        parts = load_mvtec(place)
        return cls(
            Path(place).name, np.asarray(parts.paths), np.asarray(parts.types), list(parts.masks)
        )

    def split(self, seed: int, test_size: float, same_stem: bool) -> tuple[np.ndarray, np.ndarray]:
        groups = [Path(path).stem for path in self.images] if same_stem else None
        split = train_test_split_by_type(
            np.arange(len(self.types)), self.types, test_size, random_state=seed, groups=groups
        )
        return split.train, split.test


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders in the MVTec AD layout, or elpv")
    parser.add_argument("--splits", nargs="+", type=int, default=[0, 1, 2], help="seeds")
    parser.add_argument("--test-size", type=float, default=0.2)
    parser.add_argument("--methods", nargs="+", default=["ancestor", "default"], choices=METHODS)
    parser.add_argument("--same-stem", nargs="*", default=["deeppcb"], metavar="SET")
    parser.add_argument("--json", default="benchmarks/results/accuracy.json", type=Path)
    parser.add_argument(
        "--set",
        default={},
        type=json.loads,
        dest="parameters",
        metavar="JSON",
        help="""parameters set otherwise, e.g. '{"image_size": 224}'""",
    )
    options = parser.parse_args()
    runs = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(run["set"], run["method"], run["split"]) for run in runs}
    for place in options.sets:
        data = DataSet.read(place)
        for seed in options.splits:
            train, test = data.split(seed, options.test_size, data.name in options.same_stem)
            for method in options.methods:
                if (data.name, method, seed) in done:
                    continue
                figures = run_one(
                    METHODS[method](random_state=seed, **options.parameters), data, train, test
                )
                runs.append(
                    {
                        "set": data.name,
                        "method": method,
                        "split": seed,
                        "parameters": options.parameters,
                        **figures,
                    }
                )
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(runs, indent=1) + "\n")
                print_row(f"{data.name} {method} split {seed}", figures)
    print_table([run for run in runs if run["method"] in options.methods])


def run_one(
    clf: DefectCAMClassifier, data: DataSet, train: np.ndarray, test: np.ndarray
) -> dict[str, float]:
    """Fit on the training images, measure on the test images."""
    started = time.perf_counter()
    clf.fit(data.images[train], merged(data.types[train]))
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    found = clf.localize(list(data.images[test]))
    localize_seconds = time.perf_counter() - started
    truth = merged(data.types[test])
    figures = image_figures(truth, found)
    if data.masks is not None:
        figures |= pixel_figures([data.masks[i] for i in test], found)
    return figures | {
        "fit seconds": seconds,
        "localize ms per image": 1000 * localize_seconds / len(test),
    }


def merged(types: np.ndarray) -> np.ndarray:
    return np.where(types == GOOD, GOOD, DEFECT)


def image_figures(truth: np.ndarray, found: list) -> dict[str, float]:
    called = np.array([DEFECT if f.is_defect else GOOD for f in found])
    probability = np.array([f.probability for f in found])
    is_defect = truth == DEFECT
    return {
        "balanced accuracy": balanced_accuracy_score(truth, called),
        "defect recall": defect_recall_score(truth, called, pos_label=DEFECT),
        "overkill": overkill_rate(truth, called, pos_label=DEFECT),
        "image AUROC": roc_auc_score(is_defect, probability),
        "ECE": expected_calibration_error(is_defect, probability),
        "Brier": brier_score_loss(is_defect, probability),
        "good with box": float(np.mean([len(f.boxes) > 0 for f in np.array(found)[~is_defect]])),
    }


def pixel_figures(mask_paths: list[str | None], found: list) -> dict[str, float]:
    masks = [None if path is None else read_image(path)[..., 0] > 0 for path in mask_paths]
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


def expected_calibration_error(
    is_defect: np.ndarray, probability: np.ndarray, n_bins: int = 10
) -> float:
    """Mean gap between probability and share of defects over equally wide bins, by their size."""
    bins = np.minimum((probability * n_bins).astype(int), n_bins - 1)
    gaps = [
        abs(probability[bins == b].mean() - is_defect[bins == b].mean()) * np.mean(bins == b)
        for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def print_row(title: str, figures: dict[str, float]) -> None:
    cells = [f"{name} {figures[name]:.3f}" for name in COLUMNS if name in figures]
    print(f"{title}: {', '.join(cells)}", flush=True)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Print a Markdown table of means over the splits, with standard deviations."""
    print("\n| set | method | splits | " + " | ".join(COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for key in dict.fromkeys((run["set"], run["method"]) for run in runs):
        chosen = [run for run in runs if (run["set"], run["method"]) == key]
        cells = []
        for column in COLUMNS:
            values = [run[column] for run in chosen if column in run]
            digits = 0 if column == "fit seconds" else 3
            spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}" if values else "-")
        print(f"| {key[0]} | {key[1]} | {len(chosen)} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
