"""Large images with tiny defects: seen in tiles, and whole.

    python benchmarks/large_images.py surfaces deeppcb peak --deeppcb path/to/deeppcb

Two sets, each with as many good images as defective ones:

- surfaces: generated cast surfaces (`make_defects`), mirrored to --side pixels, with sensor noise
  of their own. Defective ones have three scratches of 12 pixels somewhere.
- deeppcb: mosaics of --boards x --boards boards of DeepPCB. Defective ones have one board with
  defects among good ones; training and test boards differ.

One classifier is fitted on tiles and another on the same images whole. Recall is that of images;
boxes are right where they overlap a defect with an intersection over union of at least --iou, which
is little because a scratch of 12 pixels is smaller than a cell of the map is wide. For peak, a new
process localises one image of --peak x --peak pixels from an uncompressed TIFF file, and says how
much memory that took above what the imported libraries and the model take.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from defectcam import DefectCAMClassifier, load
from defectcam.datasets import load_mvtec, make_defects
from defectcam.images import read_image
from defectcam.metrics import box_precision_recall_f1

BASE = 1024  # pixels of a generated surface
LENGTH = 12  # pixels of a scratch
N_SCRATCHES = 3


class Images(NamedTuple):
    """Large images, left in their files."""

    images: list[np.ndarray]
    is_defect: np.ndarray
    boxes: list[np.ndarray]


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.simplefilter("ignore", UserWarning)
    if options.localize:
        report_peak(*options.localize)
        return
    sets = {"surfaces": (surfaces, options.tile), "deeppcb": (mosaics, options.tile_deeppcb)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if set(options.parts) & set(sets):
            print("| set | images | seen | recall | overkill | box F1 | box recall | s fit | s |")
            print("|---" * 9 + "|", flush=True)
        for name in options.parts:
            if name in sets:
                make, tile = sets[name]
                compare(name, *make(root, options), tile, options)
        if "peak" in options.parts:
            print_peak(root, options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", default=["surfaces", "peak"], help="surfaces, deeppcb, peak"
    )
    parser.add_argument("--deeppcb", metavar="DIR", help="the data set's folder, for deeppcb")
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--boards", type=int, default=3, help="in a row of a mosaic")
    parser.add_argument("--train", type=int, default=8, help="images")
    parser.add_argument("--test", type=int, default=8, help="images")
    parser.add_argument("--tile", type=int, default=320)
    parser.add_argument("--tile-deeppcb", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--iou", type=float, default=0.05)
    parser.add_argument("--peak", type=int, default=20_000, help="pixels of a side")
    parser.add_argument("--tile-peak", type=int, default=1280)
    parser.add_argument("--localize", nargs=2, metavar=("MODEL", "IMAGE"), help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def compare(name: str, train: Images, test: Images, tile: int, options: argparse.Namespace) -> None:
    """Print a line with tiles and one without."""
    labels = np.where(train.is_defect, "defect", "good")
    for way in (tile, None):
        clf = DefectCAMClassifier(
            tile=way, cv=2, max_epochs=options.epochs, random_state=0, n_jobs=1
        )
        started = time.perf_counter()
        clf.fit(train.images, labels)
        fit_seconds = time.perf_counter() - started
        started = time.perf_counter()
        found = list(clf.localize_iter(test.images))
        seconds = (time.perf_counter() - started) / len(found)
        called = np.array([one.is_defect for one in found])
        figures = box_precision_recall_f1(
            test.boxes,
            [one.boxes for one in found],
            [one.box_scores for one in found],
            iou_threshold=options.iou,
        )
        cells = [
            name,
            f"{len(train.images)} + {len(test.images)}",
            f"tiles of {way}" if way else "whole",
            f"{called[test.is_defect].mean():.2f}",
            f"{called[~test.is_defect].mean():.2f}",
            f"{figures['f1']:.2f}",
            f"{figures['recall']:.2f}",
            f"{fit_seconds:.0f}",
            f"{seconds:.1f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


# --- Images -----------------------------------------------------------------------------------


def surfaces(root: Path, options: argparse.Namespace) -> tuple[Images, Images]:
    n = options.train + options.test
    bases = make_defects(n, BASE, kind="cast", defect_rate=0, random_state=0).images
    rng = np.random.default_rng(0)
    is_defect = np.arange(n) % 2 == 1
    images, boxes = [], []
    for number, (base, bad) in enumerate(zip(bases, is_defect, strict=True)):
        image = mapped(root / f"surface{number}", (options.side, options.side, 3))
        mirror(base, image)
        boxes.append(scratch(image, rng) if bad else np.empty((0, 4), dtype=int))
        add_noise(image, rng)
        images.append(image)
    return split(images, is_defect, boxes, options.train)


def mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    return np.lib.format.open_memmap(path.with_suffix(".npy"), "w+", np.uint8, shape)


def mirror(base: np.ndarray, image: np.ndarray) -> None:
    """Fill an image with mirror images of the surface, so that there are no seams."""
    side = len(base)
    for i, top in enumerate(range(0, len(image), side)):
        for j, left in enumerate(range(0, image.shape[1], side)):
            place = image[top : top + side, left : left + side]
            part = base[:: -1 if i % 2 else 1, :: -1 if j % 2 else 1]
            place[:] = part[: place.shape[0], : place.shape[1]]


def scratch(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scratch an image; return the boxes."""
    boxes = []
    for _ in range(N_SCRATCHES):
        x, y = rng.integers(100, np.array(image.shape[1::-1]) - 100)
        angle = rng.uniform(0, np.pi)
        patch = image[y - 20 : y + 20, x - 20 : x + 20].copy()
        step = LENGTH / 2 * np.array([np.cos(angle), np.sin(angle)])
        ends = [tuple(np.rint(16 * (19.5 + sign * step)).astype(int).tolist()) for sign in (-1, 1)]
        bright = 255 if patch.mean() < 128 else 20
        drawn = cv2.line(patch.copy(), *ends, (bright,) * 3, 2, cv2.LINE_AA, shift=4)
        marked = np.argwhere((drawn != patch).any(axis=2))
        image[y - 20 : y + 20, x - 20 : x + 20] = drawn
        (top, left), (bottom, right) = marked.min(axis=0), marked.max(axis=0) + 1
        boxes.append([x - 20 + left, y - 20 + top, x - 20 + right, y - 20 + bottom])
    return np.array(boxes)


def add_noise(image: np.ndarray, rng: np.random.Generator) -> None:
    """Add noise that differs everywhere: pieces of one large field, from random places."""
    field = rng.integers(-4, 5, size=(2 * BASE, 2 * BASE, 1), dtype=np.int16)
    for top in range(0, len(image), BASE):
        for left in range(0, image.shape[1], BASE):
            y, x = rng.integers(0, BASE, size=2)
            place = image[top : top + BASE, left : left + BASE]
            noise = field[y : y + place.shape[0], x : x + place.shape[1]]
            place[:] = (place + noise).clip(0, 255)


def mosaics(root: Path, options: argparse.Namespace) -> tuple[Images, Images]:
    data = load_mvtec(options.deeppcb)
    marks = {Path(path).stem: mask for path, mask in zip(data.paths, data.masks, strict=True)}
    bad_paths = {Path(p).stem: p for p, bad in zip(data.paths, data.is_defect, strict=True) if bad}
    good_paths = {
        Path(p).stem: p for p, bad in zip(data.paths, data.is_defect, strict=True) if not bad
    }
    stems = sorted(set(bad_paths) & set(good_paths))
    rng = np.random.default_rng(0)
    rng.shuffle(stems)
    n, per_image = options.train + options.test, options.boards**2
    # A board is in training images or in test images, never in both.
    n_train = len(stems) * options.train // n
    pools = [stems[:n_train], stems[n_train:]]
    is_defect = np.arange(n) % 2 == 1
    images, boxes = [], []
    for number, bad in enumerate(is_defect):
        pool = pools[number >= options.train]
        chosen = rng.choice(pool, per_image, replace=len(pool) < per_image)
        at = int(rng.integers(per_image)) if bad else -1
        paths = [(bad_paths if k == at else good_paths)[stem] for k, stem in enumerate(chosen)]
        boards = [read_image(path) for path in paths]
        side = len(boards[0])
        image = mapped(root / f"mosaic{number}", (side * options.boards, side * options.boards, 3))
        for k, board in enumerate(boards):
            top, left = (side * part for part in divmod(k, options.boards))
            image[top : top + side, left : left + side] = board
        found = np.empty((0, 4), dtype=int)
        if bad:
            top, left = (side * part for part in divmod(at, options.boards))
            mask = read_image(marks[chosen[at]])[..., 0] > 127
            stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2][1:]
            found = np.column_stack([stats[:, :2], stats[:, :2] + stats[:, 2:4]])
            found += np.array([left, top, left, top])
        images.append(image)
        boxes.append(found)
    return split(images, is_defect, boxes, options.train)


def split(
    images: list[np.ndarray], is_defect: np.ndarray, boxes: list[np.ndarray], n_train: int
) -> tuple[Images, Images]:
    first, rest = slice(n_train), slice(n_train, None)
    return (
        Images(images[first], is_defect[first], boxes[first]),
        Images(images[rest], is_defect[rest], boxes[rest]),
    )


# --- Memory -----------------------------------------------------------------------------------


def print_peak(root: Path, options: argparse.Namespace) -> None:
    import tifffile

    side, tile = options.peak, options.tile_peak
    model, path = root / "model.safetensors", root / "huge.tif"
    data = make_defects(6, tile, kind="cast", defect_rate=0.5, random_state=1)
    clf = DefectCAMClassifier(
        tile=tile, cv=None, max_epochs=1, augmentation="none", random_state=0, n_jobs=1
    )
    clf.fit(data.images, data.types)  # what it finds does not matter here
    clf.save(model)
    base = data.images[~data.target][0][:BASE, :BASE]
    image = tifffile.memmap(path, shape=(side, side, 3), dtype=np.uint8, photometric="rgb")
    mirror(base, image)
    scratch(image, np.random.default_rng(1))
    add_noise(image, np.random.default_rng(2))
    image.flush()
    del image
    command = [sys.executable, __file__, "--localize", str(model), str(path)]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, end="")


def report_peak(model: str, path: str) -> None:
    clf = load(model)
    clf.localize(np.zeros((clf.tile_[0], clf.tile_[1], 3), np.uint8))  # what the libraries set up
    before = peak_of_process()
    started = time.perf_counter()
    found = clf.localize(path)
    n_boxes = len(found.boxes)
    seconds = time.perf_counter() - started
    peak = peak_of_process()
    height, width = found.image_size
    print(
        f"\n{height} x {width} pixels ({3 * height * width / 2**20:.0f} MiB) in {seconds:.0f} s: "
        f"peak {peak:.0f} MiB, {peak - before:.0f} MiB above libraries and model; "
        f"probability {found.probability:.2f}, {n_boxes} boxes, map of {found.grid.shape} cells"
    )


def peak_of_process() -> float:
    """MiB at most so far; Linux. `resource.getrusage` would count the parent's, before exec."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
