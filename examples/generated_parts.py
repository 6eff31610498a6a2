"""Make a folder of generated parts, train on it, and draw what is found on parts not seen before.

    python examples/generated_parts.py --output generated_parts.png

The parts are brushed metal plates with four holes; the defects are scratches, dents and stains.
They are drawn with random numbers, so the pictures are free of anybody's rights.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import product
from pathlib import Path

import cv2
import numpy as np

from defectcam import DefectCAMClassifier

HEIGHT, WIDTH = 240, 320
QUICK = {"n_good": 4, "n_defective": 6, "image_size": 64, "max_epochs": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-good", type=int, default=40, help="good parts to train on")
    parser.add_argument("--n-defective", type=int, default=24, help="defective parts to train on")
    parser.add_argument("--image-size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--max-epochs", type=int, default=10, help="epochs (default: 10)")
    parser.add_argument("--quick", action="store_true", help=f"a trial that learns little: {QUICK}")
    parser.add_argument("--output", type=Path, default=Path("generated_parts.png"))
    options = parser.parse_args()
    if options.quick:
        vars(options).update(QUICK)

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_parts(Path(folder, "parts"), options.n_good, options.n_defective, rng)
        clf = DefectCAMClassifier(
            image_size=options.image_size, max_epochs=options.max_epochs, random_state=0, verbose=1
        )
        clf.fit(Path(folder, "parts"))
        found = clf.localize(write_parts(Path(folder, "new"), 1, len(DRAW_DEFECT), rng))
        for result in found:
            print(f"{result.source.parent.name:>8}: called {result.label}, ", end="")
            print(f"probability of a defect {result.probability:.2f}, {len(result.boxes)} boxes")
        panels = [np.vstack([result.image, result.overlay()]) for result in found]
    picture = np.hstack([np.pad(p, ((0, 0), (2, 2), (0, 0)), constant_values=255) for p in panels])
    if not cv2.imwrite(str(options.output), picture[..., ::-1]):
        raise SystemExit(f"cannot write {options.output}")
    print(f"Wrote {options.output}: the parts above, what was found below.")


def write_parts(
    folder: Path, n_good: int, n_defective: int, rng: np.random.Generator
) -> list[Path]:
    """Write PNG files into one sub-folder per class, and return them, good ones first."""
    defects = list(DRAW_DEFECT)
    paths = []
    for i in range(n_good + n_defective):
        part, kind = draw_plate(rng), "good"
        if i >= n_good:
            kind = defects[(i - n_good) % len(defects)]
            part = DRAW_DEFECT[kind](part, rng)
        paths.append(folder / kind / f"{i:03d}.png")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(paths[-1]), part.clip(0, 255).astype(np.uint8))
    return paths


def draw_plate(rng: np.random.Generator) -> np.ndarray:
    """Brushed metal with four holes, a little displaced and lit differently from part to part."""
    noise = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    brushed = cv2.GaussianBlur(noise, (0, 0), sigmaX=18, sigmaY=0.6)
    grey = 150 + 12 * brushed / brushed.std()
    grey += np.linspace(-1, 1, WIDTH, dtype=np.float32) * rng.uniform(-15, 15)
    x, y = rng.integers(-4, 5, size=2).tolist()
    cover = np.zeros((HEIGHT, WIDTH), np.float32)  # 1 where the plate is, 0 where the table shows
    cv2.rectangle(cover, (x + 30, y + 30), (x + WIDTH - 30, y + HEIGHT - 30), 1.0, -1)
    cover = cv2.dilate(cover, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (37, 37)))
    for hole in product((x + 44, x + WIDTH - 44), (y + 44, y + HEIGHT - 44)):
        cv2.circle(grey, hole, 15, 205.0, -1)
        cv2.circle(cover, hole, 12, 0.0, -1)
    cover = cv2.GaussianBlur(cover, (0, 0), 0.8)
    plate = cover * grey + (1 - cover) * 36
    return plate[..., None] * [1.0, 0.99, 0.96] + rng.normal(0, 2, size=(HEIGHT, WIDTH, 3))  # BGR


def scratch(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A fine groove: a bright edge beside a dark one."""
    start = rng.uniform((75, 60), (WIDTH - 165, HEIGHT - 115))
    steps = rng.uniform((3, -1), (9, 5), size=(10, 2))
    points = (start + np.cumsum(steps, axis=0)).astype(np.int32)
    cv2.polylines(plate, [points], False, (228, 228, 226), 1)
    cv2.polylines(plate, [points + 1], False, (95, 95, 95), 1)
    return plate


def dent(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A hollow: dark towards the light, bright away from it."""
    x, y = rng.uniform((80, 65), (WIDTH - 80, HEIGHT - 65))
    radius = rng.uniform(8, 15)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across, down = (columns - x) / radius, (rows - y) / radius
    shade = (across + down) * np.exp(-(across**2) - down**2)
    return plate + 70 * shade[..., None]


def stain(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A brownish film with a soft rim."""
    centre = rng.integers((80, 65), (WIDTH - 80, HEIGHT - 65)).tolist()
    axes = rng.integers((12, 8), (28, 18)).tolist()
    cover = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.ellipse(cover, centre, axes, rng.uniform(0, 180), 0, 360, 1.0, -1)
    cover = cv2.GaussianBlur(cover, (0, 0), 4)[..., None]
    return plate * (1 - cover * [0.45, 0.3, 0.2])  # BGR


DRAW_DEFECT = {"scratch": scratch, "dent": dent, "stain": stain}


if __name__ == "__main__":
    main()
