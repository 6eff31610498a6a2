"""Heatmaps of one fitted classifier by several methods, side by side, as a table and as JSON.

    python benchmarks/cam_methods.py path/to/pill path/to/magnetic_tile --splits 0 1 2 --images 40

A data set is a folder in the MVTec AD layout with masks; it is split 80/20 by defect type as in
accuracy.py, the default classifier is fitted once per split, and every method explains the same
test images:

  own        the classifier's heatmap, evidence fused with novelty
  evidence   its signed class activation map alone
  gradcam, gradcam++, scorecam, layercam, eigencam
             localize(method=...), by the package grad-cam, from the layers that the evidence head
             reads

Pixel AUROC and AUPRO are of all test images, and of the defective ones alone: methods that scale
each map by its own minimum and maximum make good images as hot as defective ones, which only the
first pair counts against them. Milliseconds per image are those of localize, image files read
included, nothing else running; Score-CAM needs a forward pass per channel, so --images takes a
sample of the test images, in the shares of the types.

Each finished method is kept in the JSON file, so an interrupted benchmark goes on where it stopped
(it fits again what is still to be explained) and a finished one prints its table again.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accuracy import Run, keep_run, key, read_runs
from figures import pixel_figures
from options import make_parser
from printing import print_row, print_table
from protocols import DataSet

from defectcam import DefectCAMClassifier, Localization
from defectcam.attribution import METHODS as ATTRIBUTIONS
from defectcam.attribution import check_method
from defectcam.cam import signed_cam

METHODS = ("own", "evidence", *ATTRIBUTIONS)
PIXEL_FIGURES = ("pixel AUROC", "AUPRO", "pointing")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    for method in set(options.methods) & set(ATTRIBUTIONS):
        check_method(method)
    asked: list[Run] = []
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        if data.masks is None:
            raise ValueError(f"{place} has no masks to compare heatmaps with.")
        for seed in options.splits:
            asked += explain_split(data, seed, options)
    runs = read_runs(options.json)
    print_table([runs[key(run)] for run in asked])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "cam_methods.json")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--images", type=int, help="most test images per split; default: all")
    return parser.parse_args(arguments)


def explain_split(data: DataSet, seed: int, options: argparse.Namespace) -> list[Run]:
    """Measure the methods that are not yet in the file; return the names of all that are asked."""
    asked = [
        {
            "set": data.name,
            "protocol": "split",
            "variant": options.images,
            "method": method,
            "split": seed,
            "parameters": options.parameters,
        }
        for method in options.methods
    ]
    kept = read_runs(options.json)
    missing = [run for run in asked if key(run) not in kept]
    if missing:
        train, test = data.split(seed, options.test_size)
        test = sample(test, data.types[test], options.images)
        clf = DefectCAMClassifier(random_state=seed, **options.parameters)
        clf.fit(data.images[train], data.labels(train))
        for run in missing:
            run = run | measure(clf, run["method"], data, test)
            print_row(run)
            keep_run(run, options.json)
    return asked


def sample(test: np.ndarray, types: np.ndarray, n_images: int | None) -> np.ndarray:
    """Evenly spaced among the test images in the order of their types; all if there are fewer."""
    if n_images is None or n_images >= len(test):
        return test
    by_type = test[np.argsort(types, kind="stable")]
    return by_type[np.linspace(0, len(test) - 1, n_images).round().astype(int)]


def measure(clf: DefectCAMClassifier, method: str, data: DataSet, test: np.ndarray) -> Run:
    images, masks = list(data.images[test]), [data.masks[i] for i in test]
    explain(clf, method, images[:1])  # whatever is set up by the first call
    found, seconds = explain(clf, method, images)
    figures = chosen(pixel_figures(masks, found), PIXEL_FIGURES)
    marked = [i for i, mask in enumerate(masks) if mask is not None]
    defective = pixel_figures([masks[i] for i in marked], [found[i] for i in marked])
    for name, value in chosen(defective, ("pixel AUROC", "AUPRO")).items():
        figures[f"{name}, defective"] = value
    return figures | {"images": len(images), "localize ms per image": 1000 * seconds / len(images)}


def explain(
    clf: DefectCAMClassifier, method: str, images: list[str]
) -> tuple[list[Localization], float]:
    """Return heatmaps, and the seconds that they took."""
    started = time.perf_counter()
    if method != "evidence":
        found = clf.localize(images, method=None if method == "own" else method)
        return found, time.perf_counter() - started
    evidence = clf.evidence(images)
    seconds = time.perf_counter() - started
    good = list(clf.classes_).index(clf.good_label_)
    grids = signed_cam(torch.from_numpy(evidence), good).numpy()
    own = clf.localize(images)  # knows where each image lies in the network's input
    return [dataclasses.replace(f, grid=g) for f, g in zip(own, grids, strict=True)], seconds


def chosen(figures: dict[str, float], names: Sequence[str]) -> dict[str, Any]:
    return {name: figures[name] for name in names}


if __name__ == "__main__":
    main()
