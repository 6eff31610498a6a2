"""Seconds and bytes of fit and localize, side by side with plain PyTorch, as tables and as JSON.

    python benchmarks/speed.py path/to/pill

The data set is a folder in the MVTec AD layout, split 80/20 by defect type. What is compared runs
in turn in one process, after a warm-up, and medians are given. Everything runs on the processor;
leave it alone meanwhile. --only picks parts:

  recipe   fit of the published recipe (VGG16, random weights, no early stop) beside a plain loop in
           PyTorch, and how far the weights are apart after the first epoch
  default  fit with the defaults beside that plain loop
  arrays   localize over arrays in memory beside the bare backbone's forward pass
  files    localize over JPEG files beside decoding alone and the forward pass alone
  peak     peak memory of fit above the imported libraries, for N and 10 N images
  search   GridSearchCV, 5 folds by 4 settings, with and without `memory`: of parameters that decide
           after the training, and of parameters of the training
  growth   fit and localize for more and more images
  profile  where the time of fit and of localize with boxes goes

--images and --epochs shorten `recipe` and `default`: times are then scaled up to all images and
epochs, those of epochs by images times epochs, the rest of a fit by images. The figures say so.

Each part is kept in the JSON file as soon as it is done, with a description of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import plain
import profiling
import torch
from PIL import Image
from protocols import GOOD, DataSet
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from defectcam import DefectCAMClassifier
from defectcam.backbones import create_backbone
from defectcam.classifier import AUTO_EPOCHS, AUTO_IMAGES_SEEN
from defectcam.images import read_image, read_images, read_reduced_images
from defectcam.precision import resolve_precision
from defectcam.preprocess import Preprocess

Figures = dict[str, Any]

CPU = torch.device("cpu")
RECIPE_EPOCHS = 10
SEED = 0
NO_STEP = 1e-30  # a learning rate that leaves the first weights as they are
N_SHOWN = 32  # images that a classifier is fitted on where only its localize is timed
N_WARM_UP = 10  # images of a fit that is not measured
GRIDS = {
    "decisions": {"threshold": ["balanced", "recall>=0.95"], "min_area": [1, 100]},
    "trainings": {"pooling_fraction": [0.01, 0.02], "learning_rate": [1e-4, 3e-4]},
}


class Subject:
    """What is measured on: the images of one split, and how much of them."""

    def __init__(self, options: argparse.Namespace, scratch: Path):
        data = DataSet.read(options.folder, [])
        train, test = data.split(SEED, 0.2)
        self.options = options
        self.scratch = scratch  # a folder for files that nobody needs later
        self.train = data.images[train][proportional(data.labels(train))]
        self.labels = data.labels(train)[proportional(data.labels(train))]
        self.test = list(data.images[test])[: options.images]

    def shortened(self, n: int | None = None) -> tuple[list[str], np.ndarray]:
        n = n or self.options.images or len(self.train)
        return list(self.train[:n]), self.labels[:n]

    def classifier(self, **parameters: Any) -> DefectCAMClassifier:
        common = {"device": "cpu", "random_state": SEED}
        return DefectCAMClassifier(**common | self.options.parameters | parameters)

    def recipe(self, **parameters: Any) -> DefectCAMClassifier:
        return DefectCAMClassifier.from_recipe(
            "vgg16_cam",
            **{
                "weights": None,
                "image_size": self.options.recipe_size,
                "stop_at_train_accuracy": None,
                "device": "cpu",
                "random_state": SEED,
                **parameters,
            },
        )

    def fit_seconds(self, clf: DefectCAMClassifier, n_epochs: int) -> Figures:
        """Seconds of a fit to all training images with so many epochs."""
        images, labels = self.shortened()
        clf.set_params(max_epochs=1).fit(*self.shortened(N_WARM_UP))
        clf.set_params(max_epochs=self.options.epochs or n_epochs)
        factor = len(self.train) / len(images)
        totals = []
        for _ in range(self.options.repeats):
            seconds = timed(lambda: clf.fit(images, labels))
            epochs = sum(clf.history_["seconds"])
            longer = n_epochs / clf.max_epochs
            totals.append(factor * (seconds - epochs + longer * epochs))
        return {
            "seconds": float(np.median(totals)),
            "measured on": f"{len(images)} images, {clf.max_epochs} epochs, {len(totals)} fits",
        }

    @cached_property
    def plain_loop(self) -> Figures:
        """Seconds of the plain loop on all training images; weights after its first epoch."""
        images, labels = self.shortened()
        start = self.recipe(max_epochs=1, learning_rate=NO_STEP).fit(*self.shortened(N_WARM_UP))
        targets = torch.as_tensor(np.searchsorted(start.classes_, labels))
        weight = torch.tensor([1.0 if c == GOOD else plain.DEFECT_WEIGHT for c in start.classes_])
        settings = {
            "size": self.options.recipe_size,
            # as `fit` draws it from its random_state
            "seed": int(np.random.RandomState(SEED).randint(np.iinfo(np.int32).max)),
        }
        few = slice(N_WARM_UP)
        model = plain.PlainVGG(start.network_)
        plain.train(model, images[few], targets[few], weight, n_epochs=1, **settings)
        n_epochs = self.options.epochs or RECIPE_EPOCHS
        model = plain.PlainVGG(start.network_)
        first = model.trained()
        seconds, after_first = plain.train(
            model, images, targets, weight, n_epochs=n_epochs, **settings
        )
        whole = np.median(seconds) * RECIPE_EPOCHS * len(self.train) / len(images)
        return {
            "seconds": float(whole),
            "measured on": f"{len(images)} images, median of {n_epochs} epochs",
            "weights": (first, after_first),
        }


def recipe(subject: Subject) -> Figures:
    ours = subject.fit_seconds(subject.recipe(), RECIPE_EPOCHS)
    mixed = subject.fit_seconds(subject.recipe(precision="auto"), RECIPE_EPOCHS)
    loop = subject.plain_loop
    first, after_first = loop["weights"]
    one_epoch = subject.recipe(max_epochs=1).fit(*subject.shortened())
    largest, of_weights, of_change = plain.differences(
        plain.trained_of(one_epoch.network_), after_first, first
    )
    return side_by_side(subject, ours, RECIPE_EPOCHS) | {
        "fit in automatic precision, seconds": mixed["seconds"],
        "plain loop / fit in automatic precision": loop["seconds"] / mixed["seconds"],
        "largest difference of a weight after epoch 1, of its layer's largest": largest,
        "norm of the difference, of the weights'": of_weights,
        "norm of the difference, of what epoch 1 changed": of_change,
    }


def default(subject: Subject) -> Figures:
    n_epochs = int(np.clip(round(AUTO_IMAGES_SEEN / len(subject.train)), *AUTO_EPOCHS))
    clf = subject.classifier()
    if clf.max_epochs != "auto":
        n_epochs = clf.max_epochs
    return side_by_side(subject, subject.fit_seconds(clf, n_epochs), n_epochs)


def side_by_side(subject: Subject, ours: Figures, n_epochs: int) -> Figures:
    loop = subject.plain_loop
    return {
        "training images": len(subject.train),
        "fit, seconds": ours["seconds"],
        f"fit, {n_epochs} epochs, measured on": ours["measured on"],
        "plain loop, seconds": loop["seconds"],
        f"plain loop, {RECIPE_EPOCHS} epochs, measured on": loop["measured on"],
        "plain loop / fit": loop["seconds"] / ours["seconds"],
    }


def arrays(subject: Subject) -> Figures:
    images = list(read_images(subject.test))
    figures: Figures = {"images": len(images)}
    for precision in dict.fromkeys(("float32", name_of(resolve_precision("auto", CPU)))):
        clf = subject.classifier(precision=precision, max_epochs=1, cv=2)
        clf.fit(*subject.shortened(N_SHOWN))
        seconds = medians(
            {
                "forward": forward_of(clf, images),
                "localize": lambda clf=clf: clf.localize(images),
                "localize and boxes": lambda clf=clf: [f.boxes for f in clf.localize(images)],
            },
            subject.options.repeats,
        )
        for name, value in seconds.items():
            figures[f"{precision}: {name}, ms per image"] = 1000 * value / len(images)
        ratio = seconds["localize and boxes"] / seconds["forward"]
        figures[f"{precision}: localize and boxes / forward"] = ratio
    return figures


def forward_of(clf: DefectCAMClassifier, images: Sequence[Any]) -> Callable[[], None]:
    """All stages of the bare backbone, in the classifier's precision, on preprocessed images."""
    dtype = clf.network_.dtype
    backbone = create_backbone(clf.backbone, clf.weights).eval()
    backbone.to(dtype).to(memory_format=torch.channels_last)
    preprocess = Preprocess(clf.image_size_, backbone.mean, backbone.std)
    pixels = torch.cat([preprocess.batch([read_image(image)]) for image in images])
    batches = pixels.to(dtype).to(memory_format=torch.channels_last).split(clf.batch_size)

    @torch.inference_mode()
    def run() -> None:
        for batch in batches:
            backbone(batch)

    return run


def files(subject: Subject) -> Figures:
    clf = subject.classifier(max_epochs=1, cv=2).fit(*subject.shortened(N_SHOWN))
    folder = new_folder(subject.scratch, "files")
    paths = [str(folder / f"{i}.jpg") for i in range(len(subject.test))]
    for source, path in zip(subject.test, paths, strict=True):
        Image.fromarray(read_image(source)).save(path, quality=95)
    seconds = medians(
        {
            "decode": lambda: [None for _ in read_reduced_images(paths, clf.image_size_)],
            "forward": forward_of(clf, paths),
            "localize and boxes": lambda: [found.boxes for found in clf.localize(paths)],
        },
        subject.options.repeats,
    )
    figures: Figures = {"images": len(paths), "precision": name_of(clf.network_.dtype)}
    figures |= {f"{name}, ms per image": 1000 * s / len(paths) for name, s in seconds.items()}
    whole = seconds["localize and boxes"]
    figures["localize and boxes / (decode + forward)"] = whole / (
        seconds["decode"] + seconds["forward"]
    )
    return figures


def peak(subject: Subject) -> Figures:
    figures: Figures = {}
    sizes = (subject.options.peak_images, 10 * subject.options.peak_images)
    parameters = subject.classifier(max_epochs=1).get_params()
    images, labels = copies(subject, sizes[-1], "peak")
    for n in sizes:
        task = subject.scratch / "task.json"
        task.write_text(
            json.dumps(
                {"parameters": parameters, "images": images[:n], "labels": labels[:n].tolist()}
            )
        )
        script = Path(__file__).with_name("peak.py")
        printed = subprocess.check_output([sys.executable, str(script), str(task)], text=True)
        figures[f"{n} images, MB"] = int(printed) / 1e6
    figures["growth per image, MB"] = (
        figures[f"{sizes[1]} images, MB"] - figures[f"{sizes[0]} images, MB"]
    ) / (sizes[1] - sizes[0])
    return figures


def search(subject: Subject) -> Figures:
    images, labels = subject.shortened(subject.options.grid_images)
    subject.classifier(max_epochs=1).fit(images, labels)  # warm-up
    figures: Figures = {"images": len(images), "settings x folds": "4 x 5"}
    for name in subject.options.grids:
        figures |= {f"{name}: {what}": value for what, value in searched(subject, name).items()}
    return figures


def searched(subject: Subject, name: str) -> Figures:
    images, labels = subject.shortened(subject.options.grid_images)
    epochs = {"max_epochs": subject.options.epochs} if subject.options.epochs else {}
    folds = StratifiedKFold(5, shuffle=True, random_state=SEED)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    scores = []
    for repeat in range(subject.options.grid_repeats):
        place = new_folder(subject.scratch, f"{name} {repeat}")
        for kind, times in seconds.items():
            clf = subject.classifier(**epochs, memory=place if kind == "with" else None)
            grid = GridSearchCV(
                clf, GRIDS[name], cv=folds, scoring="balanced_accuracy", refit=False
            )
            times.append(timed(lambda grid=grid: grid.fit(images, labels)))
            scores.append(grid.cv_results_["mean_test_score"])
    median = {kind: float(np.median(times)) for kind, times in seconds.items()}
    return {
        "searches each": subject.options.grid_repeats,
        "without memory, seconds": median["without"],
        "with memory, seconds": median["with"],
        "without / with": median["without"] / median["with"],
        "scores are equal": all(bool((score == scores[0]).all()) for score in scores),
        "memory on disk, MB": size_of(place) / 1e6,
    }


def growth(subject: Subject) -> Figures:
    options = subject.options
    n_epochs = options.epochs or AUTO_EPOCHS[0]  # the same for all sizes
    sizes = [options.least_images]
    while 2 * sizes[-1] <= options.max_images:
        sizes.append(2 * sizes[-1])
    images, labels = copies(subject, sizes[-1], "growth")
    clf = subject.classifier(max_epochs=n_epochs)
    clf.fit(images[:N_SHOWN], labels[:N_SHOWN])  # warm-up
    figures: Figures = {"epochs": n_epochs}
    fits, localizations = [], []
    for n in sizes:
        fits.append(timed(lambda n=n: clf.fit(images[:n], labels[:n])))
        localizations.append(timed(lambda n=n: [f.boxes for f in clf.localize(images[:n])]))
        figures[f"{n} images: fit, seconds"] = fits[-1]
        figures[f"{n} images: localize and boxes, seconds"] = localizations[-1]
    if len(sizes) > 1:
        figures["fit, slope of the logarithms"] = slope(sizes, fits)
        figures["localize, slope of the logarithms"] = slope(sizes, localizations)
    return figures


def profile(subject: Subject) -> Figures:
    images, labels = subject.shortened()
    clf = subject.classifier(
        **{"max_epochs": subject.options.epochs} if subject.options.epochs else {}
    )
    clf.fit(*subject.shortened(N_WARM_UP))  # warm-up
    fit = profiling.profile(lambda: clf.fit(images, labels), profiling.FIT_STEPS)
    localize = profiling.profile(
        lambda: [found.boxes for found in clf.localize(subject.test)], profiling.LOCALIZE_STEPS
    )
    n_epochs = len(clf.history_["epoch"])
    figures: Figures = {"fit": f"{len(images)} images, {n_epochs} epochs of all tails"}
    figures |= {f"fit: {step}, seconds": seconds for step, seconds in fit.items()}
    figures["localize"] = f"{len(subject.test)} images"
    for step, seconds in localize.items():
        figures[f"localize: {step}, ms per image"] = 1000 * seconds / len(subject.test)
    return figures


PARTS: dict[str, Callable[[Subject], Figures]] = {
    "recipe": recipe,
    "default": default,
    "arrays": arrays,
    "files": files,
    "peak": peak,
    "search": search,
    "growth": growth,
    "profile": profile,
}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.simplefilter("ignore", UserWarning)  # of few images and chance level, here by design
    with tempfile.TemporaryDirectory() as scratch:
        subject = Subject(options, Path(scratch))
        for name in options.only:
            figures = PARTS[name](subject)
            keep(options.json, name, {"machine": machine(), "figures": figures})
            print_figures(name, figures)
    print("\n" + ", ".join(f"{name}: {value}" for name, value in machine().items()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="in the MVTec AD layout")
    parser.add_argument("--only", nargs="+", default=list(PARTS), choices=PARTS, metavar="PART")
    parser.add_argument("--images", type=int, help="training images, and test images, at most")
    parser.add_argument("--epochs", type=int, help="epochs that are run")
    parser.add_argument("--repeats", type=int, default=3, help="runs whose median is given")
    parser.add_argument("--peak-images", type=int, default=40, help="N of peak")
    parser.add_argument("--grid-images", type=int, default=60, help="images of search")
    parser.add_argument("--grid-repeats", type=int, default=1, help="searches of each kind")
    parser.add_argument("--grids", nargs="+", default=list(GRIDS), choices=GRIDS)
    parser.add_argument("--least-images", type=int, default=200, help="where growth begins")
    parser.add_argument("--max-images", type=int, default=800, help="where growth ends")
    parser.add_argument("--recipe-size", type=int, default=224, help="the recipe's image_size")
    parser.add_argument("--json", default="benchmarks/results/speed.json", type=Path)
    parser.add_argument(
        "--set",
        default={},
        type=json.loads,
        dest="parameters",
        metavar="JSON",
        help="""parameters of the default set otherwise, e.g. '{"image_size": 224}'""",
    )
    return parser.parse_args(arguments)


# Measuring ---------------------------------------------------------------------------------------


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def medians(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of functions that are run in turn, so that all meet the same disturbances."""
    for function in functions.values():
        function()  # warm-up
    seconds = [[timed(function) for function in functions.values()] for _ in range(repeats)]
    return dict(zip(functions, np.median(seconds, axis=0).tolist(), strict=True))


def slope(sizes: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": joblib.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": name_of(resolve_precision("auto", CPU)),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
    }


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# Images ------------------------------------------------------------------------------------------


def proportional(labels: np.ndarray) -> np.ndarray:
    """An order in which the first n images, for every n, have the labels in their proportions."""
    places = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        places[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.argsort(places, kind="stable")


def copies(subject: Subject, n: int, name: str) -> tuple[list[str], np.ndarray]:
    """So many JPEG files, of the training images, each turned around its edges and with noise.

    Within a label their order is random: as they come, they are sorted by type, and so by size.
    """
    rng = np.random.default_rng(SEED)
    folder = new_folder(subject.scratch, name)
    shuffled = rng.permutation(len(subject.train))
    order = shuffled[proportional(subject.labels[shuffled])]
    chosen = order[np.arange(n) % len(order)]
    paths = [str(folder / f"{i}.jpg") for i in range(n)]
    for path, source in zip(paths, subject.train[chosen], strict=True):
        pixels = read_image(source)
        moved = np.roll(pixels, rng.integers(0, pixels.shape[:2]), axis=(0, 1)).astype(np.int16)
        noisy = moved + rng.integers(-4, 5, pixels.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return paths, subject.labels[chosen]


def new_folder(parent: Path, name: str) -> Path:
    folder = parent / name
    folder.mkdir()
    return folder


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# What is written ---------------------------------------------------------------------------------


def keep(path: Path, name: str, part: dict[str, Any]) -> None:
    parts = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts | {name: part}, indent=1) + "\n")


def print_figures(name: str, figures: Figures) -> None:
    print(f"\n| {name} | |\n|---|---|")
    for figure, value in figures.items():
        print(f"| {figure} | {f'{value:.4g}' if isinstance(value, float) else value} |", flush=True)


if __name__ == "__main__":
    main()
