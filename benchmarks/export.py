"""Exported models beside the classifier that they were exported from: the same answers, how fast.

    python benchmarks/export.py path/to/pill path/to/deeppcb path/to/magnetic_tile

Without `--model`, a classifier is fitted to some images of the first set. Images of all sets, in
the formats and sizes that they have and in others, are judged by `localize` in float32 and by each
engine (`parity`); the first set's images in memory are localised in turn by all engines with the
same number of threads (`speed`). Where other programs share the processor, `--clock cpu
--threads 1` counts the seconds that the processor worked instead of those that went by. Needs the
extra `openvino`.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from defectcam import DefectCAMClassifier, load
from defectcam.datasets import load_mvtec
from defectcam.export import export, to_openvino, verify_file
from defectcam.images import read_image
from defectcam.parity import in_float32, verify
from defectcam.runtime import Inspector

SIDES = (1.0, 0.5, 1.7, 0.83)  # of the images that are made, as shares of those that there are
FORMATS = ("as it is", ".png", ".bmp", ".jpg", "grey .png", "16-bit .png")
SEED = 0


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", UserWarning)  # of few images and chance level, here by design
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = [load_mvtec(path) for path in options.sets]
        clf = fitted(options, data[0])
        figures: dict[str, Any] = {}
        export(clf, folder / "part.onnx")
        if "parity" in options.only:
            images = mixed_images(data, options.images, folder)
            figures["parity"] = parity(clf, images, folder)
        if "speed" in options.only:
            figures["speed"] = speed(clf, options, data[0], folder)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sets", nargs="+", help="folders in the MVTec AD layout")
    parser.add_argument("--model", help="a file that `save` has written")
    parser.add_argument("--only", nargs="+", default=["parity", "speed"], metavar="PART")
    parser.add_argument("--images", type=int, default=200, help="images of parity")
    parser.add_argument("--train-images", type=int, default=40, help="that are fitted to")
    parser.add_argument("--calibration-images", type=int, default=30, help="of int8")
    parser.add_argument("--judged-images", type=int, default=100, help="that judge int8")
    parser.add_argument("--speed-images", type=int, default=8, help="images of speed, per run")
    parser.add_argument("--repeats", type=int, default=5, help="runs whose median is given")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", default="benchmarks/results/export.json", type=Path)
    parser.add_argument(
        "--set",
        default={"max_epochs": 1, "cv": 2, "augmentation": "none"},
        type=json.loads,
        dest="parameters",
        metavar="JSON",
        help="""the classifier's parameters set otherwise, e.g. '{"image_size": 224}'""",
    )
    return parser.parse_args(arguments)


def fitted(options: argparse.Namespace, data: Any) -> DefectCAMClassifier:
    """A quick classifier: what it finds does not matter here, only that all find the same."""
    if options.model is not None:
        return load(options.model, device="cpu")
    paths, _, is_defect, _ = train_test_split(
        np.asarray(data.paths),
        data.is_defect,
        train_size=options.train_images,
        stratify=data.is_defect,
        random_state=SEED,
    )
    y = np.where(is_defect, "anomaly", "good")
    return DefectCAMClassifier(random_state=SEED, device="cpu", **options.parameters).fit(paths, y)


# Images ------------------------------------------------------------------------------------------


def mixed_images(data: list[Any], n: int, folder: Path) -> list[str]:
    """Files of all sets in turn, of the formats and sizes in turn."""
    rng = np.random.default_rng(SEED)
    orders = [rng.permutation(len(one.paths)) for one in data]
    files = []
    for i in range(n):
        one, order = data[i % len(data)], orders[i % len(data)]
        place = i // len(data)
        source = str(one.paths[order[place % len(order)]])
        kind = FORMATS[place % len(FORMATS)]
        files.append(source if kind == "as it is" else rewritten(source, kind, i, folder))
    return files


def rewritten(source: str, kind: str, number: int, folder: Path) -> str:
    picture = Image.fromarray(read_image(source))
    share = SIDES[number % len(SIDES)]
    picture = picture.resize([max(1, round(side * share)) for side in picture.size])
    path = folder / f"{number:03d}{kind.split()[-1]}"
    if kind.startswith("grey"):
        picture = picture.convert("L")
    if kind.startswith("16-bit"):
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    picture.save(path)
    return str(path)


# Parity ------------------------------------------------------------------------------------------


def parity(clf: DefectCAMClassifier, images: list[str], folder: Path) -> dict[str, Any]:
    table = verify_file(clf, folder / "part.onnx", images)
    print(f"\n{table}\n", flush=True)
    return table.to_dict()


# Speed -------------------------------------------------------------------------------------------


def speed(
    clf: DefectCAMClassifier, options: argparse.Namespace, data: Any, folder: Path
) -> dict[str, Any]:
    paths = np.asarray(data.paths)
    test = paths[-options.speed_images :].tolist()
    images = [read_image(path) for path in test]
    every = max(1, len(paths) // options.judged_images)
    judged = {"X": paths[::every], "y": np.where(data.is_defect[::every], "anomaly", "good")}
    int8 = {"int8": paths[~data.is_defect][: options.calibration_images], **judged}
    limits = {"max_auroc_loss": 1.0, "max_probability_change": 1.0}  # to see, not to refuse
    loss = export(clf, folder / "int8.onnx", **int8, **limits)
    assert loss is not None
    for name in ("part", "int8"):
        to_openvino(folder / f"{name}.onnx", folder / f"{name}.xml")
    engines = {
        "PyTorch float32": in_float32(clf),
        "PyTorch bfloat16": in_bfloat16(clf),
        "ONNX Runtime float32": inspector(folder / "part.onnx", options),
        "OpenVINO float32": inspector(folder / "part.xml", options),
        "OpenVINO bfloat16": inspector(folder / "part.xml", options, precision="bfloat16"),
        "ONNX Runtime int8": inspector(folder / "int8.onnx", options),
        "OpenVINO int8": inspector(folder / "int8.xml", options),
        "OpenVINO int8 and bfloat16": inspector(folder / "int8.xml", options, precision="bfloat16"),
    }
    seconds = medians(
        {name: lambda e=engine: list(e.localize_iter(images)) for name, engine in engines.items()},
        options.repeats,
        time.perf_counter if options.clock == "wall" else time.process_time,
    )
    best = min(seconds["PyTorch float32"], seconds["PyTorch bfloat16"])
    exact = verify(clf, {n: e for n, e in engines.items() if isinstance(e, Inspector)}, test)
    print(
        f"{options.threads} threads, {options.clock} time, {images[0].shape[0]} x "
        f"{images[0].shape[1]} pixels, median of {options.repeats} runs over {len(images)} images\n"
    )
    print("| engine | ms per image | of PyTorch's best throughput | largest probability change |")
    print("|---|---|---|---|")
    changes = {row.engine: f"{row.probability:.1e}" for row in exact.rows}
    for name, one in seconds.items():
        ms = 1000 * one / len(images)
        print(f"| {name} | {ms:.1f} | {best / one:.2f} | {changes.get(name, '-')} |", flush=True)
    print(f"\nint8: {loss}")
    return {"seconds": seconds, "images": len(images), "int8": loss._asdict()}


def inspector(path: Path, options: argparse.Namespace, precision: str = "float32") -> Inspector:
    return Inspector(path, n_threads=options.threads, precision=precision)


def in_bfloat16(clf: DefectCAMClassifier) -> DefectCAMClassifier:
    other = in_float32(clf)
    other.network_ = copy.deepcopy(other.network_).set_dtype(torch.bfloat16)
    return other


def medians(
    functions: dict[str, Callable[[], object]], repeats: int, clock: Callable[[], float]
) -> dict[str, float]:
    """Median seconds of functions that are run in turn, so that all meet the same disturbances."""
    seconds = []
    for _ in range(repeats):
        row = []
        for function in functions.values():
            function()  # engines' threads go on spinning for a while, in the way of the next one's
            started = clock()
            function()
            row.append(clock() - started)
        seconds.append(row)
    return dict(zip(functions, np.median(seconds, axis=0).tolist(), strict=True))


if __name__ == "__main__":
    main()
