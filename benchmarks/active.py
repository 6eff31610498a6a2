"""Labels needed to reach a balanced accuracy: `query` against random choice.

    python benchmarks/active.py path/to/magnetic_tile --splits 0 1 2 3 4 --target 0.95

A data set is what benchmarks/accuracy.py takes. Both ways start from the same --start labelled
images of the split's training images, drawn at random with at least two of each class, and label
--step more in each round: those that `query` asks for, or random ones. After each round a new
classifier is fitted on all that is labelled, and judged on the split's test images. The labels that
a way needs are the fewest after which the target is reached; between two rounds by linear
interpolation. A single curve is noisy, and its first lucky round counts; so the aim, at most .6 of
what random choice needs, is about the mean of the splits' curves, and the table shows both.

Give --set '{"memory": "features"}' to run the trunk once per image.
"""

from __future__ import annotations

import argparse

import numpy as np
from accuracy import Run, keep_run, key, read_runs
from options import make_parser
from protocols import DEFECT, GOOD, DataSet
from sklearn.metrics import balanced_accuracy_score

from defectcam import DefectCAMClassifier

WAYS = ("random", "query")
MOST = 0.6


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    asked: list[Run] = []
    for place in options.sets:
        data = DataSet.read(place, options.same_stem)
        for seed in options.splits:
            for way in WAYS:
                run = {
                    "set": data.name,
                    "protocol": "active",
                    "variant": f"{options.start}+{options.step}..{options.most}",
                    "method": way,
                    "split": seed,
                    "parameters": options.parameters,
                }
                if key(run) not in read_runs(options.json):
                    keep_run(run | {"curve": learn(data, seed, way, options)}, options.json)
                asked.append(run)
    runs = read_runs(options.json)
    print_table([runs[key(run)] for run in asked], options.target)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, "active.json", splits=range(5))
    parser.add_argument("--target", type=float, default=0.95, help="balanced accuracy")
    parser.add_argument("--start", type=int, default=40, help="labelled images to start from")
    parser.add_argument("--step", type=int, default=40, help="labels per round")
    parser.add_argument("--most", type=int, default=600, help="labels at which a way ends")
    return parser.parse_args(arguments)


def learn(
    data: DataSet, seed: int, way: str, options: argparse.Namespace
) -> list[tuple[int, float]]:
    """Return the number of labels and the balanced accuracy after each round."""
    train, test = data.split(seed, options.test_size)
    rng = np.random.RandomState(seed)
    labelled = first_labels(data.labels(train), options.start, rng)
    curve: list[tuple[int, float]] = []
    while True:
        clf = DefectCAMClassifier(random_state=seed, **options.parameters)
        chosen = train[labelled]
        clf.fit(data.images[chosen], data.labels(chosen))
        called = clf.predict(data.images[test]) == DEFECT
        accuracy = float(balanced_accuracy_score(data.labels(test) == DEFECT, called))
        curve.append((len(labelled), accuracy))
        print(f"{data.name} split {seed} {way}: {curve[-1]}", flush=True)
        pool = np.setdiff1d(np.arange(len(train)), labelled)
        n = min(options.step, len(pool), options.most - len(labelled))
        if n < 1:
            return curve
        if way == "query":
            more = pool[clf.query(data.images[train[pool]], n)]
        else:
            more = rng.choice(pool, n, replace=False)
        labelled = np.concatenate([labelled, more])


def first_labels(labels: np.ndarray, n: int, rng: np.random.RandomState) -> np.ndarray:
    """Draw the images that are labelled at the start, two of each class among them."""
    order = rng.permutation(len(labels))
    sure = np.concatenate([order[labels[order] == label][:2] for label in (GOOD, DEFECT)])
    return np.concatenate([sure, order[~np.isin(order, sure)]])[:n]


def needed(curve: list[tuple[int, float]], target: float) -> float:
    """Labels at which the curve first reaches the target; infinite if it does not."""
    before = None
    for n, accuracy in curve:
        if accuracy >= target:
            if before is None:
                return float(n)
            share = (target - before[1]) / (accuracy - before[1])
            return float(before[0] + share * (n - before[0]))
        before = (n, accuracy)
    return float("inf")


def print_table(runs: list[Run], target: float) -> None:
    print(f"\nLabels needed for a balanced accuracy of {target}\n")
    print("| set | split | random | query | share |\n|---|---|---|---|---|")
    found = {
        (run["set"], run["split"], run["method"]): needed(run["curve"], target) for run in runs
    }
    totals: dict[str, list[float]] = {way: [] for way in WAYS}
    for name, split in dict.fromkeys((run["set"], run["split"]) for run in runs):
        labels = [found[name, split, way] for way in WAYS]
        for way, n in zip(WAYS, labels, strict=True):
            totals[way].append(n)
        cells = [name, str(split), *(f"{n:.0f}" for n in labels), share_of(*labels)]
        print("| " + " | ".join(cells) + " |")
    curves = [mean_curve([run["curve"] for run in runs if run["method"] == way]) for way in WAYS]
    labels = [needed(curve, target) for curve in curves]
    print(f"mean of the labels: share {share_of(*(np.mean(totals[way]) for way in WAYS))}")
    print("\n| labels | " + " | ".join(WAYS) + " |\n|---|---|---|")
    for (n, first), (_, second) in zip(*curves, strict=True):
        print(f"| {n} | {first:.3f} | {second:.3f} |")
    print(
        f"mean curves: {labels[0]:.0f} and {labels[1]:.0f} labels, share {share_of(*labels)} "
        f"(aim: at most {MOST})"
    )


def share_of(random: float, query: float) -> str:
    """Say which share of random choice's labels is needed, if both ways reached the target."""
    return f"{query / random:.2f}" if np.isfinite([random, query]).all() else "-"


def mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Return the mean accuracy after each round, of sets of one size."""
    return [
        (points[0][0], float(np.mean([accuracy for _, accuracy in points])))
        for points in zip(*curves, strict=False)
    ]


if __name__ == "__main__":
    main()
