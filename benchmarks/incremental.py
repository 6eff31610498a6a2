"""Daily batches through `partial_fit` against one `fit` on all images: accuracy and time.

    python benchmarks/incremental.py path/to/magnetic_tile --splits 0 1 2

A data set is what benchmarks/accuracy.py takes. Its training images come in --days batches, in
random order; after each, the test images are judged. Beside it stands one fit on all of them, which
is also the refit that the last day would need.

Aims: balanced accuracy within .02 of the fit's; all days together at most 1.5 times its time; each
day after the first at most a quarter of it. Each finished run is kept in the JSON file. Where other
programs share the processor, `--clock cpu` counts the seconds that the processor worked.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from accuracy import Run, keep_run, key, read_runs
from options import make_parser
from protocols import DEFECT, DataSet
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from defectcam import DefectCAMClassifier

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: Most that the balanced accuracy may lose, and the shares of the fit's time.
MOST_LOST, MOST_IN_ALL, MOST_PER_DAY = 0.02, 1.5, 0.25


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    asked: list[Run] = []
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        for seed in options.splits:
            run = {
                "set": data.name,
                "protocol": "days",
                "variant": options.days,
                "method": "partial_fit",
                "split": seed,
                "parameters": options.parameters,
            }
            if key(run) not in read_runs(options.json):
                keep_run(run | measure(data, seed, options), options.json)
            asked.append(run)
    runs = read_runs(options.json)
    print_table([runs[key(run)] for run in asked])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "incremental.json")
    parser.add_argument("--days", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    return parser.parse_args(arguments)


def measure(data: DataSet, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Learn the training images day by day, then at once."""
    clock = CLOCKS[options.clock]
    train, test = data.split(seed, options.test_size)
    order = np.random.RandomState(seed).permutation(train)
    daily = DefectCAMClassifier(random_state=seed, **options.parameters)
    days = []
    for batch in np.array_split(order, options.days):
        started = clock()
        daily.partial_fit(
            data.images[batch], data.labels(batch), classes=np.unique(data.labels(order))
        )
        seconds = clock() - started
        days.append({"images": len(batch), "seconds": seconds} | figures(daily, data, test))
        print(f"{data.name} split {seed} day {len(days)}: {days[-1]}", flush=True)
    whole = DefectCAMClassifier(random_state=seed, **options.parameters)
    started = clock()
    whole.fit(data.images[order], data.labels(order))
    seconds = clock() - started
    at_once = {"images": len(order), "seconds": seconds} | figures(whole, data, test)
    print(f"{data.name} split {seed} at once: {at_once}", flush=True)
    return {"daily": days, "at once": at_once}


def figures(classifier: DefectCAMClassifier, data: DataSet, test: np.ndarray) -> dict[str, float]:
    is_defect = data.labels(test) == DEFECT
    score = classifier.defect_score(data.images[test])
    called = score >= np.log(classifier.threshold_) - np.log1p(-classifier.threshold_)
    return {
        "balanced accuracy": float(balanced_accuracy_score(is_defect, called)),
        "image AUROC": float(roc_auc_score(is_defect, score)),
    }


def print_table(runs: list[Run]) -> None:
    """Print a row per run, and whether the aims are met on average."""
    heads = [
        "set",
        "split",
        "balanced accuracy, day by day",
        "at once",
        "AUROC, last day",
        "at once",
    ]
    heads += ["time in all", "longest update"]
    print("\n| " + " | ".join(heads) + " |")
    print("|---" * len(heads) + "|")
    lost, in_all, longest = [], [], []
    for run in runs:
        days, once = run["daily"], run["at once"]
        seconds = [day["seconds"] / once["seconds"] for day in days]
        lost.append(once["balanced accuracy"] - days[-1]["balanced accuracy"])
        in_all.append(sum(seconds))
        longest.append(max(seconds[1:], default=0.0))
        cells = [
            run["set"],
            str(run["split"]),
            " ".join(f"{day['balanced accuracy']:.3f}" for day in days),
            f"{once['balanced accuracy']:.3f}",
            f"{days[-1]['image AUROC']:.3f}",
            f"{once['image AUROC']:.3f}",
            f"{in_all[-1]:.2f}",
            f"{longest[-1]:.2f}",
        ]
        print("| " + " | ".join(cells) + " |")
    for what, value, most in (
        ("balanced accuracy lost, mean", np.mean(lost), MOST_LOST),
        ("time in all against one fit, mean", np.mean(in_all), MOST_IN_ALL),
        ("longest update against one fit, mean", np.mean(longest), MOST_PER_DAY),
    ):
        print(f"{what}: {value:.3f} (aim: at most {most}): {'met' if value <= most else 'missed'}")


if __name__ == "__main__":
    main()
