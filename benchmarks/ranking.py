"""Do generated defects rank configurations as real ones do? Rank correlations, and JSON.

    python benchmarks/ranking.py path/to/pill path/to/deeppcb --splits 10 11

Each configuration is trained and tested on parts that `make_defects` generates, one data set for
each kind of surface, and on the data sets given (as benchmarks/accuracy.py takes them). For each
figure, Spearman's correlation over the configurations says how far two data sets agree on which is
better; where they do, a configuration can be chosen on generated parts. The correlation between two
real data sets shows how far one can expect to get.

Finished runs are kept in the JSON file as benchmarks/accuracy.py keeps them, so an interrupted
benchmark goes on where it stopped. The correlations are written beside it, as *.correlation.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import accuracy
import numpy as np
from options import make_parser
from printing import digits, print_line
from protocols import PROTOCOLS, DataSet
from scipy.stats import spearmanr

from defectcam.defects import SURFACES

# What each changes of --set. They differ in what is trained, what is pooled, and what is shown.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "average": {"pooling": "average"},
    "top-k": {"pooling": "top_k"},
    "cam": {"heatmap": "cam"},
    "cam-average": {"heatmap": "cam", "pooling": "average"},
    "one-level": {"evidence_stages": 1},
    "frozen": {"trainable_stages": 0},
    "small": {"image_size": 128},
    "no-folds": {"cv": None},
}
FIGURES = ("balanced accuracy", "image AUROC", "AUPRO")
GENERATED = "generated"  # the mean over the surfaces
MIN_CONFIGURATIONS = 3

Means = dict[str, dict[str, dict[str, float]]]  # data set -> configuration -> figure


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    runs = accuracy.read_runs(options.json)
    asked = []
    for data in data_sets(options):
        for seed in options.splits:
            train, test = data.split(seed, options.test_size)
            [case] = PROTOCOLS["split"](data, train, test, seed, options)
            for name in options.configurations:
                run = {
                    "set": data.name,
                    "protocol": "split",
                    "variant": None,
                    "method": "default",
                    "configuration": name,
                    "split": seed,
                    "parameters": options.parameters | CONFIGURATIONS[name],
                }
                asked.append((name, accuracy.key(run)))
                if accuracy.key(run) not in runs:
                    runs = accuracy.add_run(run, data, case, options.json) or runs
    means = means_of([(name, runs[key]) for name, key in asked if key in runs])
    print_means(means)
    found = correlations(means, options.sets)
    print_correlations(found)
    options.json.with_suffix(".correlation.json").write_text(json.dumps(found, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = make_parser(
        __doc__,
        "ranking.json",
        splits=(10, 11),
        test_size=0.4,
        parameters={"image_size": 224},  # of all configurations, before what each changes
    )
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS))
    parser.add_argument("--kinds", nargs="+", default=list(SURFACES), choices=SURFACES)
    parser.add_argument("--n-samples", type=int, default=250, help="generated images of a kind")
    parser.add_argument("--generated-size", type=int, default=256, help="their size in pixels")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.configurations if name not in CONFIGURATIONS]
    if unknown or len(set(options.configurations)) < MIN_CONFIGURATIONS:
        parser.error(
            f"--configurations must be at least {MIN_CONFIGURATIONS} of {list(CONFIGURATIONS)}, "
            f"got {options.configurations}"
        )
    return options


def data_sets(options: argparse.Namespace) -> list[DataSet]:
    size = options.generated_size
    made = [DataSet.generated(kind, options.n_samples, size) for kind in options.kinds]
    return made + [DataSet.read(place, options.same_stem) for place in options.sets]


def means_of(runs: list[tuple[str, accuracy.Run]]) -> Means:
    """Average over splits, and under `GENERATED` over the surfaces as well."""
    values: dict[str, dict[str, dict[str, list[float]]]] = {}
    for configuration, run in runs:
        sets = [run["set"], GENERATED] if run["set"].startswith(GENERATED) else [run["set"]]
        for name in sets:
            of_set = values.setdefault(name, {}).setdefault(configuration, {})
            for figure in FIGURES:
                if figure in run:
                    of_set.setdefault(figure, []).append(run[figure])
    return {
        name: {
            configuration: {figure: float(np.mean(of)) for figure, of in figures.items()}
            for configuration, figures in of_set.items()
        }
        for name, of_set in values.items()
    }


def correlations(means: Means, places: list[str]) -> list[dict[str, Any]]:
    """Compare every generated data set with every real one, and the real ones with each other."""
    real = [Path(place).name for place in places if Path(place).name in means]
    made = [name for name in means if name not in real]
    pairs = [(a, b) for b in real for a in made] + list(combinations(real, 2))
    found = []
    for first, second in pairs:
        for figure in FIGURES:
            shared = [
                (means[first][name][figure], means[second][name][figure])
                for name in means[first]
                if figure in means[first][name] and figure in means[second].get(name, {})
            ]
            if len(shared) >= MIN_CONFIGURATIONS:
                found.append(correlation(first, second, figure, shared))
    return found


def correlation(
    first: str, second: str, figure: str, shared: list[tuple[float, float]]
) -> dict[str, Any]:
    """Spearman's correlation; None where one data set finds all configurations equally good."""
    x, y = np.array(shared).T
    rho = p_value = None
    if np.ptp(x) and np.ptp(y):
        rho, p_value = map(float, spearmanr(x, y))
    return {
        "sets": [first, second],
        "figure": figure,
        "configurations": len(shared),
        "rho": rho,
        "p": p_value,
    }


def print_means(means: Means) -> None:
    for figure in FIGURES:
        sets = [name for name in means if any(figure in row for row in means[name].values())]
        if not sets:
            continue
        print_line(figure, *sets, first=True)
        for configuration in means[sets[0]]:
            rows = [means[name].get(configuration, {}) for name in sets]
            cells = [f"{row[figure]:.{digits(figure)}f}" if figure in row else "-" for row in rows]
            print_line(configuration, *cells)


def print_correlations(found: list[dict[str, Any]]) -> None:
    print_line("rank correlation of", "and", "figure", "configurations", "rho", "p", first=True)
    for row in found:
        cells = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("rho", "p")]
        print_line(*row["sets"], row["figure"], row["configurations"], *cells)


if __name__ == "__main__":
    main()
