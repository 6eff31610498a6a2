"""Accuracy and localisation on inspection images, methods side by side, as tables and as JSON.

    python benchmarks/accuracy.py path/to/pill path/to/deeppcb --splits 0 1 2

A data set is a folder in the MVTec AD layout (train/good, test/<type>,
ground_truth/<type>/<stem>_mask.png) or the word `elpv` (the package elpv-dataset; defect =
probability >= 0.5, no masks). Where --same-stem names the set, images with the same file name stem
show the same part and stay on one side of a split.

Splits 0, 1 and 2 are for the published tables; recipes and parameters are chosen on splits 10 and
above.

--protocol says what is trained on and tested on:

  split               80/20, stratified by defect type
  leave-one-type-out  for each defect type (--types: for these), train on the split without it,
                      test on all its images and the split's good test images
  few-labels          train on the split's good images and --n-defects of its defective ones
  mislabelled         train on the split with the share --flipped of the labels wrong

Each finished run is kept in the JSON file, so an interrupted benchmark goes on where it stopped and
a finished one prints its tables again. The tables hold the runs that the command asks for.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from figures import image_figures, pixel_figures, predictions, suspect_figures
from options import make_parser
from printing import print_pooled, print_row, print_table, title
from protocols import DEFECT, PROTOCOLS, Case, DataSet

from defectcam import DefectCAMClassifier

Run = dict[str, Any]


def patchcore(**parameters: Any) -> Any:
    from patchcore import PatchCore

    return PatchCore(**parameters)


METHODS: dict[str, Callable[..., Any]] = {
    "ancestor": partial(
        DefectCAMClassifier.from_recipe, "vgg16_cam", backbone="efficientnet_lite0"
    ),
    "default": DefectCAMClassifier,
    "cam": partial(DefectCAMClassifier, heatmap="cam"),
    "evidence": partial(DefectCAMClassifier, heatmap="cam", pooling="top_k"),
    "joint-loss": partial(DefectCAMClassifier, deep_supervision=False),
    "one-level": partial(DefectCAMClassifier, evidence_stages=1),
    "top-k": partial(DefectCAMClassifier, pooling="top_k"),
    "no-flips": partial(DefectCAMClassifier, augmentation="none"),
    "no-folds": partial(DefectCAMClassifier, cv=None),
    "no-students": partial(DefectCAMClassifier, self_training=False),
    "all-boxes": partial(DefectCAMClassifier, box_peak_fraction=0.0, tighten_boxes=False),
    "loose-boxes": partial(DefectCAMClassifier, tighten_boxes=False),
    "patchcore": patchcore,
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    runs = read_runs(options.json)
    asked: list[tuple] = []
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        for seed in options.splits:
            train, test = data.split(seed, options.test_size)
            for case in PROTOCOLS[options.protocol](data, train, test, seed, options):
                for method in options.methods:
                    run = {
                        "set": data.name,
                        "protocol": options.protocol,
                        "variant": case.variant,
                        "method": method,
                        "split": seed,
                        "parameters": options.parameters,
                    }
                    asked.append(key(run))
                    if key(run) not in runs:
                        runs = add_run(run, data, case, options.json) or runs
    chosen = [runs[name] for name in asked if name in runs]
    print_table(chosen)
    print_pooled(chosen)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "accuracy.json")
    parser.add_argument("--methods", nargs="+", default=["ancestor", "default"], choices=METHODS)
    parser.add_argument("--protocol", default="split", choices=PROTOCOLS)
    parser.add_argument("--types", nargs="+", help="defect types to leave out, one at a time")
    parser.add_argument("--n-defects", nargs="+", type=int, default=[5, 10, 20, 40])
    parser.add_argument("--flipped", nargs="+", type=float, default=[0.02, 0.05])
    return parser.parse_args(arguments)


def read_runs(path: Path) -> dict[tuple, Run]:
    """Return the runs kept so far; those from before there were protocols are plain splits."""
    runs = json.loads(path.read_text()) if path.exists() else []
    runs = [{"protocol": "split", "variant": None, **run} for run in runs]
    return {key(run): run for run in runs}


def key(run: Run) -> tuple:
    """What tells a run from every other."""
    names = ("set", "protocol", "variant", "method", "split")
    parameters = json.dumps(run.get("parameters", {}), sort_keys=True)
    return (*(run[name] for name in names), parameters)


def add_run(run: Run, data: DataSet, case: Case, path: Path) -> dict[tuple, Run] | None:
    """Do the run and keep it in the file; return the file's runs, None if it cannot be done."""
    try:
        detector = METHODS[run["method"]](random_state=run["split"], **run["parameters"])
    except ImportError as error:
        print(f"{title(run)}: left out, {error}", flush=True)
        return None
    run = run | measure(detector, data, case)
    print_row(run)
    return keep_run(run, path)


def keep_run(run: Run, path: Path) -> dict[tuple, Run]:
    """Add a run to the file; return the file's runs."""
    runs = read_runs(path) | {key(run): run}  # read again: another process may have added to it
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(run) for run in runs.values())
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(f"[\n{lines}\n]\n")
    unfinished.replace(path)
    return runs


def measure(detector: Any, data: DataSet, case: Case) -> Run:
    """Fit on the training images, measure on the test images."""
    started = time.perf_counter()
    detector.fit(data.images[case.train], case.labels)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    found = detector.localize(list(data.images[case.test]))
    localize_seconds = time.perf_counter() - started
    is_defect = data.labels(case.test) == DEFECT
    figures = image_figures(is_defect, found)
    if data.masks is not None:
        figures |= pixel_figures([data.masks[i] for i in case.test], found)
    figures |= suspect_figures(case.flipped, len(case.train), detector)
    return figures | {
        "fit seconds": seconds,
        "localize ms per image": 1000 * localize_seconds / len(case.test),
        "predictions": predictions(is_defect, found),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


if __name__ == "__main__":
    main()
