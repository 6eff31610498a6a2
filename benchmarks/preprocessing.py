"""Each preprocessing step in front of the default classifier, beside no step.

    python benchmarks/preprocessing.py path/to/pill --splits 0 1 2
    python benchmarks/preprocessing.py path/to/pill --protocol cross-validation --steps none crop

Data sets are named as for accuracy.py. --protocol says how a step is measured:

  split             80/20, stratified by defect type, with the figures of accuracy.py: maps and
                    boxes are compared with masks in the original images' pixels
  cross-validation  scikit-learn's cross_validate over the pipeline on all images' paths, --folds
                    parts: balanced accuracy and time of each fold; once as it is, and once with
                    `memory` for the pipeline and the classifier, which is empty at first

--images takes so many of the images only, good and defective in their proportion.

Each finished run is kept in the JSON file, so an interrupted benchmark goes on where it stopped and
a finished one prints its tables again. The tables hold the runs that the command asks for.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from accuracy import keep_run, key, measure, read_runs
from options import make_parser
from printing import print_pooled, print_row, print_table
from protocols import Case, DataSet
from protocols import split as split_protocol
from sklearn.model_selection import StratifiedKFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from speed import proportional

from defectcam import (
    ContrastEqualizer,
    DefectCAMClassifier,
    FlatFieldCorrector,
    PartCropper,
    TemplateAligner,
    localize,
)

Run = dict[str, Any]

STEPS: dict[str, Callable[[], list[Any]]] = {
    "none": lambda: [],
    "crop": lambda: [PartCropper()],
    "crop-erase": lambda: [PartCropper(erase=True)],
    "align": lambda: [TemplateAligner()],
    "align-orb": lambda: [TemplateAligner(method="orb")],
    "flat-image": lambda: [FlatFieldCorrector()],
    "flat-learned": lambda: [FlatFieldCorrector("learned")],
    "clahe": lambda: [ContrastEqualizer()],
    "align-crop": lambda: [TemplateAligner(), PartCropper()],
}


class Piped:
    """A pipeline that localises as a classifier does."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline

    def fit(self, images: Any, labels: Any) -> Piped:
        self.pipeline.fit(images, labels)
        return self

    def localize(self, images: Any) -> Any:
        return localize(self.pipeline, images)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    asked: list[tuple] = []
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        if options.images:
            data = first(data, options.images)
        for run, finish in PROTOCOLS[options.protocol](data, options):
            asked.append(key(run))
            if key(run) in read_runs(options.json):
                continue
            for finished in finish():
                print_row(finished)
                keep_run(finished, options.json)
    runs = read_runs(options.json)
    chosen = [runs[name] for name in asked]
    print_table(chosen)
    print_pooled(chosen)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "preprocessing.json")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS)
    parser.add_argument("--protocol", default="split", choices=PROTOCOLS)
    parser.add_argument(
        "--folds", type=int, default=5, help="for another number use another --json"
    )
    parser.add_argument("--images", type=int, help="for another number use another --json")
    return parser.parse_args(arguments)


def first(data: DataSet, n_images: int) -> DataSet:
    """Keep so many images, good and defective in their proportion."""
    everything = np.arange(len(data.types))
    kept = np.sort(proportional(data.labels(everything))[:n_images])
    masks = None if data.masks is None else [data.masks[i] for i in kept]
    groups = None if data.groups is None else data.groups[kept]
    return DataSet(data.name, data.images[kept], data.types[kept], masks, groups)


def splits(
    data: DataSet, options: argparse.Namespace
) -> Iterator[tuple[Run, Callable[[], list[Run]]]]:
    """Name every run on a split, with the function that does it."""
    for seed in options.splits:
        train, test = data.split(seed, options.test_size)
        [case] = split_protocol(data, train, test, seed, options)
        for step in options.steps:
            run = named(data, "split", None, step, seed, options)

            def finish(run: Run = run, case: Case = case) -> list[Run]:
                detector = Piped(pipeline_of(run))
                return [run | measure(detector, data, case)]

            yield run, finish


def cross_validation(
    data: DataSet, options: argparse.Namespace
) -> Iterator[tuple[Run, Callable[[], list[Run]]]]:
    """Name every fold, with the function that does all folds of the step."""
    for step in options.steps:
        for variant in (None, "memory"):
            runs = [
                named(data, "cross-validation", variant, step, fold, options)
                for fold in range(options.folds)
            ]
            for run in runs:
                yield run, lambda runs=runs: validate(runs, data)


def validate(runs: list[Run], data: DataSet) -> list[Run]:
    """Cross-validate one pipeline; each of the runs is one of the folds."""
    labels = data.labels(np.arange(len(data.types)))
    with tempfile.TemporaryDirectory() as memory:
        pipeline = pipeline_of(runs[0] | {"split": 0}, memory if runs[0]["variant"] else None)
        scores = cross_validate(
            pipeline,
            data.images,
            labels,
            cv=StratifiedKFold(len(runs), shuffle=True, random_state=0),
            scoring="balanced_accuracy",
            error_score="raise",
        )
    names = {"test_score": "balanced accuracy", "fit_time": "fit seconds"}
    return [
        run | {name: float(scores[column][fold]) for column, name in names.items()}
        for fold, run in enumerate(runs)
    ]


def pipeline_of(run: Run, memory: str | None = None) -> Pipeline:
    clf = DefectCAMClassifier(random_state=run["split"], memory=memory, **run["parameters"])
    return make_pipeline(*STEPS[run["method"]](), clf, memory=memory)


def named(
    data: DataSet,
    protocol: str,
    variant: str | None,
    step: str,
    split: int,
    options: argparse.Namespace,
) -> Run:
    return {
        "set": data.name,
        "protocol": protocol,
        "variant": variant,
        "method": step,
        "split": split,
        "parameters": options.parameters,
    }


PROTOCOLS = {"split": splits, "cross-validation": cross_validation}


if __name__ == "__main__":
    main()
