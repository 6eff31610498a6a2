"""Make a folder of generated parts, train on it, and draw what is found on parts not seen before.

    python examples/generated_parts.py --output generated_parts.png

The parts are brushed metal plates with four holes; the defects are scratches, dents and stains.
They are drawn with random numbers, so the pictures are free of anybody's rights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import cv2
import numpy as np

from defectcam import DefectCAMClassifier
from defectcam.images import find_images

HEIGHT, WIDTH = 240, 320
DEFECTS = ("scratch", "dent", "stain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-good", type=int, default=48, help="good parts to train on")
    parser.add_argument("--n-defective", type=int, default=36, help="defective parts to train on")
    parser.add_argument("--image-size", type=int, default=256, help="pixels (default: 256)")
    parser.add_argument("--max-epochs", type=int, default=10, help="epochs (default: 10)")
    parser.add_argument("--output", type=Path, default=Path("generated_parts.png"))
    options = parser.parse_args()

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder, "parts")
        write_parts(parts, options.n_good, options.n_defective, rng)
        clf = DefectCAMClassifier(
            image_size=options.image_size,
            max_epochs=options.max_epochs,
            random_state=0,
            verbose=1,
        ).fit(parts)
        new_parts = Path(folder, "new")
        write_parts(new_parts, 1, len(DEFECTS), rng)
        found = clf.localize(find_images(new_parts))
        for result in found:
            print(f"{Path(result.source).parent.name:>8}: {result}")
        panels = [np.vstack([result.image, result.overlay()]) for result in found]
    picture = np.hstack([cv2.copyMakeBorder(p, 2, 2, 2, 2, 0, value=(255,) * 3) for p in panels])
    if not cv2.imwrite(str(options.output), picture[..., ::-1]):
        raise SystemExit(f"cannot write {options.output}")
    print(f"Wrote {options.output}: the parts above, what was found below.")


def write_parts(folder: Path, n_good: int, n_defective: int, rng: np.random.Generator) -> None:
    """Write PNG files into one sub-folder per class."""
    kinds = ["good"] * n_good + [DEFECTS[i % len(DEFECTS)] for i in range(n_defective)]
    for number, kind in enumerate(kinds):
        plate = draw_plate(rng)
        if kind != "good":
            plate = {"scratch": scratch, "dent": dent, "stain": stain}[kind](plate, rng)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / kind / f"{number:03d}.png"), plate.clip(0, 255).astype(np.uint8))


def draw_plate(rng: np.random.Generator) -> np.ndarray:
    """Brushed metal with four holes, a little displaced and lit differently from part to part."""
    noise = rng.normal(size=(HEIGHT, WIDTH)).astype(np.float32)
    brushed = cv2.GaussianBlur(noise, (0, 0), sigmaX=18, sigmaY=0.6)
    grey = 150 + 14 * brushed / brushed.std()
    grey += np.linspace(-1, 1, WIDTH, dtype=np.float32) * rng.uniform(-15, 15)
    plate = np.repeat(grey[..., None], 3, axis=2) * np.float32([1.0, 0.99, 0.96])
    shift = rng.integers(-4, 5, size=2)
    for x, y in ((40, 40), (WIDTH - 40, 40), (40, HEIGHT - 40), (WIDTH - 40, HEIGHT - 40)):
        centre = (int(x + shift[0]), int(y + shift[1]))
        cv2.circle(plate, centre, 15, (205, 205, 200), -1, cv2.LINE_AA)
        cv2.circle(plate, centre, 12, (35, 35, 38), -1, cv2.LINE_AA)
    return plate + rng.normal(0, 2, size=plate.shape)


def scratch(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = rng.integers(70, 170), rng.integers(50, HEIGHT - 90)
    steps = np.cumsum(rng.uniform((3, -1), (9, 5), size=(10, 2)), axis=0)
    points = (steps + np.array([x, y])).astype(np.int32)
    cv2.polylines(plate, [points], False, (228, 228, 226), 1, cv2.LINE_AA)
    cv2.polylines(plate, [points + 1], False, (95, 95, 95), 1, cv2.LINE_AA)
    return plate


def dent(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y, radius = rng.integers(90, 230), rng.integers(60, 180), rng.uniform(8, 15)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    across, down = (columns - x) / radius, (rows - y) / radius
    shade = (across + down) * np.exp(-(across**2 + down**2))
    return plate + 70 * shade[..., None]


def stain(plate: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    x, y = int(rng.integers(90, 230)), int(rng.integers(70, 170))
    axes = (int(rng.integers(12, 28)), int(rng.integers(8, 18)))
    cover = np.zeros((HEIGHT, WIDTH), np.float32)
    cv2.ellipse(cover, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
    cover = cv2.GaussianBlur(cover, (0, 0), 4)[..., None]
    return plate * (1 - cover * np.float32([0.45, 0.3, 0.2]))  # BGR: brownish


if __name__ == "__main__":
    main()
